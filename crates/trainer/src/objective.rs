//! The objective that a configuration describes, on one rank of a run.

use std::fs::File;
use std::io;

use config::RunConfig;
use memmap2::MmapMut;
use objectives::{
    Bank, BankSpec, BankType, ContrastSpec, Estimator, Moco, MocoV3, Needs, Normalizer, Npid, Objective,
    Pirl, Queue, Storage, TwoViews,
};

use crate::Error;

/// Of a slot, in what step it was written.
const AGE_BYTES: usize = size_of::<u32>();

/// What an objective keeps for, and where.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Images of the data set.
    pub images: usize,
    /// Width of an embedding.
    pub width: usize,
    /// This rank.
    pub rank: usize,
    /// Ranks.
    pub world_size: usize,
}

/// The loss, with what it keeps as it is at the beginning of a run.
///
/// # Errors
/// If a file for the bank cannot be made.
pub fn objective(config: &RunConfig, place: Place) -> Result<Objective, Error> {
    let config::Objective { temperature, queue, proximal, jigsaw_weight, .. } = config.objective;
    Ok(match config.objective.kind {
        config::ObjectiveKind::Moco => {
            Objective::Moco(Moco::new(temperature, Queue::new(config.run.seed, queue, place.width)))
        }
        config::ObjectiveKind::MocoV3 => Objective::MocoV3(MocoV3::new(temperature)),
        config::ObjectiveKind::Npid => {
            Objective::Npid(Npid::new(contrast(config), proximal, bank(config, place)?))
        }
        config::ObjectiveKind::Pirl => {
            Objective::Pirl(Pirl::new(contrast(config), jigsaw_weight, bank(config, place)?))
        }
        kind => {
            let loss = TwoViews::new(kind, temperature);
            Objective::TwoViews(loss.expect("a kind that keeps nothing is registered with the losses"))
        }
    })
}

/// What the objective wants encoded.
///
/// # Errors
/// As [`objective`].
pub fn needs(config: &RunConfig) -> Result<Needs, Error> {
    // It does not depend on sizes: the least objective of the kind tells.
    let mut least = config.clone();
    least.objective.queue = 1;
    least.bank.storage = config::BankStorage::Memory;
    let place = Place { images: 2, width: 1, rank: 0, world_size: 1 };
    Ok(objective(&least, place)?.needs())
}

fn contrast(config: &RunConfig) -> ContrastSpec {
    let config::Objective {
        temperature,
        negatives,
        exclude_positive,
        feature_momentum,
        normalizer_momentum,
        ..
    } = config.objective;
    ContrastSpec {
        temperature,
        estimator: match config.objective.estimator {
            config::Estimator::Nce => Estimator::Nce,
            config::Estimator::Softmax => Estimator::Softmax,
        },
        negatives,
        exclude_positive,
        normalizer: match config.objective.normalizer {
            config::Normalizer::FirstBatch => Normalizer::FirstBatch,
            config::Normalizer::Ema => Normalizer::Ema(normalizer_momentum),
        },
        feature_momentum,
        refresh_age: config.bank.refresh_age,
    }
}

/// Bytes of memory that the objective keeps from one step to the next: its queue, or its shards of the bank.
pub fn kept_bytes(config: &RunConfig, place: Place) -> usize {
    match config.objective.kind {
        config::ObjectiveKind::Moco => config.objective.queue * place.width * size_of::<f32>(),
        config::ObjectiveKind::Npid | config::ObjectiveKind::Pirl => {
            let spec = bank_spec(config, place);
            let own = spec.own_slots(place.rank, place.world_size).len();
            let slots =
                own + spec.mirrored_slots(place.rank, place.world_size).map_or(0, |slots| slots.len());
            let rows = match config.bank.storage {
                config::BankStorage::Memory => spec.shard_bytes(slots),
                config::BankStorage::Mapped => 0,
            };
            rows + slots * AGE_BYTES
        }
        _ => 0,
    }
}

fn bank_spec(config: &RunConfig, place: Place) -> BankSpec {
    BankSpec {
        slots: place.images,
        width: place.width,
        dtype: match config.bank.dtype {
            config::BankDtype::F32 => BankType::F32,
            config::BankDtype::Bf16 => BankType::Bf16,
        },
        mirror: config.bank.mirror,
        seed: config.run.seed,
    }
}

fn bank(config: &RunConfig, place: Place) -> Result<Bank, Error> {
    let Place { rank, world_size, .. } = place;
    let spec = bank_spec(config, place);
    let storage = match config.bank.storage {
        config::BankStorage::Memory => Storage::Memory,
        config::BankStorage::Mapped => {
            let file = |slots: std::ops::Range<usize>| {
                map_file(spec.shard_bytes(slots.len()))
                    .map_err(|source| Error::System { what: "map a file for the bank", source })
            };
            Storage::Mapped {
                own: file(spec.own_slots(rank, world_size))?,
                mirror: spec.mirrored_slots(rank, world_size).map(file).transpose()?,
            }
        }
    };
    Ok(Bank::new(spec, rank, world_size, storage))
}

/// Maps a new file of the system's temporary directory (`TMPDIR`), which is gone with this process.
#[expect(unsafe_code, reason = "a mapped file changes when another program writes to it")]
fn map_file(n_bytes: usize) -> io::Result<MmapMut> {
    let file = allocated_file(n_bytes)?;
    // SAFETY: the file has no name, so that no other program can open it and change or shorten it.
    unsafe { MmapMut::map_mut(&file) }
}

/// A file without a name, whose bytes are all on the disk: one with holes would end the process by a signal when the
/// disk is full and a hole is written to.
fn allocated_file(n_bytes: usize) -> io::Result<File> {
    let file = tempfile::tempfile()?;
    let len = i64::try_from(n_bytes).map_err(io::Error::other)?;
    nix::fcntl::posix_fallocate(&file, 0, len)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn config(text: &str) -> RunConfig {
        RunConfig::from_toml(&format!("[objective]\n{text}")).unwrap()
    }

    fn at(rank: usize, world_size: usize) -> Place {
        Place { images: 10, width: 3, rank, world_size }
    }

    #[test]
    fn needs_are_those_of_the_kind_and_cost_nothing() {
        let needs = |text| needs(&config(text)).unwrap();
        assert_eq!(
            (needs("kind = \"simclr\"").queries, needs("kind = \"simclr\"").keys),
            (&[0, 1][..], &[][..])
        );
        let moco = needs("kind = \"moco\"\nqueue = 1000000000");
        assert_eq!((moco.queries, moco.keys), (&[0][..], &[1][..]));
        let pirl = needs("kind = \"pirl\"\n[bank]\nstorage = \"mapped\"");
        assert_eq!((pirl.queries, pirl.jigsaw), (&[0][..], true));
    }

    /// A bank has the same first slots in a file as in memory, each rank its own.
    #[test]
    fn a_bank_in_a_file_is_one_in_memory() {
        let state = |storage: &str, rank| {
            let config = config(&format!("kind = \"npid\"\n[bank]\nstorage = \"{storage}\""));
            let objective = objective(&config, at(rank, 3)).unwrap();
            let arrays = objective.state();
            arrays.iter().map(|array| (array.name.clone(), array.bytes.to_vec())).collect::<Vec<_>>()
        };
        for rank in 0..3 {
            assert_eq!(state("mapped", rank), state("memory", rank));
        }
        assert_ne!(state("memory", 0), state("memory", 1));
    }
    #[test]
    fn what_is_kept_is_known_beforehand() {
        #[track_caller]
        fn check(text: &str) {
            let config = config(text);
            for rank in 0..3 {
                // Shards are whole multiples of eight bytes.
                let place = Place { width: 4, ..at(rank, 3) };
                let objective = objective(&config, place).unwrap();
                let kept = match objective.bank() {
                    Some(bank) => bank.own().bytes() + bank.mirror().map_or(0, |shard| shard.bytes()),
                    None => objective.state().iter().map(|array| array.bytes.len()).sum(),
                };
                assert_eq!(kept_bytes(&config, place), kept, "{text}, rank {rank}");
            }
        }
        check("kind = \"simclr\"");
        check("kind = \"npid\"");
        check("kind = \"npid\"\n[bank]\nmirror = false");
        check("kind = \"pirl\"\n[bank]\ndtype = \"bf16\"");
        let mapped = config("kind = \"npid\"\n[bank]\nstorage = \"mapped\"");
        assert_eq!(kept_bytes(&mapped, at(0, 3)), (4 + 3) * AGE_BYTES);
        let moco = config("kind = \"moco\"\nqueue = 50");
        assert_eq!(kept_bytes(&moco, at(0, 3)), 50 * 3 * size_of::<f32>());
    }

    #[test]
    fn the_file_of_a_bank_has_no_holes() {
        let file = allocated_file(1 << 20).unwrap().metadata().unwrap();
        assert_eq!(file.len(), 1 << 20);
        assert!(file.blocks() * 512 >= file.len(), "{} blocks", file.blocks());
    }
}
