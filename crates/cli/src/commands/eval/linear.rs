//! `himpun eval linear`: how well a linear classifier on frozen features tells the classes apart.

use clap::{Args, ValueEnum};
use serde_json::json;
use std::path::PathBuf;
use tools::linear::Protocol;
use tools::probe::{self, Probe};

use crate::failure::{Exit, Failure};
use crate::layers::SOURCES;
use crate::{output, progress};

/// Which checkpoint, on which images, by which protocol.
#[derive(Args)]
pub struct Arguments {
    /// A checkpoint's directory, or a run's: then its newest good checkpoint
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,
    #[arg(long, value_name = "PATH", help = format!("The labelled images to train the classifier on: {SOURCES}"))]
    data: String,
    /// The labelled images to test it on [default: a fifth of --data, held out at random]
    #[arg(long, value_name = "PATH")]
    test: Option<String>,
    /// Whose settings hold where the options below do not say otherwise
    #[arg(long, value_enum, default_value_t = Settings::SimclrCifar)]
    protocol: Settings,
    /// Encode random crops, mirrored half of the time, anew in every epoch, as the papers do [default: centre crops,
    /// encoded once]
    #[arg(long)]
    augment: bool,
    /// Passes over the images
    #[arg(long, value_name = "N")]
    epochs: Option<u64>,
    /// Images of an update
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Learning rate at a batch of 256; it is multiplied by batch / 256
    #[arg(long, value_name = "RATE", allow_negative_numbers = true)]
    lr: Option<f64>,
    /// Momentum of SGD
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    momentum: Option<f64>,
    /// Weight decay, not of the bias
    #[arg(long, value_name = "WEIGHT", allow_negative_numbers = true)]
    weight_decay: Option<f64>,
    /// Of the order of the images, of crops, and of what is held out
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The papers' protocols.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Settings {
    /// 90 epochs, batch 4096, rate 0.1, Nesterov, cosine, decay 1e-6
    Simclr,
    /// 100 epochs, batch 512, rate 0.1, Nesterov, cosine
    SimclrCifar,
    /// 100 epochs, batch 256, rate 30, a tenth of it after 60 and 80
    Moco,
}

impl Settings {
    fn protocol(self) -> Protocol {
        match self {
            Settings::Simclr => Protocol::simclr(),
            Settings::SimclrCifar => Protocol::simclr_cifar(),
            Settings::Moco => Protocol::moco(),
        }
    }
}

/// Trains, tests and prints.
pub fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let published = arguments.protocol.protocol();
    let protocol = Protocol {
        epochs: arguments.epochs.unwrap_or(published.epochs),
        batch: arguments.batch.unwrap_or(published.batch),
        lr: arguments.lr.unwrap_or(published.lr),
        momentum: arguments.momentum.unwrap_or(published.momentum),
        weight_decay: arguments.weight_decay.unwrap_or(published.weight_decay),
        ..published
    };
    let counter = progress::Counter::new(protocol.epochs as usize);
    let probe = Probe {
        checkpoint: &arguments.checkpoint,
        data: &arguments.data,
        test: arguments.test.as_deref(),
        protocol,
        augment: arguments.augment,
        seed: arguments.seed,
    };
    let report = probe::evaluate(&probe, &mut |epochs| counter.show(epochs as usize))?;
    counter.clear();
    report.warnings.iter().for_each(|warning| output::warning(warning));
    // Of ten classes or fewer the five likeliest say nothing.
    let top5 = (report.classes > 10).then_some(report.accuracy.top5);
    if arguments.json {
        let mut object = json!({
            "linear_top1": report.accuracy.top1,
            "classes": report.classes,
            "train": report.n_train,
            "test": report.n_test,
            "held_out": arguments.test.is_none(),
            "augment": arguments.augment,
            "epochs": report.protocol.epochs,
            "batch": report.protocol.batch,
            "lr": report.protocol.lr,
            "momentum": report.protocol.momentum,
            "weight_decay": report.protocol.weight_decay,
            "seed": arguments.seed,
            "loss": report.loss,
            "step": report.step,
            "checkpoint": report.checkpoint,
        });
        if let Some(top5) = top5 {
            object["linear_top5"] = json!(top5);
        }
        output::json(&object);
    } else {
        let top5 = top5.map(|top5| format!(", top-5 {:.2} %", 100.0 * top5)).unwrap_or_default();
        output::data(&format!(
            "linear {:.2} %{top5} of {} {}images, trained on {}; step {} ({})",
            100.0 * report.accuracy.top1,
            report.n_test,
            if arguments.test.is_none() { "held out " } else { "" },
            report.n_train,
            report.step,
            report.checkpoint.display()
        ));
    }
    Ok(Exit::DONE)
}
