//! The binary version of CIFAR-10 and CIFAR-100: records of labels and 3,072 bytes, red first.

use std::fs;
use std::path::{Path, PathBuf};

use super::pixels::{Layout, Pixels};
use super::{malformed, no_such_split, read_file};
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
pub fn open_folder(root: &Path, split: Option<&str>) -> Result<Option<Pixels>, Error> {
    let present = |names: &[&str]| -> Vec<PathBuf> {
        names.iter().map(|name| root.join(name)).filter(|path| path.is_file()).collect()
    };
    for kind in KINDS {
        let halves = [("train", present(kind.train)), ("test", present(kind.test))];
        let halves: Vec<_> = halves.into_iter().filter(|(_, files)| !files.is_empty()).collect();
        let Some((default, _)) = halves.first() else { continue };
        let wanted = split.unwrap_or(default);
        let Some((_, files)) = halves.iter().find(|(name, _)| *name == wanted) else {
            let available: Vec<_> = halves.iter().map(|(name, _)| *name).collect();
            return Err(no_such_split(root, wanted, &available.join(" and ")));
        };
        let mut pixels = read(files, kind)?;
        if split.is_none() && halves.len() > 1 {
            pixels.note = Some(format!(
                "{0} holds train and test images: taking train; {0}#test are the others",
                root.display()
            ));
        }
        return Ok(Some(pixels));
    }
    Ok(None)
}

/// Opens one file.
pub fn open_file(path: &Path) -> Result<Pixels, Error> {
    let file_bytes = fs::metadata(path).map_err(|source| Error::Io { path: path.to_owned(), source })?.len();
    let fits = |kind: &&Kind| file_bytes > 0 && file_bytes % (kind.label_bytes + IMAGE_BYTES) as u64 == 0;
    match KINDS.iter().find(fits) {
        Some(kind) => read(&[path.to_owned()], *kind),
        None => Err(malformed(
            path,
            format!(
                "{file_bytes} bytes are no number of CIFAR-10 records (3073 each) or CIFAR-100 records (3074 each)"
            ),
        )),
    }
}

fn read(paths: &[PathBuf], kind: Kind) -> Result<Pixels, Error> {
    let (mut bytes, mut labels, mut files) = (Vec::new(), Vec::new(), Vec::new());
    for path in paths {
        let content = read_file(path)?;
        let records = content.chunks_exact(kind.label_bytes + IMAGE_BYTES);
        if content.is_empty() || !records.remainder().is_empty() {
            let record_bytes = kind.label_bytes + IMAGE_BYTES;
            return Err(malformed(
                path,
                format!("{} bytes are no number of records of {record_bytes}", content.len()),
            ));
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        files.push((name, records.len()));
        for record in records {
            let label = u32::from(record[kind.label_bytes - 1]);
            if label >= kind.n_classes {
                return Err(malformed(path, format!("class {label} of {}", kind.n_classes)));
            }
            labels.push(label);
            bytes.extend_from_slice(&record[kind.label_bytes..]);
        }
    }
    Ok(Pixels {
        width: SIDE,
        height: SIDE,
        channels: 3,
        layout: Layout::Planar,
        bytes,
        labels,
        class_names: class_names(&paths[0].with_file_name(kind.class_names), kind.n_classes)?,
        files,
        note: None,
    })
}

/// The names listed in the file, or numbers if there is no such file.
fn class_names(path: &Path, n_classes: u32) -> Result<Vec<String>, Error> {
    if !path.is_file() {
        return Ok((0..n_classes).map(|class| class.to_string()).collect());
    }
    let text = String::from_utf8_lossy(&read_file(path)?).into_owned();
    let names: Vec<String> =
        text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    if names.len() == n_classes as usize {
        Ok(names)
    } else {
        Err(malformed(path, format!("{} class names where there are {n_classes} classes", names.len())))
    }
}
