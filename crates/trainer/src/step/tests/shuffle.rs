//! Keys with local batch norm: each rank encodes images of others, and every key finds its query.

use super::*;
use data::Sampler;
use kernels::peers::Alone;

const WORLD_SIZE: usize = 3;

fn local() -> RunConfig {
    let mut config = config("moco", "resnet20");
    config.model.batch_norm = config::BatchNorm::Local;
    config
}

/// The keys of update `step` by rank, and what else the trainer of each then holds.
fn keys(step: u64, batches: &[Batch]) -> Vec<Vec<f32>> {
    let config = local();
    std::thread::scope(|scope| {
        let groups = Group::loopback(WORLD_SIZE).unwrap().into_iter().zip(batches);
        let ranks = groups.map(|(group, batch)| {
            let config = &config;
            scope.spawn(move || {
                let plan = Plan::resolve(config, group.control.rank(), WORLD_SIZE).unwrap();
                let mut trainer = trainer(&plan, group);
                let Trainer { momentum, layout, activations, .. } = &mut trainer;
                let momentum = momentum.as_mut().unwrap();
                momentum.encode((&batch.images, &[1]), (step, layout), activations).unwrap()
            })
        });
        ranks.collect::<Vec<_>>().into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

#[test]
fn keys_are_encoded_among_strangers_and_come_back() {
    let config = local();
    let batches: Vec<Batch> = (0..WORLD_SIZE)
        .map(|rank| {
            let plan = Plan::resolve(&config, rank, WORLD_SIZE).unwrap();
            let (dataset, augmentation) = (plan.dataset.clone(), plan.augmentation.clone());
            Loader::new(dataset, augmentation, plan.loader_options(0)).unwrap().next_batch().unwrap()
        })
        .collect();
    // The second view of every image, in global positions.
    let len = 8 * 8 * 3;
    let images: Vec<&[f32]> =
        batches.iter().flat_map(|batch| batch.images[batch.images.len() / 2..].chunks_exact(len)).collect();
    let n: Vec<usize> = batches.iter().map(|batch| batch.indices.len()).collect();
    assert_eq!(n, [3, 2, 2]);

    let plan = Plan::resolve(&config, 0, 1).unwrap();
    let mut alone = trainer(&plan, Group::alone());
    let network = &mut alone.momentum.as_mut().unwrap().network;
    for step in [1, 2] {
        let mut expected = vec![Vec::new(); 7];
        let seed = config.run.seed ^ momentum::SHUFFLE;
        let order = Sampler::new(seed, 7).order(step);
        let mut start = 0;
        for n in &n {
            let dealt = &order[start..start + n];
            start += n;
            let rows: Vec<f32> = dealt.iter().flat_map(|&image| images[image]).copied().collect();
            let keys = network.forward_train(&rows, *n, &mut Alone).unwrap();
            dealt.iter().zip(keys.chunks_exact(8)).for_each(|(&image, key)| expected[image] = key.to_vec());
        }
        let found = keys(step, &batches).concat();
        assert!(found == expected.concat(), "step {step}");
        // It matters who is encoded together.
        let rows: Vec<f32> = images[..3].concat();
        assert_ne!(network.forward_train(&rows, 3, &mut Alone).unwrap(), &found[..3 * 8]);
    }
}

/// Each rank's running statistics are its own; everything else is the same bits.
#[test]
fn ranks_differ_in_their_statistics_alone() {
    let ranks = Episode::new(&local(), 2).run();
    assert_eq!(ranks[0].losses, ranks[1].losses);
    for (name, bytes) in &ranks[0].state {
        let is_statistic = name.ends_with("running_mean") || name.ends_with("running_var");
        assert_eq!(ranks[1].state[name] == *bytes, !is_statistic, "{name}");
    }
}
