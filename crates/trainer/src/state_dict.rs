//! The trainer's state as named tensors, and back.
//!
//! What every rank holds alike is dealt out: each writes a share of the list, contiguous, of nearly the same number of
//! bytes. What only one rank holds (slots of a bank) that rank writes. Reading goes through the tensors one by one, in
//! any order, whatever the world size was that wrote them: a rank takes what is its own and keeps nothing else.

use checkpoint::{Dtype, Error, ShardEncoder, State, Tensor};
use collective::Communicator;
use engine::models::BatchNormScope;
use engine::network::Network;
use engine::optim::Optimizer;
use engine::parameters::{ParameterEntry, ParameterKind, Parameters};
use objectives::{Array, ArrayType, Objective};
use std::collections::HashSet;
use std::ops::Range;

use crate::step::Trainer;
use crate::step::momentum::MomentumEncoder;

/// PyTorch's name for a batch norm's running mean, of which each has one.
const RUNNING_MEAN: &str = "running_mean";
const BATCHES: &str = "num_batches_tracked";
const UPDATES: &str = "counters.updates";
/// Begins the names of the trained network.
pub const MODEL: &str = "model.";
const MOMENTUM: &str = "momentum.";
const OPTIMIZER: &str = "optimizer.";
const OBJECTIVE: &str = "objective.";

/// Where a manifest's metadata keep the run's resolved configuration.
pub const CONFIG_KEY: &str = "config_toml";

/// What a checkpoint holds.
pub struct Parts<'a> {
    /// The trained network, as `model.backbone.…`, `model.head.…`, ...
    pub network: &'a Network<f32>,
    /// Its optimizer, as `optimizer.<slot>.backbone.…`, and the count of updates.
    pub optimizer: &'a Optimizer<f32>,
    /// The momentum encoder, as `momentum.backbone.…`.
    pub momentum: Option<&'a Network<f32>>,
    /// What the objective keeps, under its own names.
    pub objective: Vec<Array<'a>>,
}

impl<'a> Parts<'a> {
    /// The parts of a trainer.
    pub fn new(
        network: &'a Network<f32>,
        optimizer: &'a Optimizer<f32>,
        momentum: Option<&'a MomentumEncoder>,
        objective: &'a Objective,
    ) -> Parts<'a> {
        let momentum = momentum.map(|momentum| &momentum.network);
        Parts { network, optimizer, momentum, objective: objective.state() }
    }

    /// The parts of a trainer that is not used meanwhile.
    pub fn of(trainer: &'a Trainer) -> Parts<'a> {
        let Trainer { network, optimizer, momentum, objective, .. } = trainer;
        Parts::new(network, optimizer, momentum.as_ref(), objective)
    }

    /// What `rank` writes of the whole state.
    pub fn shard(&self, rank: usize, world_size: usize) -> Vec<Tensor<'_>> {
        let mut tensors = network_tensors(MODEL, self.network.parameters());
        tensors.extend(optimizer_tensors(self.optimizer, self.network.parameters()));
        if let Some(momentum) = self.momentum {
            tensors.extend(network_tensors(MOMENTUM, momentum.parameters()));
        }
        let (sharded, replicated): (Vec<_>, Vec<_>) = self.objective.iter().partition(|array| array.sharded);
        tensors.extend(replicated.into_iter().map(tensor_of));
        let bytes: Vec<usize> = tensors.iter().map(|tensor| tensor.data.len()).collect();
        let mut shard: Vec<Tensor<'_>> = tensors.drain(share_of(&bytes, rank, world_size)).collect();
        shard.extend(sharded.into_iter().map(tensor_of));
        shard
    }
}

/// Bytes of this rank's shard of a checkpoint of the trainer as it is: all its state is allocated from the start, so that
/// its later shards are as large.
pub fn shard_bytes(trainer: &Trainer) -> u64 {
    let parts = Parts::of(trainer);
    let shard = parts.shard(trainer.control.rank(), trainer.control.world_size());
    ShardEncoder::new(&shard).total_bytes()
}

/// Loads a trainer from a checkpoint, tensor by tensor.
pub struct Restoration<'a> {
    network: NetworkRestoration<'a>,
    momentum: Option<NetworkRestoration<'a>>,
    optimizer: &'a mut Optimizer<f32>,
    objective: &'a mut Objective,
    /// Tensors of the optimizer that are there.
    seen: HashSet<String>,
}

impl<'a> Restoration<'a> {
    /// Begins; the trainer holds a mixture until [`Restoration::finish`].
    pub fn new(trainer: &'a mut Trainer) -> Restoration<'a> {
        let momentum = trainer.momentum.as_mut().map(|momentum| &mut momentum.network);
        Restoration {
            network: NetworkRestoration::new(MODEL, trainer.network.parameters_mut()),
            momentum: momentum.map(|momentum| NetworkRestoration::new(MOMENTUM, momentum.parameters_mut())),
            optimizer: &mut trainer.optimizer,
            objective: &mut trainer.objective,
            seen: HashSet::new(),
        }
    }

    /// Takes a tensor, or what of it is this rank's.
    ///
    /// # Errors
    /// If it has another shape than the trainer's, or is one that this trainer does not have.
    pub fn take(&mut self, tensor: &Tensor<'_>) -> Result<(), Unfit> {
        let name = &tensor.name[..];
        match &mut self.momentum {
            _ if name.starts_with(MODEL) => Ok(self.network.take(tensor)?),
            Some(momentum) if name.starts_with(MOMENTUM) => Ok(momentum.take(tensor)?),
            _ if name.starts_with(OPTIMIZER) || name == UPDATES => Ok(self.take_optimizer(tensor)?),
            _ if name.starts_with(OBJECTIVE) => Ok(self.objective.restore(&array(tensor)?)?),
            _ => Err(unknown(tensor).into()),
        }
    }

    fn take_optimizer(&mut self, tensor: &Tensor<'_>) -> Result<(), Error> {
        if tensor.name == UPDATES {
            self.optimizer.updates = tensor.to_u64()?;
        } else {
            let entries = &self.network.parameters.entries;
            let place = self.optimizer.state_mut().into_iter().find_map(|(slot, values)| {
                let parameter = tensor.name.strip_prefix(&slot_name(slot, ""))?;
                let entry = entries.iter().find(|entry| entry.name == parameter)?;
                Some((&entry.shape, &mut values[entry.range()]))
            });
            let (shape, values) = place.ok_or_else(|| unknown(tensor))?;
            tensor.copy_to_f32(shape, values)?;
        }
        self.seen.insert(tensor.name.clone());
        Ok(())
    }

    /// Ends the restoration.
    ///
    /// # Errors
    /// If a tensor, or some of this rank's slots, were not there.
    pub fn finish(self) -> Result<(), Unfit> {
        self.network.finish()?;
        if let Some(momentum) = self.momentum {
            momentum.finish()?;
        }
        let parameters = &*self.network.parameters;
        let slots = self.optimizer.state().into_iter();
        let names =
            slots.flat_map(|(slot, _)| trained(parameters).map(move |entry| slot_name(slot, &entry.name)));
        all_seen(names.chain([UPDATES.to_owned()]), &self.seen)?;
        Ok(self.objective.restored()?)
    }
}

/// Why a checkpoint is not one of this trainer.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// A tensor does not fit, or is missing.
    #[error(transparent)]
    Tensor(#[from] Error),
    /// What the objective keeps does not fit, or is missing.
    #[error(transparent)]
    Objective(#[from] objectives::Error),
}

/// Loads one network.
struct NetworkRestoration<'a> {
    prefix: &'static str,
    parameters: &'a mut Parameters<f32>,
    batches: Option<u64>,
    seen: HashSet<String>,
}

impl<'a> NetworkRestoration<'a> {
    fn new(prefix: &'static str, parameters: &'a mut Parameters<f32>) -> Self {
        Self { prefix, parameters, batches: None, seen: HashSet::new() }
    }

    fn take(&mut self, tensor: &Tensor<'_>) -> Result<(), Error> {
        let Parameters { entries, values, buffers, buffer_values, .. } = &mut *self.parameters;
        let name = tensor.name.strip_prefix(self.prefix).unwrap_or_default();
        if let Some(entry) = entries.iter().find(|entry| entry.name == name) {
            tensor.copy_to_f32(&entry.shape, &mut values[entry.range()])?;
        } else if let Some(entry) = buffers.iter().find(|entry| entry.name == name) {
            tensor.copy_to_f32(&entry.shape, &mut buffer_values[entry.range()])?;
        } else if buffers.iter().any(|entry| batches_name(&entry.name).as_deref() == Some(name)) {
            self.batches = Some(batches_in(tensor, self.batches)?);
        } else {
            // A checkpoint of a larger network must not be taken for one of this.
            return Err(unknown(tensor));
        }
        self.seen.insert(tensor.name.clone());
        Ok(())
    }

    fn finish(&self) -> Result<(), Error> {
        let names = network_tensors(self.prefix, self.parameters).into_iter().map(|tensor| tensor.name);
        all_seen(names, &self.seen)
    }
}

impl Drop for NetworkRestoration<'_> {
    fn drop(&mut self) {
        self.parameters.num_batches_tracked = self.batches.unwrap_or_default();
    }
}

/// Loads the encoder from a checkpoint.
///
/// # Errors
/// If a tensor is missing, has another shape, or is one that this network does not have. The network then
/// holds a mixture.
pub fn restore_network(network: &mut Network<f32>, state: &State) -> Result<(), Error> {
    let mut restoration = NetworkRestoration::new(MODEL, network.parameters_mut());
    for tensor in state.tensors().iter().filter(|tensor| tensor.name.starts_with(MODEL)) {
        restoration.take(tensor)?;
    }
    restoration.finish()
}

/// Makes rank 0's running statistics everybody's where each rank has its own (`model.batch_norm = "local"`),
/// as PyTorch's data parallel does: to be called before an evaluation or a checkpoint, which are of one
/// network. Rank 0's are never touched, so that the run goes on as if it had not been evaluated.
///
/// # Errors
/// If a peer is lost.
pub fn agree_on_buffers(
    network: &mut Network<f32>,
    communicator: &mut Communicator,
) -> Result<(), collective::Error> {
    if network.spec().batch_norm == BatchNormScope::Local {
        communicator.broadcast(&mut network.parameters_mut().buffer_values, 0)?;
    }
    Ok(())
}

fn network_tensors<'a>(prefix: &str, parameters: &'a Parameters<f32>) -> Vec<Tensor<'a>> {
    let mut tensors = Vec::new();
    for entry in &parameters.entries {
        let name = format!("{prefix}{}", entry.name);
        tensors.push(Tensor::from_f32(name, &entry.shape, &parameters.values[entry.range()]));
    }
    for entry in &parameters.buffers {
        let name = format!("{prefix}{}", entry.name);
        tensors.push(Tensor::from_f32(name, &entry.shape, &parameters.buffer_values[entry.range()]));
        if let Some(name) = batches_name(&entry.name) {
            let count = i64::try_from(parameters.num_batches_tracked).expect("fewer batches than 2^63");
            tensors.push(Tensor::from_i64(format!("{prefix}{name}"), count));
        }
    }
    tensors
}

/// The parameters of which the optimizer keeps something.
fn trained(parameters: &Parameters<f32>) -> impl Iterator<Item = &ParameterEntry> {
    parameters.entries.iter().filter(|entry| entry.kind != ParameterKind::Fixed)
}

fn optimizer_tensors<'a>(optimizer: &'a Optimizer<f32>, parameters: &'a Parameters<f32>) -> Vec<Tensor<'a>> {
    let mut tensors = Vec::new();
    for (slot, values) in optimizer.state() {
        for entry in trained(parameters) {
            let name = slot_name(slot, &entry.name);
            tensors.push(Tensor::from_f32(name, &entry.shape, &values[entry.range()]));
        }
    }
    tensors.push(Tensor::from_u64(UPDATES, optimizer.updates));
    tensors
}

fn tensor_of<'a>(array: &Array<'a>) -> Tensor<'a> {
    let dtype = match array.element {
        ArrayType::Bf16 => Dtype::BF16,
        ArrayType::F32 => Dtype::F32,
        ArrayType::F64 => Dtype::F64,
        ArrayType::U32 => Dtype::U32,
        ArrayType::U64 => Dtype::U64,
    };
    Tensor { name: array.name.clone(), dtype, shape: array.shape.clone(), data: array.bytes.into() }
}

fn array<'a>(tensor: &'a Tensor<'_>) -> Result<Array<'a>, Error> {
    let element = match tensor.dtype {
        Dtype::BF16 => ArrayType::Bf16,
        Dtype::F32 => ArrayType::F32,
        Dtype::F64 => ArrayType::F64,
        Dtype::U32 => ArrayType::U32,
        Dtype::U64 => ArrayType::U64,
        _ => return Err(unknown(tensor)),
    };
    let (name, shape) = (tensor.name.clone(), tensor.shape.clone());
    Ok(Array { name, element, shape, bytes: &tensor.data, sharded: false })
}

fn unknown(tensor: &Tensor<'_>) -> Error {
    Error::WrongTensor {
        name: tensor.name.clone(),
        expected: "none at all".to_owned(),
        actual: format!("{} {:?}", tensor.dtype, tensor.shape),
    }
}

fn all_seen(mut names: impl Iterator<Item = String>, seen: &HashSet<String>) -> Result<(), Error> {
    let missing = names.find(|name| !seen.contains(name));
    missing.map_or(Ok(()), |name| Err(Error::NoSuchTensor { name }))
}

/// Every batch norm has seen the same number of batches: the engine keeps one count for all.
fn batches_in(tensor: &Tensor<'_>, others: Option<u64>) -> Result<u64, Error> {
    let count = tensor.to_i64()?;
    match u64::try_from(count) {
        Ok(count) if others.is_none_or(|others| others == count) => Ok(count),
        _ => Err(Error::WrongTensor {
            name: tensor.name.clone(),
            expected: others.map_or("a count".to_owned(), |others| others.to_string()),
            actual: count.to_string(),
        }),
    }
}

fn slot_name(slot: &str, parameter: &str) -> String {
    format!("optimizer.{slot}.{parameter}")
}

/// The name of the batch count beside a running mean.
fn batches_name(buffer: &str) -> Option<String> {
    Some(format!("{}{BATCHES}", buffer.strip_suffix(RUNNING_MEAN)?))
}

/// The part of a list of tensors with these sizes that belongs to `rank`: a tensor goes to the rank in whose
/// equal share of the bytes its middle lies.
fn share_of(bytes: &[usize], rank: usize, world_size: usize) -> Range<usize> {
    let total: usize = bytes.iter().sum();
    let mut before = 0;
    let owner = |&len: &usize| {
        let middle = 2 * before + len;
        before += len;
        (middle * world_size / (2 * total).max(1)).min(world_size - 1)
    };
    let owners: Vec<usize> = bytes.iter().map(owner).collect();
    owners.partition_point(|&owner| owner < rank)..owners.partition_point(|&owner| owner <= rank)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::momentum::MomentumSchedule;
    use engine::models::{Arch, Head, ModelSpec, Role, Stem};
    use engine::network::NetworkOptions;
    use engine::optim::{OptimizerKind, OptimizerSpec};
    use kernels::{Convolution, Device, KernelPath};
    use objectives::{NtXent, TwoViews};

    fn trainer(seed: u64, head: Head, kind: OptimizerKind) -> Trainer {
        let spec = ModelSpec {
            arch: Arch::ResNet20,
            stem: Stem::Cifar,
            head,
            batch_norm: BatchNormScope::Global,
            image_size: 8,
            zero_init_residual: true,
            predictor: None,
            jigsaw: None,
        };
        let options = NetworkOptions { max_rows: 2, seed, convolution: Convolution::Direct };
        let device = Device::of_threads(1, KernelPath::Portable);
        let network = Network::with_role(&spec, Role::Trained, options, &device);
        let momentum = Network::with_role(&spec, Role::Momentum, options, &device);
        let spec = OptimizerSpec { kind, weight_decay: 0.0, decay_all: false };
        let optimizer = Optimizer::new(spec, network.parameters());
        let schedule = MomentumSchedule::Constant(0.5);
        let momentum = MomentumEncoder::new(momentum, network.parameters(), schedule, 0);
        let objective = Objective::TwoViews(TwoViews::Simclr(NtXent::new(0.5)));
        Trainer { momentum: Some(momentum), ..Trainer::alone(network, optimizer, objective, device, 1) }
    }

    const HEAD: Head = Head::Mlp { hidden: 8, out: 4 };
    const ADAM: OptimizerKind = OptimizerKind::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8 };
    const SGD: OptimizerKind = OptimizerKind::Sgd { momentum: 0.9 };

    /// A trainer in which no two values are equal.
    fn trained() -> Trainer {
        let mut trainer = trainer(1, HEAD, ADAM);
        let fill = |values: &mut [f32], first: f32| {
            values.iter_mut().enumerate().for_each(|(i, x)| *x = first + i as f32);
        };
        let parameters = trainer.network.parameters_mut();
        fill(&mut parameters.buffer_values, 0.5);
        parameters.num_batches_tracked = 17;
        let parameters = trainer.momentum.as_mut().unwrap().network.parameters_mut();
        fill(&mut parameters.values, 0.125);
        fill(&mut parameters.buffer_values, 0.375);
        parameters.num_batches_tracked = 18;
        trainer.optimizer.updates = 21;
        for (slot, (_, values)) in trainer.optimizer.state_mut().into_iter().enumerate() {
            values.iter_mut().enumerate().for_each(|(i, x)| *x = (i as f32 + 0.25) * (slot as f32 - 0.5));
        }
        trainer
    }

    fn state(world_size: usize) -> State {
        let trainer = trained();
        let parts = Parts::of(&trainer);
        let shards = (0..world_size).flat_map(|rank| parts.shard(rank, world_size));
        State::new(shards.map(Tensor::into_owned)).unwrap()
    }

    /// Takes the tensors in the reverse of their order.
    fn restore(trainer: &mut Trainer, state: &State) -> Result<(), Unfit> {
        let mut restoration = Restoration::new(trainer);
        for tensor in state.tensors().iter().rev() {
            restoration.take(tensor)?;
        }
        restoration.finish()
    }

    #[test]
    fn everything_comes_back_whatever_the_number_of_ranks_that_wrote_it() {
        let expected = trained();
        let networks = |trainer: &Trainer| {
            let momentum = trainer.momentum.as_ref().unwrap().network.parameters().clone();
            [trainer.network.parameters().clone(), momentum].map(|parameters| {
                (parameters.values, parameters.buffer_values, parameters.num_batches_tracked)
            })
        };
        for world_size in [1, 2, 3, 7] {
            let mut trainer = trainer(2, HEAD, ADAM);
            restore(&mut trainer, &state(world_size)).unwrap();
            assert!(networks(&trainer) == networks(&expected), "{world_size} ranks");
            assert_eq!(trainer.optimizer.state(), expected.optimizer.state());
            assert_eq!(trainer.optimizer.updates, 21);
        }
    }

    #[test]
    fn tensors_have_pytorchs_names_and_shapes() {
        let state = state(1);
        assert_eq!(state.get("model.backbone.conv1.weight").unwrap().shape, [16, 3, 3, 3]);
        assert_eq!(state.get("model.head.2.bias").unwrap().shape, [4]);
        let batches = |name| state.get(name).unwrap().to_i64().unwrap();
        assert_eq!(batches("model.backbone.layer1.0.bn2.num_batches_tracked"), 17);
        assert_eq!(batches("momentum.backbone.layer1.0.bn2.num_batches_tracked"), 18);
        assert_eq!(state.get("model.backbone.bn1.running_var").unwrap().shape, [16]);
        assert_eq!(state.get("momentum.head.0.weight").unwrap().shape, [8, 64]);
        assert_eq!(state.get("optimizer.second_moment.head.0.weight").unwrap().shape, [8, 64]);
    }

    #[test]
    fn a_checkpoint_of_another_trainer_is_refused() {
        let other = |head, kind| restore(&mut trainer(2, head, kind), &state(1)).unwrap_err().to_string();
        let error = other(Head::Linear { out: 4 }, ADAM);
        assert!(error.contains("is F32 [4] instead of none"), "{error}");
        let error = other(Head::Mlp { hidden: 8, out: 5 }, ADAM);
        assert!(error.contains("is F32 [4] instead of F32 [5]"), "{error}");
        let error = other(HEAD, SGD);
        assert!(error.contains("`optimizer.second_moment."), "{error}");
        let mut without = trainer(2, HEAD, ADAM);
        without.momentum = None;
        let error = restore(&mut without, &state(1)).unwrap_err().to_string();
        assert!(error.contains("`momentum.") && error.contains("instead of none"), "{error}");
    }

    #[test]
    fn a_tensor_that_is_missing_is_named() {
        let whole = state(1);
        for missing in ["model.head.0.bias", "momentum.backbone.bn1.running_var", UPDATES] {
            let rest = whole.tensors().iter().filter(|tensor| tensor.name != missing).cloned();
            let error = restore(&mut trainer(2, HEAD, ADAM), &State::new(rest).unwrap()).unwrap_err();
            assert_eq!(error.to_string(), format!("the checkpoint has no tensor `{missing}`"));
        }
    }

    #[test]
    fn shares_are_contiguous_complete_and_nearly_equal() {
        let bytes: Vec<usize> = (0..50).map(|i| (i * 37) % 101).collect();
        let total: usize = bytes.iter().sum();
        for world_size in 1..9 {
            let shares: Vec<_> = (0..world_size).map(|rank| share_of(&bytes, rank, world_size)).collect();
            assert_eq!((shares[0].start, shares[world_size - 1].end), (0, bytes.len()));
            assert!(shares.windows(2).all(|pair| pair[0].end == pair[1].start), "{shares:?}");
            for share in shares {
                let own: usize = bytes[share].iter().sum();
                assert!(own.abs_diff(total / world_size) <= 101, "{own} of {total} for {world_size}");
            }
        }
        assert_eq!(share_of(&[], 1, 2), 0..0);
        assert_eq!([share_of(&[8], 0, 2), share_of(&[8], 1, 2)], [0..0, 0..1]);
    }
}
