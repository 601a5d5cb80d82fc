//! The header in front of every payload between two ranks.
//!
//! | bytes | field |
//! |---|---|
//! | 0..4 | magic `HMPF` |
//! | 4 | operation |
//! | 5 | element type |
//! | 6..8 | zero |
//! | 8..16 | generation |
//! | 16..24 | step |
//! | 24..32 | sequence |
//! | 32..40 | payload bytes |
//! | 40..44 | CRC-32C of bytes 0..40 |
//!
//! All little-endian. TCP's own checksum guards the payload; the header has one more, since a header that is
//! misread would be taken for a peer that is out of step.

use crate::{Error, Field};

pub(crate) const HEADER_BYTES: usize = 44;
const MAGIC: [u8; 4] = *b"HMPF";

/// Which exchange a frame belongs to. An all-reduce is one exchange or two, by its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Op {
    AllGather = 1,
    ReduceByGather = 2,
    ReduceByScatter = 3,
    GatherReduced = 4,
    ReduceScatter = 5,
    Broadcast = 6,
    Barrier = 7,
    AllToAll = 8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub op: u8,
    pub element: u8,
    pub generation: u64,
    pub step: u64,
    pub sequence: u64,
    pub payload_bytes: u64,
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[4] = self.op;
        bytes[5] = self.element;
        bytes[8..16].copy_from_slice(&self.generation.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.step.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.payload_bytes.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..40]);
        bytes[40..44].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// `None` if the bytes are no header.
    pub(crate) fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let sound = bytes[0..4] == MAGIC && bytes[40..44] == crc32c::crc32c(&bytes[..40]).to_le_bytes();
        sound.then(|| Self {
            op: bytes[4],
            element: bytes[5],
            generation: u64_at(bytes, 8),
            step: u64_at(bytes, 16),
            sequence: u64_at(bytes, 24),
            payload_bytes: u64_at(bytes, 32),
        })
    }

    /// Compares the header that `rank` sent with the one this rank would have sent in its place.
    pub(crate) fn check(&self, rank: usize, got: &Self) -> Result<(), Error> {
        let fields = [
            (Field::Generation, self.generation, got.generation),
            (Field::Step, self.step, got.step),
            (Field::Sequence, self.sequence, got.sequence),
            (Field::Operation, self.op.into(), got.op.into()),
            (Field::Element, self.element.into(), got.element.into()),
            (Field::Length, self.payload_bytes, got.payload_bytes),
        ];
        match fields.into_iter().find(|(_, expected, got)| expected != got) {
            Some((field, expected, got)) => Err(Error::Mismatch { rank, field, expected, got }),
            None => Ok(()),
        }
    }
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Header = Header {
        op: Op::Barrier as u8,
        element: 1,
        generation: 3,
        step: 1 << 40,
        sequence: 9,
        payload_bytes: 4096,
    };

    #[test]
    fn a_header_reads_back_and_any_flipped_bit_is_noticed() {
        let bytes = HEADER.encode();
        assert_eq!(Header::decode(&bytes), Some(HEADER));
        for bit in 0..HEADER_BYTES * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::decode(&damaged), None, "bit {bit}");
        }
    }

    #[test]
    fn the_first_field_that_differs_is_named() {
        #[track_caller]
        fn check(got: Header, field: Field, values: (u64, u64)) {
            match HEADER.check(2, &got) {
                Err(Error::Mismatch { rank: 2, field: named, expected, got }) => {
                    assert_eq!((named, (expected, got)), (field, values));
                }
                other => panic!("{other:?}"),
            }
        }
        check(Header { generation: 4, step: 0, ..HEADER }, Field::Generation, (3, 4));
        check(Header { step: 0, sequence: 0, ..HEADER }, Field::Step, (1 << 40, 0));
        check(Header { sequence: 10, ..HEADER }, Field::Sequence, (9, 10));
        check(Header { op: 1, ..HEADER }, Field::Operation, (7, 1));
        check(Header { element: 2, ..HEADER }, Field::Element, (1, 2));
        check(Header { payload_bytes: 0, ..HEADER }, Field::Length, (4096, 0));
        assert!(HEADER.check(2, &HEADER).is_ok());
    }
}
