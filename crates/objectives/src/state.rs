//! What an objective keeps from step to step, as a checkpoint sees it.
//!
//! State is a list of named arrays, and a name is all that an array needs to be put back:
//!
//! - a *replicated* one (queue, pointer, normalizer) has the same bytes on every rank, so that any rank may write it,
//!   once, and every rank restores it;
//! - a *sharded* one is a block of a bank's slots and ends its name in their global range, as `.slots-65536-131072`. Each
//!   rank writes the blocks it owns; every rank of any world size restores from every block what falls into its own
//!   shard and its mirror, and ignores the rest.
//!
//! A block has at most [`BLOCK`] slots: that is what restoring one array needs beside the shard itself. Arrays are restored in any order;
//! [`crate::Objective::restored`] then says what is missing.

use std::fmt;
use std::ops::Range;

use crate::Error;

/// Slots of a bank in one array of its state.
pub const BLOCK: usize = 1 << 16;

/// Type of an array's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArrayType {
    /// The upper half of an `f32`.
    Bf16,
    /// 32 bits of a real number.
    F32,
    /// 64 bits of a real number.
    F64,
    /// 32 bits of a count.
    U32,
    /// 64 bits of a count.
    U64,
}

/// A named part of an objective's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Array<'a> {
    /// Unique in the state of all ranks, as `objective.queue`.
    pub name: String,
    /// Of its elements.
    pub element: ArrayType,
    /// Empty for a scalar.
    pub shape: Vec<usize>,
    /// The elements, little-endian, the last dimension varying fastest.
    pub bytes: &'a [u8],
    /// Only this rank has it; else every rank has the same.
    pub sharded: bool,
}

impl<'a> Array<'a> {
    /// An array that every rank has.
    pub(crate) fn replicated(name: &str, element: ArrayType, shape: &[usize], bytes: &'a [u8]) -> Self {
        Self { name: name.to_owned(), element, shape: shape.to_vec(), bytes, sharded: false }
    }

    /// Copies the bytes of an array that has to have this type and shape.
    pub(crate) fn copy_to(&self, element: ArrayType, shape: &[usize], out: &mut [u8]) -> Result<(), Error> {
        self.expect(element, shape)?;
        out.copy_from_slice(self.bytes);
        Ok(())
    }

    /// Refuses another type or shape, and bytes that are not those of the shape.
    pub(crate) fn expect(&self, element: ArrayType, shape: &[usize]) -> Result<(), Error> {
        let bytes = shape.iter().product::<usize>() * element.size();
        if (self.element, &self.shape[..], self.bytes.len()) == (element, shape, bytes) {
            return Ok(());
        }
        Err(Error::WrongArray {
            name: self.name.clone(),
            expected: format!("{element} {shape:?} of {bytes} bytes"),
            actual: format!("{} {:?} of {} bytes", self.element, self.shape, self.bytes.len()),
        })
    }
}

impl ArrayType {
    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::F32 | Self::U32 => 4,
            Self::F64 | Self::U64 => 8,
        }
    }
}

impl fmt::Display for ArrayType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bf16 => "BF16",
            Self::F32 => "F32",
            Self::F64 => "F64",
            Self::U32 => "U32",
            Self::U64 => "U64",
        })
    }
}

/// The name of a block of slots.
pub(crate) fn block_name(stem: &str, slots: &Range<usize>) -> String {
    format!("{stem}.slots-{}-{}", slots.start, slots.end)
}

/// The stem and the slots of a block's name.
pub(crate) fn parse_block_name(name: &str) -> Option<(&str, Range<usize>)> {
    let (stem, slots) = name.rsplit_once(".slots-")?;
    let (start, end) = slots.split_once('-')?;
    let slots = start.parse().ok()?..end.parse().ok()?;
    (slots.start < slots.end).then_some((stem, slots))
}

/// Which of a range's slots have been restored.
#[derive(Debug, Clone, Default)]
pub(crate) struct Coverage(Vec<Range<usize>>);

impl Coverage {
    pub(crate) fn add(&mut self, slots: Range<usize>) {
        self.0.push(slots);
    }

    /// The first slots of `wanted` that were not added.
    pub(crate) fn missing(&self, wanted: &Range<usize>) -> Option<Range<usize>> {
        let mut parts = self.0.clone();
        parts.sort_by_key(|part| part.start);
        let mut next = wanted.start;
        for part in parts.iter().filter(|part| part.end > wanted.start) {
            if part.start > next {
                break;
            }
            next = next.max(part.end);
        }
        let end = parts.iter().map(|part| part.start).filter(|&start| start > next).min();
        (next < wanted.end).then(|| next..end.unwrap_or(wanted.end).min(wanted.end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocks_name_tells_its_slots() {
        let name = block_name("objective.bank", &(65_536..70_000));
        assert_eq!(name, "objective.bank.slots-65536-70000");
        assert_eq!(parse_block_name(&name), Some(("objective.bank", 65_536..70_000)));
        for other in
            ["objective.bank", "objective.bank.slots-5", "a.slots-5-x", "a.slots-5-5", "a.slots--5-5"]
        {
            assert_eq!(parse_block_name(other), None, "{other}");
        }
    }

    #[test]
    fn the_first_gap_is_found_whatever_the_order() {
        #[track_caller]
        fn check(parts: &[Range<usize>], expected: Option<Range<usize>>) {
            let mut coverage = Coverage::default();
            parts.iter().for_each(|part| coverage.add(part.clone()));
            assert_eq!(coverage.missing(&(10..20)), expected, "{parts:?}");
        }
        check(&[], Some(10..20));
        check(&[10..20, 10..20], None);
        check(&[15..30, 0..12, 12..15], None);
        check(&[16..30, 0..12], Some(12..16));
        check(&[12..20, 12..20], Some(10..12));
        check(&[0..10, 20..30], Some(10..20));
        check(&[10..13, 11..12, 13..19], Some(19..20));
    }

    #[test]
    fn another_type_or_shape_is_refused_with_both() {
        let array = Array::replicated("objective.queue", ArrayType::F32, &[2, 3], &[0; 24]);
        let error = array.copy_to(ArrayType::F32, &[3, 3], &mut [0; 36]).unwrap_err().to_string();
        let expected = "`objective.queue` should be F32 [3, 3] of 36 bytes, and is F32 [2, 3] of 24 bytes in the checkpoint";
        assert_eq!(error, expected);
        assert!(array.copy_to(ArrayType::U32, &[2, 3], &mut [0; 24]).is_err());
        assert!(Array { bytes: &[0; 8], ..array }.copy_to(ArrayType::F32, &[2, 3], &mut [0; 24]).is_err());
    }
}
