//! How fast the machine could multiply, measured.

use std::hint::black_box;
use std::time::{Duration, Instant};

use super::path::KernelPath;
use super::pool::Pool;
use super::simd::{InstructionSet, Simd, Task};

/// Independent sums: enough to hide the latency of two multipliers per core, and they fit the
/// registers of every instruction set.
const CHAINS: usize = 12;

/// Multiply-adds per chain between two looks at the clock: about 10 microseconds.
const ROUNDS: usize = 4096;

/// Measures the multiply-add peak of the pool's threads, in floating-point operations per second.
///
/// Every thread runs a loop of independent multiply-adds in registers, for about 0.2 seconds: the
/// best of four rounds, so that a disturbance does not lower it. The reference path has no
/// instructions of its own and gets the portable path's peak.
pub fn peak_flops(pool: &Pool, path: KernelPath) -> f64 {
    let isa = InstructionSet::new(path);
    let flops_per_call = (2 * CHAINS * ROUNDS * isa.lanes()) as f64;
    let mut best = 0.0_f64;
    for _ in 0..4 {
        let mut rates = vec![0.0; pool.threads()];
        let parts = rates.iter_mut().collect();
        pool.for_each_part(parts, |_, rate: &mut f64| {
            *rate = calls_per_second(|| isa.run(MulAdds)) * flops_per_call;
        });
        best = best.max(rates.iter().sum());
    }
    best
}

#[expect(clippy::disallowed_methods, reason = "the speed of the machine is what is measured")]
fn calls_per_second<T>(call: impl Fn() -> T) -> f64 {
    call();
    let start = Instant::now();
    let mut calls = 0_u32;
    while start.elapsed() < Duration::from_millis(50) {
        call();
        calls += 1;
    }
    f64::from(calls) / start.elapsed().as_secs_f64()
}

struct MulAdds;

impl Task for MulAdds {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        // The compiler must neither know the numbers nor see that the chains are all alike.
        let (factor, term) = black_box((simd.splat(0.5), simd.splat(1.0)));
        let mut sums = black_box([simd.splat(0.0); CHAINS]);
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = simd.mul_add(*sum, factor, term);
            }
        }
        black_box(&sums);
    }
}

#[cfg(test)]
mod tests {
    use super::peak_flops;
    use crate::kernels::{KernelPath, Pool};

    #[test]
    fn a_core_makes_between_half_and_a_few_hundred_gigaflops() {
        let pool = Pool::new(1, &[]);
        for path in KernelPath::ALL.into_iter().filter(|path| path.is_available()) {
            let peak = peak_flops(&pool, path);
            assert!((5e8..1e12).contains(&peak), "{path}: {peak}");
        }
    }
}
