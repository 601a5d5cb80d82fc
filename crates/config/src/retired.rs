//! Keys that there once were: what older versions stored is still read.

use toml::{Table, Value};

/// A key that means nothing any more.
pub(crate) struct Retired {
    /// `section.field`.
    pub name: &'static str,
    /// What became of it.
    pub fate: &'static str,
    /// The value under which runs now differ from what they were; with any other nothing has changed.
    mattered: &'static str,
}

/// A key that version 0.1 wrote into every stored configuration, and no later one has.
pub(crate) const OF_VERSION_0_1: &str = "data.decode";

/// `data.max_pixels` as it was fixed in version 0.1, whose runs go on with the same images.
pub(crate) const MAX_PIXELS_OF_VERSION_0_1: usize = 100_000_000;

/// Every such key.
const RETIRED: &[Retired] =
    &[Retired { name: OF_VERSION_0_1, fate: "every image is decoded in full", mattered: "scaled" }];

impl Retired {
    /// The retired key of that name, if there is one.
    pub(crate) fn find(name: &str) -> Option<&'static Retired> {
        RETIRED.iter().find(|key| key.name == name)
    }

    fn value_in<'a>(&self, table: &'a Table) -> Option<&'a Value> {
        let (section, field) = self.name.split_once('.')?;
        table.get(section)?.get(field)
    }
}

/// Says, of a stored configuration, for which retired keys what it sets is no longer done.
///
/// A text that is not TOML has none: whoever reads it finds that out.
pub fn retired_notes(text: &str) -> Vec<String> {
    let Ok(table) = text.parse::<Table>() else { return Vec::new() };
    let note = |key: &Retired| {
        let value = key.value_in(&table)?;
        let Retired { name, fate, mattered } = key;
        let note = format!("`{name} = {value}` is passed over: the key was removed, and {fate}");
        (value.as_str() == Some(mattered)).then_some(note)
    };
    RETIRED.iter().filter_map(note).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Layers, ORPHAN_TTL, RunConfig, resolve, resume};

    const STORED: &str = "[data]\nsource = \"/a\"\ndecode = \"scaled\"\nsize = 48\n";

    #[test]
    fn what_is_stored_of_a_retired_key_is_read_and_passed_over() {
        let config = RunConfig::from_toml(STORED).unwrap();
        assert_eq!((config.data.source.as_str(), config.data.size), ("/a", 48));
        assert_eq!(RunConfig::from_toml(&STORED.replace("scaled", "full")).unwrap(), config);
        assert!(!config.to_toml().contains("\ndecode = "), "{}", config.to_toml());
        let file = Some(("c.toml".into(), STORED.to_owned()));
        let layers = Layers { preset: None, config: file, data: None, set: &[], orphan_ttl: ORPHAN_TTL };
        assert_eq!(resolve(&layers).unwrap().data.size, 48);
        // Its neighbours are held to their names.
        assert!(RunConfig::from_toml("[data]\ndecoder = \"full\"\n").is_err());
    }

    #[test]
    fn a_run_of_version_0_1_keeps_its_limit_of_pixels() {
        let limit = |text: &str| RunConfig::from_toml(text).unwrap().data.max_pixels;
        assert_eq!(limit(STORED), 100_000_000);
        assert_eq!(limit(&format!("{STORED}max_pixels = 7\n")), 7);
        assert_eq!(limit(&RunConfig::from_toml(STORED).unwrap().to_toml()), 100_000_000);
        assert_eq!(limit("[data]\nsource = \"/a\"\n"), RunConfig::default().data.max_pixels);
    }

    #[test]
    fn a_note_says_what_is_no_longer_done() {
        let note = "`data.decode = \"scaled\"` is passed over: the key was removed, and every image is decoded in full";
        assert_eq!(retired_notes(STORED), [note]);
        assert_eq!(retired_notes(&STORED.replace("scaled", "full")), [""; 0]);
        assert_eq!(retired_notes(&RunConfig::default().to_toml()), [""; 0]);
        assert_eq!(retired_notes("= 3"), [""; 0]);
    }

    #[test]
    fn an_assignment_of_a_retired_key_is_refused() {
        #[track_caller]
        fn check(outcome: Result<RunConfig, crate::Error>) {
            let error = outcome.unwrap_err();
            assert_eq!(error.to_string(), "`data.decode` was removed: every image is decoded in full");
            assert_eq!(error.hint().as_deref(), Some("leave it out"));
        }
        let set = ["data.decode=full".to_owned()];
        check(resolve(&Layers { preset: None, config: None, data: None, set: &set, orphan_ttl: ORPHAN_TTL }));
        check(resume(&RunConfig::default(), &set, None));
    }
}
