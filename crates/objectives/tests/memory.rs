//! The largest batch anyone trains with: 65,536 rows of 128, and no similarity matrix in memory.
//!
//! One test, alone in its process, since it measures what the process allocates.

mod allocated;

use std::thread;

use allocated::peak_of;
use collective::{Communicator, loopback};
use kernels::{Device, KernelPath};
use objectives::NtXent;
use objectives::unit::UnitRows;

const GLOBAL_ROWS: usize = 65_536;
const OWN_ROWS: usize = 1024;
const ROWS_ALONE: usize = GLOBAL_ROWS / 16;
const WIDTH: usize = 128;

#[test]
fn a_batch_of_65536_rows_needs_no_similarity_matrix() {
    // The other rank holds all other rows. It takes part in the gathers and computes nothing, which would
    // take minutes; the log-sum-exps it hands out are those of rows that are all alike.
    let rows = [OWN_ROWS, GLOBAL_ROWS - OWN_ROWS];
    let embeddings: Vec<f32> = (0..OWN_ROWS * WIDTH).map(|i| (i * 7919 % 1013) as f32 - 506.0).collect();
    let others = UnitRows::new(&vec![1f32; rows[1] * WIDTH], WIDTH).unit;
    let mut everything = vec![0f32; GLOBAL_ROWS * WIDTH];
    let mut log_sums = vec![0f32; GLOBAL_ROWS];
    let mut group = loopback(2, 1).unwrap();
    let mut other = group.pop().unwrap().pop().unwrap();
    let mut own = group.pop().unwrap().pop().unwrap();
    let device = Device::of_threads(2, KernelPath::detect());

    let peer = thread::spawn(move || {
        let counts = rows.map(|rows| rows * WIDTH);
        other.all_gather_counts(&others, &counts, &mut everything).unwrap();
        let all_alike = (10.0 + (GLOBAL_ROWS as f64).ln()) as f32;
        other.all_gather_counts(&vec![all_alike; rows[1]], &rows, &mut log_sums).unwrap();
        other.all_reduce_sum(&mut [0f64]).unwrap();
    });
    let (used, step) =
        peak_of(|| NtXent::new(0.1).forward_backward(&device, &embeddings, &rows, &mut own).unwrap());
    peer.join().unwrap();

    assert!(step.loss.is_finite() && step.d_queries.iter().all(|d| d.is_finite()));
    println!("{used} bytes at the peak of a rank with {OWN_ROWS} of {GLOBAL_ROWS} rows");
    // As they were gathered, and packed for both sides of a product.
    let gathered = 3 * GLOBAL_ROWS * WIDTH * size_of::<f32>();
    let own_part = GLOBAL_ROWS * size_of::<f32>() + OWN_ROWS * WIDTH * size_of::<f32>() * 4;
    let limit = gathered + own_part + (4 << 20);
    assert!(used < limit, "{used} bytes at the peak, {limit} allowed");
    let of_own_rows = OWN_ROWS * GLOBAL_ROWS * size_of::<f32>();
    assert!(limit < of_own_rows / 2, "the limit would not notice this rank's rows of the matrix");

    let used = a_rank_alone_takes_five_times_its_embeddings(&device);
    println!("{used} bytes at the peak of a rank that has all of {ROWS_ALONE} rows");
}

/// Returns what it takes. So that 65,536 rows, with the embeddings themselves, stay far under 300 MB.
fn a_rank_alone_takes_five_times_its_embeddings(device: &Device) -> usize {
    let rows = ROWS_ALONE;
    let embeddings: Vec<f32> = (0..rows * WIDTH).map(|i| (i * 7919 % 1013) as f32 - 506.0).collect();
    let bytes = size_of_val(&embeddings[..]);
    let (used, step) = peak_of(|| {
        NtXent::new(0.1).forward_backward(device, &embeddings, &[rows], &mut Communicator::alone())
    });
    assert!(step.is_ok_and(|step| step.loss.is_finite()));
    let limit = 5 * bytes + bytes / 2;
    assert!(used < limit, "{used} bytes at the peak, {limit} allowed");
    assert!(16 * (limit + bytes) < 300_000_000);
    assert!(limit < rows * rows * size_of::<f32>() / 5, "the limit would not notice the matrix");
    used
}
