//! Compiles a pass over pixels once per instruction set, and chooses at run time.
//!
//! The passes are plain loops over arrays, which the compiler turns into the registers it may use. Nothing in them
//! depends on the width: no product is fused with a sum, and sums run in lanes of a fixed number. So every machine
//! makes the same bits.

#![expect(unsafe_code, reason = "calls code compiled for instructions that were detected")]

/// Numbers that a pass works on at once: two AVX-512 registers, four of AVX2.
pub(crate) const LANES: usize = 32;

/// A pass over pixels.
pub(crate) trait Pass {
    /// Runs the loop. Must be `#[inline(always)]`, and so must what it calls: only then is it compiled for the
    /// instructions of its caller.
    fn run(self);
}

/// Runs `pass` with the widest instructions of this machine.
pub(crate) fn run<P: Pass>(pass: P) {
    #[cfg(test)]
    if tests::PORTABLE.get() {
        return pass.run();
    }
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
        {
            // SAFETY: the machine was just found to have every instruction set that the function enables.
            return unsafe { avx512(pass) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: as above.
            return unsafe { avx2(pass) };
        }
    }
    pass.run();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn avx512<P: Pass>(pass: P) {
    pass.run();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2<P: Pass>(pass: P) {
    pass.run();
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use crate::{Augmentation, Scratch, ViewKey, augment, fixtures};

    thread_local! {
        /// Whether this thread leaves out the instructions that not every machine has.
        pub static PORTABLE: Cell<bool> = const { Cell::new(false) };
    }

    #[test]
    fn every_machine_makes_the_same_bits() {
        let sizes = [32, 33, 70, 96, 40, 32, 65].into_iter().cycle();
        for (preset, size) in augment::PRESETS.into_iter().zip(sizes) {
            let augmentation = Augmentation::preset(preset, size).unwrap().normalised([0.4; 3], [0.3; 3]);
            for index in 0..12 {
                let image = fixtures::image(30 + 9 * index, 41 + 7 * index, index);
                let key = ViewKey { seed: 1, epoch: 0, index, view: (index % 2) as u8 };
                let [wide, portable] = [false, true].map(|portable| {
                    PORTABLE.set(portable);
                    let mut out = vec![0.0; augmentation.view_len()];
                    augmentation.render(&image, key, &mut Scratch::default(), &mut out);
                    out
                });
                assert!(wide == portable, "{preset} at {size}, image {index}");
            }
        }
    }
}
