//! The right-hand side of a product, cut into panels as wide as a strip.

use std::ops::Range;

/// How the columns of a `[depth, columns]` matrix are cut into panels.
///
/// A panel is `[depth, width]`, without gaps; its width is two vectors, or one for the last panel if
/// that is enough. Columns beyond the matrix hold zeros.
#[derive(Clone, Copy, Debug)]
pub(super) struct Panels {
    pub(super) columns: usize,
    pub(super) lanes: usize,
}

/// One panel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Panel {
    /// Its first column in the matrix.
    pub(super) first: usize,
    /// Columns that exist.
    pub(super) columns: usize,
    /// Columns stored.
    pub(super) width: usize,
}

impl Panels {
    /// Columns stored, over all panels.
    pub(super) fn stored(self) -> usize {
        self.columns.next_multiple_of(self.lanes)
    }

    pub(super) fn iter(self) -> impl Iterator<Item = Panel> {
        (0..self.columns).step_by(2 * self.lanes).map(move |first| Panel {
            first,
            columns: (self.columns - first).min(2 * self.lanes),
            width: (self.stored() - first).min(2 * self.lanes),
        })
    }

    /// Whether a matrix of these columns is its own only panel.
    pub(super) fn is_one_full_panel(self) -> bool {
        self.columns == self.stored() && self.columns <= 2 * self.lanes
    }
}

impl Panel {
    /// Where the panel lies among all panels of a matrix.
    pub(super) fn range(self, depth: usize) -> Range<usize> {
        self.first * depth..(self.first + self.width) * depth
    }

    /// Packs the panel's columns of row-major rows that are `pitch` apart.
    pub(super) fn pack_rows(self, rows: &[f32], pitch: usize, packed: &mut [f32]) {
        for (row, packed) in rows.chunks(pitch).zip(packed.chunks_exact_mut(self.width)) {
            packed[..self.columns].copy_from_slice(&row[self.first..][..self.columns]);
            packed[self.columns..].fill(0.0);
        }
    }
}
