//! The exponential moving average that a momentum encoder is.

use kernels::{Device, Real, split};

/// Computes `out = momentum * average + (1 - momentum) * latest`, element by element, whatever the threads.
///
/// He et al. 2019 (arXiv:1911.05722), equation 2; each product is rounded, as in PyTorch.
///
/// # Panics
/// If the lengths differ.
pub fn moving_average<T: Real>(
    device: &Device,
    momentum: f64,
    (average, latest): (&[T], &[T]),
    out: &mut [T],
) {
    assert!(average.len() == latest.len() && latest.len() == out.len(), "an average of arrays of one length");
    let (keep, take) = (T::from_f64(momentum), T::from_f64(1.0 - momentum));
    let pool = &device.cpu().pool;
    let mut rest = out;
    let parts = (0..pool.threads()).map(|thread| {
        let range = split(average.len(), pool.threads(), thread);
        let out = rest.split_off_mut(..range.len()).expect("the ranges tile the array");
        (&average[range.clone()], &latest[range], out)
    });
    pool.for_each_part(parts.collect(), |_, (average, latest, out): (&[T], &[T], &mut [T])| {
        for ((out, &average), &latest) in out.iter_mut().zip(average).zip(latest) {
            *out = keep * average + take * latest;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernels::KernelPath;

    #[test]
    fn an_average_moves_by_its_share_on_any_number_of_threads() {
        let average: Vec<f32> = (0..1001).map(|i| (i as f32).sin()).collect();
        let latest: Vec<f32> = (0..1001).map(|i| (i as f32).cos()).collect();
        let on = |threads, momentum| {
            let mut out = vec![7.0; 1001];
            moving_average(
                &Device::of_threads(threads, KernelPath::detect()),
                momentum,
                (&average, &latest),
                &mut out,
            );
            out
        };
        assert_eq!((on(2, 1.0), on(2, 0.0)), (average.clone(), latest.clone()));
        let moved = on(1, 0.99);
        assert_eq!(on(3, 0.99), moved);
        for (i, moved) in moved.iter().enumerate() {
            let expected = 0.99 * f64::from(average[i]) + 0.01 * f64::from(latest[i]);
            assert!((f64::from(*moved) - expected).abs() < 1e-7, "{i}: {moved} {expected}");
        }
    }
}
