//! Which folder is meant by a split's name.

use std::path::Path;

/// Names that mean the same, in any case of letters.
const MEANINGS: [&[&str]; 4] =
    [&["train", "training"], &["test", "testing"], &["val", "valid", "validation"], &["dev"]];

/// Tells whether a folder of this name holds a split rather than a class, if all beside it do too.
pub fn is_split(name: &[u8]) -> bool {
    meaning(name).is_some()
}

/// Tells whether this is the split that is trained on.
pub fn is_train(name: &[u8]) -> bool {
    meaning(name) == Some(0)
}

fn meaning(name: &[u8]) -> Option<usize> {
    MEANINGS.iter().position(|names| names.iter().any(|known| name.eq_ignore_ascii_case(known.as_bytes())))
}

/// How well a name has to match what is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    Exact,
    IgnoringCase,
    Meaning,
}

impl Match {
    /// The closest first.
    pub const ALL: [Match; 3] = [Match::Exact, Match::IgnoringCase, Match::Meaning];

    /// Those of `names` that match `wanted` this well.
    pub fn of<'a>(self, names: impl IntoIterator<Item = &'a [u8]>, wanted: &[u8]) -> Vec<&'a [u8]> {
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
