//! What the group leaves for its observers: rows of metrics, corrupt images, a log line.

use collective::Communicator;
use data::Replaced;
use proto::v1::MetricRow;
use std::collections::BTreeSet;
use std::time::Duration;
use trainer::Error;
use trainer::corrupt::{Corrupt, CorruptImages, Set};
use trainer::evaluation::Evaluated;
use trainer::gather;
use trainer::plan::Plan;
use trainer::step::{Outcome, Trainer};

use crate::metrics::{Rates, Row, Traffic, Update};
use crate::session::Session;

/// Steps after which the ranks exchange what they met, at the latest, however rare rows are.
const SHARE_EVERY: u64 = 50;

/// One rank's notes since the last row.
pub struct Journal<'a> {
    session: &'a Session,
    plan: &'a Plan,
    chance_loss: f64,
    global_batch: usize,
    rates: Rates,
    corrupt: CorruptImages,
    /// What was said of an evaluation: the next one need not repeat it.
    caveats: BTreeSet<String>,
}

/// What an update told of itself, and the rate it used.
pub struct Loss {
    /// The loss, and the objective's own metrics.
    pub outcome: Outcome,
    /// The learning rate.
    pub learning_rate: f64,
}

impl<'a> Journal<'a> {
    /// Begins without notes.
    pub fn new(session: &'a Session, plan: &'a Plan, trainer: &Trainer) -> Journal<'a> {
        let n_images = [plan.dataset.len(), plan.test.as_ref().map_or(0, |test| test.len())];
        Journal {
            corrupt: CorruptImages::new(n_images, plan.max_corrupt_share()),
            session,
            plan,
            chance_loss: trainer.objective.chance_loss(plan.global_batch()),
            global_batch: plan.global_batch(),
            rates: Rates::default(),
            caveats: BTreeSet::new(),
        }
    }

    /// Notes a step and the corrupt images that were replaced or left out in it.
    pub fn note_step(
        &mut self,
        busy: Duration,
        waited: Duration,
        replaced: Vec<Replaced>,
        left_out: &[(String, String)],
    ) {
        self.rates.add(busy, waited);
        self.corrupt.meet(replaced);
        self.corrupt.meet_again(Set::Train, left_out);
    }

    /// Tells the other ranks which images are corrupt, where no row does that for long; collective.
    ///
    /// # Errors
    /// If a peer is lost, or more images are corrupt than the run tolerates.
    pub fn share(&mut self, trainer: &mut Trainer, step: u64) -> Result<(), Error> {
        if !step.is_multiple_of(SHARE_EVERY) {
            return Ok(());
        }
        let text = self.corrupt.take();
        let communicator = &mut trainer.control;
        let lengths = gather::integers(communicator, text.len() as u64)?;
        self.tell_corrupt(communicator, &text, &lengths)?;
        Ok(self.corrupt.check()?)
    }

    /// Writes a row; collective.
    ///
    /// # Errors
    /// If a peer is lost, or more images are corrupt than the run tolerates.
    pub fn write(
        &mut self,
        trainer: &mut Trainer,
        step: u64,
        loss: Option<Loss>,
        evaluated: Option<Evaluated>,
    ) -> Result<(), Error> {
        if let Some(evaluated) = &evaluated {
            self.corrupt.meet_again(Set::Train, &evaluated.corrupt);
            self.corrupt.meet_again(Set::Test, &evaluated.corrupt_test);
        }
        let traffic = self.gather(trainer)?;
        self.corrupt.check()?;
        let rates = std::mem::take(&mut self.rates);
        if trainer.control.rank() > 0 {
            return Ok(());
        }
        for caveat in evaluated.iter().flat_map(|evaluated| &evaluated.caveats) {
            if self.caveats.insert(caveat.clone()) {
                self.session.warn(format!("kNN evaluation: {caveat}"));
            }
        }
        let row = Row {
            step,
            epoch: self.plan.epoch(step),
            update: loss.map(|loss| Update {
                loss: loss.outcome.loss,
                objective: loss.outcome.metrics,
                chance_loss: self.chance_loss,
                learning_rate: loss.learning_rate,
                rates,
                traffic,
            }),
            corrupt_images: self.corrupt.count() as u64,
            evaluated,
        };
        log(&row, self.plan.total_steps(), self.global_batch);
        let row: MetricRow = row.into_proto(self.global_batch, self.plan.views());
        self.session.metrics(row);
        Ok(())
    }

    /// Tells all ranks what each did, and rank 0 which corrupt images are new.
    fn gather(&mut self, trainer: &mut Trainer) -> Result<Traffic, collective::Error> {
        let text = self.corrupt.take();
        let own = [trainer.rows_encoded() as u64, trainer.bytes_sent(), text.len() as u64];
        let communicator = &mut trainer.control;
        let mut all = vec![0u64; own.len() * communicator.world_size()];
        communicator.all_gather(&own, &mut all)?;
        let column = |i: usize| all.iter().skip(i).step_by(own.len()).copied().collect::<Vec<u64>>();
        self.tell_corrupt(communicator, &text, &column(2))?;
        Ok(Traffic { rows_encoded: column(0), bytes_sent: column(1) })
    }

    fn tell_corrupt(
        &mut self,
        communicator: &mut Communicator,
        text: &str,
        lengths: &[u64],
    ) -> Result<(), collective::Error> {
        for Corrupt { set, image: Replaced { path, reason } } in
            self.corrupt.share(communicator, text, lengths)?
        {
            let what = if set == Set::Test { "corrupt test image" } else { "corrupt image" };
            if communicator.rank() == 0 {
                self.session.warn(format!("{what} {path}: {reason}"));
            }
        }
        Ok(())
    }
}

/// One line on stderr, of constant width up to the fields that come and go.
fn log(row: &Row, total_steps: u64, global_batch: usize) {
    let knn = row.evaluated.as_ref().map(|evaluated| evaluated.top1);
    match &row.update {
        Some(update) => tracing::info!(
            "step {:>6}/{total_steps} loss {:.4} (chance {:.4}) lr {:.3e} {:>8.1} images/s{}",
            row.step,
            update.loss,
            update.chance_loss,
            update.learning_rate,
            update.rates.steps_per_s() * global_batch as f64,
            knn.map_or_else(String::new, |knn| format!(" knn_top1 {knn:.4}"))
        ),
        None => tracing::info!(
            "step {:>6}/{total_steps} knn_top1 {:.4} (untrained)",
            row.step,
            knn.unwrap_or_default()
        ),
    }
}
