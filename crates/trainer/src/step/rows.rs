//! Rows of a batch by view and image: the part of them that a pass encodes, and back.

use std::borrow::Cow;
use std::ops::Range;

/// Takes the rows of some images, in some views.
///
/// - `values`: `[view][n]` rows of `len` values; `own`: the images
///
/// Returns `[view of views][own]` rows, without a copy where they lie together.
pub fn select<'a>(
    values: &'a [f32],
    (n, len): (usize, usize),
    views: &[usize],
    own: &Range<usize>,
) -> Cow<'a, [f32]> {
    let range = |view: usize| (view * n + own.start) * len..(view * n + own.end) * len;
    let together = own.len() == n && views.windows(2).all(|pair| pair[1] == pair[0] + 1);
    match views {
        [] => Cow::Borrowed(&[]),
        [first] => Cow::Borrowed(&values[range(*first)]),
        [first, .., last] if together => Cow::Borrowed(&values[range(*first).start..range(*last).end]),
        _ => Cow::Owned(views.iter().flat_map(|&view| &values[range(view)]).copied().collect()),
    }
}

/// Takes the rows of a chunk, in some views.
///
/// - `images`: `[chunk][view][image of the chunk]` rows of `len` values, of `n` images in all; `own`: those of the chunk
pub fn of_chunk<'a>(
    images: &'a [f32],
    (n, len): (usize, usize),
    views: &[usize],
    own: &Range<usize>,
) -> Cow<'a, [f32]> {
    let n_views = images.len() / (n * len);
    let chunk = &images[n_views * own.start * len..n_views * own.end * len];
    select(chunk, (own.len(), len), views, &(0..own.len()))
}

/// Puts rows back where [`select`] took them: `rows` are `[view][own]`, all views of `values`.
pub fn place(values: &mut [f32], (n, len): (usize, usize), own: &Range<usize>, rows: &[f32]) {
    if own.is_empty() {
        return;
    }
    for (view, rows) in rows.chunks_exact(own.len() * len).enumerate() {
        values[(view * n + own.start) * len..(view * n + own.end) * len].copy_from_slice(rows);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_go_where_they_came_from() {
        // Three views of four images, two values a row.
        let values: Vec<f32> = (0..24u8).map(f32::from).collect();
        let taken = select(&values, (4, 2), &[0, 2], &(1..3));
        assert_eq!(*taken, [2.0, 3.0, 4.0, 5.0, 18.0, 19.0, 20.0, 21.0]);
        let mut placed = vec![0.0; 16];
        place(&mut placed, (4, 2), &(1..3), &taken);
        assert_eq!(placed[2..6], [2.0, 3.0, 4.0, 5.0]);
        assert_eq!(placed[10..14], [18.0, 19.0, 20.0, 21.0]);
        assert_eq!(placed.iter().filter(|value| **value == 0.0).count(), 8);
    }

    #[test]
    fn a_chunk_has_all_views_of_its_images() {
        // Two views of three images, one value a row; the chunks are images 0 and 1, and image 2.
        let images = [0.0, 1.0, 10.0, 11.0, 2.0, 12.0];
        assert_eq!(*of_chunk(&images, (3, 1), &[0, 1], &(0..2)), [0.0, 1.0, 10.0, 11.0]);
        assert_eq!(*of_chunk(&images, (3, 1), &[1], &(0..2)), [10.0, 11.0]);
        assert_eq!(*of_chunk(&images, (3, 1), &[0, 1], &(2..3)), [2.0, 12.0]);
    }

    #[test]
    fn rows_that_lie_together_are_not_copied() {
        let values = [1.0; 24];
        for views in [&[0, 1, 2][..], &[1, 2], &[2]] {
            assert!(matches!(select(&values, (4, 2), views, &(0..4)), Cow::Borrowed(_)), "{views:?}");
        }
        assert!(matches!(select(&values, (4, 2), &[0, 2], &(0..4)), Cow::Owned(_)));
        assert!(matches!(select(&values, (4, 2), &[0, 1], &(0..3)), Cow::Owned(_)));
    }
}
