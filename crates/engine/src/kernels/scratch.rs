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

#[cfg(test)]
mod tests {
    use super::{cut, f64s, len_of};
    use crate::kernels::AlignedVec;

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
}
