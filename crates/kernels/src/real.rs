//! The two number types a network may be built in.

use std::fmt::{Debug, Display};
use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub, SubAssign};

use bytemuck::Pod;

use super::exponential::{exp, normal, normal_f64};

/// A real number that kernels compute in: `f32` to train, `f64` to check.
pub trait Real:
    Pod
    + Copy
    + Send
    + Sync
    + Default
    + PartialEq
    + PartialOrd
    + Debug
    + Display
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
{
    /// Zero.
    const ZERO: Self;
    /// One.
    const ONE: Self;

    /// Rounds `value` to this type.
    fn from_f64(value: f64) -> Self;
    /// Widens to `f64` without loss.
    fn to_f64(self) -> f64;
    /// Square root.
    fn sqrt(self) -> Self;
    /// Natural exponential.
    fn exp(self) -> Self;
    /// Natural exponential of at most 88, for passes over many numbers.
    fn exp_in_pass(self) -> Self;
    /// Cumulative probability and density of the normal distribution.
    fn normal(self) -> (Self, Self);

    /// `slice` as `f32` if that is what it holds: the door to the fast kernels.
    fn as_f32(slice: &[Self]) -> Option<&[f32]>;
    /// `slice` as `f32` if that is what it holds, to be written.
    fn as_f32_mut(slice: &mut [Self]) -> Option<&mut [f32]>;
}

macro_rules! real {
    ($type:ident, $widen:expr, ($exp:expr, $normal:expr), |$slice:ident| $as_f32:expr) => {
        impl Real for $type {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;

            #[inline(always)]
            fn from_f64(value: f64) -> Self {
                // Rounding to the nearest is what `as` does between floats.
                value as $type
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                $widen(self)
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                $type::sqrt(self)
            }
            #[inline(always)]
            fn exp(self) -> Self {
                $type::exp(self)
            }
            #[inline(always)]
            fn exp_in_pass(self) -> Self {
                $exp(self)
            }
            #[inline(always)]
            fn normal(self) -> (Self, Self) {
                $normal(self)
            }
            #[inline(always)]
            fn as_f32($slice: &[Self]) -> Option<&[f32]> {
                $as_f32
            }
            #[inline(always)]
            fn as_f32_mut($slice: &mut [Self]) -> Option<&mut [f32]> {
                $as_f32
            }
        }
    };
}

real!(f32, f64::from, (exp, normal), |slice| Some(slice));
real!(f64, std::convert::identity, (f64::exp, normal_f64), |_slice| None);
