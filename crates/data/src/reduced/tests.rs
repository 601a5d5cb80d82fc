use safetensors::SafeTensors;

use super::*;
use crate::fixtures::{image, png, write_files};
use crate::{Augmentation, LoaderOptions, Parts, Scratch, ViewKey, augment};

/// Written by Pillow with tests/golden/images.py.
const GOLDEN: &[u8] = include_bytes!("../../../../tests/golden/images.safetensors");

fn jpeg(name: &str) -> Vec<u8> {
    let golden = SafeTensors::deserialize(GOLDEN).unwrap();
    golden.tensor(&format!("{name} file")).unwrap().data().to_vec()
}

#[test]
fn views_of_a_scaled_decode_are_near_those_of_a_full_one() {
    let root = tempfile::tempdir().unwrap();
    write_files(root.path(), &[("a.jpg", jpeg("jpeg 444")), ("b.jpg", jpeg("jpeg gray"))]);
    let dataset = Dataset::open(root.path().to_str().unwrap()).unwrap();
    let augmentation = Augmentation::preset("simclr-cifar", 8).unwrap();
    let (mut reductions, mut scratch) = (Vec::new(), Scratch::default());
    for (index, seed) in [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3)] {
        let allowed = |dimensions| Parts::VIEWS.reduction(&augmentation, dimensions, (seed, 0, index));
        let decoded = load_reduced(&dataset, index, allowed).unwrap();
        let whole = dataset.load(index).unwrap();
        assert_eq!(decoded.dimensions, (whole.width, whole.height));
        assert_eq!(decoded.image.width, whole.width.div_ceil(decoded.reduction));
        for view in 0..2 {
            let key = ViewKey { seed, epoch: 0, index, view };
            let [mut full, mut scaled] = [(); 2].map(|()| vec![0.0; augmentation.view_len()]);
            augmentation.render(&whole, key, &mut scratch, &mut full);
            let Decoded { image, dimensions, reduction } = &decoded;
            let reduced = augment::Reduced { image, dimensions: *dimensions, reduction: *reduction };
            augmentation.render_reduced(reduced, key, &mut scratch, &mut scaled);
            let off = full.iter().zip(&scaled).map(|(a, b)| (a - b).abs()).sum::<f32>() / full.len() as f32;
            // A window that is off by half a pixel is off by twice as much.
            assert!(off < 6.0 / 255.0, "image {index}, seed {seed}: {} by {reduction}", off * 255.0);
        }
        reductions.push(decoded.reduction);
    }
    assert!(reductions.contains(&2), "{reductions:?}");
}

#[test]
fn other_files_and_broken_ones_are_left_to_the_full_decoder() {
    let root = tempfile::tempdir().unwrap();
    let whole = jpeg("jpeg 444");
    let cut = whole[..whole.len() / 2].to_vec();
    write_files(root.path(), &[("a.jpg", cut), ("b.jpg", png(&image(64, 64, 1))), ("c.jpg", whole)]);
    let dataset = Dataset::open(root.path().to_str().unwrap()).unwrap();
    let cut = load_reduced(&dataset, 0, |_| 2).unwrap_err().to_string();
    assert_eq!(cut, dataset.load(0).unwrap_err().to_string());
    assert_eq!(load_reduced(&dataset, 1, |_| 2).unwrap().reduction, 1);
    let small = load_reduced(&dataset, 2, |_| 8).unwrap();
    assert_eq!((small.reduction, small.image.width), (8, small.dimensions.0.div_ceil(8)));
}

#[test]
fn crops_allow_what_leaves_them_the_size_of_the_view() {
    let augmentation = Augmentation::preset("simclr-cifar", 16).unwrap();
    let mut seen = Vec::new();
    for seed in 0..400 {
        let reduction = Parts::VIEWS.reduction(&augmentation, (300, 200), (seed, 0, 0));
        for view in 0..2 {
            let crop = augmentation.views[view].crop.as_ref().unwrap();
            let purpose = crate::random::Purpose::Crop;
            let window = crop.draw(300, 200, &mut crate::random::Draws::new(seed, 0, 0, view as u8, purpose));
            assert!(reduction == 1 || window.width.min(window.height) / reduction >= 16, "{window:?}");
        }
        seen.push(reduction);
    }
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, [2, 4, 8], "of crops of 60 to 200 pixels");
    assert_eq!(Augmentation::none(16).reduction((300, 200), (0, 0, 0), 2), 1);
}

#[test]
fn a_loader_shows_what_views_of_shows() {
    let root = tempfile::tempdir().unwrap();
    write_files(root.path(), &[("a.jpg", jpeg("jpeg 444")), ("b.jpg", jpeg("jpeg gray"))]);
    let dataset = Arc::new(Dataset::open(root.path().to_str().unwrap()).unwrap());
    let augmentation = Augmentation::preset("simclr-cifar", 8).unwrap();
    let options = LoaderOptions {
        seed: 0,
        global_batch: 2,
        rank: 0,
        world_size: 1,
        start_step: 0,
        origin: crate::EpochOrigin::default(),
        threads: 1,
        prefetch: 1,
        max_corrupt_share: 0.0,
        decoding: Decoding::Scaled,
        parts: Parts::VIEWS,
        labels: false,
        chunk: 0,
    };
    let mut loader = crate::Loader::new(Arc::clone(&dataset), augmentation.clone(), options).unwrap();
    let batch = loader.next_batch().unwrap();
    let of = |decoding, index| {
        crate::views_of(&dataset, &augmentation, &Parts::VIEWS, decoding, (0, 0, index)).unwrap().images
    };
    let len = augmentation.view_len();
    for (row, &index) in batch.indices.iter().enumerate() {
        assert!(batch.images[row * len..][..len] == of(Decoding::Scaled, index)[..len]);
    }
    assert!((0..2).any(|index| of(Decoding::Scaled, index) != of(Decoding::Full, index)));
}
