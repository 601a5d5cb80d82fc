//! The gradient that a step takes is that of the loss that it reports, and the momentum encoder follows as the papers say.

use super::*;

/// The second step of a run in a world of one, as `change` would have it. The normalizer of noise contrastive estimation,
/// which is a constant of later steps, was estimated in the first.
pub fn second_step(
    config: &RunConfig,
    from: &[Tensor<'static>],
    change: impl FnOnce(&mut Trainer),
) -> (f64, Trainer) {
    let plan = Plan::resolve(config, 0, 1).unwrap();
    let mut trainer = trainer(&plan, Group::alone());
    let mut restoration = Restoration::new(&mut trainer);
    from.iter().for_each(|tensor| restoration.take(tensor).unwrap());
    restoration.finish().unwrap();
    change(&mut trainer);
    let batch = second_batch(&plan);
    let loss = trainer.step(2, &StepBatch::from(&batch), LR).unwrap().loss;
    (loss, trainer)
}

fn second_batch(plan: &Plan) -> Batch {
    let (dataset, augmentation) = (plan.dataset.clone(), plan.augmentation.clone());
    Loader::new(dataset, augmentation, plan.loader_options(1)).unwrap().next_batch().unwrap()
}

/// Along the gradient of some of its parameters the loss rises by the square of that gradient: central differences. A part
/// that is left out or counted twice (a chunk, the jigsaw's pass through the trunk, a direction of the symmetric loss) makes
/// another slope.
#[test]
fn a_steps_gradient_is_that_of_its_loss() {
    for (method, ..) in METHODS {
        let mut config = config(method, "resnet20");
        // Keys are constants of the loss: with this momentum they stay where they are.
        config.objective.momentum = 1.0;
        config.objective.momentum_schedule = config::MomentumSchedule::Constant;
        let from = checkpoint(&Episode { steps: 0..1, ..Episode::new(&config, 1) }.run());
        let (_, trainer) = second_step(&config, &from, |_| {});
        let parameters = trainer.network.parameters();
        let gradient = &parameters.gradients;
        let mut checked = 0;
        for part in
            ["backbone.conv1.", "backbone.layer2.", "backbone.layer3.", "head.", "jigsaw_head.", "predictor."]
        {
            let places: Vec<Range<usize>> = parameters
                .entries
                .iter()
                .filter(|entry| entry.name.starts_with(part))
                .map(|entry| entry.range())
                .collect();
            if places.is_empty() {
                continue;
            }
            checked += 1;
            let of_part = || places.iter().cloned().flatten();
            let squared: f64 = of_part().map(|i| f64::from(gradient[i]).powi(2)).sum();
            // So far that the loss changes by more than it is rounded by, and little by the kinks of the ReLUs.
            let h = 5e-5 / squared.sqrt();
            let moved = |h: f64| {
                let move_along = |trainer: &mut Trainer| {
                    let values = &mut trainer.network.parameters_mut().values;
                    of_part().for_each(|i| values[i] += (h * f64::from(gradient[i])) as f32);
                };
                second_step(&config, &from, move_along).0
            };
            let slope = (moved(h) - moved(-h)) / (2.0 * h);
            assert!((slope / squared - 1.0).abs() < 0.03, "{method}, {part}: {slope:e}, not {squared:e}");
        }
        assert!(checked >= 4, "{method}: the names of the parameters have changed");
    }
}

/// MoCo (He et al. 2019), equation 2: `k = m k + (1 - m) q`, with the queries' parameters of before the update, and the
/// keys are encoded with the result.
#[test]
fn keys_are_encoded_after_the_momentum_encoder_has_moved() {
    let config = config("moco", "resnet20");
    let from = checkpoint(&Episode { steps: 0..1, ..Episode::new(&config, 1) }.run());
    let (mut queries, mut keys) = (Vec::new(), Vec::new());
    let (_, mut trainer) = second_step(&config, &from, |trainer| {
        queries.clone_from(&trainer.network.parameters().values);
        keys.clone_from(&trainer.momentum.as_ref().unwrap().network.parameters().values);
    });
    assert_ne!(keys, queries[..keys.len()], "the first step has parted them");
    let m = config.objective.momentum as f32;
    let network = &mut trainer.momentum.as_mut().unwrap().network;
    for ((moved, key), query) in network.parameters().values.iter().zip(&keys).zip(&queries) {
        assert!((moved - (m * key + (1.0 - m) * query)).abs() <= 1e-6 * key.abs().max(1.0));
    }

    let batch = second_batch(&Plan::resolve(&config, 0, 1).unwrap());
    let views = batch.images.chunks_exact(batch.images.len() / 2);
    let encoded = network.forward_train(views.last().unwrap(), 7, &mut kernels::peers::Alone).unwrap();
    let width = encoded.len() / 7;
    // The first batch has the queue's first seven places, and the second the next.
    let queue = trainer.objective.state().into_iter().find(|array| array.name == "objective.queue").unwrap();
    let queued: Vec<f32> = queue.bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    for (key, queued) in encoded.chunks_exact(width).zip(queued[7 * width..].chunks_exact(width)) {
        let norm = key.iter().map(|k| k * k).sum::<f32>().sqrt();
        key.iter().zip(queued).for_each(|(k, q)| assert!((k / norm - q).abs() < 1e-5, "{key:?} {queued:?}"));
    }
}
