//! Which folders are splits by their names, which of them is taken, and which is meant by a name.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::listing::{Folder, first_name, text};
use super::skipped::{self, Skipped};
use super::{malformed, no_such_split};
use crate::Error;

/// Names that mean the same, in any case of letters.
const MEANINGS: [&[&str]; 4] =
    [&["train", "training"], &["test", "testing"], &["val", "valid", "validation"], &["dev"]];

/// Tells whether a folder of this name holds a split rather than a class, if all beside it do too.
fn is_split(name: &[u8]) -> bool {
    meaning(name).is_some()
}

/// Tells whether this is the split that is trained on.
fn is_train(name: &[u8]) -> bool {
    meaning(name) == Some(0)
}

fn meaning(name: &[u8]) -> Option<usize> {
    MEANINGS.iter().position(|names| names.iter().any(|known| name.eq_ignore_ascii_case(known.as_bytes())))
}

/// How well a name has to match what is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Match {
    Exact,
    IgnoringCase,
    Meaning,
}

impl Match {
    /// The closest first.
    const ALL: [Match; 3] = [Match::Exact, Match::IgnoringCase, Match::Meaning];

    /// Those of `names` that match `wanted` this well.
    fn of<'a>(self, names: impl IntoIterator<Item = &'a [u8]>, wanted: &[u8]) -> Vec<&'a [u8]> {
        let matches = |name: &[u8]| match self {
            Match::Exact => name == wanted,
            Match::IgnoringCase => name.eq_ignore_ascii_case(wanted),
            Match::Meaning => meaning(name).is_some() && meaning(name) == meaning(wanted),
        };
        names.into_iter().filter(|name| matches(name)).collect()
    }
}

/// Which of the halves of a set is wanted, where each has one name.
pub fn half<'a>(names: &[&'a str], wanted: &str) -> Option<&'a str> {
    let bytes = || names.iter().map(|name| name.as_bytes());
    let found = Match::ALL.iter().find_map(|how| how.of(bytes(), wanted.as_bytes()).first().copied())?;
    names.iter().copied().find(|name| name.as_bytes() == found)
}

/// What to say of the halves that there are, where none was asked for.
pub fn note_of_halves(root: &Path, halves: &[&str], split: Option<&str>) -> Option<String> {
    let root = root.display();
    match (split, halves) {
        (Some(_), _) | (None, ["train"]) => None,
        (None, [only]) => Some(format!("{root} holds {only} images only: taking {only}")),
        (None, _) => {
            Some(format!("{root} holds train and test images: taking train; {root}#test are the others"))
        }
    }
}

/// What holds no image: a split whose files are all of another kind must not be taken for one that is not there.
#[derive(Clone, Copy)]
pub struct Lacking<'a> {
    /// Relative to the source, without a slash at their ends.
    pub folders: &'a [PathBuf],
    pub skipped: &'a Skipped,
}

impl<'a> Lacking<'a> {
    /// Folders without an image of their own, and those in which something was skipped.
    fn paths(&self) -> impl Iterator<Item = &'a [u8]> {
        self.folders.iter().map(|path| path.as_os_str().as_bytes()).chain(self.skipped.folders())
    }

    /// Tells whether the folder `path`, with a slash at its end, is there.
    fn holds(&self, path: &[u8]) -> bool {
        let folder = path.strip_suffix(b"/").unwrap_or(path);
        self.paths().any(|other| other == folder || other.starts_with(path))
    }

    /// The error of a split that has no image.
    fn refuse(&self, origin: &Path, folder: &[u8], remedy: &str) -> Error {
        let what = self.skipped.within(folder);
        let path = origin.join(OsStr::from_bytes(folder));
        malformed(&path, format!("this split has no image that can be read ({what}){remedy}"))
    }
}

/// What lies directly in a folder.
pub struct Level<'a> {
    /// Those that an image lies in.
    folders: BTreeSet<&'a [u8]>,
    /// Splits by their names, without an image.
    lacking: BTreeSet<&'a [u8]>,
    has_files: bool,
    /// Whether some folder here holds a file directly.
    has_leaves: bool,
}

impl<'a> Level<'a> {
    /// What lies in `base`, a path with a slash at its end.
    pub fn of(folders: &'a [Folder], base: &[u8]) -> Level<'a> {
        let mut level =
            Level { folders: BTreeSet::new(), lacking: BTreeSet::new(), has_files: false, has_leaves: false };
        for relative in folders.iter().filter_map(|folder| folder.path.strip_prefix(base)) {
            let name = first_name(relative);
            if name.is_empty() {
                level.has_files = true;
            } else {
                level.folders.insert(name);
                level.has_leaves |= relative.len() == name.len() + 1;
            }
        }
        level
    }

    /// As [`Level::of`], with the splits that have no image.
    pub fn with_lacking(folders: &'a [Folder], lacking: Lacking<'a>, base: &[u8]) -> Level<'a> {
        let mut level = Level::of(folders, base);
        let names = lacking.paths().filter_map(|path| path.strip_prefix(base)).map(first_name);
        level.lacking = names.filter(|name| is_split(name) && !level.folders.contains(name)).collect();
        level
    }

    /// The only folder, where there is nothing else and it holds folders only.
    fn wrapper(&self) -> Option<&'a [u8]> {
        let is_only = self.folders.len() == 1 && !self.has_files && !self.has_leaves;
        self.folders.first().copied().filter(|only| is_only && !self.is_of_splits(only))
    }

    /// Tells whether `only` is a split beside others that have no image, the one to train on among them.
    fn is_of_splits(&self, only: &[u8]) -> bool {
        let mut all = self.lacking.iter().copied().chain([only]);
        !self.lacking.is_empty() && is_split(only) && all.any(is_train)
    }

    /// Tells whether version 0.1 took the folder `train` of this level alone.
    pub fn is_split_in_version_0_1(&self) -> bool {
        let holds = |name: &str| self.folders.contains(name.as_bytes());
        holds("train") && (holds("test") || holds("val")) && !self.has_files
    }
}

/// Goes down from `base` as long as everything goes through one folder that holds folders only: a class holds files.
pub fn pass_wrappers(folders: &[Folder], base: &mut Vec<u8>) {
    while let Some(inner) = wrapper(folders, base) {
        *base = inner;
    }
}

/// As [`pass_wrappers`], but not past splits of which only one has images.
pub fn pass_to_splits(folders: &[Folder], lacking: Lacking<'_>, base: &mut Vec<u8>) {
    while let Some(only) = Level::with_lacking(folders, lacking, base).wrapper() {
        base.extend_from_slice(&[only, b"/"].concat());
    }
}

fn wrapper(folders: &[Folder], base: &[u8]) -> Option<Vec<u8>> {
    Level::of(folders, base).wrapper().map(|only| [base, only, b"/"].concat())
}

/// What is taken where no split is asked for.
pub enum Choice<'a> {
    Everything,
    /// Everything, and why.
    Noted(String),
    /// One folder, and why.
    Train(&'a [u8], String),
}

/// Chooses among the folders of a level by their names. Images that lie beside splits are in none of them.
pub fn choose<'a>(
    origin: &Path,
    level: &Level<'a>,
    base: &[u8],
    lacking: Lacking<'_>,
) -> Result<Choice<'a>, Error> {
    let (with_images, others): (Vec<&[u8]>, Vec<&[u8]>) =
        level.folders.iter().partition(|name| is_split(name));
    let [first, ..] = with_images[..] else { return Ok(Choice::Everything) };
    let first = String::from_utf8_lossy(first).into_owned();
    if !others.is_empty() {
        let (origin, candidates, others) = (origin.display(), enumerated(&with_images), enumerated(&others));
        return Ok(Choice::Noted(format!(
            "{origin} holds {candidates} beside {others}: all are taken as classes; {origin}#{first} would take one split"
        )));
    }
    if !with_images.iter().any(|name| is_train(name))
        && let Some(train) = level.lacking.iter().find(|name| is_train(name))
    {
        let remedy = format!("; {}#{first} has images", origin.display());
        return Err(lacking.refuse(origin, &[base, train].concat(), &remedy));
    }
    choose_split(origin, level, &with_images)
}

/// Chooses among splits, `with_images` those that have some.
fn choose_split<'a>(origin: &Path, level: &Level<'a>, with_images: &[&'a [u8]]) -> Result<Choice<'a>, Error> {
    let origin = origin.display();
    let trains: Vec<&[u8]> = with_images.iter().copied().filter(|name| is_train(name)).collect();
    let all: BTreeSet<&[u8]> = with_images.iter().chain(&level.lacking).copied().collect();
    let rest: Vec<&[u8]> = all.iter().copied().filter(|name| !is_train(name)).collect();
    let candidates = enumerated(&all.into_iter().collect::<Vec<_>>());
    match (&trains[..], with_images) {
        ([_], _) if rest.is_empty() && !level.has_files => Ok(Choice::Everything),
        ([], [only]) if level.has_files => {
            let only = String::from_utf8_lossy(only);
            Ok(Choice::Noted(format!(
                "{origin} holds {only} beside images of its own: all are taken together; {origin}#{only} would take one \
                 split"
            )))
        }
        ([], [_]) => Ok(Choice::Everything),
        ([train], _) => {
            let name = String::from_utf8_lossy(train);
            let mut note = format!("{origin} holds {candidates}: taking {name}");
            note.push_str(&others_of(&origin.to_string(), &rest));
            if level.has_files {
                note.push_str("; images that lie in no folder are left out");
            }
            Ok(Choice::Train(train, note))
        }
        (trains, _) => {
            let reason = match trains {
                [] => "none of them is the split to train on (rename them if they are classes)",
                _ => "several of them could be the split to train on",
            };
            let first = trains.first().unwrap_or(&with_images[0]);
            Err(Error::AmbiguousSplit {
                origin: origin.to_string(),
                candidates,
                reason: reason.to_owned(),
                first: String::from_utf8_lossy(first).into_owned(),
            })
        }
    }
}

/// How the splits that are not taken are named.
fn others_of(origin: &str, rest: &[&[u8]]) -> String {
    let others: Vec<String> =
        rest.iter().map(|name| format!("{origin}#{}", String::from_utf8_lossy(name))).collect();
    match &others[..] {
        [] => String::new(),
        [only] => format!("; {only} is the other"),
        many => format!("; {} are the others", many.join(" and ")),
    }
}

/// "a, b and c"; of many the first ones.
fn enumerated(names: &[&[u8]]) -> String {
    let names: Vec<String> = names.iter().map(|name| text(OsStr::from_bytes(name))).collect();
    match &names[..] {
        [] => String::new(),
        [only] => only.clone(),
        [first @ .., last] if first.len() < 8 => format!("{} and {last}", first.join(", ")),
        many => skipped::first_of(many, ", "),
    }
}

/// The folder that `split` names: exactly, or else without regard to the case of letters, or else by what it means.
pub fn find(origin: &Path, folders: &[Folder], lacking: Lacking<'_>, split: &str) -> Result<Vec<u8>, Error> {
    let wanted = split.trim_end_matches('/').as_bytes();
    let mut bases = vec![Vec::new()];
    while let Some(inner) = wrapper(folders, &bases[bases.len() - 1]) {
        bases.push(inner);
    }
    for (how, base) in Match::ALL.iter().flat_map(|how| bases.iter().map(move |base| (*how, base))) {
        // A path with slashes is found exactly or not at all.
        let path = [base, wanted, b"/"].concat();
        if how == Match::Exact && folders.iter().any(|folder| folder.path.starts_with(&path)) {
            return Ok(path);
        }
        if how == Match::Exact && !wanted.is_empty() && lacking.holds(&path) {
            return Err(lacking.refuse(origin, &[base, wanted].concat(), ""));
        }
        let level = Level::of(folders, base);
        match how.of(level.folders.iter().copied(), wanted)[..] {
            [] => {}
            [only] => return Ok([base, only, b"/"].concat()),
            ref several => {
                return Err(Error::AmbiguousSplit {
                    origin: origin.display().to_string(),
                    candidates: enumerated(several),
                    reason: format!("#{split} could be any of them"),
                    first: String::from_utf8_lossy(several[0]).into_owned(),
                });
            }
        }
    }
    let level = Level::of(folders, &bases[bases.len() - 1]);
    let names: Vec<_> = level.folders.iter().map(|name| String::from_utf8_lossy(name)).collect();
    let available = if names.is_empty() { "no folders".to_owned() } else { names.join(", ") };
    Err(no_such_split(origin, split, &available))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_half_is_found_by_its_meaning() {
        #[track_caller]
        fn check(wanted: &str, expected: Option<&str>) {
            assert_eq!(half(&["train", "test"], wanted), expected);
        }
        check("train", Some("train"));
        check("TRAINING", Some("train"));
        check("Test", Some("test"));
        check("testing", Some("test"));
        check("val", None);
        check("tra", None);
    }
}
