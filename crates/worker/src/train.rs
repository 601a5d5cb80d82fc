//! The program: what one rank does from its first step to its last.

use collective::Communicator;
use config::RunConfig;
use data::{Batch, Loader};
use proto::v1::Phase;
use std::sync::Arc;

use crate::checkpoints::Checkpoints;
use crate::clock;
use crate::directive;
use crate::evaluation::Evaluation;
use crate::journal::{Journal, Loss};
use crate::plan::{Compute, Plan};
use crate::session::Session;
use crate::step::StepBatch;
use crate::{Error, model};

/// Trains this rank's share of the run until its last step, or until it is told to stop.
///
/// `group` is the two communicators, for small things and for gradients; `checkpoint` the step to continue
/// from.
///
/// # Errors
/// Everything that ends a run: lost peers, bad data, a loss that is not a number. The caller reports it.
pub fn train(
    session: &Session,
    config: &RunConfig,
    compute: &Compute,
    group: [Communicator; 2],
    checkpoint: Option<u64>,
) -> Result<(), Error> {
    let [small, gradients] = group;
    let leader = small.rank() == 0;
    let start = checkpoint.unwrap_or(0);
    let plan = Plan::resolve(config, small.rank(), small.world_size())?;
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
        let bytes = plan.predicted_bytes(compute.threads);
        tracing::info!(bytes, "memory of networks, optimizer and objective");
    }
    // The loader's threads come before the trainer's, which pin the thread that they are started from.
    let mut loader =
        Loader::new(Arc::clone(&plan.dataset), plan.augmentation.clone(), plan.loader_options(start))
            .map_err(Error::Data)?;
    let mut trainer = plan.trainer(compute, small, gradients)?;
    let mut checkpoints = Checkpoints::new(session, config, &plan);
    let mut journal = Journal::new(session, &plan, &trainer);

    if let Some(step) = checkpoint {
        checkpoints.restore(&mut trainer, step)?;
    }
    session.ready(start, plan.total_steps());
    if checkpoint.is_none() && config.checkpoint.at_start {
        // No other can make up for it: there is no second start.
        checkpoints.save_finally(&mut trainer, 0)?;
    }
    if let Some(evaluation) = evaluation.as_ref().filter(|_| start == 0) {
        session.progress(Phase::Evaluating, 0, trainer.communicator.sequence());
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
        let directive = directive::agree(session, &mut trainer.communicator, &mut paused, step)?;
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

        session.progress(Phase::Training, step, trainer.communicator.sequence());
        let begun = clock::now();
        let mut batch = loader.next_batch().map_err(Error::Data)?;
        let waited = begun.elapsed();
        let learning_rate = plan.schedule.lr(step);
        step += 1;
        let outcome = trainer.step(step, &step_batch(&batch), learning_rate)?;
        let replaced = std::mem::take(&mut batch.replaced);
        journal.note_step(begun.elapsed(), waited, replaced, &outcome.corrupt);
        let loss = Loss { outcome, learning_rate };
        loader.recycle(batch);

        let evaluated = match &evaluation {
            Some(evaluation) if step.is_multiple_of(config.eval.knn_every) || step == end => {
                session.progress(Phase::Evaluating, step, trainer.communicator.sequence());
                Some(evaluation.knn(&mut trainer.encoder())?)
            }
            _ => None,
        };
        if evaluated.is_some() || step.is_multiple_of(config.metrics.every) || step == end {
            journal.write(&mut trainer, step, Some(loss), evaluated)?;
            unwritten = None;
        } else {
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

/// What a step reads of a batch.
pub(crate) fn step_batch(batch: &Batch) -> StepBatch<'_> {
    let Batch { positions, indices, labels, images, jigsaw, .. } = batch;
    StepBatch { positions, indices, labels, images, jigsaw }
}
