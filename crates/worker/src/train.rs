//! The program: what one rank does from its first step to its last.

use collective::{Communicator, Group};
use config::RunConfig;
use data::{Limits, Loader};
use kernels::DeviceOptions;
use proto::v1::Phase;
use std::sync::Arc;
use trainer::evaluation::Evaluation;
use trainer::images::{Images, Past};
use trainer::plan::{self, Plan};
use trainer::step::StepBatch;
use trainer::{model, same_data, state_dict};

use crate::checkpointing::Checkpoints;
use crate::clock;
use crate::directive;
use crate::journal::{Journal, Loss};
use crate::session::Session;
use crate::{Error, transfer};

/// What this process may use of its machine.
#[derive(Clone, Debug)]
pub struct Resources {
    /// What it computes with.
    pub device: DeviceOptions,
    /// Bytes of memory that data sets may take which are held whole.
    pub data_bytes: u64,
}

/// Where a run begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// The step of the checkpoint to continue from; none: the beginning.
    pub checkpoint: Option<u64>,
    /// Whether the data set is taken as it is now, whatever the checkpoint's list of images says.
    pub accept_changed_data: bool,
}

/// Trains this rank's share of the run until its last step, or until it is told to stop.
///
/// # Errors
/// Everything that ends a run: lost peers, bad data, a loss that is not a number. The caller reports it.
pub fn train(
    session: &Session,
    config: &RunConfig,
    resources: &Resources,
    mut group: Group,
    start: Start,
) -> Result<(), Error> {
    let leader = group.control.rank() == 0;
    let manifest = start.checkpoint.map(|step| transfer::fetch_manifest(session, step)).transpose()?;
    let limits = Limits { memory_bytes: resources.data_bytes, ..plan::limits(config) };
    let past = match &manifest {
        None => None,
        Some(manifest) => {
            let list = transfer::fetch_images(session, manifest)?;
            Some(Past::new(manifest, list, start.accept_changed_data))
        }
    };
    let images = open_images(session, config, limits, past.as_ref(), &mut group.control)?;
    let start = start.checkpoint.unwrap_or(0);
    let plan = Plan::of(config, images, group.control.rank(), group.control.world_size())?;
    let evaluation = match config.eval.knn_every {
        0 => None,
        _ => {
            let (bank, test) = (plan.dataset.clone(), plan.test.clone());
            Evaluation::new(bank, test, model::preprocess(config), config.eval.k)?
        }
    };
    if evaluation.is_none() && config.eval.knn_every > 0 && leader {
        session.warn("the training images have no labels: no kNN evaluation".into());
    }
    if config.objective.kind == config::ObjectiveKind::MocoV3
        && config.model.predictor == config::Predictor::None
        && leader
    {
        session.warn(
            "MoCo v3 without a predictor: set model.predictor = moco-v3 for the published method".into(),
        );
    }
    if leader {
        let bytes = plan.predicted_bytes(&resources.device);
        tracing::info!(bytes, "memory of networks, optimizer and objective");
    }
    // The loader's threads come before the trainer's, which pin the thread that they are started from.
    let mut loader =
        Loader::new(Arc::clone(&plan.dataset), plan.augmentation.clone(), plan.loader_options(start))?;
    let mut trainer = plan.trainer(&resources.device, group)?;
    let mut checkpoints = Checkpoints::new(session, config, &plan);
    let mut journal = Journal::new(session, &plan, &trainer);

    if let Some(manifest) = &manifest {
        checkpoints.restore(&mut trainer, manifest, past.as_ref())?;
    }
    session.ready(start, plan.total_steps(), state_dict::shard_bytes(&trainer));
    if manifest.is_none() && config.checkpoint.at_start {
        // No other can make up for it: there is no second start.
        checkpoints.save_finally(&mut trainer, 0)?;
    }
    if let Some(evaluation) = evaluation.as_ref().filter(|_| start == 0) {
        session.progress(Phase::Evaluating, 0, trainer.sequence());
        let untrained = evaluation.knn_calibrated(&mut trainer.encoder())?;
        journal.write(&mut trainer, 0, None, Some(untrained))?;
    }

    let end = plan.end_step();
    let mut step = start;
    let mut paused = false;
    let mut stopped = false;
    // Of the last update, if it has no row yet.
    let mut unwritten = None;
    while step < end {
        let directive = directive::agree(session, &mut trainer.control, &mut paused, step)?;
        if directive.stop {
            stopped = true;
            break;
        }
        if directive.checkpoint {
            checkpoints.save_as_ordered(&mut trainer, step)?;
        }
        if paused {
            continue;
        }

        session.progress(Phase::Training, step, trainer.sequence());
        let begun = clock::now();
        let mut batch = loader.next_batch()?;
        let waited = begun.elapsed();
        let learning_rate = plan.schedule.lr(step);
        step += 1;
        let outcome = trainer.step(step, &StepBatch::from(&batch), learning_rate)?;
        let replaced = std::mem::take(&mut batch.replaced);
        journal.note_step(begun.elapsed(), waited, replaced, &outcome.corrupt);
        let loss = Loss { outcome, learning_rate };
        loader.recycle(batch);

        let evaluated = match &evaluation {
            Some(evaluation) if step.is_multiple_of(config.eval.knn_every) || step == end => {
                session.progress(Phase::Evaluating, step, trainer.sequence());
                Some(evaluation.knn(&mut trainer.encoder())?)
            }
            _ => None,
        };
        if evaluated.is_some() || step.is_multiple_of(config.metrics.every) || step == end {
            journal.write(&mut trainer, step, Some(loss), evaluated)?;
            unwritten = None;
        } else {
            journal.share(&mut trainer, step)?;
            unwritten = Some(loss);
        }
        if config.checkpoint.every > 0 && step.is_multiple_of(config.checkpoint.every) {
            checkpoints.save(&mut trainer, step)?;
        }
    }

    // A clean end always leaves a row and a checkpoint of its last step.
    if unwritten.is_some() {
        journal.write(&mut trainer, step, unwritten, None)?;
    }
    checkpoints.save_finally(&mut trainer, step)?;
    if leader {
        session.finished(step, stopped);
    }
    Ok(())
}

/// Opens the data sets, and finds that all ranks see the same; collective.
fn open_images(
    session: &Session,
    config: &RunConfig,
    limits: Limits,
    past: Option<&Past>,
    communicator: &mut Communicator,
) -> Result<Images, Error> {
    let images = Images::open(config, limits, past)?;
    let sources = [&config.data.source[..], config.eval.data.as_deref().unwrap_or_default()];
    same_data::compare(communicator, session.node(), sources, &images)?;
    if communicator.rank() == 0 {
        images.notices.iter().for_each(|notice| session.warn(notice.clone()));
    }
    Ok(images)
}
