//! The known name nearest to one that is not known.

/// The candidate with the fewest edits to `name`, unless all of them are so far away that naming one would mislead.
pub(crate) fn nearest(name: &str, candidates: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    let (edits, candidate) = candidates.map(|candidate| (distance(name, candidate), candidate)).min()?;
    (2 * edits <= name.len().max(candidate.len())).then_some(candidate)
}

/// Levenshtein's distance: insertions, deletions and replacements of characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, a) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_edits() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("lr", "lr"), 0);
    }

    #[test]
    fn what_is_far_from_everything_has_no_nearest() {
        assert_eq!(nearest("optimizer.lrr", ["optimizer.lr", "data.size"].into_iter()), Some("optimizer.lr"));
        assert_eq!(nearest("zebra", ["optimizer.lr", "data.size"].into_iter()), None);
    }
}
