//! The memory that every convolution of a network shares, cut into what one call writes.

use super::prefetch::LINE_LEN;

/// Numbers that pieces of these lengths take together, each of which begins on a cache line.
pub(super) fn len_of(pieces: &[usize]) -> usize {
    pieces.iter().map(|len| len.next_multiple_of(LINE_LEN)).sum()
}

/// Cuts pieces of these lengths off the front of `scratch`.
///
/// # Panics
/// If they do not fit.
pub(super) fn cut<'a, const N: usize>(scratch: &mut &'a mut [f32], pieces: [usize; N]) -> [&'a mut [f32]; N] {
    pieces.map(|len| {
        let piece =
            scratch.split_off_mut(..len.next_multiple_of(LINE_LEN)).expect("the pieces fit their scratch");
        &mut piece[..len]
    })
}

/// Numbers of `f32` in the place of so many of `f64`.
pub(super) const fn f64s(len: usize) -> usize {
    len * size_of::<f64>() / size_of::<f32>()
}

/// What a call of several threads writes besides its results.
pub(super) struct Pieces<const N: usize> {
    /// Numbers that all threads read.
    pub(super) shared: usize,
    pub(super) threads: usize,
    /// Numbers of each piece that a thread has for itself.
    pub(super) of_thread: [usize; N],
}

impl<const N: usize> Pieces<N> {
    pub(super) fn len(&self) -> usize {
        len_of(&[self.shared]) + self.threads * len_of(&self.of_thread)
    }

    /// Cuts scratch into what is shared, and the pieces of each thread.
    ///
    /// # Panics
    /// As [`cut`].
    pub(super) fn cut<'a>(&self, mut scratch: &'a mut [f32]) -> (&'a mut [f32], Vec<[&'a mut [f32]; N]>) {
        let [shared] = cut(&mut scratch, [self.shared]);
        (shared, (0..self.threads).map(|_| cut(&mut scratch, self.of_thread)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::{Pieces, cut, f64s, len_of};
    use crate::AlignedVec;

    #[test]
    fn pieces_begin_on_cache_lines_and_fit_exactly() {
        let pieces = [5, 0, 16, f64s(3)];
        let mut memory = AlignedVec::zeroed(len_of(&pieces));
        let mut rest = &mut memory[..];
        let cut = cut(&mut rest, pieces);
        assert!(rest.is_empty(), "{} left", rest.len());
        assert_eq!(cut.each_ref().map(|piece| piece.len()), pieces);
        assert!(cut.iter().all(|piece| piece.is_empty() || piece.as_ptr().addr() % 64 == 0));
    }

    #[test]
    fn every_thread_has_pieces_of_its_own() {
        let pieces = Pieces { shared: 17, threads: 2, of_thread: [3, 20] };
        assert_eq!(pieces.len(), 32 + 2 * (16 + 32));
        let mut memory = AlignedVec::zeroed(pieces.len());
        let (shared, threads) = pieces.cut(&mut memory);
        shared.fill(1.0);
        threads
            .into_iter()
            .flatten()
            .zip([2.0, 3.0, 4.0, 5.0])
            .for_each(|(piece, number)| piece.fill(number));
        let count = |number: f32| memory.iter().filter(|&&x| x == number).count();
        assert_eq!([1.0, 2.0, 3.0, 4.0, 5.0].map(count), [17, 3, 20, 3, 20]);
    }
}
