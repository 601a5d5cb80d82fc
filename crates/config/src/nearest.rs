//! What was meant by a name that is not known: what another tool calls it, else the one that is spelled most like it.

use crate::keys::KEYS;
use crate::words::{KEY_WORDS, Meant, SECTION_WORDS, VALUE_WORDS};

/// The key or option that `name` stands for.
pub(crate) fn key(name: &str) -> Option<Meant> {
    let name = name.to_ascii_lowercase().replace('-', "_");
    let in_its_section = SECTION_WORDS.iter().find(|(_, word)| *word == name).map(|(meant, _)| *meant);
    // In whatever section it was put: `train.batch_size` is the batch, and `optimizer.temperature` the objective's.
    let word = name.rsplit('.').next().unwrap_or_default();
    let known = || KEY_WORDS.iter().find(|(_, words)| words.contains(&word)).map(|(meant, _)| *meant);
    let mut of_this_field = KEYS.iter().filter(|key| key.field() == word).map(|key| key.name);
    let only_field = || of_this_field.next().filter(|_| of_this_field.next().is_none()).map(Meant::Key);
    let spelled = || nearest(&name, KEYS.iter().map(|key| key.name)).map(Meant::Key);
    in_its_section.or_else(known).or_else(only_field).or_else(spelled)
}

/// The value of `key` that `value`, which it does not take, stands for.
pub(crate) fn value(key: &str, value: &str) -> Option<&'static str> {
    let squeezed = squeeze(value);
    let of_key = VALUE_WORDS.iter().filter(|(owner, ..)| *owner == key);
    let mut meant =
        of_key.filter(|(_, known, words)| words.contains(&&*squeezed) || squeeze(known) == squeezed);
    meant.next().map(|(_, known, _)| *known)
}

/// Letters and digits alone, in lower case.
fn squeeze(text: &str) -> String {
    text.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

/// The candidate with the fewest edits to `name`, unless all of them are so far away that naming one would mislead.
fn nearest(name: &str, candidates: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    let edits = |candidate| strsim::levenshtein(name, candidate);
    let (edits, candidate) = candidates.map(|candidate| (edits(candidate), candidate)).min()?;
    (2 * edits <= name.len().max(candidate.len())).then_some(candidate)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Key;
    use crate::{FLAGS, RunConfig};
    use std::collections::HashSet;

    #[track_caller]
    fn check(name: &str, expected: &str) {
        match key(name) {
            Some(Meant::Key(found) | Meant::Flag(found)) => assert_eq!(found, expected, "{name}"),
            None => panic!("{name} says nothing, not {expected}"),
        }
    }

    #[test]
    fn other_tools_words_are_understood() {
        check("batch_size", "train.global_batch");
        check("train.batch-size", "train.global_batch");
        check("Data.Batch_Size", "train.global_batch");
        check("lr", "optimizer.lr");
        check("train.learning_rate", "optimizer.lr");
        check("wd", "optimizer.weight_decay");
        check("weight_decay", "optimizer.weight_decay");
        check("max_epochs", "run.epochs");
        check("epochs", "run.epochs");
        check("schedule.max_steps", "run.steps");
        check("tau", "objective.temperature");
        check("moco-t", "objective.temperature");
        check("loss.temperature", "objective.temperature");
        check("backbone", "model.arch");
        check("arch", "model.arch");
        check("num_workers", "data.threads");
        check("data.workers", "data.threads");
        check("train.workers", "--workers");
        check("img_size", "data.size");
        check("moco-k", "objective.queue");
        check("moco_m", "objective.momentum");
        check("optimizer.warmup_epochs", "schedule.warmup_steps");
        check("proj_dim", "model.head");
        check("sync_bn", "model.batch_norm");
        check("log_every_n_steps", "metrics.every");
        check("save_every", "checkpoint.every");
        check("accumulate_grad_batches", "train.chunk");
        check("train_dir", "data.source");
        check("val_dir", "eval.data");
        check("gpus", "--workers");
        check("output_dir", "--out");
        check("resume", "--resume");
    }

    #[test]
    fn the_rest_is_known_by_its_spelling() {
        check("optimizer.lrr", "optimizer.lr");
        check("modle.arhc", "model.arch");
        check("optimizer.beta3", "optimizer.beta1");
        assert_eq!(key("zebra"), None);
        assert_eq!(nearest("zebra", ["optimizer.lr", "data.size"].into_iter()), None);
    }

    #[test]
    fn what_is_meant_exists_and_each_word_means_one_thing() {
        let mut seen = HashSet::new();
        for (meant, words) in KEY_WORDS {
            match meant {
                Meant::Key(name) => assert!(Key::find(name).is_ok(), "there is no key {name}"),
                Meant::Flag(name) => assert!(FLAGS.contains(name), "{name} is not among the options"),
            }
            for word in *words {
                assert!(Key::find(word).is_err(), "`{word}` is a key");
                assert!(
                    !word.contains(['-', '.']) && *word == word.to_ascii_lowercase(),
                    "`{word}` never matches"
                );
                assert!(seen.insert(word), "`{word}` stands there twice");
            }
        }
        for (meant, word) in SECTION_WORDS {
            assert!(matches!(meant, Meant::Key(name) if Key::find(name).is_ok()), "{word}: {meant:?}");
            assert!(Key::find(word).is_err(), "`{word}` is a key");
        }
    }

    #[test]
    fn values_are_understood_and_exist() {
        let mut seen = HashSet::new();
        for (name, known, words) in VALUE_WORDS {
            let take = |text: &str| {
                Key::find(name).unwrap().set(&mut RunConfig::default(), &toml::Value::String(text.to_owned()))
            };
            assert!(take(known).is_ok(), "{name} = {known}");
            assert_eq!(value(name, &known.to_uppercase()), Some(*known), "{name}");
            for word in *words {
                assert!(take(word).is_err(), "{name} = {word} is a value");
                assert!(squeeze(word) == *word, "`{word}` never matches");
                assert!(seen.insert((name, word)), "`{word}` stands there twice");
            }
        }
        assert_eq!(value("model.arch", "ResNet-18"), Some("resnet18"));
        assert_eq!(value("objective.kind", "NT-Xent"), Some("simclr"));
        assert_eq!(value("objective.kind", "byol"), None);
        assert_eq!(value("run.seed", "resnet18"), None);
    }
}
