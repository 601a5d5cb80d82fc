//! `himpun data views|stats|pack`: what training sees, what a data set holds, and the set in one file.

use anyhow::Context as _;
use checkpoint::export::write_safetensors;
use clap::{ArgGroup, Args, Subcommand};
use config::RunConfig;
use data::{Dataset, PackOptions, Stats};
use image::RgbImage;
use serde_json::json;
use std::path::{Path, PathBuf};
use tools::views::ImageViews;
use trainer::images::Past;

use crate::failure::{Exit, Failure};
use crate::layers::{self, LayerArguments, LimitArguments, SOURCES};
use crate::{output, progress};

/// Look into a data set
#[derive(Subcommand)]
pub enum Command {
    /// Write what training sees of an image: its augmented views, and with `objective.kind = pirl` its jigsaw
    Views(ViewsArguments),
    /// Count images and classes, measure sizes, mean and deviation, and name what cannot be decoded
    Stats(StatsArguments),
    /// Decode every image once into one file, which `--data` takes like any other source
    Pack(PackArguments),
}

/// Which image, of which run or configuration.
#[derive(Args)]
#[command(group = ArgGroup::new("target").required(true).multiple(true).args(["out", "png"]))]
pub struct ViewsArguments {
    #[command(flatten)]
    layers: LayerArguments,
    /// Take configuration and data set from this run
    #[arg(long, value_name = "RUN_DIR", conflicts_with_all = ["preset", "config", "data", "set"])]
    run: Option<PathBuf>,
    /// The data pass, counted from 0
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=u64::from(u32::MAX)))]
    epoch: u64,
    /// The image's place in the data set, counted from 0
    #[arg(long)]
    index: usize,
    /// Write `view_0` and `view_1`, f32 [3, size, size] (npid and pirl see one view), and `jigsaw` [9, 3, patch, patch]
    /// of pirl as safetensors
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write them side by side as a picture, a jigsaw's patches in three rows
    #[arg(long, value_name = "FILE")]
    png: Option<PathBuf>,
}

/// Which data set.
#[derive(Args)]
pub struct StatsArguments {
    #[arg(long, value_name = "PATH", default_value = "builtin", help = SOURCES)]
    data: String,
    #[command(flatten)]
    limits: LimitArguments,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What is packed, and where to.
#[derive(Args)]
pub struct PackArguments {
    #[arg(long, value_name = "PATH", help = SOURCES)]
    data: String,
    /// The file to write; it gets its name when it is complete
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Shrink images whose shorter side is longer than this to it; the others keep every pixel
    #[arg(long, value_name = "PX", default_value_t = 256, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(8..=8192))]
    size: usize,
    #[command(flatten)]
    limits: LimitArguments,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Carries the command out.
pub fn run(command: Command) -> Result<Exit, Failure> {
    match command {
        Command::Views(arguments) => views(arguments),
        Command::Stats(arguments) => stats(arguments),
        Command::Pack(arguments) => pack(arguments),
    }
}

fn views(arguments: ViewsArguments) -> Result<Exit, Failure> {
    let (config, past) = match &arguments.run {
        Some(run_dir) => (layers::of_run(run_dir)?, Past::of_run(run_dir, false)?),
        None => (arguments.layers.resolve(config::ORPHAN_TTL)?, None),
    };
    let shown = tools::views::views(&config, past.as_ref(), arguments.epoch, arguments.index)?;
    if shown.index != arguments.index {
        let text = format!(
            "image {} cannot be decoded; {} takes its place, as in training",
            arguments.index, shown.path
        );
        output::warning(&text);
    }
    if let Some(out) = &arguments.out {
        write_safetensors(out, &shown.tensors())?;
    }
    if let Some(png) = &arguments.png {
        write_png(png, &shown, &config)?;
    }
    Ok(Exit::DONE)
}

/// The views side by side and the patches behind them in three rows, mean and deviation taken out again.
fn write_png(path: &Path, views: &ImageViews, config: &RunConfig) -> Result<(), Failure> {
    let (mean, std) = (config.data.mean.unwrap_or([0.0; 3]), config.data.std.unwrap_or([1.0; 3]));
    let (size, patch) = (views.size, views.patch);
    let left = views.images.len() * size;
    let mut picture = RgbImage::new((left + 3 * patch) as u32, size.max(3 * patch) as u32);
    let mut paste = |image: &[f32], size: usize, (left, top): (usize, usize)| {
        for (i, pixel) in image.as_chunks::<3>().0.iter().enumerate() {
            let value = |c: usize| ((f64::from(pixel[c]) * std[c] + mean[c]) * 255.0).round() as u8;
            let (x, y) = (left + i % size, top + i / size);
            picture.put_pixel(x as u32, y as u32, image::Rgb(std::array::from_fn(value)));
        }
    };
    for (view, image) in views.images.iter().enumerate() {
        paste(image, size, (view * size, 0));
    }
    for (i, image) in views.jigsaw.iter().enumerate() {
        paste(image, patch, (left + i % 3 * patch, i / 3 * patch));
    }
    picture
        .save_with_format(path, image::ImageFormat::Png)
        .with_context(|| format!("failed to write {}", path.display()))?;
    Ok(())
}

fn stats(arguments: StatsArguments) -> Result<Exit, Failure> {
    let dataset = Dataset::open_within(&arguments.data, arguments.limits.limits())?;
    dataset.notes().iter().for_each(|note| output::warning(note));
    let stats = data::stats(&dataset, agent::available_cores().len())?;
    if arguments.json {
        output::json(&json!({
            "source": dataset.origin(),
            "images": stats.len,
            "classes": dataset.class_names(),
            "class_counts": stats.class_counts,
            "widths": stats.widths,
            "heights": stats.heights,
            "mean": stats.mean,
            "std": stats.std,
            "corrupt": stats.corrupt.iter().map(|image| &image.path).collect::<Vec<_>>(),
            "sixteen_bit": stats.sixteen_bit,
            "twelve_in_sixteen_bit": stats.twelve_in_sixteen_bit,
            "turned_by_exif": stats.turned,
            "skipped": dataset.skipped(),
            "empty_classes": dataset.empty_classes(),
        }));
        return Ok(Exit::DONE);
    }
    let range =
        |[low, high]: [usize; 2]| if low == high { low.to_string() } else { format!("{low} to {high}") };
    let channels = |values: [f64; 3]| values.map(|value| format!("{value:.4}")).join(", ");
    let mut rows = vec![
        vec!["source".to_owned(), dataset.origin().to_owned()],
        vec!["images".to_owned(), stats.len.to_string()],
        vec!["size".to_owned(), format!("{} x {} pixels", range(stats.widths), range(stats.heights))],
        vec!["mean".to_owned(), channels(stats.mean)],
        vec!["std".to_owned(), channels(stats.std)],
        vec!["corrupt".to_owned(), stats.corrupt.len().to_string()],
    ];
    rows.extend(of_files(&stats));
    if !dataset.has_labels() {
        rows.push(vec!["classes".to_owned(), "none, so that kNN has nothing to compare with".to_owned()]);
    }
    for (name, count) in dataset.class_names().iter().zip(&stats.class_counts) {
        rows.push(vec![format!("class {name}"), count.to_string()]);
    }
    output::data(&output::table(&rows));
    for image in &stats.corrupt {
        output::warning(&format!("{}: {}", image.path, image.reason));
    }
    Ok(Exit::DONE)
}

/// What files say that the pixels do not, where there is anything.
fn of_files(stats: &Stats) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    if stats.sixteen_bit > 0 {
        let mut text = format!("{} images, scaled to 8", stats.sixteen_bit);
        if stats.twelve_in_sixteen_bit > 0 {
            let n = stats.twelve_in_sixteen_bit;
            text.push_str(&format!(
                "; all values of {n} of them stay below 4096 of 65535: nearly black when scaled"
            ));
        }
        rows.push(vec!["16 bits".to_owned(), text]);
    }
    if stats.turned > 0 {
        let note =
            "images have an EXIF orientation, which is not applied: they are trained on as they are stored";
        rows.push(vec!["turned".to_owned(), format!("{} {note}", stats.turned)]);
    }
    rows
}

fn pack(arguments: PackArguments) -> Result<Exit, Failure> {
    // A set that memory does not hold can be packed all the same: its content then lies beside the file for a while.
    let folder = arguments.out.parent().filter(|folder| !folder.as_os_str().is_empty());
    let dataset =
        Dataset::open_spilling(&arguments.data, arguments.limits.limits(), folder.unwrap_or(Path::new(".")))?;
    dataset.notes().iter().for_each(|note| output::warning(note));
    let options = PackOptions { shorter_side: arguments.size, threads: agent::available_cores().len() };
    let counter = progress::Counter::new(dataset.len());
    let packed = data::pack(&dataset, &arguments.out, &options, &mut |done| counter.show(done))?;
    counter.clear();
    for image in &packed.corrupt {
        output::warning(&format!("{}: {}", image.path, image.reason));
    }
    if arguments.json {
        output::json(&json!({
            "source": dataset.origin(),
            "out": arguments.out,
            "images": packed.len,
            "shrunk": packed.shrunk,
            "corrupt": packed.corrupt.iter().map(|image| &image.path).collect::<Vec<_>>(),
            "skipped": dataset.skipped(),
            "empty_classes": dataset.empty_classes(),
            "bytes": packed.file_bytes,
        }));
        return Ok(Exit::DONE);
    }
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    output::data(&output::table(&[
        row("packed", arguments.out.display().to_string()),
        row("images", packed.len.to_string()),
        row("shrunk", format!("{}, to {} pixels on the shorter side", packed.shrunk, arguments.size)),
        row("corrupt", packed.corrupt.len().to_string()),
        row("size", format!("{:.1} MB", packed.file_bytes as f64 / 1e6)),
    ]));
    Ok(Exit::DONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_files_say_beside_their_pixels_has_rows_of_its_own() {
        let rows = |sixteen_bit, twelve_in_sixteen_bit, turned| {
            let stats = Stats { sixteen_bit, twelve_in_sixteen_bit, turned, ..Stats::default() };
            of_files(&stats).into_iter().map(|row| row.join(": ")).collect::<Vec<_>>()
        };
        assert_eq!(rows(0, 0, 0), [""; 0]);
        assert_eq!(rows(3, 0, 0), ["16 bits: 3 images, scaled to 8"]);
        assert_eq!(
            rows(3, 2, 0),
            [
                "16 bits: 3 images, scaled to 8; all values of 2 of them stay below 4096 of 65535: nearly black when scaled"
            ]
        );
        assert_eq!(
            rows(0, 0, 2),
            [
                "turned: 2 images have an EXIF orientation, which is not applied: they are trained on as they are stored"
            ]
        );
    }
}
