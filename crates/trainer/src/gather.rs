//! What every rank has of one thing, for every rank to see.

use collective::{Communicator, Error};

/// An integer of each rank; collective.
///
/// # Errors
/// If a peer is lost.
pub fn integers(communicator: &mut Communicator, own: u64) -> Result<Vec<u64>, Error> {
    let mut all = vec![0u64; communicator.world_size()];
    communicator.all_gather(&[own], &mut all)?;
    Ok(all)
}

/// Bytes of each rank, however many; collective.
///
/// # Errors
/// If a peer is lost.
pub fn bytes(communicator: &mut Communicator, own: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
    let lengths = integers(communicator, own.len() as u64)?;
    bytes_of(communicator, own, &lengths)
}

/// The same where every rank knows already how many bytes each has.
///
/// # Errors
/// If a peer is lost.
pub fn bytes_of(communicator: &mut Communicator, own: &[u8], lengths: &[u64]) -> Result<Vec<Vec<u8>>, Error> {
    let counts: Vec<usize> = lengths.iter().map(|&len| len as usize).collect();
    let mut all = vec![0u8; counts.iter().sum()];
    communicator.all_gather_counts(own, &counts, &mut all)?;
    let mut rest = &all[..];
    let take = |count: usize| {
        let (first, behind) = rest.split_at(count);
        rest = behind;
        first.to_vec()
    };
    Ok(counts.into_iter().map(take).collect())
}

/// A text of each rank; collective.
///
/// # Errors
/// If a peer is lost.
pub fn texts(communicator: &mut Communicator, own: &str) -> Result<Vec<String>, Error> {
    let texts = bytes(communicator, own.as_bytes())?;
    Ok(texts.into_iter().map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).collect())
}
