//! One global batch on several ranks: the same embeddings, the same parameter gradients in the sum.

#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is the failure")]

mod support;

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use engine::models::{Arch, BatchNormScope, Head, ModelSpec, Stem, Vit};
use engine::parameters::BufferUpdate;
use kernels::peers::{Alone, PeerError, Peers};
use support::{network, noise, relative_error, spec};

/// A group of threads that send each other everything.
struct Threads {
    rank: usize,
    to: Vec<Sender<Vec<f64>>>,
    from: Vec<Receiver<Vec<f64>>>,
}

impl Threads {
    fn group(world_size: usize) -> Vec<Self> {
        let empty = |rank| Self { rank, to: vec![], from: vec![] };
        let mut group: Vec<Self> = (0..world_size).map(empty).collect();
        for source in 0..world_size {
            for target in 0..world_size {
                let (to, from) = channel();
                group[source].to.push(to);
                group[target].from.push(from);
            }
        }
        group
    }
}

impl Peers for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.to.len()
    }

    fn all_gather_f64(&mut self, local: &[f64]) -> Result<Vec<f64>, PeerError> {
        for to in &self.to {
            to.send(local.to_vec())?;
        }
        let mut gathered = vec![];
        for from in &self.from {
            gathered.extend(from.recv()?);
        }
        Ok(gathered)
    }
}

/// What one rank sees of a step.
#[derive(Debug, Default)]
struct Step {
    embeddings: Vec<f64>,
    gradients: Vec<f64>,
    running: Vec<f64>,
    announced: Vec<usize>,
}

fn step(spec: &ModelSpec, images: &[f64], d_embeddings: &[f64], peers: &mut dyn Peers) -> Step {
    let n = d_embeddings.len() / spec.embedding_width();
    let mut network = network::<f64>(spec, n, 1);
    let embeddings = network.forward_train(images, n, peers).unwrap().to_vec();
    let mut announced = vec![];
    network.backward(d_embeddings, peers, &mut |range, _| announced.push(range.start)).unwrap();
    network.commit_buffers(BufferUpdate::Momentum(0.1));
    let parameters = network.parameters();
    let (gradients, running) = (parameters.gradients.clone(), parameters.buffer_values.clone());
    Step { embeddings, gradients, running, announced }
}

/// Splits one global batch into `rows` per rank.
fn split_step(spec: &ModelSpec, rows: &[usize]) -> (Step, Vec<Step>) {
    let n: usize = rows.iter().sum();
    let (image, width) = (spec.image_size.pow(2) * 3, spec.embedding_width());
    let (images, d_embeddings) = (noise("images", n * image), noise("d_embeddings", n * width));
    let whole = step(spec, &images, &d_embeddings, &mut Alone);
    let ranks = thread::scope(|scope| {
        let mut first = 0;
        let mut threads = vec![];
        for (mut peers, &rows) in Threads::group(rows.len()).into_iter().zip(rows) {
            let images = &images[first * image..(first + rows) * image];
            let d_embeddings = &d_embeddings[first * width..(first + rows) * width];
            first += rows;
            threads.push(scope.spawn(move || step(spec, images, d_embeddings, &mut peers)));
        }
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    (whole, ranks)
}

/// The sum over ranks of the parameter gradients.
fn summed(ranks: &[Step]) -> Vec<f64> {
    let mut sum = vec![0.0; ranks[0].gradients.len()];
    for rank in ranks {
        sum.iter_mut().zip(&rank.gradients).for_each(|(sum, gradient)| *sum += gradient);
    }
    sum
}

#[track_caller]
fn check(spec: &ModelSpec, rows: &[usize]) {
    let (whole, ranks) = split_step(spec, rows);
    let embeddings: Vec<f64> = ranks.iter().flat_map(|rank| rank.embeddings.clone()).collect();
    let error = relative_error(&embeddings, &whole.embeddings);
    assert!(error < 1e-10, "embeddings of {rows:?} rows: {error}");
    let error = relative_error(&summed(&ranks), &whole.gradients);
    assert!(error < 1e-10, "gradients of {rows:?} rows: {error}");
    for rank in &ranks {
        assert_eq!(rank.running, ranks[0].running, "running statistics are the same bits on every rank");
        assert_eq!(rank.announced, whole.announced, "gradients come in one order");
        assert!(relative_error(&rank.running, &whole.running) < 1e-12);
    }
}

#[test]
fn a_split_batch_gives_the_gradients_of_the_whole() {
    check(&spec(Arch::ResNet20, Stem::Cifar, Head::SimclrV1, 8), &[3, 3]);
    check(&spec(Arch::ResNet20, Stem::Cifar, Head::Mlp { hidden: 9, out: 5 }, 8), &[1, 4, 2]);
    check(&spec(Arch::ResNet18, Stem::Imagenet, Head::SimclrV2, 33), &[1, 2]);
    check(&spec(Arch::ResNet50, Stem::Cifar, Head::Linear { out: 6 }, 9), &[2, 1]);
    let vit = Arch::Vit(Vit { patch: 4, ..Vit::new(24, 2, 3) });
    check(&spec(vit, Stem::Cifar, Head::MocoV3Vit { hidden: 9, out: 5 }, 12), &[3, 1, 2]);
}

/// With local statistics each rank is a run of its own, and the whole batch is something else.
#[test]
fn local_statistics_ask_no_peer() {
    let local = ModelSpec {
        batch_norm: BatchNormScope::Local,
        ..spec(Arch::ResNet20, Stem::Cifar, Head::Linear { out: 5 }, 8)
    };
    let (whole, ranks) = split_step(&local, &[2, 3]);
    let images = noise("images", 5 * 8 * 8 * 3);
    let alone = step(&local, &images[..2 * 8 * 8 * 3], &noise("d_embeddings", 5 * 5)[..10], &mut Alone);
    assert_eq!(alone.embeddings, ranks[0].embeddings);
    assert_eq!(alone.gradients, ranks[0].gradients);
    assert!(relative_error(&summed(&ranks), &whole.gradients) > 1e-2);
}

/// A lost peer ends the step and leaves parameters and running statistics as they were.
#[test]
fn a_lost_peer_changes_nothing() {
    let spec = spec(Arch::ResNet20, Stem::Cifar, Head::Linear { out: 5 }, 8);
    let mut network = network::<f64>(&spec, 2, 1);
    let before = network.parameters().clone();
    let mut group = Threads::group(2);
    group.pop();
    let images = noise("images", 2 * 8 * 8 * 3);
    assert!(network.forward_train(&images, 2, &mut group[0]).is_err());
    assert_eq!(network.parameters().values, before.values);
    assert_eq!(network.parameters().buffer_values, before.buffer_values);
    // The same network then trains as if nothing had happened.
    let embeddings = network.forward_train(&images, 2, &mut Alone).unwrap().to_vec();
    let mut fresh = support::network::<f64>(&spec, 2, 1);
    assert_eq!(fresh.forward_train(&images, 2, &mut Alone).unwrap(), embeddings);
}

#[test]
#[should_panic(expected = "committed once")]
fn what_a_lost_peer_leaves_is_not_committed() {
    let spec = spec(Arch::ResNet20, Stem::Cifar, Head::Linear { out: 5 }, 8);
    let mut network = network::<f64>(&spec, 2, 1);
    let images = noise("images", 2 * 8 * 8 * 3);
    network.forward_train(&images, 2, &mut Alone).unwrap();
    let mut group = Threads::group(2);
    group.pop();
    assert!(network.forward_train(&images, 2, &mut group[0]).is_err());
    network.commit_buffers(BufferUpdate::Momentum(0.1));
}

/// A peer that is gone after some gathers.
struct LostAfter(usize);

impl Peers for LostAfter {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        1
    }

    fn all_gather_f64(&mut self, local: &[f64]) -> Result<Vec<f64>, PeerError> {
        self.0 = self.0.checked_sub(1).ok_or("the peer is gone")?;
        Ok(local.to_vec())
    }
}

#[test]
#[should_panic(expected = "committed once")]
fn a_peer_lost_in_the_backward_pass_leaves_nothing_to_commit() {
    let spec = spec(Arch::ResNet20, Stem::Cifar, Head::Linear { out: 5 }, 8);
    let mut network = network::<f64>(&spec, 2, 1);
    network.forward_train(&noise("images", 2 * 8 * 8 * 3), 2, &mut Alone).unwrap();
    assert!(network.backward(&noise("d", 10), &mut LostAfter(3), &mut |_, _| {}).is_err());
    network.commit_buffers(BufferUpdate::Momentum(0.1));
}
