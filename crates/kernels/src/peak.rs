//! How fast the machine could multiply, measured.

use std::hint::black_box;
use std::time::{Duration, Instant};

use super::device::Cpu;
use super::simd::{InstructionSet, Simd, Task};

/// Independent sums: enough to hide the latency of two multipliers per core, and they fit the
/// registers of every instruction set.
const CHAINS: usize = 12;

/// Multiply-adds per chain between two looks at the clock: some 50 microseconds, within which the
/// system rarely takes the core away.
const ROUNDS: usize = 16_384;

/// How long every thread measures.
const DURATION: Duration = Duration::from_millis(200);

/// Measures the multiply-add peak of all threads, in floating-point operations per second.
///
/// For a fifth of a second every thread runs independent multiply-adds in registers; the sum of each
/// thread's best moment counts, so that other work on the machine hardly lowers it. The reference
/// path has no instructions of its own and gets the portable path's peak.
pub fn peak_flops(cpu: &Cpu) -> f64 {
    let Cpu { pool, path } = cpu;
    let isa = InstructionSet::new(*path);
    let flops = (2 * CHAINS * ROUNDS * isa.lanes()) as f64;
    let mut fastest = vec![0.0; pool.threads()];
    pool.for_each_part(fastest.iter_mut().collect(), |_, seconds: &mut f64| {
        *seconds = seconds_of_fastest(|| isa.run(MulAdds));
    });
    fastest.into_iter().map(|seconds| flops / seconds).sum()
}

#[expect(clippy::disallowed_methods, reason = "the speed of the machine is what is measured")]
fn seconds_of_fastest(call: impl Fn()) -> f64 {
    let start = Instant::now();
    let mut fastest = f64::INFINITY;
    let mut before = Duration::ZERO;
    while before < DURATION {
        call();
        let now = start.elapsed();
        fastest = fastest.min((now - before).as_secs_f64());
        before = now;
    }
    fastest
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
    use crate::{Cpu, KernelPath};

    #[test]
    fn a_core_makes_between_half_and_a_few_hundred_gigaflops() {
        for path in KernelPath::ALL.into_iter().filter(|path| path.is_available()) {
            let peak = peak_flops(&Cpu::new(1, path));
            assert!((5e8..1e12).contains(&peak), "{path}: {peak}");
        }
    }
}
