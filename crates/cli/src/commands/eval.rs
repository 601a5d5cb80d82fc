//! `himpun eval knn|linear`: how well features, or the pixels themselves, tell the classes apart.

mod linear;

use clap::{ArgGroup, Args, Subcommand};
use data::{Limits, MAX_PIXELS};
use serde_json::json;
use std::path::{Path, PathBuf};

use crate::failure::{Exit, Failure};
use crate::layers::SOURCES;
use crate::output;

/// Evaluate a checkpoint
#[derive(Subcommand)]
pub enum Command {
    /// Classify images by their nearest neighbours among labelled ones
    Knn(Arguments),
    /// Train a linear classifier on the frozen features of labelled images, and test it on others
    Linear(linear::Arguments),
}

/// Which checkpoint, on which images.
#[derive(Args)]
#[command(group = ArgGroup::new("rows").required(true).args(["checkpoint", "pixels"]))]
pub struct Arguments {
    /// A checkpoint's directory, or a run's: then its newest good checkpoint
    #[arg(long, value_name = "DIR")]
    checkpoint: Option<PathBuf>,
    /// Compare pixels instead of a checkpoint's features: the baseline to beat. All images are held in memory
    #[arg(long)]
    pixels: bool,
    /// Side of the images with --pixels; a checkpoint brings its own
    #[arg(long, value_name = "PX", default_value_t = 32, conflicts_with = "checkpoint",
        value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1024))]
    size: usize,
    /// Images of more pixels count as corrupt with --pixels; a checkpoint's run has its own data.max_pixels
    #[arg(long, value_name = "N", default_value_t = MAX_PIXELS, conflicts_with = "checkpoint",
        value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    max_pixels: usize,
    #[arg(long, value_name = "PATH", help = format!("The labelled images to compare with: {SOURCES}"))]
    data: String,
    /// The images to classify [default: each image of --data, by the others]
    #[arg(long, value_name = "PATH")]
    test: Option<String>,
    /// How many neighbours vote; 0: half as many as a class of --data has images, at most 200
    #[arg(long, value_name = "N", default_value_t = 0)]
    k: usize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Evaluates and prints.
pub fn run(command: Command) -> Result<Exit, Failure> {
    let arguments = match command {
        Command::Knn(arguments) => arguments,
        Command::Linear(arguments) => return linear::run(arguments),
    };
    match &arguments.checkpoint {
        Some(checkpoint) => features(checkpoint, &arguments)?,
        None => pixels(&arguments)?,
    }
    Ok(Exit::DONE)
}

fn features(checkpoint: &Path, arguments: &Arguments) -> Result<(), Failure> {
    let Arguments { data, test, k, .. } = arguments;
    let report = tools::embed::evaluate_knn(checkpoint, data, test.as_deref(), *k)?;
    report.warnings.iter().for_each(|warning| output::warning(warning));
    let evaluated = &report.evaluated;
    if arguments.json {
        output::json(&json!({
            "knn_top1": evaluated.top1,
            "knn_k": evaluated.k,
            "queries": evaluated.n_queries,
            "bank": evaluated.n_bank,
            "feature_std": evaluated.feature_std,
            "effective_rank": evaluated.effective_rank,
            "step": report.step,
            "checkpoint": report.checkpoint,
        }));
    } else {
        output::data(&format!(
            "kNN {:.2} % (k = {}) of {} images, by {} others; step {} ({})",
            100.0 * evaluated.top1,
            evaluated.k,
            evaluated.n_queries,
            evaluated.n_bank,
            report.step,
            report.checkpoint.display()
        ));
    }
    Ok(())
}

fn pixels(arguments: &Arguments) -> Result<(), Failure> {
    let Arguments { data, test, k, size, max_pixels, .. } = arguments;
    let limits = Limits { max_pixels: *max_pixels, ..Limits::default() };
    let report = tools::pixels::evaluate_knn(data, test.as_deref(), (*size, *k), limits)?;
    report.warnings.iter().for_each(|warning| output::warning(warning));
    if arguments.json {
        output::json(&json!({
            "knn_top1": report.top1,
            "knn_k": report.k,
            "queries": report.n_queries,
            "bank": report.n_bank,
            "size": size,
        }));
    } else {
        output::data(&format!(
            "kNN {:.2} % (k = {}) of {} images, by {} others; on {size} x {size} pixels",
            100.0 * report.top1,
            report.k,
            report.n_queries,
            report.n_bank,
        ));
    }
    Ok(())
}
