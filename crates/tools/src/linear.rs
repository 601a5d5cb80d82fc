//! A linear classifier on frozen features, trained as the papers train it: the measure by which encoders are compared.
//!
//! Softmax cross-entropy, SGD with momentum, everything in f32 with the engine's matrix products. Weights begin at
//! zero (google-research/simclr, `--zero_init_logits_layer`): the problem is convex, so that a start says nothing. The
//! bias does not decay. What comes out does not depend on the number of threads.

use engine::schedule::{Schedule, ScheduleKind};
use kernels::{Cpu, Gemm, matmul};

/// How a classifier is trained.
#[derive(Clone, Debug, PartialEq)]
pub struct Protocol {
    /// Passes over the features.
    pub epochs: u64,
    /// Rows of an update; the last of an epoch may have fewer.
    pub batch: usize,
    /// Learning rate at a batch of 256; it grows with the batch.
    pub lr: f64,
    /// Of SGD.
    pub momentum: f64,
    /// Whether it is Nesterov's.
    pub nesterov: bool,
    /// Added to the gradient of the weights, not of the bias.
    pub weight_decay: f64,
    /// How the learning rate falls.
    pub decay: Decay,
}

/// How a learning rate falls.
#[derive(Clone, Debug, PartialEq)]
pub enum Decay {
    /// Half a cosine to 0, update by update.
    Cosine,
    /// By `gamma` at each of these epochs.
    Step {
        /// Ascending.
        milestones: Vec<u64>,
        /// What it is multiplied by.
        gamma: f64,
    },
}

impl Protocol {
    /// SimCLR's on ImageNet: google-research/simclr, README.md, `--learning_rate=0.1 --train_epochs=90
    /// --train_batch_size=4096 --weight_decay=1e-6`; Nesterov's momentum as in the paper's appendix B.5.
    pub fn simclr() -> Protocol {
        let decay = Decay::Cosine;
        Protocol {
            epochs: 90,
            batch: 4096,
            lr: 0.1,
            momentum: 0.9,
            nesterov: true,
            weight_decay: 1e-6,
            decay,
        }
    }

    /// SimCLR's on CIFAR-10: the same README, `--train_epochs=100 --train_batch_size=512 --weight_decay=0.0`.
    pub fn simclr_cifar() -> Protocol {
        Protocol { epochs: 100, batch: 512, weight_decay: 0.0, ..Protocol::simclr() }
    }

    /// MoCo's: facebookresearch/moco, README.md and main_lincls.py, `--lr 30 --schedule 60 80`.
    pub fn moco() -> Protocol {
        let decay = Decay::Step { milestones: vec![60, 80], gamma: 0.1 };
        Protocol {
            epochs: 100,
            batch: 256,
            lr: 30.0,
            momentum: 0.9,
            nesterov: false,
            weight_decay: 0.0,
            decay,
        }
    }

    /// The learning rate of every update on `n` rows, of which a batch takes `batch` at most.
    pub fn schedule(&self, n: usize) -> Schedule {
        let steps_per_epoch = n.div_ceil(self.batch) as u64;
        Schedule {
            kind: match &self.decay {
                Decay::Cosine => ScheduleKind::Cosine { final_lr: 0.0 },
                Decay::Step { milestones, gamma } => ScheduleKind::Step {
                    milestones: milestones.iter().map(|epoch| epoch * steps_per_epoch).collect(),
                    gamma: *gamma,
                },
            },
            base_lr: self.lr * self.batch as f64 / 256.0,
            warmup_steps: 0,
            total_steps: self.epochs * steps_per_epoch,
        }
    }
}

/// Labelled features.
#[derive(Clone, Copy)]
pub struct Examples<'a> {
    /// `[n, width]`.
    pub features: &'a [f32],
    /// `[n]`.
    pub labels: &'a [u32],
}

/// How often the class was found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Accuracy {
    /// Share of rows whose class has the largest logit; of equal ones the lowest class is taken.
    pub top1: f64,
    /// Share of rows whose class is among the five largest.
    pub top5: f64,
}

/// A classifier in training.
pub struct Classifier {
    /// `[classes, width]`.
    pub weight: Vec<f32>,
    /// `[classes]`.
    pub bias: Vec<f32>,
    velocity: [Vec<f32>; 2],
    width: usize,
}

impl Classifier {
    /// Begins at zero.
    pub fn new(classes: usize, width: usize) -> Classifier {
        let zeros = || (vec![0.0; classes * width], vec![0.0; classes]);
        let ((weight, bias), velocity) = (zeros(), zeros().into());
        Classifier { weight, bias, velocity, width }
    }

    /// Makes one pass over the examples, in this order. Returns the mean loss, each batch's before its update.
    ///
    /// - `schedule`: of [`Protocol::schedule`]; `epoch`: counted from 0
    ///
    /// # Panics
    /// If `order` names rows that do not exist.
    pub fn train_epoch(
        &mut self,
        cpu: &Cpu,
        examples: Examples<'_>,
        order: &[usize],
        protocol: &Protocol,
        (schedule, epoch): (&Schedule, u64),
    ) -> f64 {
        let first_update = epoch * order.len().div_ceil(protocol.batch) as u64;
        let mut loss = 0.0;
        for (update, rows) in (first_update..).zip(order.chunks(protocol.batch)) {
            let row = |&row: &usize| &examples.features[row * self.width..(row + 1) * self.width];
            let x: Vec<f32> = rows.iter().flat_map(row).copied().collect();
            let labels: Vec<u32> = rows.iter().map(|&row| examples.labels[row]).collect();
            loss += self.update(cpu, &x, &labels, protocol, schedule.lr(update) as f32);
        }
        loss / order.len() as f64
    }

    /// Makes one update, and returns the sum of the losses before it.
    fn update(&mut self, cpu: &Cpu, x: &[f32], labels: &[u32], protocol: &Protocol, lr: f32) -> f64 {
        let (n, classes) = (labels.len(), self.bias.len());
        let mut d_logits = self.logits(cpu, x);
        let loss = cross_entropy(&mut d_logits, labels, classes);
        let mut d_weight = vec![0.0; self.weight.len()];
        let gemm = Gemm { a_transposed: true, ..Gemm::new(classes, self.width, n) };
        matmul(cpu, gemm, &d_logits, x, &mut d_weight);
        let mut d_bias = vec![0.0; classes];
        for row in d_logits.chunks_exact(classes) {
            d_bias.iter_mut().zip(row).for_each(|(sum, d)| *sum += d);
        }
        let [weight_velocity, bias_velocity] = &mut self.velocity;
        sgd(&mut self.weight, &d_weight, weight_velocity, protocol, (lr, protocol.weight_decay as f32));
        sgd(&mut self.bias, &d_bias, bias_velocity, protocol, (lr, 0.0));
        loss
    }

    /// `x W^T + b`, `[n, classes]`.
    fn logits(&self, cpu: &Cpu, x: &[f32]) -> Vec<f32> {
        let (n, classes) = (x.len() / self.width, self.bias.len());
        let mut logits: Vec<f32> = self.bias.iter().copied().cycle().take(n * classes).collect();
        let gemm = Gemm { b_transposed: true, accumulate: true, ..Gemm::new(n, classes, self.width) };
        matmul(cpu, gemm, x, &self.weight, &mut logits);
        logits
    }

    /// Tells how often the examples' class is found.
    pub fn accuracy(&self, cpu: &Cpu, examples: Examples<'_>) -> Accuracy {
        /// Rows at a time, so that the logits of a large set are never all held.
        const TILE: usize = 4096;
        let (mut first, mut among_five) = (0u64, 0u64);
        for (x, labels) in examples.features.chunks(TILE * self.width).zip(examples.labels.chunks(TILE)) {
            let logits = self.logits(cpu, x);
            for (row, &label) in logits.chunks_exact(self.bias.len()).zip(labels) {
                let place = place(row, label as usize);
                first += u64::from(place == 0);
                among_five += u64::from(place < 5);
            }
        }
        let n = examples.labels.len() as f64;
        Accuracy { top1: first as f64 / n, top5: among_five as f64 / n }
    }
}

/// Counts the classes that come before one: those of larger logits, and of equal ones the lower. Not-a-number comes
/// before everything, so that weights that have overflowed predict nothing.
fn place(logits: &[f32], class: usize) -> usize {
    let own = logits[class];
    logits
        .iter()
        .enumerate()
        .filter(|&(other, &logit)| match logit.partial_cmp(&own) {
            Some(order) => order.is_gt() || (order.is_eq() && other < class),
            None => other != class,
        })
        .count()
}

/// Turns logits into the gradient of their mean cross-entropy, in place, and returns the sum of the losses.
fn cross_entropy(logits: &mut [f32], labels: &[u32], classes: usize) -> f64 {
    let scale = 1.0 / labels.len() as f32;
    let mut loss = 0.0;
    for (row, &label) in logits.chunks_exact_mut(classes).zip(labels) {
        let own = row[label as usize];
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        row.iter_mut().for_each(|logit| *logit = (*logit - largest).exp());
        let sum: f32 = row.iter().sum();
        loss += f64::from(sum.ln() + largest - own);
        row.iter_mut().for_each(|exp| *exp *= scale / sum);
        row[label as usize] -= scale;
    }
    loss
}

/// SGD as PyTorch has it: the learning rate is outside the velocity.
fn sgd(
    parameters: &mut [f32],
    gradients: &[f32],
    velocities: &mut [f32],
    protocol: &Protocol,
    (lr, decay): (f32, f32),
) {
    let momentum = protocol.momentum as f32;
    for ((parameter, &gradient), velocity) in parameters.iter_mut().zip(gradients).zip(velocities) {
        let gradient = gradient + decay * *parameter;
        *velocity = momentum * *velocity + gradient;
        let step = if protocol.nesterov { gradient + momentum * *velocity } else { *velocity };
        *parameter -= lr * step;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernels::KernelPath;
    use safetensors::SafeTensors;

    const GOLDEN: &[u8] = include_bytes!("../../../tests/golden/linear.safetensors");

    struct Golden(SafeTensors<'static>);

    impl Golden {
        fn read() -> Golden {
            Golden(SafeTensors::deserialize(GOLDEN).unwrap())
        }

        fn f32s(&self, name: &str) -> Vec<f32> {
            let data = self.0.tensor(name).unwrap().data();
            data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
        }

        fn labels(&self, name: &str) -> Vec<u32> {
            let data = self.0.tensor(name).unwrap().data();
            data.as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes) as u32).collect()
        }
    }

    /// The names and protocols of tests/golden/linear.py.
    fn protocols() -> [(&'static str, Protocol); 2] {
        let step = Decay::Step { milestones: vec![2, 4], gamma: 0.1 };
        [
            ("nesterov", Protocol { epochs: 6, batch: 64, weight_decay: 1e-2, ..Protocol::simclr() }),
            ("step", Protocol { epochs: 6, batch: 64, lr: 4.0, decay: step, ..Protocol::moco() }),
        ]
    }

    fn train(
        threads: usize,
        path: KernelPath,
        golden: &Golden,
        name: &str,
        protocol: &Protocol,
    ) -> (Classifier, f64) {
        let cpu = Cpu::new(threads, path);
        let (features, labels) = (golden.f32s("features"), golden.labels("labels"));
        let examples = Examples { features: &features, labels: &labels };
        let orders = golden.labels(&format!("{name} orders"));
        let mut classifier = Classifier::new(12, 20);
        let schedule = protocol.schedule(labels.len());
        let mut loss = 0.0;
        for (epoch, order) in (0..).zip(orders.chunks_exact(labels.len())) {
            let order: Vec<usize> = order.iter().map(|&row| row as usize).collect();
            loss = classifier.train_epoch(&cpu, examples, &order, protocol, (&schedule, epoch));
        }
        (classifier, loss)
    }

    #[test]
    fn weights_losses_and_accuracies_are_pytorchs() {
        let golden = Golden::read();
        for (name, protocol) in protocols() {
            for path in [KernelPath::Reference, KernelPath::detect()] {
                let (classifier, loss) = train(2, path, &golden, name, &protocol);
                let near = |what: &str, found: &[f32]| {
                    let expected = golden.f32s(&format!("{name} {what}"));
                    assert_eq!(expected.len(), found.len(), "{name} {what}");
                    for (a, e) in found.iter().zip(&expected) {
                        assert!(
                            (a - e).abs() <= 2e-4 * e.abs().max(0.1),
                            "{name} {what}: {a} instead of {e}"
                        );
                    }
                };
                near("weight", &classifier.weight);
                near("bias", &classifier.bias);
                near("loss", &[loss as f32]);
                let (features, labels) = (golden.f32s("test features"), golden.labels("test labels"));
                let examples = Examples { features: &features, labels: &labels };
                let Accuracy { top1, top5 } = classifier.accuracy(&Cpu::new(2, path), examples);
                near("accuracy", &[top1 as f32, top5 as f32]);
            }
        }
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let golden = Golden::read();
        let (name, protocol) = &protocols()[0];
        let (one, _) = train(1, KernelPath::detect(), &golden, name, protocol);
        let (three, _) = train(3, KernelPath::detect(), &golden, name, protocol);
        assert!(one.weight == three.weight && one.bias == three.bias);
    }

    #[test]
    fn protocols_are_the_published_ones() {
        let schedule = Protocol::simclr().schedule(1_281_167);
        assert_eq!((schedule.base_lr, schedule.total_steps), (1.6, 90 * 313));
        let moco = Protocol::moco().schedule(1_281_167);
        assert_eq!([0, 60 * 5005 - 1, 60 * 5005].map(|update| moco.lr(update)), [30.0, 30.0, 3.0]);
        assert_eq!(Protocol::simclr_cifar().schedule(50_000).base_lr, 0.2);
    }

    #[test]
    fn of_equal_logits_the_lowest_class_comes_first() {
        assert_eq!([0, 1, 2, 3].map(|class| place(&[1.0, 2.0, 2.0, 0.5], class)), [2, 0, 1, 3]);
    }

    #[test]
    fn weights_that_have_overflowed_predict_nothing() {
        assert_eq!(place(&[f32::NAN; 3], 0), 2);
        assert_eq!(place(&[1.0, f32::NAN, 0.0], 0), 1);
        assert_eq!([0, 1, 2].map(|class| place(&[2.0, 3.0, 2.0], class)), [1, 0, 2]);
    }
}
