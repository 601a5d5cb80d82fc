//! The trainer's state as named tensors, and back.
//!
//! Every rank holds the whole state, so each writes only its share of the list: contiguous, of nearly the
//! same number of bytes. Reading puts the shares together again, whatever the world size was.

use checkpoint::{Error, State, Tensor};
use collective::Communicator;
use engine::models::BatchNormScope;
use engine::network::Network;
use engine::optim::Optimizer;
use engine::parameters::Parameters;
use std::collections::HashSet;
use std::ops::Range;

/// PyTorch's name for a batch norm's running mean, of which each has one.
const RUNNING_MEAN: &str = "running_mean";
const BATCHES: &str = "num_batches_tracked";
const UPDATES: &str = "counters.updates";

/// A tensor that has not been copied yet.
struct Item<'a> {
    name: String,
    shape: &'a [usize],
    values: Values<'a>,
}

enum Values<'a> {
    Floats(&'a [f32]),
    Batches(u64),
    Count(u64),
}

/// The tensors of the encoder: parameters, running statistics and their counts, as `model.backbone.…` and
/// `model.head.…`.
pub fn network_state(network: &Network<f32>) -> Vec<Tensor> {
    network_items(network.parameters()).iter().map(Item::copy).collect()
}

/// The tensors of the optimizer, as `optimizer.<slot>.backbone.…`, and its count of updates.
pub fn optimizer_state(optimizer: &Optimizer<f32>, network: &Network<f32>) -> Vec<Tensor> {
    optimizer_items(optimizer, network.parameters()).iter().map(Item::copy).collect()
}

/// The share of the whole state that `rank` writes. Only this share is copied.
pub fn shard_of(
    network: &Network<f32>,
    optimizer: &Optimizer<f32>,
    rank: usize,
    world_size: usize,
) -> Vec<Tensor> {
    let mut items = network_items(network.parameters());
    items.extend(optimizer_items(optimizer, network.parameters()));
    let bytes: Vec<usize> = items.iter().map(Item::bytes).collect();
    items[share_of(&bytes, rank, world_size)].iter().map(Item::copy).collect()
}

/// Loads the encoder from a checkpoint.
///
/// # Errors
/// If a tensor is missing, has another shape, or is one that this network does not have. The network then
/// holds a mixture.
pub fn restore_network(network: &mut Network<f32>, state: &State) -> Result<(), Error> {
    restore_parameters(network.parameters_mut(), state)
}

/// Loads the optimizer of `network` from a checkpoint.
///
/// # Errors
/// As [`restore_network`].
pub fn restore_optimizer(
    optimizer: &mut Optimizer<f32>,
    network: &Network<f32>,
    state: &State,
) -> Result<(), Error> {
    let known: HashSet<String> = names(optimizer_items(optimizer, network.parameters()));
    refuse_others(state, "optimizer.", &known)?;
    let entries = &network.parameters().entries;
    for (slot, values) in optimizer.state_mut() {
        for entry in entries {
            let tensor = state.get(&slot_name(slot, &entry.name))?;
            tensor.copy_to_f32(&entry.shape, &mut values[entry.range()])?;
        }
    }
    optimizer.updates = state.get(UPDATES)?.to_u64()?;
    Ok(())
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

fn network_items(parameters: &Parameters<f32>) -> Vec<Item<'_>> {
    let mut items = Vec::new();
    for entry in &parameters.entries {
        items.push(Item {
            name: format!("model.{}", entry.name),
            shape: &entry.shape,
            values: Values::Floats(&parameters.values[entry.range()]),
        });
    }
    for entry in &parameters.buffers {
        items.push(Item {
            name: format!("model.{}", entry.name),
            shape: &entry.shape,
            values: Values::Floats(&parameters.buffer_values[entry.range()]),
        });
        if let Some(name) = batches_name(&entry.name) {
            items.push(Item { name, shape: &[], values: Values::Batches(parameters.num_batches_tracked) });
        }
    }
    items
}

fn optimizer_items<'a>(optimizer: &'a Optimizer<f32>, parameters: &'a Parameters<f32>) -> Vec<Item<'a>> {
    let mut items = Vec::new();
    for (slot, values) in optimizer.state() {
        for entry in &parameters.entries {
            items.push(Item {
                name: slot_name(slot, &entry.name),
                shape: &entry.shape,
                values: Values::Floats(&values[entry.range()]),
            });
        }
    }
    items.push(Item { name: UPDATES.to_owned(), shape: &[], values: Values::Count(optimizer.updates) });
    items
}

fn restore_parameters(parameters: &mut Parameters<f32>, state: &State) -> Result<(), Error> {
    let known: HashSet<String> = names(network_items(parameters));
    refuse_others(state, "model.", &known)?;
    for entry in &parameters.entries {
        let tensor = state.get(&format!("model.{}", entry.name))?;
        tensor.copy_to_f32(&entry.shape, &mut parameters.values[entry.range()])?;
    }
    let mut batches: Option<u64> = None;
    for entry in &parameters.buffers {
        let tensor = state.get(&format!("model.{}", entry.name))?;
        tensor.copy_to_f32(&entry.shape, &mut parameters.buffer_values[entry.range()])?;
        if let Some(name) = batches_name(&entry.name) {
            let count = batches_in(state.get(&name)?, batches)?;
            batches = Some(count);
        }
    }
    parameters.num_batches_tracked = batches.unwrap_or_default();
    Ok(())
}

/// Every batch norm has seen the same number of batches: the engine keeps one count for all.
fn batches_in(tensor: &Tensor, others: Option<u64>) -> Result<u64, Error> {
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

/// A checkpoint of a larger network must not be taken for one of this.
fn refuse_others(state: &State, prefix: &str, known: &HashSet<String>) -> Result<(), Error> {
    let other = state.tensors().iter().find(|t| t.name.starts_with(prefix) && !known.contains(&t.name));
    other.map_or(Ok(()), |tensor| {
        Err(Error::WrongTensor {
            name: tensor.name.clone(),
            expected: "none at all".to_owned(),
            actual: format!("{} {:?}", tensor.dtype, tensor.shape),
        })
    })
}

fn names(items: Vec<Item<'_>>) -> HashSet<String> {
    items.into_iter().map(|item| item.name).collect()
}

fn slot_name(slot: &str, parameter: &str) -> String {
    format!("optimizer.{slot}.{parameter}")
}

/// The name of the batch count beside a running mean.
fn batches_name(buffer: &str) -> Option<String> {
    Some(format!("model.{}{BATCHES}", buffer.strip_suffix(RUNNING_MEAN)?))
}

/// The part of a list of items with these sizes that belongs to `rank`: an item goes to the rank in whose
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

impl Item<'_> {
    fn bytes(&self) -> usize {
        match self.values {
            Values::Floats(values) => size_of_val(values),
            Values::Batches(_) | Values::Count(_) => 8,
        }
    }

    fn copy(&self) -> Tensor {
        match self.values {
            Values::Floats(values) => Tensor::from_f32(&self.name, self.shape, values),
            Values::Batches(count) => {
                Tensor::from_i64(&self.name, i64::try_from(count).expect("fewer batches than 2^63"))
            }
            Values::Count(count) => Tensor::from_u64(&self.name, count),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::kernels::{Convolution, KernelPath, Pool};
    use engine::models::{Arch, Head, ModelSpec, Stem};
    use engine::network::NetworkOptions;
    use engine::optim::{OptimizerKind, OptimizerSpec};
    use std::sync::Arc;

    fn trainer(seed: u64, head: Head, kind: OptimizerKind) -> (Network<f32>, Optimizer<f32>) {
        let spec = ModelSpec {
            arch: Arch::ResNet20,
            stem: Stem::Cifar,
            head,
            batch_norm: BatchNormScope::Global,
            image_size: 8,
            zero_init_residual: true,
        };
        let options = NetworkOptions {
            max_rows: 2,
            seed,
            kernel_path: KernelPath::Portable,
            convolution: Convolution::Direct,
        };
        let network = Network::new(&spec, options, Arc::new(Pool::new(1, &[])));
        let spec = OptimizerSpec { kind, weight_decay: 0.0, decay_all: false };
        let optimizer = Optimizer::new(spec, network.parameters());
        (network, optimizer)
    }

    const HEAD: Head = Head::Mlp { hidden: 8, out: 4 };
    const ADAM: OptimizerKind = OptimizerKind::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8 };
    const SGD: OptimizerKind = OptimizerKind::Sgd { momentum: 0.9 };

    /// A trainer in which no two values are equal.
    fn trained() -> (Network<f32>, Optimizer<f32>) {
        let (mut network, mut optimizer) = trainer(1, HEAD, ADAM);
        let parameters = network.parameters_mut();
        parameters.buffer_values.iter_mut().enumerate().for_each(|(i, x)| *x = 0.5 + i as f32);
        parameters.num_batches_tracked = 17;
        optimizer.updates = 21;
        for (slot, (_, values)) in optimizer.state_mut().into_iter().enumerate() {
            values.iter_mut().enumerate().for_each(|(i, x)| *x = (i as f32 + 0.25) * (slot as f32 - 0.5));
        }
        (network, optimizer)
    }

    fn state(world_size: usize) -> State {
        let (network, optimizer) = trained();
        State::new((0..world_size).flat_map(|rank| shard_of(&network, &optimizer, rank, world_size))).unwrap()
    }

    #[test]
    fn everything_comes_back_whatever_the_number_of_ranks_that_wrote_it() {
        let (expected, expected_optimizer) = trained();
        for world_size in [1, 2, 3, 7] {
            let (mut network, mut optimizer) = trainer(2, HEAD, ADAM);
            restore_network(&mut network, &state(world_size)).unwrap();
            restore_optimizer(&mut optimizer, &network, &state(world_size)).unwrap();
            assert_eq!(network.parameters().values, expected.parameters().values);
            assert_eq!(network.parameters().buffer_values, expected.parameters().buffer_values);
            assert_eq!(network.parameters().num_batches_tracked, 17);
            assert_eq!(optimizer.state(), expected_optimizer.state());
            assert_eq!(optimizer.updates, 21);
        }
    }

    #[test]
    fn tensors_have_pytorchs_names_and_shapes() {
        let state = state(1);
        assert_eq!(state.get("model.backbone.conv1.weight").unwrap().shape, [16, 3, 3, 3]);
        assert_eq!(state.get("model.head.2.bias").unwrap().shape, [4]);
        assert_eq!(
            state.get("model.backbone.layer1.0.bn2.num_batches_tracked").unwrap().to_i64().unwrap(),
            17
        );
        assert_eq!(state.get("model.backbone.bn1.running_var").unwrap().shape, [16]);
        assert_eq!(state.get("optimizer.second_moment.head.0.weight").unwrap().shape, [8, 64]);
    }

    #[test]
    fn a_checkpoint_of_another_network_is_refused() {
        let (mut network, _) = trainer(2, Head::Linear { out: 4 }, ADAM);
        let error = restore_network(&mut network, &state(1)).unwrap_err();
        assert!(error.to_string().contains("`model.head.2.weight` is F32 [4, 8] instead of none"), "{error}");

        let (mut network, _) = trainer(2, Head::Mlp { hidden: 8, out: 5 }, ADAM);
        let error = restore_network(&mut network, &state(1)).unwrap_err();
        assert!(error.to_string().contains("is F32 [4, 8] instead of F32 [5, 8]"), "{error}");

        let (network, mut optimizer) = trainer(2, HEAD, SGD);
        let error = restore_optimizer(&mut optimizer, &network, &state(1)).unwrap_err();
        assert!(error.to_string().contains("`optimizer.first_moment."), "{error}");
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
