//! The data sets of a run: opened, and held against the list that a checkpoint has of them.
//!
//! A run that is resumed takes the order of its images from that list, so that every position, and every entry of a memory
//! bank, stays that of the same image. What may differ, and what ends the run, is decided here, once, from the list and
//! from what is there now.

use checkpoint::{Directory, IMAGES_KEY, LIST_KEY, Manifest};
use config::RunConfig;
use data::{Counted, Dataset, Differences, Digest, EpochOrigin, Fingerprint, ImageList, Limits};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;

use crate::Error;

/// Below [`IMAGES_KEY`] in a manifest's metadata, the digest of the test images' fingerprint.
const TEST_KEY: &str = "test";

/// In a manifest's metadata, where epochs are counted from.
const ORIGIN_KEY: &str = "epoch_origin";

/// What a checkpoint says of the data set that it was made from.
#[derive(Clone, Debug, Default)]
pub struct Past {
    /// Completed updates.
    pub step: u64,
    /// The list of the training images.
    pub list: PastList,
    /// Digest of the test images' fingerprint, in hexadecimal.
    pub test: Option<String>,
    /// Where its epochs are counted from.
    pub origin: EpochOrigin,
    /// Whether the data set is taken as it is now.
    pub accept_changes: bool,
}

/// The list of a checkpoint's training images.
#[derive(Clone, Debug, Default)]
pub enum PastList {
    /// Version 0.1 made none.
    #[default]
    OfVersion01,
    /// It was not copied with the checkpoint.
    Lost,
    /// As bytes.
    Bytes(Vec<u8>),
}

impl Past {
    /// What the manifest of a checkpoint says, and the list that it names.
    pub fn new(manifest: &Manifest, list: Option<Vec<u8>>, accept_changes: bool) -> Past {
        let of = |value: &Value, key: &str| value.get(key).and_then(Value::as_u64);
        let origin = manifest.metadata.get(ORIGIN_KEY);
        let images = manifest.metadata.get(IMAGES_KEY);
        Past {
            step: manifest.step,
            list: match (list, images) {
                (Some(list), _) => PastList::Bytes(list),
                (None, Some(_)) => PastList::Lost,
                (None, None) => PastList::OfVersion01,
            },
            test: images.and_then(|of| of.get(TEST_KEY)?.as_str().map(str::to_owned)),
            origin: origin
                .and_then(|origin| {
                    Some(EpochOrigin { step: of(origin, "step")?, epoch: of(origin, "epoch")? })
                })
                .unwrap_or_default(),
            accept_changes,
        }
    }

    /// What the newest good checkpoint of the run in `run_dir` says, which is the one that a resume goes on from; nothing
    /// before there is one.
    ///
    /// # Errors
    /// If the list that it names is damaged.
    pub fn of_run(run_dir: &Path, accept_changes: bool) -> Result<Option<Past>, Error> {
        let run = Directory::open(run_dir)?;
        let (Some(newest), _) = checkpoint::newest_good(&run) else { return Ok(None) };
        let manifest = Manifest::read(&newest)?;
        let list = checkpoint::read_images(&run, &manifest)?;
        Ok(Some(Past::new(&manifest, list, accept_changes)))
    }
}

/// Opens the training images in the order that a run has them in; what differs from its list is not judged.
///
/// # Errors
/// If they cannot be opened, or the list is damaged.
pub fn open_in_order(config: &RunConfig, limits: Limits, past: Option<&Past>) -> Result<Dataset, Error> {
    let source = &config.data.source;
    let opened = match past.map(|past| &past.list) {
        None | Some(PastList::Lost) => Dataset::open_within(source, limits),
        Some(PastList::OfVersion01) => Dataset::open_as_version_0_1(source, limits),
        Some(PastList::Bytes(list)) => ImageList::decode(list)
            .and_then(|list| Dataset::open_in_order(source, limits, &list))
            .map(|(dataset, _)| dataset),
    };
    opened.map_err(Error::Data)
}

/// The data sets of a run.
pub struct Images {
    /// The training images.
    pub train: Arc<Dataset>,
    /// What identifies them.
    pub fingerprint: Fingerprint,
    /// The images of `eval.data`, and what identifies them.
    pub test: Option<(Arc<Dataset>, Fingerprint)>,
    /// Where epochs are counted from.
    pub origin: EpochOrigin,
    /// The list that the training images follow, if they follow one.
    list: Option<Vec<u8>>,
    /// What differs from the checkpoint, a sentence each.
    pub notices: Vec<String>,
}

impl Images {
    /// Opens the data sets that `config` names and compares them with what `past` says.
    ///
    /// # Errors
    /// If they cannot be opened, or are not those of the checkpoint in a way that training must not pass over.
    pub fn open(config: &RunConfig, limits: Limits, past: Option<&Past>) -> Result<Images, Error> {
        let mut notices = Vec::new();
        let mut images = match past {
            None => {
                Images::as_they_are(open_in_order(config, limits, None)?, config, EpochOrigin::default())?
            }
            Some(past) => Images::resumed(config, limits, past, &mut notices)?,
        };
        if let Some(source) = &config.eval.data {
            let memory_bytes = limits.memory_bytes.saturating_sub(images.train.held_bytes());
            let test = Dataset::open_within(source, Limits { memory_bytes, ..limits })?;
            let identity = test.fingerprint(config.run.seed)?;
            let before = past.and_then(|past| past.test.as_ref());
            if before.is_some_and(|before| *before != checkpoint::hex(&identity.digest())) {
                notices.push(format!(
                    "{source} holds other images than before the resume: their kNN cannot be compared with that of earlier steps"
                ));
            }
            images.test = Some((Arc::new(test), identity));
        }
        Ok(Images { notices, ..images })
    }

    /// Of images in the order in which they were opened.
    fn as_they_are(train: Dataset, config: &RunConfig, origin: EpochOrigin) -> Result<Images, Error> {
        let fingerprint = train.fingerprint(config.run.seed)?;
        Ok(Images::new(train, fingerprint, origin))
    }

    fn new(train: Dataset, fingerprint: Fingerprint, origin: EpochOrigin) -> Images {
        Images { train: Arc::new(train), fingerprint, test: None, origin, list: None, notices: Vec::new() }
    }

    fn resumed(
        config: &RunConfig,
        limits: Limits,
        past: &Past,
        notices: &mut Vec<String>,
    ) -> Result<Images, Error> {
        let seed = config.run.seed;
        let source = &config.data.source;
        let PastList::Bytes(list) = &past.list else {
            notices.push(format!(
                "the checkpoint has no list of its images: whether {source} still holds the same ones was not compared"
            ));
            return Images::as_they_are(open_in_order(config, limits, Some(past))?, config, past.origin);
        };
        let stored = ImageList::decode(list)?;
        let (train, mut differences) = Dataset::open_in_order(source, limits, &stored)?;
        let fingerprint = train.fingerprint(seed)?;
        if differences.changed.is_none() {
            differences.changed = train
                .first_changed(&stored.fingerprint, &fingerprint)
                .map(|first| format!("{first} is not the image that it was"));
        }
        match judge(config, past, &differences, stored.fingerprint.len)? {
            Verdict::Follow => {
                notices.extend(passed_over(source, &differences));
                let images = Images::new(train, fingerprint, past.origin);
                Ok(Images { list: Some(list.clone()), ..images })
            }
            Verdict::TakeAsItIs => {
                drop(train);
                let train = open_in_order(config, limits, None)?;
                let counts = [stored.fingerprint.len, train.len()];
                let origin = origin_after(past, counts, config.train.global_batch);
                notices.push(accepted(source, counts, past, origin));
                Images::as_they_are(train, config, origin)
            }
        }
    }

    /// The list of the training images, for checkpoints.
    pub fn list(&self) -> Vec<u8> {
        let made = || ImageList::of(&self.train, self.fingerprint.clone()).encode();
        self.list.clone().unwrap_or_else(made)
    }

    /// What a manifest records of the data sets, `list` being the digest of the list.
    pub fn metadata(&self, list: &Digest) -> [(&'static str, Value); 2] {
        let mut images = json!({ LIST_KEY: checkpoint::hex(list) });
        if let Some((_, test)) = &self.test {
            images[TEST_KEY] = json!(checkpoint::hex(&test.digest()));
        }
        let EpochOrigin { step, epoch } = self.origin;
        [(IMAGES_KEY, images), (ORIGIN_KEY, json!({ "step": step, "epoch": epoch }))]
    }
}

/// How a resumed run goes on.
enum Verdict {
    /// In the order of the list.
    Follow,
    /// With the images that are there now, in their own order.
    TakeAsItIs,
}

fn judge(
    config: &RunConfig,
    past: &Past,
    differences: &Differences,
    n_listed: usize,
) -> Result<Verdict, Error> {
    let Differences { gone, new, changed } = differences;
    let keeps = keeps_entries(config);
    let too_many = !data::tolerates(gone.n, n_listed, config.data.max_corrupt_share);
    let what = match changed {
        Some(changed) => Some(changed.clone()),
        None if too_many => {
            Some(format!("{} of its {n_listed} images are gone, the first: {}", gone.n, gone.first))
        }
        None => None,
    };
    match what {
        Some(_) if past.accept_changes && !keeps => Ok(Verdict::TakeAsItIs),
        None if past.accept_changes && !keeps && gone.n + new.n > 0 => Ok(Verdict::TakeAsItIs),
        None => Ok(Verdict::Follow),
        Some(what) => Err(Error::OtherImages {
            path: config.data.source.clone(),
            what,
            objective: keeps.then(|| config.objective.kind.to_string()),
        }),
    }
}

/// Whether the objective keeps something of each image from one visit to the next.
fn keeps_entries(config: &RunConfig) -> bool {
    matches!(config.objective.kind, config::ObjectiveKind::Npid | config::ObjectiveKind::Pirl)
}

/// Sentences about images that came or went.
fn passed_over(source: &str, differences: &Differences) -> Vec<String> {
    let Differences { gone, new, .. } = differences;
    let count = |Counted { n, first }: &Counted| match n {
        1 => format!("image {first}"),
        n => format!("{n} images, the first {first},"),
    };
    let mut sentences = Vec::new();
    if gone.n > 0 {
        sentences.push(format!(
            "{} of the run's list {} no longer in {source}: replaced like corrupt ones",
            count(gone),
            are(gone)
        ));
    }
    if new.n > 0 {
        sentences.push(format!("{} of {source} {} not in the run's list: left out", count(new), are(new)));
    }
    sentences
}

fn are(found: &Counted) -> &'static str {
    if found.n == 1 { "is" } else { "are" }
}

/// Where epochs are counted from once there is another number of images: the epoch in progress, whose order depends on
/// it, begins anew.
fn origin_after(past: &Past, [before, now]: [usize; 2], global_batch: usize) -> EpochOrigin {
    if before == now {
        return past.origin;
    }
    let steps_per_epoch = (before / global_batch).max(1) as u64;
    let epochs = past.step.saturating_sub(past.origin.step) / steps_per_epoch;
    EpochOrigin { step: past.step, epoch: past.origin.epoch + epochs }
}

fn accepted(source: &str, [before, now]: [usize; 2], past: &Past, origin: EpochOrigin) -> String {
    let mut text = format!("{source} is taken as it is now, with {now} images instead of {before}");
    if origin != past.origin {
        text.push_str(&format!(": epoch {} begins anew at step {}", origin.epoch, origin.step));
    }
    text
}

#[cfg(test)]
mod tests;
