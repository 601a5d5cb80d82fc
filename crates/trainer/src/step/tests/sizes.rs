//! What a rank predicts of the size of its checkpoints before its first step.

use super::*;

/// Momenta, queues, banks and momentum encoders are there from the start: nothing grows while a run trains. The coordinator
/// would take twice the predicted size.
#[test]
fn a_shard_is_as_large_as_predicted_before_the_first_step() {
    for (method, ..) in METHODS {
        let mut config = config(method, "resnet20");
        for optimizer in [config::OptimizerKind::Sgd, config::OptimizerKind::AdamW] {
            config.optimizer.kind = optimizer;
            for world_size in [1, 2] {
                for rank in (Episode { steps: 0..2, ..Episode::new(&config, world_size) }).run() {
                    let (predicted, later) =
                        (rank.predicted_bytes, checkpoint::encode_shard(&rank.shard).len() as u64);
                    let what = format!("{method}, {optimizer:?}: {later} bytes, {predicted} predicted");
                    assert!(predicted.abs_diff(later) <= later / 100, "{what}");
                }
            }
        }
    }
}
