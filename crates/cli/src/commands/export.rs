//! `himpun export`: the encoder as other programs read it.

use checkpoint::export::{self, Format};
use clap::Args;
use serde_json::json;
use std::path::PathBuf;

use crate::failure::{Exit, Failure};
use crate::output;

/// Write a checkpoint's encoder as safetensors under PyTorch's names
#[derive(Args)]
pub struct Arguments {
    /// A checkpoint's directory, or a run's: then its newest good checkpoint
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,
    #[arg(long, value_name = "FORMAT", default_value = "state-dict", help = formats())]
    format: String,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Every format and what it is.
fn formats() -> String {
    let described = Format::NAMES.map(|(name, format)| format!("`{name}`: {}", format.about()));
    described.join("; ")
}

/// Writes the file; nothing is left of it if the checkpoint does not hold.
pub fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let format: Format = arguments.format.parse()?;
    let located = checkpoint::locate(&arguments.checkpoint)?;
    for problem in &located.problems {
        output::warning(&problem.to_string());
    }
    let (manifest, state) = checkpoint::load(&located.dir, export::is_exported)?;
    let tensors = export::tensors(&state, format)?;
    export::write_safetensors(&arguments.out, &tensors)?;
    if arguments.json {
        output::json(&json!({
            "out": arguments.out,
            "checkpoint": located.dir,
            "step": manifest.step,
            "tensors": tensors.len(),
        }));
    } else {
        let out = arguments.out.display();
        output::note(&format!("{out}: {} tensors of {}", tensors.len(), located.dir.display()));
    }
    Ok(Exit::DONE)
}
