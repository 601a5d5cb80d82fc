//! Small networks, small images and checkpoints of them, for tests here and in other crates (feature `fixtures`).

#![allow(clippy::unwrap_used, reason = "in a test a panic is the failure")]

use checkpoint::{Description, Directory, Staging, digest, encode_shard};
use collective::{Communicator, Group};
use config::{Arch, Head, RunConfig, Stem};
use engine::network::{Network, NetworkOptions};
use engine::optim::{Optimizer, OptimizerKind, OptimizerSpec};
use kernels::{Device, KernelPath};
use std::fs;
use std::path::{Path, PathBuf};

use crate::model;
use crate::state_dict::{CONFIG_KEY, Parts};

/// Side of the images.
pub const SIZE: usize = 8;

/// A network of some 270,000 parameters for images of [`SIZE`].
pub fn config() -> RunConfig {
    let mut config = RunConfig::default();
    config.model.arch = Arch::ResNet20;
    config.model.stem = Stem::Cifar;
    config.model.head = Head::Mlp { hidden: 16, out: 8 };
    config.data.size = SIZE;
    config.data.mean = Some([0.5, 0.4, 0.3]);
    config.data.std = Some([0.25; 3]);
    config
}

/// One thread, on the path that every machine has.
pub fn device() -> Device {
    Device::of_threads(1, KernelPath::Portable)
}

/// The network of [`config`].
pub fn network(config: &RunConfig, max_rows: usize, device: &Device) -> Network<f32> {
    let options = NetworkOptions { max_rows, seed: 3, convolution: model::convolution(config) };
    Network::new(&model::spec(config), options, device)
}

/// Writes `n` images for each class, in folders: a colour of the class's own under noise.
pub fn images(root: &Path, classes: &[(&str, [u8; 3])], n: usize) {
    for (class, color) in classes {
        let folder = root.join(class);
        fs::create_dir_all(&folder).unwrap();
        for i in 0..n {
            let pixel = |x: u32, y: u32| {
                let hash = (x + 17 * y + 131 * i as u32 + 7).wrapping_mul(2_654_435_761);
                let noise = |channel: u32| (hash >> (8 * channel)) as u8 / 3;
                image::Rgb([0u32, 1, 2].map(|c| color[c as usize].saturating_add(noise(c))))
            };
            let image = image::RgbImage::from_fn(SIZE as u32, SIZE as u32, pixel);
            image.save(folder.join(format!("{i:03}.png"))).unwrap();
        }
    }
}

/// Commits a checkpoint of `network` in two shards, with running statistics other than the first.
pub fn checkpoint(run_dir: &Path, step: u64, config: &RunConfig, network: &Network<f32>) -> PathBuf {
    checkpoint_with(run_dir, step, &config.to_toml(), network, |_, _| {})
}

/// The same with the text of a configuration, and what `more` adds before the commit.
pub fn checkpoint_with(
    run_dir: &Path,
    step: u64,
    config: &str,
    network: &Network<f32>,
    more: impl FnOnce(&Staging, &mut serde_json::Map<String, serde_json::Value>),
) -> PathBuf {
    let spec =
        OptimizerSpec { kind: OptimizerKind::Sgd { momentum: 0.9 }, weight_decay: 0.0, decay_all: false };
    let optimizer = Optimizer::new(spec, network.parameters());
    fs::create_dir_all(run_dir).unwrap();
    let staging = Staging::begin(&Directory::open(run_dir).unwrap(), step, 1, 2).unwrap();
    for rank in 0..2 {
        let parts = Parts { network, optimizer: &optimizer, momentum: None, objective: Vec::new() };
        let bytes = encode_shard(&parts.shard(rank, 2));
        let mut writer = staging.shard(rank).unwrap();
        writer.append(&bytes).unwrap();
        writer.finish(&digest(&bytes)).unwrap();
    }
    let metadata = serde_json::json!({ CONFIG_KEY: config });
    let mut metadata = metadata.as_object().unwrap().clone();
    more(&staging, &mut metadata);
    let description = Description {
        run_id: "run".to_owned(),
        world_size: 2,
        config_digest: String::new(),
        time_ns: 0,
        metadata,
    };
    staging.commit(description).unwrap().path
}

/// Does `work` on every rank of a group and returns what each found.
pub fn over_groups<T: Send>(world_size: usize, work: impl Fn(&mut Group) -> T + Sync) -> Vec<T> {
    let groups = Group::loopback(world_size).unwrap();
    std::thread::scope(|scope| {
        let work = &work;
        let ranks: Vec<_> =
            groups.into_iter().map(|mut group| scope.spawn(move || work(&mut group))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// As [`over_groups`], where one communicator is enough.
pub fn over_ranks<T: Send>(world_size: usize, work: impl Fn(&mut Communicator) -> T + Sync) -> Vec<T> {
    over_groups(world_size, |group| work(&mut group.control))
}
