//! `himpun eval knn`: how well the features tell the classes apart.

use clap::{Args, Subcommand};
use serde_json::json;
use std::path::PathBuf;

use crate::failure::{Exit, Failure};
use crate::output;

/// Evaluate a checkpoint
#[derive(Subcommand)]
pub enum Command {
    /// Classify images by their nearest neighbours among labelled ones
    Knn(Arguments),
}

/// Which checkpoint, on which images.
#[derive(Args)]
pub struct Arguments {
    /// A checkpoint's directory, or a run's: then its newest good checkpoint
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,
    /// The labelled images to compare with
    #[arg(long, value_name = "PATH")]
    data: String,
    /// The images to classify [default: each image of --data, by the others]
    #[arg(long, value_name = "PATH")]
    test: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Evaluates and prints.
pub fn run(command: Command) -> Result<Exit, Failure> {
    let Command::Knn(arguments) = command;
    let test = arguments.test.as_deref();
    let report = worker::embed::evaluate_knn(&arguments.checkpoint, &arguments.data, test)?;
    let evaluated = &report.evaluated;
    for (path, reason) in &evaluated.corrupt {
        output::warning(&format!("{path} is left out: {reason}"));
    }
    if arguments.json {
        output::json(&json!({
            "knn_top1": evaluated.top1,
            "queries": evaluated.n_queries,
            "bank": evaluated.n_bank,
            "feature_std": evaluated.feature_std,
            "effective_rank": evaluated.effective_rank,
            "step": report.step,
            "checkpoint": report.checkpoint,
        }));
    } else {
        output::data(&format!(
            "kNN {:.2} % of {} images, by {} others; step {} ({})",
            100.0 * evaluated.top1,
            evaluated.n_queries,
            evaluated.n_bank,
            report.step,
            report.checkpoint.display()
        ));
    }
    Ok(Exit::DONE)
}
