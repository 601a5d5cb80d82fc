//! What a resumed run reports to its user: that it has nothing to do, or what a new length makes of its schedule.

use config::{Length, RunConfig};
use data::{ImageList, Sampler};

use crate::images::{Past, PastList};
use crate::plan::{self, Epochs, Plan};

/// Why the run ends at once, and what would let it go on; `None` if it has a step to make after `start` updates.
pub fn nothing_to_do(config: &RunConfig, plan: &Plan, run_id: &str, start: u64) -> Option<String> {
    let total = plan.total_steps();
    if start < plan.end_step() {
        return None;
    }
    let (why, remedy) = match config.run.stop_after {
        Some(stop_after) if stop_after < total => (
            format!("stands at step {start} of {total}, and run.stop_after = {stop_after} ends it there"),
            "--set run.stop_after=0 lifts that",
        ),
        _ => (
            format!("finished at step {start} of {total}"),
            "give it a new length to go on: --set run.steps=N or run.epochs=N",
        ),
    };
    Some(format!("run {run_id} {why}: nothing to do; {remedy}"))
}

/// Passes over the data set as the checkpoint had it; `None` if it has no list of its images.
pub fn epochs_before(past: &Past, config: &RunConfig) -> Option<Epochs> {
    let PastList::Bytes(list) = &past.list else { return None };
    let list = ImageList::decode(list).ok()?;
    let sampler = Sampler::new(config.run.seed, list.fingerprint.len);
    Some(Epochs { steps_per_epoch: sampler.steps_per_epoch(config.train.global_batch), origin: past.origin })
}

/// What another length makes of the learning rate of the next update after `start`; `None` where the run is as long as
/// when it was stored.
///
/// `epochs` is what was then and what is now: they differ where the data set was taken with another number of images. A
/// schedule is that of the whole run, so that another length changes it from the first step on, also where the run
/// has passed it already.
pub fn new_schedule(
    before: &RunConfig,
    config: &RunConfig,
    epochs: [Epochs; 2],
    start: u64,
) -> Option<String> {
    let old = plan::schedule(before, epochs[0]);
    let new = plan::schedule(config, epochs[1]);
    if old.total_steps == new.total_steps {
        return None;
    }
    let next = start + 1;
    let rate = match (old.lr(start), new.lr(start)) {
        _ if start >= old.total_steps => {
            // The old schedule has no such update: its last one is what the new rate follows.
            let last = old.lr(old.total_steps.saturating_sub(1));
            format!(
                "the learning rate of step {next} is {}, after {} at step {}",
                shown(new.lr(start)),
                shown(last),
                old.total_steps
            )
        }
        (old, new) if old == new => format!("the learning rate of step {next} stays {}", shown(new)),
        (old, new) => format!("the learning rate of step {next} is {} instead of {}", shown(new), shown(old)),
    };
    let (length, was) = (length(config), length(before));
    if length == was {
        let (key, value) = length;
        return Some(format!(
            "{key} = {value} is {} steps instead of {}, with another number of images: the schedule is over the new length; \
             {rate}",
            new.total_steps, old.total_steps
        ));
    }
    // The same key need not be named twice.
    let was = if length.0 == was.0 { was.1.to_string() } else { format!("{} = {}", was.0, was.1) };
    Some(format!("{} = {} instead of {was}: the schedule is over the new length; {rate}", length.0, length.1))
}

/// Key and value of a run's length.
fn length(config: &RunConfig) -> (&'static str, u64) {
    match config.run.length {
        Length::Steps(steps) => ("run.steps", steps),
        Length::Epochs(epochs) => ("run.epochs", epochs),
    }
}

/// A learning rate to four digits, as people compare them.
fn shown(rate: f64) -> String {
    let exponent = if rate > 0.0 { rate.log10().floor() as i32 } else { 0 };
    let decimals = usize::try_from(3 - exponent).unwrap_or(0).min(12);
    let text = format!("{rate:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEN: Epochs = Epochs { steps_per_epoch: 10, origin: data::EpochOrigin { step: 0, epoch: 0 } };

    fn config(run: &str) -> RunConfig {
        let more = "[optimizer]\nlr = 0.4\n[schedule]\nfinal_lr = 0.0\nwarmup_steps = 0\n";
        RunConfig::from_toml(&format!("[run]\n{run}\n{more}")).unwrap()
    }

    #[test]
    fn a_new_length_says_what_the_learning_rate_becomes() {
        let check = |before: &str, now: &str, start: u64, expected: Option<&str>| {
            let found = new_schedule(&config(before), &config(now), [TEN, TEN], start);
            assert_eq!(found.as_deref(), expected, "{before}, then {now}");
        };
        // Half of 0.4 (1 + cos(pi done / length)): at 10 of 20 cos 0, at 10 of 30 cos(pi / 3) = 1/2.
        check(
            "steps = 20",
            "steps = 30",
            10,
            Some(
                "run.steps = 30 instead of 20: the schedule is over the new length; the learning rate of step 11 is 0.3 instead of 0.2",
            ),
        );
        check(
            "epochs = 2",
            "steps = 40",
            10,
            Some(
                "run.steps = 40 instead of run.epochs = 2: the schedule is over the new length; the learning rate of step 11 is 0.3414 instead of 0.2",
            ),
        );
        // At 2 of 2 there is no old rate: 0.2 was that of the second step, 0.2 (1 + cos(pi / 2)).
        check(
            "steps = 2",
            "steps = 4",
            2,
            Some(
                "run.steps = 4 instead of 2: the schedule is over the new length; the learning rate of step 3 is 0.2, after 0.2 at step 2",
            ),
        );
        check("epochs = 2", "steps = 20", 10, None);
        check("steps = 20\nstop_after = 5", "steps = 20", 10, None);
    }

    #[test]
    fn another_number_of_images_is_another_length() {
        // The second of three epochs of 10 steps begins anew at step 10, with 20 steps each from there.
        let now = Epochs { steps_per_epoch: 20, origin: data::EpochOrigin { step: 10, epoch: 1 } };
        let said = |run: &str| new_schedule(&config(run), &config(run), [TEN, now], 10);
        assert_eq!(
            said("epochs = 3").as_deref(),
            Some(
                "run.epochs = 3 is 50 steps instead of 30, with another number of images: the schedule is over the new length; the learning rate of step 11 is 0.3618 instead of 0.3"
            )
        );
        assert_eq!(said("steps = 30"), None);
    }

    #[test]
    fn a_constant_rate_stays() {
        let constant = |steps| {
            RunConfig::from_toml(&format!("[run]\nsteps = {steps}\n[schedule]\nkind = \"constant\"\n"))
                .unwrap()
        };
        let said = new_schedule(&constant(20), &constant(30), [TEN, TEN], 10).unwrap();
        assert!(said.ends_with("the learning rate of step 11 stays 0.3"), "{said}");
    }

    #[test]
    fn rates_are_short() {
        let check = |rate: f64, expected: &str| assert_eq!(shown(rate), expected);
        check(0.3, "0.3");
        check(0.123_456, "0.1235");
        check(4.8, "4.8");
        check(120.0, "120");
        check(1e-7, "0.0000001");
        check(0.0, "0");
    }

    #[test]
    fn a_run_that_has_nothing_to_do_says_why_and_what_would_let_it_go_on() {
        let said = |run: &str, start: u64| {
            let config = config(&format!("{run}\n[train]\nglobal_batch = 8"));
            let plan = Plan::resolve(&config, 0, 1).unwrap();
            nothing_to_do(&config, &plan, "r", start)
        };
        let finished = said("steps = 20", 20).unwrap();
        assert!(finished.starts_with("run r finished at step 20 of 20: nothing to do;"), "{finished}");
        assert!(finished.contains("run.steps=N"), "{finished}");
        let stopped = said("steps = 20\nstop_after = 5", 5).unwrap();
        assert_eq!(
            stopped,
            "run r stands at step 5 of 20, and run.stop_after = 5 ends it there: nothing to do; --set run.stop_after=0 lifts that"
        );
        // What stops it is the length, not a stop behind it.
        assert!(said("steps = 20\nstop_after = 50", 20).unwrap().contains("run.steps=N"));
        assert_eq!((said("steps = 20", 19), said("steps = 20\nstop_after = 5", 4)), (None, None));
    }
}
