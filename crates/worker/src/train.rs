//! The program: what one rank does from its first step to its last.

use checkpoint::State;
use collective::Communicator;
use config::RunConfig;
use data::Loader;
use std::sync::Arc;

use crate::clock;
use crate::directive::{self, Directive};
use crate::evaluation::Evaluation;
use crate::metrics::{Rates, Row};
use crate::plan::{Compute, Plan};
use crate::session::{Phase, Session};
use crate::snapshot;
use crate::step::Trainer;
use crate::sync::{self, CheckpointContext};
use crate::Error;

/// Trains this rank's share of the run until its last step, or until it is told to stop.
///
/// `small` and `gradients` are the group's two communicators; `checkpoint` the step to continue from.
///
/// # Errors
/// Everything that ends a run: lost peers, bad data, a loss that is not a number. The caller reports it.
pub fn train(
    session: &Session,
    config: &RunConfig,
    compute: Compute,
    small: Communicator,
    gradients: Communicator,
    checkpoint: Option<u64>,
) -> Result<(), Error> {
    let (rank, world_size) = (small.rank(), small.world_size());
    let leader = rank == 0;
    let plan = Plan::resolve(config, rank, world_size)?;
    let mut trainer = plan.trainer(compute, small, gradients);
    let mut evaluation = Evaluation::new(plan.dataset.clone(), plan.test.clone(), plan.preprocess())?;
    if evaluation.is_none() && config.eval.knn_every > 0 && leader {
        session.notice_warn("the training images have no labels: no kNN evaluation")?;
    }
    if config.eval.knn_every == 0 {
        evaluation = None;
    }
    let checkpoints = CheckpointContext::new(session, config, &plan, &trainer);

    let start = match checkpoint {
        Some(step) => {
            let state: State = sync::fetch(session, step)?;
            snapshot::restore(&mut trainer, &state)?;
            checkpoints.warn_about_changes(step)?;
            step
        }
        None => 0,
    };
    let mut saved = checkpoint;
    session.ready(start, plan.total_steps)?;
    if start == 0 && checkpoint.is_none() && config.checkpoint.at_start {
        checkpoints.save(&mut trainer, 0, &mut saved)?;
    }
    if let Some(evaluation) = evaluation.as_ref().filter(|_| start == 0 && checkpoint.is_none()) {
        session.phase(Phase::Evaluating, 0);
        let result = evaluation.knn_calibrated(&mut trainer)?;
        checkpoints.report_corrupt(&result.corrupt)?;
        if leader {
            session.metrics(Row::evaluation(0, 0.0, result.top1))?;
        }
    }

    let end = plan.end_step();
    let mut loader = Loader::new(Arc::clone(&plan.dataset), plan.augmentation.clone(), plan.loader_options(start))
        .map_err(Error::Data)?;
    let mut rates = Rates::new(config.train.global_batch);
    let mut paused = false;
    let mut step = start;
    let mut stopped = false;
    while step < end {
        let Directive { checkpoint, stop, .. } =
            directive::agree(session, &mut trainer.communicator, &mut paused, step)?;
        if checkpoint && !stop {
            checkpoints.save(&mut trainer, step, &mut saved)?;
        }
        if stop {
            stopped = true;
            break;
        }
        if paused {
            continue;
        }

        session.phase(Phase::Training, step);
        trainer.set_step(step + 1);
        let started = clock::now();
        let batch = loader.next_batch().map_err(Error::Data)?;
        let waited = started.elapsed();
        let learning_rate = plan.schedule.lr(step);
        let report = trainer.step(&batch.images, learning_rate).map_err(|error| error.at_step(step + 1))?;
        step += 1;
        rates.add(started.elapsed(), waited);
        for (path, reason) in &batch.replaced {
            session.notice_warn(&format!("{path} replaced by another image: {reason}"))?;
        }

        let evaluated = match &evaluation {
            Some(evaluation) if step.is_multiple_of(config.eval.knn_every) || step == plan.total_steps => {
                session.phase(Phase::Evaluating, step);
                let result = evaluation.knn(&mut trainer)?;
                checkpoints.report_corrupt(&result.corrupt)?;
                Some(result.top1)
            }
            _ => None,
        };
        if step.is_multiple_of(config.metrics.every) || step == end || evaluated.is_some() {
            let traffic = trainer.traffic()?;
            if leader {
                let row = Row {
                    step,
                    epoch: plan.epoch(step),
                    loss: report.loss,
                    chance_loss: plan.chance_loss,
                    lr: learning_rate,
                    rates: rates.take(),
                    feature_std: report.feature_std,
                    effective_rank: report.effective_rank,
                    corrupt_images: loader.corrupt_count(),
                    traffic,
                    knn_top1: evaluated,
                };
                session.metrics(row.into_proto())?;
            }
        }
        if config.checkpoint.every > 0 && step.is_multiple_of(config.checkpoint.every) {
            checkpoints.save(&mut trainer, step, &mut saved)?;
        }
    }

    // A clean end always leaves a checkpoint of its last step.
    checkpoints.save(&mut trainer, step, &mut saved)?;
    if leader {
        session.finished(step, stopped && step < end)?;
    }
    Ok(())
}
