//! `manifest.json`: what a checkpoint consists of, under its own digest.
//!
//! The file is JSON whose last member is the BLAKE3 digest of everything before it, so that not a byte of
//! it can change unnoticed. Everything in it is checked before it is believed: the directory may come from
//! anywhere.

use serde::{Deserialize, Serialize};
use std::io::Read;
use std::path::Path;

use crate::layout::step_of;
use crate::{Directory, Error};

/// Name of the manifest in a checkpoint's directory.
pub const MANIFEST_FILE: &str = "manifest.json";

/// Version of the layout that this program writes, and the only one it reads.
const FORMAT: u32 = 1;

/// More ranks than any run has; fewer than would hurt to allocate for.
const MAX_SHARDS: usize = 1 << 16;

/// A BLAKE3 digest.
pub type Digest = [u8; 32];

/// Digests `bytes`.
pub fn digest(bytes: &[u8]) -> Digest {
    *blake3::hash(bytes).as_bytes()
}

/// Writes a digest as 64 lowercase hexadecimal digits.
pub fn hex(digest: &Digest) -> String {
    blake3::Hash::from_bytes(*digest).to_hex().to_string()
}

/// What the writer knows of a checkpoint beside its tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct Description {
    /// The run it belongs to.
    pub run_id: String,
    /// Ranks that wrote it.
    pub world_size: u32,
    /// Digest of the resolved configuration.
    pub config_digest: String,
    /// When it was committed, in nanoseconds since 1970.
    pub time_ns: u64,
    /// What else the worker has to say: threads, kernel path, epoch, `config_toml`, ...
    pub metadata: serde_json::Map<String, serde_json::Value>,
}

/// A checkpoint's table of contents.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the layout.
    pub format: u32,
    /// Completed updates.
    pub step: u64,
    /// The run it belongs to.
    pub run_id: String,
    /// Membership version that wrote it.
    pub generation: u64,
    /// Ranks that wrote it.
    pub world_size: u32,
    /// Digest of the resolved configuration.
    pub config_digest: String,
    /// When it was committed, in nanoseconds since 1970.
    pub time_ns: u64,
    /// The files that hold the tensors, in rank order.
    pub shards: Vec<Shard>,
    /// What else the worker had to say.
    pub metadata: serde_json::Map<String, serde_json::Value>,
}

/// One file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shard {
    /// Its name in the checkpoint's directory.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// Its digest, in hexadecimal.
    pub blake3: String,
}

/// The name of shard `index` of `n_shards`.
pub fn shard_file(index: usize, n_shards: usize) -> String {
    format!("shard-{index:05}-of-{n_shards:05}.safetensors")
}

impl Manifest {
    pub(crate) fn new(step: u64, generation: u64, description: Description, shards: Vec<Shard>) -> Manifest {
        let Description { run_id, world_size, config_digest, time_ns, metadata } = description;
        Manifest {
            format: FORMAT,
            step,
            run_id,
            generation,
            world_size,
            config_digest,
            time_ns,
            shards,
            metadata,
        }
    }

    /// Bytes of all shards.
    pub fn total_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.bytes).sum()
    }

    /// The text of `manifest.json`, its digest included.
    pub fn to_json(&self) -> String {
        let json = serde_json::to_string_pretty(self).expect("strings, integers and JSON values serialise");
        let body = json.strip_suffix("\n}").expect("a pretty-printed object ends with its brace on a line");
        format!("{body}{}", seal(body))
    }

    /// Reads the text of a `manifest.json` and checks it; `origin` is what errors call it.
    ///
    /// # Errors
    /// If the text is not byte for byte what [`Manifest::to_json`] gave, or says what no writer would say.
    pub fn from_json(text: &str, origin: &Path) -> Result<Manifest, Error> {
        let malformed = |reason: String| Error::Malformed { file: origin.to_owned(), reason };
        let Some((body, stated)) = unseal(text) else {
            return Err(malformed(
                "it does not end with its digest, so it was truncated or edited".to_owned(),
            ));
        };
        let actual = hex(&digest(body.as_bytes()));
        if actual != stated {
            return Err(Error::Altered { file: origin.to_owned(), expected: stated.to_owned(), actual });
        }
        let manifest: Manifest =
            serde_json::from_str(&format!("{body}\n}}")).map_err(|error| malformed(error.to_string()))?;
        manifest.check().map_err(malformed)?;
        Ok(manifest)
    }

    /// Reads the manifest of a checkpoint in its directory.
    ///
    /// # Errors
    /// As [`Manifest::from_json`], or if there is none, or if the directory bears another step's name.
    pub fn read(dir: &Directory) -> Result<Manifest, Error> {
        let file = dir.path().join(MANIFEST_FILE);
        let mut bytes = Vec::new();
        let mut source = dir.read(MANIFEST_FILE).map_err(Error::or_missing)?;
        source.read_to_end(&mut bytes).map_err(Error::io("read", &file))?;
        let text = String::from_utf8(bytes)
            .map_err(|error| Error::Malformed { file: file.clone(), reason: error.to_string() })?;
        let manifest = Manifest::from_json(&text, &file)?;
        match step_of(dir.path()) {
            Some(step) if step != manifest.step => Err(Error::Malformed {
                file,
                reason: format!("it is of step {}, its directory is named after step {step}", manifest.step),
            }),
            _ => Ok(manifest),
        }
    }

    fn check(&self) -> Result<(), String> {
        if self.format != FORMAT {
            return Err(format!(
                "layout version {} is not the one this program reads, {FORMAT}",
                self.format
            ));
        }
        let n_shards = self.shards.len();
        if n_shards == 0 || n_shards > MAX_SHARDS {
            return Err(format!("{n_shards} shards, expected 1 to {MAX_SHARDS}"));
        }
        if self.world_size == 0 {
            return Err("world_size is 0".to_owned());
        }
        let mut total = 0u64;
        for (index, shard) in self.shards.iter().enumerate() {
            // Only the one name that we give: it leaves no room for separators, `..` or the same file twice.
            let expected = shard_file(index, n_shards);
            if shard.file != expected {
                return Err(format!("shard {index} is called {:?} instead of {expected:?}", shard.file));
            }
            let digits = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
            if shard.blake3.len() != 64 || !shard.blake3.chars().all(digits) {
                return Err(format!("the digest of {expected} is not 64 hexadecimal digits"));
            }
            total = total.checked_add(shard.bytes).ok_or("the lengths of the shards overflow")?;
        }
        Ok(())
    }
}

const SEAL: [&str; 2] = [",\n  \"digest\": \"", "\"\n}\n"];

/// The end of the file: the digest of `body` as the last member of the object.
fn seal(body: &str) -> String {
    format!("{}{}{}", SEAL[0], hex(&digest(body.as_bytes())), SEAL[1])
}

/// Splits the file into what is digested and the digest that it states.
fn unseal(text: &str) -> Option<(&str, &str)> {
    let rest = text.strip_suffix(SEAL[1])?;
    let (before, stated) = rest.split_at_checked(rest.len().checked_sub(64)?)?;
    Some((before.strip_suffix(SEAL[0])?, stated))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let metadata = serde_json::json!({"threads": 2, "kernel_path": "avx512", "epoch": 0.1});
        let description = Description {
            run_id: "r".to_owned(),
            world_size: 2,
            config_digest: hex(&[7; 32]),
            time_ns: 5,
            metadata: metadata.as_object().unwrap().clone(),
        };
        let shard = |index| Shard { file: shard_file(index, 2), bytes: 10, blake3: hex(&[1; 32]) };
        Manifest::new(12, 3, description, vec![shard(0), shard(1)])
    }

    #[test]
    fn the_text_is_json_and_comes_back_as_it_was() {
        let text = manifest().to_json();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["shards"][1]["file"], "shard-00001-of-00002.safetensors");
        assert_eq!(value["digest"].as_str().unwrap().len(), 64);
        assert_eq!(Manifest::from_json(&text, Path::new("m")).unwrap(), manifest());
    }

    #[test]
    fn every_flipped_or_missing_byte_is_found() {
        let text = manifest().to_json();
        for position in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[position] ^= 1;
            let flipped = String::from_utf8(bytes).unwrap();
            let error = Manifest::from_json(&flipped, Path::new("the/manifest.json")).unwrap_err();
            assert!(error.to_string().contains("the/manifest.json"), "{position}: {error}");
            assert!(Manifest::from_json(&text[..position], Path::new("m")).is_err(), "cut at {position}");
        }
    }

    /// A hostile writer can compute a digest too.
    #[track_caller]
    fn check_hostile(edit: impl FnOnce(&mut Manifest), reason: &str) {
        let mut hostile = manifest();
        edit(&mut hostile);
        let error = Manifest::from_json(&hostile.to_json(), Path::new("m")).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
        assert_eq!(error.exit_code(), 3);
    }

    #[test]
    fn what_no_writer_would_say_is_refused() {
        check_hostile(|m| m.format = 2, "layout version 2");
        check_hostile(|m| m.shards.clear(), "0 shards");
        check_hostile(|m| m.world_size = 0, "world_size is 0");
        check_hostile(|m| m.shards[0].file = "../../secret".to_owned(), "shard 0 is called \"../../secret\"");
        check_hostile(|m| m.shards[1].file = m.shards[0].file.clone(), "shard 1 is called");
        check_hostile(|m| m.shards[0].blake3 = "AB".repeat(32), "not 64 hexadecimal digits");
        check_hostile(|m| m.shards.iter_mut().for_each(|s| s.bytes = u64::MAX), "overflow");
    }

    #[test]
    fn unknown_fields_are_refused() {
        let text = manifest().to_json();
        let (body, _) = unseal(&text).unwrap();
        let more = format!("{body},\n  \"more\": 1");
        let error = Manifest::from_json(&format!("{more}{}", seal(&more)), Path::new("m")).unwrap_err();
        assert!(error.to_string().contains("unknown field `more`"), "{error}");
    }
}
