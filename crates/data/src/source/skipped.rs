//! What a listing leaves out, and how it is reported: every member of a source is an image, or is counted here by its kind.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Endings, classes and paths that a sentence names before it counts the rest.
pub const NAMED: usize = 8;

/// Different endings that are counted separately; others are counted together.
const ENDINGS: usize = 256;

/// Why something is no image of the set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A file with this ending, in small letters and without the dot.
    Ending(String),
    /// A file whose name has no ending.
    NoEnding,
    /// A file with one ending of too many.
    OtherEnding,
    /// Its name, or that of a folder around it, begins with a dot.
    Hidden,
    /// A pipe, socket or device.
    Special,
    /// A folder that is not looked into.
    Folder,
    /// A link to a folder that it lies in.
    LinkLoop,
    /// A folder that the system does not let this user read.
    Unreadable,
    /// A link in a tar that leads to no image in it.
    Link,
    /// A file with holes in a tar.
    Sparse,
    /// A member of a tar whose name has `..` in it.
    Outside,
    /// A member of a tar that a later one of the same name replaces.
    Replaced,
}

impl Kind {
    /// The kind of a file that is no image, by its name.
    pub fn of_name(name: &OsStr) -> Kind {
        match Path::new(name).extension() {
            Some(ending) if !ending.is_empty() => {
                Kind::Ending(super::listing::text(&ending.to_ascii_lowercase()))
            }
            _ => Kind::NoEnding,
        }
    }

    /// In a JSON object.
    pub fn key(&self) -> String {
        let name = match self {
            Kind::Ending(ending) => return format!(".{ending}"),
            Kind::NoEnding => "no ending",
            Kind::OtherEnding => "other endings",
            Kind::Hidden => "hidden",
            Kind::Special => "special file",
            Kind::Folder => "folder",
            Kind::LinkLoop => "loop of links",
            Kind::Unreadable => "unreadable folder",
            Kind::Link => "link to no image",
            Kind::Sparse => "sparse file",
            Kind::Outside => "name with ..",
            Kind::Replaced => "replaced by a later member",
        };
        name.to_owned()
    }

    /// With its count.
    fn words(&self, n: usize) -> String {
        let (one, many) = match self {
            Kind::Ending(ending) => return format!("{n} .{ending}"),
            Kind::NoEnding => ("without an ending", "without an ending"),
            Kind::OtherEnding => ("with another ending", "with other endings"),
            Kind::Hidden => ("hidden", "hidden"),
            Kind::Special => ("pipe, socket or device", "pipes, sockets or devices"),
            Kind::Folder => ("folder", "folders"),
            Kind::LinkLoop => ("link to a folder that it lies in", "links to folders that they lie in"),
            Kind::Unreadable => ("folder that cannot be read", "folders that cannot be read"),
            Kind::Link => ("link to no image in the archive", "links to no image in the archive"),
            Kind::Sparse => ("sparse file", "sparse files"),
            Kind::Outside => ("name with .. in it", "names with .. in them"),
            Kind::Replaced => ("name that comes again later", "names that come again later"),
        };
        format!("{n} {}", if n == 1 { one } else { many })
    }
}

/// What was skipped, by kind and by folder.
#[derive(Debug, Default)]
pub struct Skipped {
    /// By folder (a relative path, without a slash at its end) and kind.
    counts: BTreeMap<(Vec<u8>, Kind), usize>,
    /// Folder and path of what a person has to look at: loops and unreadable folders.
    named: Vec<(Vec<u8>, String)>,
    endings: BTreeSet<String>,
}

impl Skipped {
    pub fn add(&mut self, folder: &Path, kind: Kind) {
        self.add_many(folder, kind, 1);
    }

    pub fn add_many(&mut self, folder: &Path, kind: Kind, n: usize) {
        let kind = match kind {
            Kind::Ending(ending) if !self.endings.contains(&ending) && self.endings.len() == ENDINGS => {
                Kind::OtherEnding
            }
            kind => kind,
        };
        if let Kind::Ending(ending) = &kind
            && !self.endings.contains(ending)
        {
            self.endings.insert(ending.clone());
        }
        *self.counts.entry((folder.as_os_str().as_bytes().to_vec(), kind)).or_default() += n;
    }

    /// Adds a member that a sentence of its own names.
    pub fn add_named(&mut self, folder: &Path, kind: Kind, path: &Path) {
        self.add(folder, kind);
        let folder = folder.as_os_str().as_bytes().to_vec();
        self.named.push((folder, super::listing::text(path.as_os_str())));
    }

    /// Adds what was found in one folder.
    pub fn extend(&mut self, folder: &Path, found: BTreeMap<Kind, usize>) {
        found.into_iter().for_each(|(kind, n)| self.add_many(folder, kind, n));
    }

    /// The folders in which something was skipped, without a slash at their ends.
    pub fn folders(&self) -> impl Iterator<Item = &[u8]> {
        self.counts.keys().map(|(folder, _)| folder.as_slice())
    }

    /// Counts by kind what lies in folders that `is_of_interest`.
    fn by_kind(&self, is_of_interest: impl Fn(&[u8]) -> bool) -> BTreeMap<&Kind, usize> {
        let mut kinds = BTreeMap::new();
        for ((folder, kind), n) in &self.counts {
            if is_of_interest(folder) {
                *kinds.entry(kind).or_default() += n;
            }
        }
        kinds
    }

    /// By its name in a JSON object, how much was skipped of each kind below `base` (a path with a slash at its end).
    pub fn counts(&self, base: &[u8]) -> BTreeMap<String, usize> {
        self.by_kind(|folder| is_below(folder, base)).into_iter().map(|(kind, n)| (kind.key(), n)).collect()
    }

    /// In words what was skipped below `base`, if there is anything.
    pub fn sentence(&self, base: &[u8]) -> Option<String> {
        let nouns = ["file that is no image", "files that are no images"];
        let text = listed(&self.by_kind(|folder| is_below(folder, base)), nouns)?;
        let named: Vec<String> = self
            .named
            .iter()
            .filter(|(folder, _)| is_below(folder, base))
            .map(|(_, path)| path.clone())
            .collect();
        let named = match &named[..] {
            [] => String::new(),
            named => format!(" (among them {})", first_of(named, ", ")),
        };
        Some(format!("skipped {text}{named}"))
    }

    /// As [`Skipped::sentence`], of what lies beside `of_set`, images among it.
    pub fn sentence_beside(&self, of_set: &str) -> Option<String> {
        let text = listed(&self.by_kind(|_| true), ["file", "files"])?;
        Some(format!("skipped {text}, beside {of_set}"))
    }

    /// Everything, in words.
    pub fn summary(&self) -> String {
        let nouns = ["file that is no image", "files that are no images"];
        match listed(&self.by_kind(|_| true), nouns) {
            Some(text) => format!("skipped {text}"),
            None => "it is empty".to_owned(),
        }
    }

    /// What there is in the folder `folder` (without a slash at its end) and below it.
    pub fn within(&self, folder: &[u8]) -> String {
        let base = [folder, b"/"].concat();
        let kinds = self.by_kind(|other| other == folder || other.starts_with(&base));
        let mut sorted: Vec<(&Kind, usize)> = kinds.into_iter().collect();
        sorted.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
        match &sorted[..] {
            [] => "it is empty".to_owned(),
            [(Kind::Ending(ending), _)] => format!("only .{ending} files"),
            kinds => {
                let texts: Vec<String> = kinds.iter().map(|(kind, n)| kind.words(*n)).collect();
                format!("only {}", first_of(&texts, ", "))
            }
        }
    }
}

fn is_below(folder: &[u8], base: &[u8]) -> bool {
    folder.starts_with(base) || base.strip_suffix(b"/").is_some_and(|base| base == folder)
}

/// "12 files that are no images: 7 .tif, 3 .txt, 2 without an ending": the most frequent first.
fn listed(kinds: &BTreeMap<&Kind, usize>, nouns: [&str; 2]) -> Option<String> {
    let total: usize = kinds.values().sum();
    if total == 0 {
        return None;
    }
    let mut sorted: Vec<(&Kind, usize)> = kinds.iter().map(|(kind, n)| (*kind, *n)).collect();
    sorted.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    let mut texts: Vec<String> = sorted.iter().take(NAMED).map(|(kind, n)| kind.words(*n)).collect();
    let rest: usize = sorted.iter().skip(NAMED).map(|(_, n)| n).sum();
    if rest > 0 {
        texts.push(format!("{rest} others"));
    }
    let noun = nouns[usize::from(total > 1)];
    Some(format!("{total} {noun}: {}", texts.join(", ")))
}

/// The first of them, and how many more there are.
pub fn first_of(texts: &[String], separator: &str) -> String {
    let mut text = texts.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(separator);
    if texts.len() > NAMED {
        text.push_str(&format!("{separator}and {} more", texts.len() - NAMED));
    }
    text
}
