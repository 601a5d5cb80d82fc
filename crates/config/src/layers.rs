//! How a configuration comes about: preset, then file, then `--data`, then `--set`; or, of a resumed run, what it has
//! stored, then `--set`.

use std::path::PathBuf;
use std::time::Duration;
use toml::{Table, Value};

use crate::keys::{KEYS, Key};
use crate::resumable::RESUMABLE;
use crate::retired::{self, Retired};
use crate::run_config::{Checkpoint, Length, RunConfig};
use crate::{Error, owners, presets};

/// What a user gives of a configuration. Later fields win over earlier ones.
#[derive(Clone, Debug)]
pub struct Layers<'a> {
    /// Name of a preset. With neither preset nor file it is `quickstart`.
    pub preset: Option<&'a str>,
    /// A file's path, for messages, and its text.
    pub config: Option<(PathBuf, String)>,
    /// Replaces `data.source`, and unsets the preset's `eval.data`.
    pub data: Option<&'a str>,
    /// `key=value`, in order.
    pub set: &'a [String],
    /// `cluster.orphan_ttl` where no layer sets it: zero in `himpun train`, else [`ORPHAN_TTL`](crate::ORPHAN_TTL).
    pub orphan_ttl: Duration,
}

/// What `checkpoint.every` decides where nothing sets it.
const MINUTES: &str = "checkpoint.every_minutes";

/// Lays the layers over the defaults.
///
/// # Errors
/// Unknown keys or presets, values out of range, keys of another kind, a missing data source.
pub fn resolve(layers: &Layers<'_>) -> Result<RunConfig, Error> {
    let mut config = RunConfig::default();
    config.cluster.orphan_ttl = layers.orphan_ttl;
    let (mut below, mut keys) = (Vec::new(), Vec::new());
    let preset = layers.preset.or(layers.config.is_none().then_some(presets::QUICKSTART));
    if let Some(name) = preset {
        below = apply_text(&mut config, presets::text(name)?)?;
    }
    if layers.data.is_some() {
        config.eval.data = None;
    }
    if let Some((path, text)) = &layers.config {
        let in_file = |error| Error::File { path: path.clone(), source: Box::new(error) };
        let of_file = apply_text(&mut config, text).map_err(in_file)?;
        owners::check(&config, of_file.iter().map(String::as_str)).map_err(in_file)?;
        below.extend(of_file);
    }
    if let Some(source) = layers.data {
        keys.push("data.source".to_owned());
        assign(&mut config, "data.source", &Value::String(source.to_owned()))?;
    }
    for assignment in layers.set {
        let (key, value) = parse_assignment(assignment)?;
        assign(&mut config, key, &value)?;
        keys.push(key.to_owned());
    }
    if !below.iter().chain(&keys).any(|key| key == "data.source") {
        return Err(Error::Missing("data.source"));
    }
    // What a layer sets must mean something there; what lower ones say of a kind that is replaced falls away.
    owners::check(&config, keys.iter().map(String::as_str))?;
    owners::reset(&mut config)?;
    derive(&mut config, below.iter().chain(&keys).map(String::as_str));
    cut_warmup(&mut config);
    Ok(config)
}

/// Gives keys that no layer `set` the values that follow from other keys.
pub(crate) fn derive<'a>(config: &mut RunConfig, mut set: impl Iterator<Item = &'a str>) {
    if !set.any(|key| key == MINUTES) {
        config.checkpoint.every_minutes = Checkpoint::minutes_beside(config.checkpoint.every);
    }
}

/// Lays `set` over the configuration of a run whose newest checkpoint is of step `at`.
///
/// A new length lifts a `run.stop_after` that the run has reached, which would end it at once; a new
/// `checkpoint.every` takes back minutes that had followed from the old one.
///
/// # Errors
/// If a key is not one of [`RESUMABLE`], or its value is out of range.
pub fn resume(stored: &RunConfig, set: &[String], at: Option<u64>) -> Result<RunConfig, Error> {
    let mut config = stored.clone();
    let mut keys = Vec::new();
    for assignment in set {
        let (name, value) = parse_assignment(assignment)?;
        let key = Key::find(name)?;
        if !RESUMABLE.contains(&key.name) {
            return Err(Error::NotResumable { key: key.name });
        }
        key.set(&mut config, &value)?;
        keys.push(key.name);
    }
    let sets = |name| keys.contains(&name);
    let is_reached = config.run.stop_after.zip(at).is_some_and(|(stop_after, at)| at >= stop_after);
    if is_reached && !sets("run.stop_after") && (sets("run.steps") || sets("run.epochs")) {
        config.run.stop_after = None;
    }
    let stored = &stored.checkpoint;
    if sets("checkpoint.every") && stored.every_minutes == Checkpoint::minutes_beside(stored.every) {
        derive(&mut config, keys.iter().copied());
    }
    cut_warmup(&mut config);
    Ok(config)
}

/// Lays a TOML text over `config`; returns the keys that it sets. Retired ones are passed over: runs have stored them.
pub(crate) fn apply_text(config: &mut RunConfig, text: &str) -> Result<Vec<String>, Error> {
    let table: Table = text.parse().map_err(|error| Error::Syntax(Box::new(error)))?;
    let mut values = Vec::new();
    flatten("", &table, &mut values);
    if values.iter().any(|(key, _)| key == retired::OF_VERSION_0_1) {
        // That version wrote every key and did not have this one; what the text sets itself comes after.
        config.data.max_pixels = retired::MAX_PIXELS_OF_VERSION_0_1;
    }
    values.retain(|(key, _)| Retired::find(key).is_none());
    let sets = |name| values.iter().any(|(key, _)| key == name);
    if sets("run.steps") && sets("run.epochs") {
        return Err(Error::Conflict("run.steps", "run.epochs"));
    }
    for (name, value) in &values {
        assign(config, name, value)?;
    }
    Ok(values.into_iter().map(|(key, _)| key).collect())
}

fn assign(config: &mut RunConfig, name: &str, value: &Value) -> Result<(), Error> {
    Key::find(name)?.set(config, value)
}

/// Nested tables as dotted names. An empty table under an unknown name is kept, so that it is refused.
fn flatten<'a>(prefix: &str, table: &'a Table, values: &mut Vec<(String, &'a Value)>) {
    for (name, value) in table {
        let name = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        match value {
            Value::Table(inner) if !inner.is_empty() => flatten(&name, inner, values),
            Value::Table(_) if KEYS.iter().any(|key| key.section() == name) => {}
            _ => values.push((name, value)),
        }
    }
}

/// `key=value`. What is not TOML is text, so that names and paths need no quotes in a shell.
fn parse_assignment(assignment: &str) -> Result<(&str, Value), Error> {
    let (key, text) = assignment.split_once('=').ok_or_else(|| Error::Assignment(assignment.to_owned()))?;
    let (key, text) = (key.trim(), text.trim());
    let value = match format!("value = {text}").parse::<Table>() {
        Ok(mut table) if table.len() == 1 => table.remove("value"),
        _ => None,
    };
    Ok((key, value.unwrap_or_else(|| Value::String(text.to_owned()))))
}

/// A warm-up longer than the run is cut to it. A length in epochs is known only where the data set is open.
fn cut_warmup(config: &mut RunConfig) {
    if let Length::Steps(steps) = config.run.length {
        config.schedule.warmup_steps = config.schedule.warmup_steps.min(steps);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ORPHAN_TTL;
    use crate::choices::{Arch, OptimizerKind};

    fn layers<'a>(set: &'a [String]) -> Layers<'a> {
        Layers { preset: None, config: None, data: None, set, orphan_ttl: ORPHAN_TTL }
    }

    fn assignments(set: &[&str]) -> Vec<String> {
        set.iter().map(|text| (*text).to_owned()).collect()
    }

    fn set(set: &[&str]) -> Result<RunConfig, Error> {
        resolve(&layers(&assignments(set)))
    }

    /// The message that refuses an assignment, hint included.
    #[track_caller]
    fn refused(assignment: &str) -> String {
        let error = set(&[assignment]).unwrap_err();
        format!("{error}; {}", error.hint().unwrap_or_default())
    }

    #[track_caller]
    fn check(assignment: &str, expected: &str) {
        assert_eq!(refused(assignment).trim_end_matches("; "), expected);
    }

    #[test]
    fn unknown_keys_name_the_nearest() {
        check("optimizer.lrr=0.1", "unknown key `optimizer.lrr`; did you mean `optimizer.lr`?");
        check("modle.arch=resnet20", "unknown key `modle.arch`; did you mean `model.arch`?");
        check(
            "optimizer.wieght_decay=0",
            "unknown key `optimizer.wieght_decay`; did you mean `optimizer.weight_decay`?",
        );
        check("train.batch_size=8", "unknown key `train.batch_size`; did you mean `train.global_batch`?");
        check("gpus=4", "unknown key `gpus`; that is an option of the command, not a key: `--workers`");
        check("run=3", "unknown key `run`; `himpun presets show quickstart` shows how keys are written");
        check("steps", "`steps` is not of the form key=value");
    }

    #[test]
    fn values_out_of_range_are_named_with_their_range() {
        check("train.global_batch=1", "train.global_batch = 1: expected a whole number, at least 2");
        check(
            "train.global_batch=many",
            "train.global_batch = \"many\": expected a whole number, at least 2",
        );
        check("train.global_batch=-4", "train.global_batch = -4: expected a whole number, at least 2");
        check("train.global_batch=2.5", "train.global_batch = 2.5: expected a whole number, at least 2");
        check("objective.temperature=0", "objective.temperature = 0: expected a number greater than 0");
        check("objective.temperature=inf", "objective.temperature = inf: expected a number greater than 0");
        check(
            "objective.kind=byol",
            "objective.kind = \"byol\": expected one of simclr, supcon, dcl, align-uniform, npid, pirl, moco, moco-v3",
        );
        check(
            "schedule.milestones=[3, 3]",
            "schedule.milestones = [3, 3]: expected whole numbers of at least 1, ascending",
        );
        check(
            "schedule.milestones=[0]",
            "schedule.milestones = [0]: expected whole numbers of at least 1, ascending",
        );
        check("schedule.gamma=1.5", "schedule.gamma = 1.5: expected a number greater than 0, at most 1");
        check("schedule.final_lr=-1", "schedule.final_lr = -1: expected a number of at least 0");
        check("objective.negatives=-1", "objective.negatives = -1: expected a whole number");
        check("objective.queue=0", "objective.queue = 0: expected a whole number, at least 1");
        check("objective.momentum=1.1", "objective.momentum = 1.1: expected a number from 0 to 1");
        check(
            "objective.feature_momentum=1",
            "objective.feature_momentum = 1: expected a number from 0 to below 1",
        );
        check("objective.jigsaw_weight=1.1", "objective.jigsaw_weight = 1.1: expected a number from 0 to 1");
        check("bank.dtype=f16", "bank.dtype = \"f16\": expected one of f32, bf16; did you mean `bf16`?");
        check(
            "optimizer.kind=adam",
            "optimizer.kind = \"adam\": expected one of sgd, lars, adamw; did you mean `adamw`?",
        );
        check("optimizer.momentum=1", "optimizer.momentum = 1: expected a number from 0 to below 1");
        check(
            "model.head=mlp-0-3",
            "model.head = \"mlp-0-3\": expected one of simclr-v1, simclr-v2, mlp-<hidden>-<out>, linear-<out>, moco-v3, moco-v3-<hidden>-<out>, \
             moco-v3-vit, moco-v3-vit-<hidden>-<out>",
        );
        check(
            "data.augment=simclr-cifra",
            "data.augment = \"simclr-cifra\": expected one of none, simclr-cifar, simclr-imagenet, moco-v1, moco-v2, moco-v3, moco-v3-vit, npid, npid-cifar, npidpp, pirl",
        );
        check(
            "data.std=[1,1,0]",
            "data.std = [1, 1, 0]: expected three numbers, one a channel, or nothing to unset it, each greater than 0",
        );
        check(
            "cluster.orphan_ttl=5",
            "cluster.orphan_ttl = 5: expected a duration such as \"15min\", \"30s\" or \"500ms\"",
        );
        check("data.max_pixels=0", "data.max_pixels = 0: expected a whole number, at least 1");
        check("bank.refresh_age=1", "bank.refresh_age = 1: expected a whole number, 0 or at least 2");
        check("run.seed=-1", "run.seed = -1: expected a whole number");
        check("run.epochs=0", "run.epochs = 0: expected a whole number from 1 to 4294967295");
        check(
            "run.epochs=4294967296",
            "run.epochs = 4294967296: expected a whole number from 1 to 4294967295",
        );
    }

    #[test]
    fn quickstart_holds_where_nothing_is_given() {
        assert_eq!(set(&[]).unwrap(), {
            let mut config = RunConfig::default();
            apply_text(&mut config, presets::text("quickstart").unwrap()).unwrap();
            config
        });
        assert_eq!(set(&[]).unwrap().data.mean, None);
    }

    #[test]
    fn later_layers_win() {
        let text = "[optimizer]\nkind = \"adamw\"\nlr = 0.001\n[run]\nepochs = 3\n".to_owned();
        let set = assignments(&["optimizer.lr=0.002"]);
        let config = resolve(&Layers {
            preset: Some("quickstart"),
            config: Some((PathBuf::from("c.toml"), text)),
            ..layers(&set)
        })
        .unwrap();
        assert_eq!((config.optimizer.kind, config.optimizer.lr), (OptimizerKind::AdamW, 0.002));
        assert_eq!(config.model.arch, Arch::ResNet20, "the preset's");
        assert_eq!(config.run.length, Length::Epochs(3), "unsets the preset's steps");
    }

    #[test]
    fn what_a_preset_says_of_a_kind_that_is_replaced_falls_away() {
        let to_dcl = assignments(&["objective.kind=dcl", "objective.temperature=0.3"]);
        let replaced =
            Layers { preset: Some("moco-v2-cifar10-small"), data: Some("/images"), ..layers(&to_dcl) };
        let replaced = resolve(&replaced).unwrap();
        assert_eq!(replaced.objective, {
            let kind = crate::ObjectiveKind::Dcl;
            crate::Objective { kind, temperature: 0.3, ..crate::Objective::default() }
        });
        assert_eq!(
            refused("objective.jigsaw_weight=0.3"),
            "`objective.jigsaw_weight` does not go with objective.kind = simclr; leave it out, or set objective.kind = pirl"
        );
        let pirl = set(&["objective.jigsaw_weight=0.3", "objective.kind=pirl"]).unwrap();
        assert_eq!(pirl.objective.jigsaw_weight, 0.3, "in either order");
        let file = Some((PathBuf::from("c.toml"), "[objective]\nqueue = 5\n".to_owned()));
        let error = resolve(&Layers { preset: Some("quickstart"), config: file, ..layers(&[]) }).unwrap_err();
        let Error::File { source, .. } = error else { panic!("not of the file: {error}") };
        assert_eq!(source.to_string(), "`objective.queue` does not go with objective.kind = simclr");
    }

    #[test]
    fn steps_and_epochs_unset_each_other_and_both_in_one_file_are_refused() {
        assert_eq!(set(&["run.epochs=2"]).unwrap().run.length, Length::Epochs(2));
        assert_eq!(set(&["run.epochs=2", "run.steps=9"]).unwrap().run.length, Length::Steps(9));
        let both = RunConfig::from_toml("[run]\nsteps = 1\nepochs = 2\n").unwrap_err();
        assert_eq!(both.to_string(), "`run.steps` and `run.epochs` are both set");
    }

    #[test]
    fn a_warm_up_is_cut_to_the_run() {
        assert_eq!(set(&["run.steps=3", "schedule.warmup_steps=50"]).unwrap().schedule.warmup_steps, 3);
        assert_eq!(set(&["run.epochs=3", "schedule.warmup_steps=50"]).unwrap().schedule.warmup_steps, 50);
    }

    #[test]
    fn data_replaces_the_source_and_loses_the_presets_evaluation_set() {
        let fashion = Layers { preset: Some("simclr-fashion-mnist-small"), ..layers(&[]) };
        assert!(resolve(&fashion).unwrap().eval.data.is_some());
        let own = Layers { data: Some("/photos"), ..fashion.clone() };
        let config = resolve(&own).unwrap();
        assert_eq!((config.data.source.as_str(), config.eval.data), ("/photos", None));
        let set = assignments(&["eval.data=/test"]);
        assert_eq!(
            resolve(&Layers { set: &set, ..own.clone() }).unwrap().eval.data.as_deref(),
            Some("/test")
        );
        let file = Some((PathBuf::from("c.toml"), "[eval]\ndata = \"/test\"\n".to_owned()));
        assert_eq!(resolve(&Layers { config: file, ..own }).unwrap().eval.data.as_deref(), Some("/test"));
    }

    #[test]
    fn a_preset_without_images_asks_for_them() {
        let error = resolve(&Layers { preset: Some("simclr-cifar10"), ..layers(&[]) }).unwrap_err();
        assert_eq!(error.to_string(), "`data.source` is not set");
        assert!(error.hint().unwrap().contains("--data"));
    }

    #[test]
    fn errors_in_a_file_name_it() {
        let file =
            |text: &str| Layers { config: Some((PathBuf::from("c.toml"), text.to_owned())), ..layers(&[]) };
        let Error::File { path, source } = resolve(&file("[modle]\n")).unwrap_err() else {
            panic!("not of the file")
        };
        assert_eq!((path.to_str(), source.to_string().as_str()), (Some("c.toml"), "unknown key `modle`"));
        assert!(
            matches!(resolve(&file("= 3")), Err(Error::File { source, .. }) if matches!(*source, Error::Syntax(_)))
        );
    }

    #[test]
    fn what_a_run_left_takes_another_kind() {
        let of_run = |set_before: &[&str], set_now: &[&str]| {
            let text = set(set_before).unwrap().to_toml();
            let set_now = assignments(set_now);
            let config = Some((PathBuf::from("runs/a/config.toml"), text));
            resolve(&Layers { config, ..layers(&set_now) })
        };
        let constant = of_run(&[], &["schedule.kind=constant"]).unwrap();
        assert_eq!(constant.schedule.kind, crate::ScheduleKind::Constant);
        let softmax = of_run(&["objective.kind=npid"], &["objective.estimator=softmax"]).unwrap();
        assert_eq!(softmax.objective.estimator, crate::Estimator::Softmax);
        assert!(of_run(&[], &["objective.queue=5"]).is_err(), "what is set now must mean something");
    }

    #[test]
    fn a_resumed_run_changes_only_its_length_and_cadences() {
        let stored = set(&["run.steps=8", "run.stop_after=3"]).unwrap();
        let resumed = |set: &[&str]| resume(&stored, &assignments(set), None);
        assert_eq!(resumed(&["run.stop_after=0"]).unwrap().run.stop_after, None);
        assert_eq!(resumed(&["checkpoint.every=2"]).unwrap().checkpoint.every, 2);
        assert_eq!((stored.eval.k, resumed(&["eval.k=16"]).unwrap().eval.k), (0, 16));
        assert!(matches!(resumed(&["eval.k=-1"]), Err(Error::Value { key: "eval.k", .. })));
        assert_eq!(resumed(&[]).unwrap(), stored);
        let error = resumed(&["optimizer.lr=1.0"]).unwrap_err();
        assert_eq!(error.to_string(), "`optimizer.lr` cannot change when a run is resumed");
        assert!(matches!(resumed(&["optimizer.lrr=1.0"]), Err(Error::UnknownKey { .. })));
        // It decides which images are trained on.
        let limit = resumed(&["data.max_pixels=9"]);
        assert!(matches!(limit, Err(Error::NotResumable { key: "data.max_pixels" })), "{limit:?}");
    }

    #[test]
    fn a_new_length_lifts_a_stop_that_is_reached() {
        let check = |set_now: &[&str], at: Option<u64>, expected: Option<u64>| {
            let stored = set(&["run.steps=8", "run.stop_after=3"]).unwrap();
            let resumed = resume(&stored, &assignments(set_now), at).unwrap();
            assert_eq!(resumed.run.stop_after, expected, "{set_now:?} at {at:?}");
        };
        check(&["run.steps=9"], Some(3), None);
        check(&["run.epochs=9"], Some(4), None);
        check(&["run.steps=9"], Some(2), Some(3));
        check(&["run.steps=9"], None, Some(3));
        check(&["metrics.every=9"], Some(3), Some(3));
        check(&["run.steps=9", "run.stop_after=3"], Some(3), Some(3));
        check(&["run.stop_after=5", "run.steps=9"], Some(3), Some(5));
    }

    #[test]
    fn minutes_between_checkpoints_follow_from_the_steps_where_nothing_sets_them() {
        let minutes = |config: RunConfig| config.checkpoint.every_minutes;
        let of_text = |text: &str| minutes(RunConfig::from_toml(text).unwrap());
        assert_eq!((of_text(""), of_text("[checkpoint]\nevery = 5\n")), (10.0, 0.0));
        assert_eq!(of_text("[checkpoint]\nevery = 5\nevery_minutes = 2\n"), 2.0);
        let of_set = |pairs: &[&str]| minutes(set(pairs).unwrap());
        assert_eq!((of_set(&[]), of_set(&["checkpoint.every=5"])), (10.0, 0.0));
        assert_eq!(of_set(&["checkpoint.every_minutes=0.5", "checkpoint.every=5"]), 0.5);
        assert!(
            set(&[]).unwrap().to_toml().contains("\nevery_minutes = 10.0"),
            "the value in effect is written"
        );
        check(
            "checkpoint.every_minutes=-1",
            "checkpoint.every_minutes = -1: expected a number of at least 0",
        );

        let check = |before: &[&str], now: &[&str], expected: f64| {
            let stored = set(before).unwrap();
            let resumed = resume(&stored, &assignments(now), None).unwrap();
            assert_eq!(minutes(resumed), expected, "{before:?}, then {now:?}");
        };
        check(&[], &["checkpoint.every=5"], 0.0);
        check(&["checkpoint.every=5"], &["checkpoint.every=0"], 10.0);
        check(&["checkpoint.every_minutes=3"], &["checkpoint.every=5"], 3.0);
        check(&[], &["checkpoint.every=5", "checkpoint.every_minutes=2"], 2.0);
        check(&["checkpoint.every=5"], &["metrics.every=2"], 0.0);
    }

    #[test]
    fn text_needs_no_quotes_and_empty_text_unsets() {
        let config =
            set(&["data.source=/a/b c", "data.mean=[0.5, 0.5, 0.5]", "data.mean=", "cluster.orphan_ttl=1s"])
                .unwrap();
        assert_eq!((config.data.source.as_str(), config.data.mean), ("/a/b c", None));
        assert_eq!(config.cluster.orphan_ttl, Duration::from_secs(1));
        assert_eq!(set(&["data.source=\"/quoted\""]).unwrap().data.source, "/quoted");
    }
}
