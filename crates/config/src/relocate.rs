//! Data that lies elsewhere on some node.

use std::path::Path;
use std::str::FromStr;

use crate::RunConfig;

/// Where a node has what the configuration names elsewhere: `OLD=NEW`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataRoot {
    /// The beginning of a path in the configuration, whole names only.
    pub old: String,
    /// What this node has instead.
    pub new: String,
}

impl FromStr for DataRoot {
    type Err = String;

    fn from_str(text: &str) -> Result<DataRoot, String> {
        let (old, new) = text.split_once('=').ok_or("expected OLD=NEW")?;
        let roots = [old, new].map(|root| root.trim_end_matches('/'));
        if roots.iter().any(|root| !Path::new(root).is_absolute()) {
            return Err("both paths must be absolute, as the configuration's are".to_owned());
        }
        let [old, new] = roots.map(str::to_owned);
        Ok(DataRoot { old, new })
    }
}

impl std::fmt::Display for DataRoot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={}", self.old, self.new)
    }
}

/// Replaces the beginnings of `data.source` and `eval.data`: of several roots that fit, the longest.
pub fn relocate(config: &mut RunConfig, roots: &[DataRoot]) {
    for source in [Some(&mut config.data.source), config.eval.data.as_mut()].into_iter().flatten() {
        let fitting = roots.iter().filter_map(|root| Some((root, rest_below(source, &root.old)?)));
        if let Some((root, rest)) = fitting.max_by_key(|(root, _)| root.old.len()) {
            *source = format!("{}{rest}", root.new);
        }
    }
}

/// What of `source` follows `root`: nothing, or a `/` or `#` and more.
fn rest_below<'a>(source: &'a str, root: &str) -> Option<&'a str> {
    source.strip_prefix(root).filter(|rest| rest.is_empty() || rest.starts_with(['/', '#']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_names_are_replaced_by_the_longest_root() {
        let roots = ["/data=/mnt/a", "/data/sets/=/scratch", "/other=/x"].map(|root| root.parse().unwrap());
        let moved = |source: &str| {
            let mut config = RunConfig::default();
            config.data.source = source.to_owned();
            config.eval.data = Some(format!("{source}#test"));
            relocate(&mut config, &roots);
            (config.data.source, config.eval.data.unwrap())
        };
        let check = |source: &str, expected: &str| {
            assert_eq!(moved(source), (expected.to_owned(), format!("{expected}#test")));
        };
        check("/data/a.tar", "/mnt/a/a.tar");
        check("/data", "/mnt/a");
        check("/data/sets/cifar", "/scratch/cifar");
        check("/database/a", "/database/a");
        check("builtin", "builtin");
    }

    #[test]
    fn a_root_that_is_none_is_refused() {
        let refused = |text: &str| text.parse::<DataRoot>().unwrap_err();
        assert_eq!(refused("/a"), "expected OLD=NEW");
        assert!(refused("a=/b").contains("absolute") && refused("/a=").contains("absolute"));
        assert_eq!("/a/=/b=c/".parse::<DataRoot>().unwrap().to_string(), "/a=/b=c");
    }
}
