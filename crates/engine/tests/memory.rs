//! What a network allocates: as predicted, when it is made, and next to nothing in a step.

#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is the failure")]
#![expect(unsafe_code, reason = "an allocator that counts")]

mod support;

use kernels::{DeviceOptions, KernelPath};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use engine::models::{Arch, Head, Stem, Vit};
use engine::network::Network;
use engine::parameters::BufferUpdate;
use kernels::peers::Alone;
use support::{noise, options, spec};

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: hands every request on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`, which is the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the pointer came from `alloc` above, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Names, shapes and lists, the kernels' among them: what a prediction leaves out.
const BOOKKEEPING: usize = 1 << 20;

fn check(arch: Arch, stem: Stem, image_size: usize, rows: usize) {
    let spec = spec(arch, stem, Head::SimclrV2, image_size);
    let on = DeviceOptions::of_threads(2, KernelPath::detect());
    let device = on.open();
    let predicted = Network::<f32>::predicted_bytes(&spec, &options(rows), &on);
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let mut network = Network::<f32>::new(&spec, options(rows), &device);
    let allocated = LIVE.load(Ordering::Relaxed) - before;
    let range = predicted..predicted + BOOKKEEPING;
    assert!(range.contains(&allocated), "{arch}: {allocated} allocated, {predicted} predicted");

    let images: Vec<f32> = support::cast(&noise("images", rows * image_size.pow(2) * 3));
    let d_embeddings: Vec<f32> = support::cast(&noise("d_embeddings", rows * 128));
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    for _ in 0..2 {
        network.forward_train(&images, rows, &mut Alone).unwrap();
        network.backward(&d_embeddings, &mut Alone, &mut |_, _| {}).unwrap();
        network.commit_buffers(BufferUpdate::Momentum(0.1));
    }
    assert_eq!(LIVE.load(Ordering::Relaxed), before, "{arch}: a step keeps nothing");
    let extra = PEAK.load(Ordering::Relaxed) - before;
    // The largest activation of each of these nets, which a step must not copy, takes as much or more.
    assert!(extra < BOOKKEEPING, "{arch}: a step allocates {extra} bytes");
}

/// One test, because the counts are the program's.
#[test]
fn memory_is_as_predicted_and_a_step_takes_none() {
    check(Arch::ResNet20, Stem::Cifar, 16, 64);
    check(Arch::ResNet18, Stem::Imagenet, 40, 16);
    check(Arch::ResNet50, Stem::Cifar, 8, 33);
    for freeze_patch in [true, false] {
        let vit = Vit { patch: 4, freeze_patch, ..Vit::new(96, 3, 3) };
        check(Arch::Vit(vit), Stem::Cifar, 32, 16);
    }
}
