//! The binary version of CIFAR-10 and CIFAR-100: records of labels and 3,072 bytes, red first.

use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use super::access::{self, Patient};
use super::hold::{Collector, Hold};
use super::listing::Notices;
use super::pixels::{Layout, Pixels};
use super::{files, malformed, no_such_split, splits};
use crate::Error;

const SIDE: usize = 32;
const IMAGE_BYTES: usize = 3 * SIDE * SIDE;

/// Which of the two sets: they differ in the labels before the pixels and in the names of the files.
#[derive(Clone, Copy)]
struct Kind {
    train: &'static [&'static str],
    test: &'static [&'static str],
    class_names: &'static str,
    /// CIFAR-100 has a coarse label before the fine one, which is the one used.
    label_bytes: usize,
    n_classes: u32,
}

const KINDS: [Kind; 2] = [
    Kind {
        train: &[
            "data_batch_1.bin",
            "data_batch_2.bin",
            "data_batch_3.bin",
            "data_batch_4.bin",
            "data_batch_5.bin",
        ],
        test: &["test_batch.bin"],
        class_names: "batches.meta.txt",
        label_bytes: 1,
        n_classes: 10,
    },
    Kind {
        train: &["train.bin"],
        test: &["test.bin"],
        class_names: "fine_label_names.txt",
        label_bytes: 2,
        n_classes: 100,
    },
];

/// Opens a split of a folder that holds CIFAR files under their usual names, if it does.
pub fn open_folder(root: &Path, split: Option<&str>, hold: Hold<'_>) -> Result<Option<Pixels>, Error> {
    let present = |names: &[&str]| -> Vec<PathBuf> {
        names.iter().map(|name| root.join(name)).filter(|path| path.is_file()).collect()
    };
    for kind in KINDS {
        let halves = [("train", kind.train), ("test", kind.test)];
        let found: Vec<_> = halves.iter().filter(|(_, names)| !present(names).is_empty()).copied().collect();
        let names: Vec<&str> = found.iter().map(|(half, _)| *half).collect();
        let Some(default) = names.first() else { continue };
        let wanted = split.map_or(Some(*default), |split| splits::half(&names, split));
        let Some((_, files)) = found.iter().find(|(half, _)| Some(*half) == wanted) else {
            return Err(no_such_split(root, split.unwrap_or(default), &names.join(" and ")));
        };
        let paths = present(files);
        let mut pixels = read(&paths, kind, hold)?;
        let missing: Vec<&str> =
            files.iter().copied().filter(|name| !paths.contains(&root.join(name))).collect();
        let notes = &mut pixels.notices.notes;
        notes.extend(splits::note_of_halves(root, &names, split));
        if !missing.is_empty() {
            let (n, all) = (paths.len(), files.len());
            notes.push(format!("{n} of the {all} files are there: {} missing", are(&missing)));
        }
        let is_known = |path: &Path| {
            let mut known = kind.train.iter().chain(kind.test).chain([&kind.class_names]);
            known.any(|name| root.join(name) == path)
        };
        pixels.notices.add_beside(&files::beside(root, &is_known)?, "the CIFAR files");
        return Ok(Some(pixels));
    }
    Ok(None)
}

fn are(names: &[&str]) -> String {
    format!("{} {}", names.join(", "), if names.len() == 1 { "is" } else { "are" })
}

/// Opens one file.
pub fn open_file(path: &Path, hold: Hold<'_>) -> Result<Pixels, Error> {
    let (_, file_bytes) = access::open_source(path)?;
    let fits = |kind: &&Kind| file_bytes > 0 && file_bytes % (kind.label_bytes + IMAGE_BYTES) as u64 == 0;
    match KINDS.iter().find(fits) {
        Some(kind) => read(&[path.to_owned()], *kind, hold),
        None => Err(malformed(
            path,
            format!(
                "{file_bytes} bytes are no number of CIFAR-10 records (3073 each) or CIFAR-100 records (3074 each)"
            ),
        )),
    }
}

fn read(paths: &[PathBuf], kind: Kind, hold: Hold<'_>) -> Result<Pixels, Error> {
    let mut held = Collector::new(&paths[0], hold);
    let (mut labels, mut files) = (Vec::new(), Vec::new());
    let record_bytes = kind.label_bytes + IMAGE_BYTES;
    for path in paths {
        let (file, file_bytes) = access::open_source(path)?;
        if file_bytes == 0 || !file_bytes.is_multiple_of(record_bytes as u64) {
            let reason = format!("{file_bytes} bytes are no number of records of {record_bytes}");
            return Err(malformed(path, reason));
        }
        let records = file_bytes / record_bytes as u64;
        held.expect(records * IMAGE_BYTES as u64)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        files.push((name, records as usize));
        let mut stream = BufReader::with_capacity(1 << 18, Patient(file));
        let mut record = vec![0; record_bytes];
        for _ in 0..records {
            stream.read_exact(&mut record).map_err(|error| access::of_content(path, error))?;
            let label = u32::from(record[kind.label_bytes - 1]);
            if label >= kind.n_classes {
                return Err(malformed(path, format!("class {label} of {}", kind.n_classes)));
            }
            labels.push(label);
            held.push(&record[kind.label_bytes..])?;
        }
    }
    Ok(Pixels {
        width: SIDE,
        height: SIDE,
        channels: 3,
        layout: Layout::Planar,
        bytes: held.finish(),
        len: labels.len(),
        labels,
        class_names: class_names(&paths[0].with_file_name(kind.class_names), kind.n_classes)?,
        files,
        notices: Notices::default(),
    })
}

/// The names listed in the file, or numbers if there is no such file.
fn class_names(path: &Path, n_classes: u32) -> Result<Vec<String>, Error> {
    if !path.is_file() {
        return Ok((0..n_classes).map(|class| class.to_string()).collect());
    }
    let (file, _) = access::open_source(path)?;
    let mut text = Vec::new();
    // Far more than a hundred names: what is larger is another file.
    let outcome = Patient(file).take(1 << 20).read_to_end(&mut text);
    outcome.map_err(|error| access::of_content(path, error))?;
    let text = String::from_utf8_lossy(&text);
    let names: Vec<String> =
        text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    if names.len() == n_classes as usize {
        Ok(names)
    } else {
        Err(malformed(path, format!("{} class names where there are {n_classes} classes", names.len())))
    }
}
