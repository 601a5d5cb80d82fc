//! `himpun embed`: the features of images, for whatever comes after training.

use clap::Args;
use serde_json::json;
use std::path::PathBuf;

use crate::failure::{Exit, Failure};
use crate::layers::SOURCES;
use crate::output;

/// Write the backbone's features of every image, in the data set's order
#[derive(Args)]
pub struct Arguments {
    /// A checkpoint's directory, or a run's: then its newest good checkpoint
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,
    #[arg(long, value_name = "PATH", help = format!("The images: {SOURCES}"))]
    data: String,
    /// The file to write: .npy or .safetensors; paths and labels are written beside it
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Encodes and writes.
pub fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let embedded = tools::embed::embed(&arguments.checkpoint, &arguments.data, &arguments.out)?;
    embedded.warnings.iter().for_each(|warning| output::warning(warning));
    if arguments.json {
        output::json(&json!({
            "images": embedded.n,
            "width": embedded.width,
            "files": embedded.files,
            "checkpoint": embedded.checkpoint,
            "corrupt": embedded.corrupt.iter().map(|(path, _)| path).collect::<Vec<_>>(),
        }));
    } else {
        let out = arguments.out.display();
        let checkpoint = embedded.checkpoint.display();
        output::note(&format!(
            "{out}: {} features of {} numbers, by {checkpoint}",
            embedded.n, embedded.width
        ));
    }
    Ok(Exit::DONE)
}
