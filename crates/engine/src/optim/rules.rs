//! The arithmetic of an update, over a stretch of one parameter.

use kernels::Real;

/// One parameter's update.
pub(super) trait Rule<T> {
    /// Updates `w` and the state by the gradient `g`, all equally long.
    fn apply(&self, w: &mut [T], g: &[T], state: Vec<&mut [T]>);
}

/// `v = momentum v + gradient_scale (g + decay w); w -= step_size v`: SGD, and LARS once its ratio is known.
pub(super) struct Sgd<T> {
    pub momentum: T,
    pub decay: T,
    pub gradient_scale: T,
    pub step_size: T,
}

impl<T: Real> Rule<T> for Sgd<T> {
    fn apply(&self, w: &mut [T], g: &[T], state: Vec<&mut [T]>) {
        let Ok([v]) = <[_; 1]>::try_from(state) else { unreachable!("one array of state") };
        for ((w, &g), v) in w.iter_mut().zip(g).zip(v) {
            *v = self.momentum * *v + self.gradient_scale * (g + self.decay * *w);
            *w -= self.step_size * *v;
        }
    }
}

/// `w *= shrink`, then Adam's step; `keep` and `take` are the betas and their complements.
pub(super) struct AdamW<T> {
    pub shrink: T,
    pub keep: [T; 2],
    pub take: [T; 2],
    pub step_size: T,
    /// `1 / sqrt(1 - beta2^updates)`.
    pub root_scale: T,
    pub eps: T,
}

impl<T: Real> Rule<T> for AdamW<T> {
    fn apply(&self, w: &mut [T], g: &[T], state: Vec<&mut [T]>) {
        let Ok([first, second]) = <[_; 2]>::try_from(state) else { unreachable!("two arrays of state") };
        for (((w, &g), first), second) in w.iter_mut().zip(g).zip(first).zip(second) {
            *first = self.keep[0] * *first + self.take[0] * g;
            *second = self.keep[1] * *second + self.take[1] * g * g;
            let root = second.sqrt() * self.root_scale + self.eps;
            *w = self.shrink * *w - self.step_size * *first / root;
        }
    }
}

/// Sums of squares of `w` and of `g + decay w`.
pub(super) fn squared_norms<T: Real>(w: &[T], g: &[T], decay: f64) -> [f64; 2] {
    // Eight sums side by side, so that the loop is not a chain of additions.
    let mut sums = [[0.0; 8]; 2];
    for (w, g) in w.chunks(8).zip(g.chunks(8)) {
        for (lane, (w, g)) in w.iter().zip(g).enumerate() {
            let (w, g) = (w.to_f64(), g.to_f64());
            sums[0][lane] += w * w;
            sums[1][lane] += (g + decay * w).powi(2);
        }
    }
    sums.map(|lanes| lanes.iter().sum())
}
