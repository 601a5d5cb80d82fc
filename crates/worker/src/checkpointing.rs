//! When a checkpoint is taken, what it records, and how a run goes on from one.

use checkpoint::Manifest;
use config::RunConfig;
use proto::v1::Phase;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::Duration;
use trainer::images::Past;
use trainer::plan::Plan;
use trainer::state_dict::{CONFIG_KEY, Parts, Restoration, Unfit};
use trainer::step::Trainer;
use trainer::{resumption, state_dict};

use crate::session::Session;
use crate::transfer::Description;
use crate::{Error, transfer};

/// Between attempts to save the last checkpoint of a run whose coordinator is away.
const RETRY: Duration = Duration::from_secs(1);

/// What results depend on, to the bit, besides configuration and data.
const EXACTNESS: [(&str, &str); 4] = [
    ("world_size", "world size"),
    ("threads", "threads per worker"),
    ("kernel_path", "kernel path"),
    ("convolution", "convolution"),
];

/// The checkpoints of this run, as one rank takes part in them.
pub struct Checkpoints<'a> {
    session: &'a Session,
    config: &'a RunConfig,
    plan: &'a Plan,
    /// The last step that was saved, or that the run came from.
    saved: Option<u64>,
    /// The list of the run's images, made for the first checkpoint.
    images: Option<Arc<[u8]>>,
}

impl<'a> Checkpoints<'a> {
    /// None taken yet.
    pub fn new(session: &'a Session, config: &'a RunConfig, plan: &'a Plan) -> Checkpoints<'a> {
        Checkpoints { session, config, plan, saved: None, images: None }
    }

    /// Saves the state after `step` updates, unless that is saved already; collective. A coordinator out of
    /// reach is not an error: training goes on, and the next checkpoint makes up for it.
    ///
    /// # Errors
    /// If the coordinator refuses the checkpoint, or a peer is lost.
    pub fn save(&mut self, trainer: &mut Trainer, step: u64) -> Result<bool, Error> {
        if self.saved == Some(step) {
            return Ok(true);
        }
        self.session.progress(Phase::Checkpointing, step, trainer.sequence());
        let Trainer { network, momentum, control, .. } = trainer;
        for network in [network].into_iter().chain(momentum.as_mut().map(|momentum| &mut momentum.network)) {
            state_dict::agree_on_buffers(network, control)?;
        }
        let (rank, world_size) = (control.rank(), control.world_size());
        let description = (rank == 0).then(|| self.describe(trainer, step));
        let Trainer { network, optimizer, momentum, objective, control, .. } = trainer;
        let parts = Parts::new(network, optimizer, momentum.as_ref(), objective);
        let shard = parts.shard(rank, world_size);
        if transfer::save(self.session, control, step, &shard, description)? {
            self.saved = Some(step);
            if rank == 0 {
                tracing::info!(step, "checkpoint saved");
            }
            return Ok(true);
        }
        Ok(false)
    }

    /// As [`Checkpoints::save`], also if that step is saved: whoever asked waits for a commit.
    ///
    /// # Errors
    /// As [`Checkpoints::save`].
    pub fn save_as_ordered(&mut self, trainer: &mut Trainer, step: u64) -> Result<bool, Error> {
        self.saved = None;
        self.save(trainer, step)
    }

    /// As [`Checkpoints::save`], trying until it is done or the session is over.
    ///
    /// # Errors
    /// As [`Checkpoints::save`], or if the coordinator stays away for longer than `cluster.orphan_ttl`.
    pub fn save_finally(&mut self, trainer: &mut Trainer, step: u64) -> Result<(), Error> {
        while !self.save(trainer, step)? {
            self.session.check()?;
            self.session.block_on(tokio::time::sleep(RETRY));
        }
        Ok(())
    }

    /// Loads the state of a checkpoint, and says what has changed since that results depend on.
    ///
    /// # Errors
    /// If the checkpoint is not to be had, is damaged, or is of another network.
    pub fn restore(
        &mut self,
        trainer: &mut Trainer,
        manifest: &Manifest,
        past: Option<&Past>,
    ) -> Result<(), Error> {
        let step = manifest.step;
        let unfit = |unfit| match unfit {
            Unfit::Tensor(source) => Error::Checkpoint { step, source },
            Unfit::Objective(error) => trainer::Error::from(error).into(),
        };
        let mut restoration = Restoration::new(trainer);
        transfer::fetch(self.session, manifest, &mut |tensor| restoration.take(tensor).map_err(unfit))?;
        restoration.finish().map_err(unfit)?;
        check_world_size(self.config, &manifest.metadata, trainer.control.world_size())?;
        self.saved = Some(step);
        if trainer.control.rank() == 0 {
            tracing::info!(step, "continuing from a checkpoint");
            for change in changes(&manifest.metadata, &self.metadata(trainer, step)) {
                self.session.warn(change);
            }
            if let Some(outlook) = self.outlook(&manifest.metadata, past, step) {
                self.session.warn(outlook);
            }
        }
        Ok(())
    }

    /// What rank 0 says of a checkpoint.
    fn describe(&mut self, trainer: &Trainer, step: u64) -> Description {
        let made = || Arc::from(self.plan.images.list());
        let images = Arc::clone(self.images.get_or_insert_with(made));
        let mut metadata = self.metadata(trainer, step);
        let recorded = self.plan.images.metadata(&checkpoint::digest(&images));
        metadata.extend(recorded.map(|(key, value)| (key.to_owned(), value)));
        Description { metadata, images }
    }

    /// What becomes of a run that goes on after `step` updates, where that is not what it was.
    fn outlook(&self, before: &Map<String, Value>, past: Option<&Past>, step: u64) -> Option<String> {
        let Checkpoints { session, config, plan, .. } = self;
        resumption::nothing_to_do(config, plan, &session.fence().run_id, step).or_else(|| {
            // One that this version does not read is nothing to compare with.
            let stored = RunConfig::from_toml(before.get(CONFIG_KEY)?.as_str()?).ok()?;
            let epochs = past.and_then(|past| resumption::epochs_before(past, config));
            resumption::new_schedule(&stored, config, [epochs.unwrap_or(plan.epochs), plan.epochs], step)
        })
    }

    fn metadata(&self, trainer: &Trainer, step: u64) -> Map<String, Value> {
        let metadata = json!({
            CONFIG_KEY: self.config.to_toml(),
            "world_size": trainer.control.world_size(),
            "threads": trainer.device.cpu().threads(),
            "kernel_path": trainer.device.cpu().path.to_string(),
            "convolution": self.config.train.convolution.to_string(),
            "epoch": self.plan.epoch(step),
            "step": step,
        });
        match metadata {
            Value::Object(map) => map,
            _ => unreachable!("written as an object"),
        }
    }
}

/// Refuses another world size where the result depends on it: each rank's batch norm sees its own rows only.
fn check_world_size(
    config: &RunConfig,
    before: &Map<String, Value>,
    world_size: usize,
) -> Result<(), trainer::Error> {
    let written_by = before.get("world_size").and_then(Value::as_u64);
    let is_local = config.model.batch_norm == config::BatchNorm::Local;
    match written_by {
        Some(n) if is_local && n != world_size as u64 => Err(trainer::Error::Config {
            key: "model.batch_norm",
            value: config.model.batch_norm.to_string(),
            reason: format!(
                "each worker's statistics are its own, so that {world_size} workers would not go on with what {n} began; \
                 resume with --workers {n}"
            ),
        }),
        _ => Ok(()),
    }
}

/// One sentence for everything that makes this run differ from an undisturbed one.
fn changes(before: &Map<String, Value>, now: &Map<String, Value>) -> Vec<String> {
    let changed = EXACTNESS.iter().filter(|(key, _)| before.get(*key) != now.get(*key));
    let sentence = |(key, name): &(&str, &str)| {
        let text = |map: &Map<String, Value>| match map.get(*key) {
            Some(Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
            None => "unknown".to_owned(),
        };
        format!(
            "resumed with another {name}: {} instead of {}; results agree with an undisturbed run within \
             rounding, not bit for bit",
            text(now),
            text(before)
        )
    };
    changed.map(sentence).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_statistics_bind_a_run_to_its_world_size() {
        let before = json!({ "world_size": 2 }).as_object().unwrap().clone();
        let resumed = |batch_norm: &str, world_size| {
            let config = RunConfig::from_toml(&format!("[model]\nbatch_norm = \"{batch_norm}\"\n")).unwrap();
            check_world_size(&config, &before, world_size)
                .map_err(|error| (error.exit_code(), error.to_string()))
        };
        assert_eq!((resumed("global", 3), resumed("local", 2)), (Ok(()), Ok(())));
        let (code, message) = resumed("local", 3).unwrap_err();
        assert_eq!(code, 2);
        assert!(message.ends_with("resume with --workers 2"), "{message}");
    }

    #[test]
    fn a_change_that_costs_exactness_is_named() {
        let map = |world_size: u64, path: &str| {
            let value = json!({ "world_size": world_size, "threads": 1, "kernel_path": path,
                "convolution": "auto", "epoch": world_size });
            value.as_object().unwrap().clone()
        };
        assert_eq!(changes(&map(2, "avx2"), &map(2, "avx2")), [""; 0]);
        let found = changes(&map(2, "avx2"), &map(4, "avx512"));
        assert_eq!(found.len(), 2);
        assert!(found[0].starts_with("resumed with another world size: 4 instead of 2;"), "{}", found[0]);
        assert!(
            found[1].starts_with("resumed with another kernel path: avx512 instead of avx2;"),
            "{}",
            found[1]
        );
        assert!(changes(&Map::new(), &map(2, "avx2"))[0].contains("world size: 2 instead of unknown"));
    }
}
