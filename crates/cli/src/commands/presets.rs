//! `himpun presets`: the named configurations.

use clap::{Args, Subcommand};
use config::presets;
use serde_json::{Value, json};

use crate::failure::{Exit, Failure};
use crate::output;

/// List the named configurations, or show one
#[derive(Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// One line a preset
    List {
        /// Print one JSON array
        #[arg(long)]
        json: bool,
    },
    /// The preset's TOML, with its sources
    Show {
        /// Which preset
        name: String,
    },
}

/// Prints presets.
pub fn run(arguments: Arguments) -> Result<Exit, Failure> {
    match arguments.command {
        None => list(false)?,
        Some(Command::List { json }) => list(json)?,
        Some(Command::Show { name }) => output::data(presets::text(&name)?.trim_end()),
    }
    Ok(Exit::DONE)
}

fn list(as_json: bool) -> Result<(), Failure> {
    let mut rows = Vec::new();
    for name in presets::names() {
        rows.push(vec![name.to_owned(), presets::description(name)?.to_owned()]);
    }
    if as_json {
        let object = |row: &Vec<String>| json!({ "name": row[0], "description": row[1] });
        output::json(&rows.iter().map(object).collect::<Vec<Value>>());
    } else {
        output::data(&output::table(&rows));
    }
    Ok(())
}
