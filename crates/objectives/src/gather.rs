//! What the ranks tell each other of a batch.

use collective::{Communicator, Element, Error};

/// Gathers `own`, `[n, width]`, of all ranks: `[B, width]` in rank order.
pub(crate) fn gather_rows<T: Element + Default>(
    communicator: &mut Communicator,
    images: &[usize],
    width: usize,
    own: &[T],
) -> Result<Vec<T>, Error> {
    let counts: Vec<usize> = images.iter().map(|n| n * width).collect();
    let mut all = vec![T::default(); counts.iter().sum()];
    communicator.all_gather_counts(own, &counts, &mut all)?;
    Ok(all)
}

/// Gathers a number of each image, in rank order.
pub(crate) fn gather_numbers(
    communicator: &mut Communicator,
    images: &[usize],
    own: &[usize],
) -> Result<Vec<usize>, Error> {
    let own: Vec<u64> = own.iter().map(|&number| number as u64).collect();
    let all = gather_rows(communicator, images, 1, &own)?;
    Ok(all.into_iter().map(|number| number as usize).collect())
}

/// The gathered rows in the order of their positions in the global batch: whatever is done in this order does not
/// depend on which rank has which image.
///
/// # Panics
/// If two images have one position.
pub(crate) fn by_position(positions: &[usize]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..positions.len()).collect();
    order.sort_by_key(|&row| positions[row]);
    let distinct = order.windows(2).all(|pair| positions[pair[0]] < positions[pair[1]]);
    assert!(distinct, "two images of a batch have one position");
    order
}
