//! Exponentials for passes over many numbers: polynomials without a branch, so that the compiler makes vectors of
//! them, where a call into the library would take one number at a time.

/// `e^x` within two units in the last place for results that are normal numbers, 0 below those.
///
/// `x = k ln 2 + r` with `|r| <= ln 2 / 2`, and `e^r` by the polynomial of Cephes' `expf` (Moshier). Without a
/// branch, so that the compiler makes vectors of it. `x` must be at most 88; not-a-number stays that.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    /// Below it, `e^x` is no normal number.
    const LOWEST: f32 = -87.336_54;
    /// `ln 2` in two parts, the first of few bits, so that `k` times it is exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    const COEFFICIENTS: [f32; 6] =
        [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5e-1];
    let clamped = if x < LOWEST { LOWEST } else { x };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let k = shifted - ROUND;
    let r = clamped - k * LN_2[0] - k * LN_2[1];
    let mut p = COEFFICIENTS[0];
    for coefficient in &COEFFICIENTS[1..] {
        p = p * r + coefficient;
    }
    let power = p * r * r + r + 1.0;
    if x < LOWEST { 0.0 } else { times_power(power, shifted) }
}

/// `2^x`, for `|x| <= 126`, within two units in the last place.
///
/// As [`exp`], but with nothing to guard against, and in half the operations: `x = k + r` needs no `ln 2`, and a
/// polynomial of one degree less, fitted to `2^r` in relative error with its value at 0 exact, is enough.
#[inline(always)]
pub fn exp2(x: f32) -> f32 {
    #[expect(clippy::approx_constant, reason = "the fit's first coefficient is near ln 2, and not that")]
    const COEFFICIENTS: [f32; 5] =
        [1.326_472_7e-3, 9.671_513e-3, 5.550_733_6e-2, 2.402_224_2e-1, 6.931_47e-1];
    let shifted = x + ROUND;
    let r = x - (shifted - ROUND);
    let mut p = COEFFICIENTS[0];
    for coefficient in &COEFFICIENTS[1..] {
        p = p * r + coefficient;
    }
    times_power(p * r + 1.0, shifted)
}

/// 1.5 * 2^23: added to a small number, it rounds that to an integer in the lowest bits.
const ROUND: f32 = 12_582_912.0;

/// Multiplies by `2^k`, `shifted` being `k + ROUND`: its lowest bits are `k`, and move into the exponent.
#[inline(always)]
fn times_power(value: f32, shifted: f32) -> f32 {
    f32::from_bits(value.to_bits().wrapping_add(shifted.to_bits() << 23))
}

/// The normal distribution at `x`: its cumulative probability within 3e-7, also in relative terms where `x` is negative,
/// and its density.
///
/// With `t = 1 / (1 + 0.297 |x|)`, half of the scaled complementary error function `e^(x^2 / 2) erfc(|x| / sqrt 2)` is
/// a polynomial in `t`, fitted in relative error for `|x| <= 13`, beyond which the density is 0.
#[inline(always)]
pub fn normal(x: f32) -> (f32, f32) {
    const SLOPE: f32 = 0.296_984_85;
    const COEFFICIENTS: [f32; 8] = [
        0.035_196_23,
        -0.160_468_77,
        0.220_931_65,
        -0.065_819_904,
        0.134_671_09,
        0.097_270_43,
        0.119_808_08,
        0.118_411_11,
    ];
    let size = if x < 0.0 { -x } else { x };
    let t = 1.0 / (1.0 + SLOPE * size);
    let mut p = COEFFICIENTS[0];
    for coefficient in &COEFFICIENTS[1..] {
        p = p * t + coefficient;
    }
    let bell = exp(-0.5 * x * x);
    let beyond = p * t * bell;
    (if x < 0.0 { beyond } else { 1.0 - beyond }, INVERSE_ROOT_OF_TAU * bell)
}

/// As [`normal`], to the last bits of an `f64`: `erf` by its series of positive terms,
/// `sqrt(pi) / 2 erf(z) = e^(-z^2) sum_n (2 z^2)^n z / (1 * 3 * ... * (2 n + 1))`.
pub fn normal_f64(x: f64) -> (f64, f64) {
    let bell = (-0.5 * x * x).exp();
    let density = bell / std::f64::consts::TAU.sqrt();
    // From here on the distance from 0 or 1 is less than the last bit of 1.
    if x.abs() > 9.0 {
        return (if x < 0.0 { 0.0 } else { 1.0 }, density);
    }
    let (mut term, mut sum, mut n) = (x, 0.0, 0.0);
    while (sum + term).abs() > sum.abs() {
        sum += term;
        n += 1.0;
        term *= x * x / (2.0 * n + 1.0);
    }
    // Not-a-numbers stay that.
    (0.5 + density * (sum + term), density)
}

const INVERSE_ROOT_OF_TAU: f32 = 0.398_942_3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_within_two_units_in_the_last_place() {
        let mut worst = 0f64;
        for i in 0..2_000_000 {
            let x = -87.3 + 175.3 * (i as f32 / 2e6);
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - exact).abs() / exact);
        }
        assert!(worst < 2.0 * f64::from(f32::EPSILON), "{worst:e}");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!((exp(-88.0), exp(-1e30), exp(f32::NEG_INFINITY)), (0.0, 0.0, 0.0));
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn powers_of_two_are_within_two_units_in_the_last_place() {
        let mut worst = 0f64;
        for i in 0..2_000_000 {
            let x = -126.0 + 252.0 * (i as f32 / 2e6);
            let exact = f64::from(x).exp2();
            worst = worst.max((f64::from(exp2(x)) - exact).abs() / exact);
        }
        assert!(worst < 2.0 * f64::from(f32::EPSILON), "{worst:e}");
        assert_eq!([exp2(0.0), exp2(-3.0), exp2(7.0)], [1.0, 0.125, 128.0]);
        assert!(exp2(f32::NAN).is_nan());
    }
    /// Values of `scipy.special.ndtr`, and of the density's formula.
    const NORMAL: [(f64, f64); 6] = [
        (0.0, 0.5),
        (0.3, 0.617_911_422_188_952_7),
        (-1.0, 0.158_655_253_931_457_05),
        (2.5, 0.993_790_334_674_223_8),
        (-4.0, 3.167_124_183_311_992_4e-5),
        (-7.0, 1.279_812_543_885_835e-12),
    ];

    #[test]
    fn the_normal_distribution_has_its_published_values() {
        for (x, expected) in NORMAL {
            let (probability, density) = normal_f64(x);
            assert!((probability - expected).abs() < 3e-16, "{x}: {probability} instead of {expected}");
            assert!((density - (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt()).abs() < 1e-16);
        }
        assert_eq!((normal_f64(-9.5).0, normal_f64(40.0).0), (0.0, 1.0));
        assert!(normal_f64(f64::NAN).0.is_nan() && normal(f32::NAN).0.is_nan());
    }

    #[test]
    fn in_f32_it_is_within_a_few_units_of_the_last_place_of_one() {
        let mut worst = [0f64; 2];
        for i in 0..400_001 {
            let x = -20.0 + i as f32 / 1e4;
            let (exact, fast) = (normal_f64(f64::from(x)), normal(x));
            worst[0] = worst[0].max((f64::from(fast.0) - exact.0).abs());
            worst[1] = worst[1].max((f64::from(fast.1) - exact.1).abs());
        }
        assert!(worst[0] < 3e-7 && worst[1] < 2e-7, "{worst:?}");
        // The left tail keeps its digits.
        assert!((f64::from(normal(-7.0).0) / NORMAL[5].1 - 1.0).abs() < 1e-5);
    }
}
