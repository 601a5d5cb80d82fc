//! Running statistics: staged by a training pass, applied once, used in evaluation.

#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is the failure")]

mod support;

use engine::models::{Arch, Head, Stem};
use engine::network::Network;
use engine::parameters::BufferUpdate;
use kernels::peers::Alone;
use support::{network, noise, relative_error, spec};

const ROWS: usize = 4;

fn images(name: &str) -> Vec<f64> {
    noise(name, ROWS * 8 * 8 * 3)
}

fn trained() -> Network<f64> {
    let mut network = network(&spec(Arch::ResNet20, Stem::Cifar, Head::SimclrV1, 8), ROWS + 1, 2);
    network.forward_train(&images("a"), ROWS, &mut Alone).unwrap();
    network
}

#[test]
fn a_pass_changes_them_only_when_committed() {
    let mut network = trained();
    let before = network.buffers_snapshot();
    network.backward(&noise("d", ROWS * 128), &mut Alone, &mut |_, _| {}).unwrap();
    assert_eq!(network.buffers_snapshot(), before);
    network.commit_buffers(BufferUpdate::Momentum(0.1));
    assert_ne!(network.buffers_snapshot(), before);
    assert_eq!(network.parameters().num_batches_tracked, 1);
    network.restore_buffers(&before);
    assert_eq!(network.buffers_snapshot(), before);
    assert_eq!(network.parameters().num_batches_tracked, 0);
}

#[test]
#[should_panic(expected = "committed once")]
fn a_second_commit_is_refused() {
    let mut network = trained();
    network.commit_buffers(BufferUpdate::Momentum(0.1));
    network.commit_buffers(BufferUpdate::Momentum(0.1));
}

/// After one batch alone, evaluating it differs from training on it by the unbiased variance only; the cumulative
/// mean of two batches is the mean of both.
#[test]
fn cumulative_statistics_are_means_of_batches() {
    let mut network = trained();
    network.commit_buffers(BufferUpdate::Cumulative { count: 1 });
    let first = network.parameters().buffer_values.clone();
    network.forward_train(&images("b"), ROWS, &mut Alone).unwrap();
    network.commit_buffers(BufferUpdate::Cumulative { count: 1 });
    let second = network.parameters().buffer_values.clone();
    network.forward_train(&images("a"), ROWS, &mut Alone).unwrap();
    network.commit_buffers(BufferUpdate::Cumulative { count: 2 });
    let mean: Vec<f64> = first.iter().zip(&second).map(|(a, b)| 0.5 * (a + b)).collect();
    assert!(relative_error(&network.parameters().buffer_values, &mean) < 1e-14);
}

/// With running statistics an image's embedding depends on no other image, and evaluating changes nothing.
#[test]
fn evaluation_sees_one_image_at_a_time() {
    let mut network = trained();
    network.commit_buffers(BufferUpdate::Momentum(0.5));
    let before = network.parameters().clone();
    let batch = images("b");
    let together = network.forward_eval(&batch, ROWS);
    let (features, embeddings) = (together.features.to_vec(), together.embeddings.to_vec());
    for (row, image) in batch.chunks_exact(8 * 8 * 3).enumerate() {
        let alone = network.forward_eval(image, 1);
        assert_eq!(alone.features, &features[row * 64..][..64]);
        assert!(relative_error(alone.embeddings, &embeddings[row * 128..][..128]) < 1e-14);
    }
    assert_eq!(network.parameters().buffer_values, before.buffer_values);
    assert_eq!(network.parameters().num_batches_tracked, before.num_batches_tracked);
}

#[test]
#[should_panic(expected = "follows a training pass")]
fn evaluation_ends_a_training_pass() {
    let mut network = trained();
    network.forward_eval(&images("b"), ROWS);
    network.backward(&noise("d", ROWS * 128), &mut Alone, &mut |_, _| {}).unwrap();
}

/// The same inputs give the same bits on any number of rows allocated, and after anything that came before.
#[test]
fn a_step_depends_on_nothing_before_it() {
    let mut once = trained();
    let fresh = once.forward_train(&images("b"), ROWS, &mut Alone).unwrap().to_vec();
    once.backward(&noise("d", ROWS * 128), &mut Alone, &mut |_, _| {}).unwrap();
    let mut other = network::<f64>(once.spec(), ROWS, 2);
    assert_eq!(other.forward_train(&images("b"), ROWS, &mut Alone).unwrap(), fresh);
    other.backward(&noise("d", ROWS * 128), &mut Alone, &mut |_, _| {}).unwrap();
    assert_eq!(other.parameters().gradients, once.parameters().gradients);
}
