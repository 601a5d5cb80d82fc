//! The queue of MoCo: the keys of the last batches, the same bits on every rank.
//!
//! It begins with random unit rows and is a ring of any length: a batch of keys goes in, in the order of the global
//! batch, where the last one ended, and wraps around. A batch longer than the queue leaves its last keys.

use crate::Error;
use crate::draws::{Draws, Purpose};
use crate::state::{Array, ArrayType};

const ROWS: &str = "objective.queue";
const ENQUEUED: &str = "objective.queue_enqueued";

/// Keys of earlier batches, as `f32` whatever the network computes in.
#[derive(Debug, Clone, PartialEq)]
pub struct Queue {
    width: usize,
    /// `[len, width]`, unit rows.
    rows: Vec<f32>,
    /// Keys that ever went in: the next one goes to this place, modulo the length.
    enqueued: u64,
    /// `[rows, enqueued]`, while a checkpoint is read.
    restored: [bool; 2],
}

impl Queue {
    /// A queue of `len` random unit rows: normal numbers, normalised.
    ///
    /// # Panics
    /// If the queue or its rows are empty.
    pub fn new(seed: u64, len: usize, width: usize) -> Self {
        assert!(len > 0 && width > 0, "a queue of {len} rows of {width}");
        let mut rows = Vec::with_capacity(len * width);
        for row in 0..len {
            let draws = Draws::new(seed, Purpose::Queue, [row as u64, 0]);
            let values: Vec<f64> = (0..width as u64).map(|place| draws.normal(place)).collect();
            let norm = values.iter().map(|value| value * value).sum::<f64>().sqrt();
            rows.extend(values.iter().map(|value| (value / norm) as f32));
        }
        Self { width, rows, enqueued: 0, restored: [false; 2] }
    }

    /// Keys that it holds, random ones of the beginning included.
    pub fn len(&self) -> usize {
        self.rows.len() / self.width
    }

    /// Never: a queue holds at least one row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// `[len, width]`, by place in the ring.
    pub fn rows(&self) -> &[f32] {
        &self.rows
    }

    /// Numbers in a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Puts `keys`, `[m, width]`, in.
    pub(crate) fn enqueue(&mut self, keys: &[f32]) {
        let len = self.len();
        let m = keys.len() / self.width;
        for (i, key) in keys.chunks_exact(self.width).enumerate().skip(m.saturating_sub(len)) {
            let place = ((self.enqueued + i as u64) % len as u64) as usize;
            self.rows[place * self.width..(place + 1) * self.width].copy_from_slice(key);
        }
        self.enqueued += m as u64;
    }

    pub(crate) fn state(&self) -> Vec<Array<'_>> {
        let shape = [self.len(), self.width];
        vec![
            Array::replicated(ROWS, ArrayType::F32, &shape, bytemuck::cast_slice(&self.rows)),
            Array::replicated(ENQUEUED, ArrayType::U64, &[], bytemuck::bytes_of(&self.enqueued)),
        ]
    }

    pub(crate) fn restore(&mut self, array: &Array<'_>) -> Result<(), Error> {
        let shape = [self.len(), self.width];
        match array.name.as_str() {
            ROWS => {
                array.copy_to(ArrayType::F32, &shape, bytemuck::cast_slice_mut(&mut self.rows))?;
                self.restored[0] = true;
            }
            ENQUEUED => {
                array.copy_to(ArrayType::U64, &[], bytemuck::bytes_of_mut(&mut self.enqueued))?;
                self.restored[1] = true;
            }
            _ => return Err(Error::UnknownArray { name: array.name.clone() }),
        }
        Ok(())
    }

    pub(crate) fn restored(&mut self) -> Result<(), Error> {
        let restored = std::mem::take(&mut self.restored);
        match [ROWS, ENQUEUED].iter().zip(restored).find(|(_, restored)| !restored) {
            Some((name, _)) => Err(Error::Incomplete { what: format!("`{name}`") }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys whose only number tells which they are.
    fn keys(numbers: std::ops::Range<usize>) -> Vec<f32> {
        numbers.map(|number| number as f32).collect()
    }

    #[test]
    fn keys_wrap_around_whatever_the_batch() {
        #[track_caller]
        fn check(len: usize, batches: &[std::ops::Range<usize>], expected: &[f32]) {
            let mut queue = Queue::new(1, len, 1);
            batches.iter().for_each(|batch| queue.enqueue(&keys(batch.clone())));
            assert_eq!(queue.rows(), expected, "{batches:?}");
        }
        check(4, &[10..12, 12..14], &[10.0, 11.0, 12.0, 13.0]);
        check(4, &[10..13, 13..16], &[14.0, 15.0, 12.0, 13.0]);
        check(5, &[0..3, 3..6, 6..9], &[5.0, 6.0, 7.0, 8.0, 4.0]);
        check(3, &[0..8, 8..9], &[6.0, 7.0, 8.0]);
        check(3, &[0..1, 1..11], &[9.0, 10.0, 8.0]);
        check(1, &[0..4, 4..5], &[4.0]);
    }

    #[test]
    fn it_begins_with_unit_rows_that_the_seed_decides() {
        let queue = Queue::new(3, 50, 16);
        for row in queue.rows().chunks(16) {
            assert!((row.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-6);
        }
        let mean = queue.rows().iter().sum::<f32>() / 800.0;
        assert!(mean.abs() < 0.03, "{mean}");
        assert_eq!(queue, Queue::new(3, 50, 16));
        assert_ne!(queue, Queue::new(4, 50, 16));
    }

    #[test]
    fn what_is_missing_is_named() {
        let mut queue = Queue::new(1, 3, 2);
        let saved = Queue::new(2, 3, 2);
        let state = saved.state();
        queue.restore(&state[0]).unwrap();
        let error = queue.restored().unwrap_err().to_string();
        assert_eq!(error, "the checkpoint lacks `objective.queue_enqueued`");
        state.iter().for_each(|array| queue.restore(array).unwrap());
        queue.restored().unwrap();
        assert_eq!(queue, saved);
        let error = Queue::new(1, 4, 2).restore(&state[0]).unwrap_err().to_string();
        let expected = "`objective.queue` should be F32 [4, 2] of 32 bytes, and is F32 [3, 2] of 24 bytes in the checkpoint";
        assert_eq!(error, expected);
    }
}
