//! The arguments that make up a configuration, shared by the commands that start or look into a run.

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use config::{Layers, RunConfig};
use data::{Limits, MAX_PIXELS};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::failure::{Exit, Failure};
use crate::output;

/// What every option that names images takes.
pub const SOURCES: &str =
    "`builtin`, a folder, an archive, a packed set, IDX or CIFAR files; `PATH#SPLIT` picks a split";

/// `--preset`, `--config`, `--data`, `--set`.
#[derive(Args, Clone, Debug, Default)]
pub struct LayerArguments {
    /// Start from a named configuration (`himpun presets`); `quickstart` if neither this nor --config is given
    #[arg(long, value_name = "NAME")]
    pub preset: Option<String>,
    /// Read a TOML file over it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[arg(long, value_name = "PATH", help = format!("Train on these images: {SOURCES}"))]
    pub data: Option<String>,
    /// Set one key; wins over everything else and may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

impl LayerArguments {
    /// Lays the layers over each other; paths are made absolute, because workers start elsewhere.
    pub fn resolve(&self, orphan_ttl: Duration) -> Result<RunConfig, Failure> {
        let file = match &self.config {
            None => None,
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("failed to read the configuration {}", path.display()))
                    .map_err(|error| Failure::new(Exit::USAGE, error))?;
                config::retired_notes(&text).iter().for_each(|note| output::warning(note));
                Some((path.clone(), text))
            }
        };
        let mut config = config::resolve(&Layers {
            preset: self.preset.as_deref(),
            config: file,
            data: self.data.as_deref(),
            set: &self.set,
            orphan_ttl,
        })?;
        config.data.source = absolute_source(&config.data.source)?;
        config.eval.data = config.eval.data.as_deref().map(absolute_source).transpose()?;
        Ok(config)
    }

    /// Lays what may change over the configuration of the run in `run_dir`.
    pub fn resume(&self, run_dir: &Path) -> Result<RunConfig, Failure> {
        let newest = newest_checkpoint(run_dir).map(|checkpoint| checkpoint.step);
        let mut config = config::resume(&of_run(run_dir)?, &self.set, newest)?;
        if let Some(source) = &self.data {
            config.data.source = absolute_source(source)?;
        }
        config.eval.data = config.eval.data.as_deref().map(absolute_source).transpose()?;
        Ok(config)
    }
}

/// What a data set may take of the machine where no run's configuration says it.
#[derive(Args, Clone, Copy, Debug)]
pub struct LimitArguments {
    /// Images of more pixels count as corrupt, as by data.max_pixels
    #[arg(long, value_name = "N", default_value_t = MAX_PIXELS,
        value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    max_pixels: usize,
}

impl LimitArguments {
    /// The same limits, as opening a data set takes them.
    pub fn limits(self) -> Limits {
        Limits { max_pixels: self.max_pixels, ..Limits::default() }
    }
}

/// Reads the configuration that a run was started with, and says what of it is passed over.
pub fn of_run(run_dir: &Path) -> Result<RunConfig, Failure> {
    let path = run_dir.join("config.toml");
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("failed to read {}", path.display()))
        .map_err(|error| Failure::new(Exit::USAGE, error).hint("name the directory of a run"))?;
    config::retired_notes(&text).iter().for_each(|note| output::warning(note));
    RunConfig::from_toml(&text).map_err(|error| config::Error::File { path, source: Box::new(error) }.into())
}

/// The newest checkpoint of the run in this directory, if there is one.
pub fn newest_checkpoint(run_dir: &Path) -> Option<checkpoint::CheckpointInfo> {
    let (mut checkpoints, _) =
        checkpoint::Directory::open(run_dir).and_then(|run| checkpoint::list(&run)).ok()?;
    checkpoints.pop()
}

/// How many ranks wrote the run's newest checkpoint, or, before there is one, had a log in its last start: a
/// resumed run keeps their number unless told otherwise.
pub fn world_size_of(run_dir: &Path) -> Option<u32> {
    newest_checkpoint(run_dir).map(|checkpoint| checkpoint.world_size).or_else(|| last_started(run_dir))
}

fn last_started(run_dir: &Path) -> Option<u32> {
    let generation = |entry: std::io::Result<std::fs::DirEntry>| -> Option<u64> {
        let name = entry.ok()?.file_name();
        name.to_str()?.strip_suffix(".log")?.split_once(".gen-")?.1.parse().ok()
    };
    let generations: Vec<u64> =
        std::fs::read_dir(run_dir.join("logs")).ok()?.filter_map(generation).collect();
    let last = generations.iter().max()?;
    u32::try_from(generations.iter().filter(|generation| *generation == last).count()).ok()
}

/// The built-in set stays as it is; a path becomes absolute, its split kept.
pub fn absolute_source(source: &str) -> Result<String, Failure> {
    if source == "builtin" || source.starts_with("builtin#") {
        return Ok(source.to_owned());
    }
    let absolute =
        std::path::absolute(source).with_context(|| format!("failed to make {source} absolute"))?;
    Ok(absolute.to_string_lossy().into_owned())
}

/// What a run computes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Device {
    /// The best that is there: in this version, the CPU
    #[default]
    Auto,
    /// The cores of the machine
    Cpu,
    /// NVIDIA GPUs
    Cuda,
}

impl Device {
    /// The name that the coordinator knows.
    pub fn name(self) -> Result<&'static str, Failure> {
        match self {
            Device::Auto => Ok("auto"),
            Device::Cpu => Ok("cpu"),
            Device::Cuda => {
                Err(Failure::usage("no CUDA device support in this version").hint("use --device cpu or auto"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_augmentation_that_can_be_set_exists() {
        for name in config::Augment::NAMES {
            assert!(data::Augmentation::preset(name, 32).is_ok(), "{name}");
        }
    }

    #[test]
    fn the_limit_of_pixels_is_the_same_with_and_without_a_run() {
        #[derive(clap::Parser)]
        struct Command {
            #[command(flatten)]
            limits: LimitArguments,
        }
        let parse = |arguments: &[&str]| {
            let all = ["command"].iter().chain(arguments);
            <Command as clap::Parser>::try_parse_from(all).map(|command| command.limits.limits().max_pixels)
        };
        assert_eq!(parse(&[]).unwrap(), RunConfig::default().data.max_pixels);
        assert_eq!(parse(&["--max-pixels", "7"]).unwrap(), 7);
        assert!(parse(&["--max-pixels", "0"]).is_err());
    }

    #[test]
    fn sources_become_absolute_unless_built_in() {
        let here = std::env::current_dir().unwrap();
        assert_eq!(absolute_source("builtin#test").unwrap(), "builtin#test");
        assert_eq!(absolute_source("/a#train").unwrap(), "/a#train");
        assert_eq!(absolute_source("a/b#train").unwrap(), format!("{}/a/b#train", here.display()));
    }

    #[test]
    fn a_run_without_a_checkpoint_keeps_the_workers_of_its_last_start() {
        let run = tempfile::tempdir().unwrap();
        assert_eq!(world_size_of(run.path()), None);
        let logs = run.path().join("logs");
        std::fs::create_dir(&logs).unwrap();
        for name in
            ["rank-0.gen-9.log", "rank-0.gen-10.log", "rank-1.gen-10.log", "rank-2.gen-10.log", "notes"]
        {
            std::fs::write(logs.join(name), "").unwrap();
        }
        assert_eq!(world_size_of(run.path()), Some(3));
    }

    #[test]
    fn cuda_is_refused_with_what_to_use() {
        let failure = Device::Cuda.name().unwrap_err();
        assert_eq!(failure.exit, Exit::USAGE);
        assert_eq!(failure.error.to_string(), "no CUDA device support in this version");
    }
}
