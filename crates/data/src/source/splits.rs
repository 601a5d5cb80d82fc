//! Which folders are splits by their names, which of them is taken, and which is meant by a name.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::listing::{Folder, first_name, text};
use super::{no_such_split, skipped};
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

/// What lies directly in a folder.
pub struct Level<'a> {
    folders: BTreeSet<&'a [u8]>,
    has_files: bool,
    /// Whether some folder here holds a file directly.
    has_leaves: bool,
}

impl<'a> Level<'a> {
    /// What lies in `base`, a path with a slash at its end.
    pub fn of(folders: &'a [Folder], base: &[u8]) -> Level<'a> {
        let mut level = Level { folders: BTreeSet::new(), has_files: false, has_leaves: false };
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

fn wrapper(folders: &[Folder], base: &[u8]) -> Option<Vec<u8>> {
    let level = Level::of(folders, base);
    let [only] = level.folders.iter().copied().collect::<Vec<_>>()[..] else { return None };
    (!level.has_files && !level.has_leaves).then(|| [base, only, b"/"].concat())
}

/// What is taken where no split is asked for.
pub enum Choice<'a> {
    Everything,
    /// Everything, and why.
    Noted(String),
    /// One folder, and why.
    Train(&'a [u8], String),
}

/// Chooses among the folders of a level by their names.
pub fn choose<'a>(origin: &Path, level: &Level<'a>) -> Result<Choice<'a>, Error> {
    let origin = origin.display();
    let (found, others): (Vec<&[u8]>, Vec<&[u8]>) = level.folders.iter().partition(|name| is_split(name));
    let [first, ..] = found[..] else { return Ok(Choice::Everything) };
    let first = String::from_utf8_lossy(first).into_owned();
    let candidates = enumerated(&found);
    if !others.is_empty() {
        let others = enumerated(&others);
        return Ok(Choice::Noted(format!(
            "{origin} holds {candidates} beside {others}: all are taken as classes; {origin}#{first} would take one split"
        )));
    }
    if level.has_files {
        return Ok(Choice::Noted(format!(
            "{origin} holds {candidates} beside images of its own: all are taken together; {origin}#{first} would take one \
             split"
        )));
    }
    let (trains, rest): (Vec<&[u8]>, Vec<&[u8]>) = found.iter().partition(|name| is_train(name));
    match (&trains[..], &rest[..]) {
        ([_], []) | ([], [_]) => Ok(Choice::Everything),
        ([train], rest) => {
            let others: Vec<String> =
                rest.iter().map(|name| format!("{origin}#{}", String::from_utf8_lossy(name))).collect();
            let are = if others.len() == 1 { "is the other" } else { "are the others" };
            let name = String::from_utf8_lossy(train);
            let note = format!("{origin} holds {candidates}: taking {name}; {} {are}", others.join(" and "));
            Ok(Choice::Train(train, note))
        }
        (trains, _) => {
            let reason = match trains {
                [] => "none of them is the split to train on (rename them if they are classes)",
                _ => "several of them could be the split to train on",
            };
            Err(Error::AmbiguousSplit {
                origin: origin.to_string(),
                candidates,
                reason: reason.to_owned(),
                first: trains.first().map_or(first, |name| String::from_utf8_lossy(name).into_owned()),
            })
        }
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
pub fn find(origin: &Path, folders: &[Folder], split: &str) -> Result<Vec<u8>, Error> {
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
