//! Gradients on their way to the other ranks.

use collective::GradientReducer;
use std::ops::Range;

/// Gradients travel in buckets of at least this many values: below it a frame's latency outweighs its
/// transfer, above it the last bucket has less of the backward left to hide behind.
const BUCKET_LEN: usize = 1 << 20;

/// Gradients that travel together. All ranks fill their buckets in the same order, that of the backward.
#[derive(Default)]
pub struct Bucket {
    ranges: Vec<Range<usize>>,
    values: Vec<f32>,
}

impl Bucket {
    /// Adds a gradient and, if there is one, what other passes have given of it.
    fn add(&mut self, range: Range<usize>, gradient: &[f32], others: Option<&[f32]>) {
        match others {
            None => self.values.extend_from_slice(gradient),
            Some(others) => {
                self.values.extend(others[range.clone()].iter().zip(gradient).map(|(sum, g)| sum + g));
            }
        }
        self.ranges.push(range);
    }

    /// As [`Bucket::add`], and sends the bucket if it is full.
    pub fn take(
        &mut self,
        range: Range<usize>,
        gradient: &[f32],
        others: Option<&[f32]>,
        to: &mut GradientReducer,
    ) {
        self.add(range, gradient, others);
        if self.values.len() >= BUCKET_LEN {
            self.send(to);
        }
    }

    /// Sends what is there.
    pub fn send(&mut self, to: &mut GradientReducer) {
        if !self.ranges.is_empty() {
            to.submit(std::mem::take(&mut self.ranges), std::mem::take(&mut self.values));
        }
    }
}

/// Puts a bucket's values back where they came from.
pub fn scatter(ranges: Vec<Range<usize>>, mut values: &[f32], gradients: &mut [f32]) {
    for range in ranges {
        let (summed, rest) = values.split_at(range.len());
        gradients[range].copy_from_slice(summed);
        values = rest;
    }
}

/// Adds `gradient` to `sum`.
pub fn add(sum: &mut [f32], gradient: &[f32]) {
    sum.iter_mut().zip(gradient).for_each(|(sum, gradient)| *sum += gradient);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_goes_back_to_its_places_with_what_was_added() {
        let mut bucket = Bucket::default();
        bucket.add(4..6, &[4.0, 5.0], None);
        bucket.add(0..3, &[0.0, 1.0, 2.0], Some(&[10.0, 20.0, 30.0, 40.0]));
        let mut gradients = [9.0; 7];
        scatter(bucket.ranges, &bucket.values, &mut gradients);
        assert_eq!(gradients, [10.0, 21.0, 32.0, 9.0, 4.0, 5.0, 9.0]);
    }
}
