//! Against torchvision's values, written by tests/golden/augment.py; and the distributions of what is drawn.

use safetensors::SafeTensors;

use super::*;

const GOLDEN: &[u8] = include_bytes!("../../../../tests/golden/augment.safetensors");

/// Runs a case of the golden file, which its name describes. Returns `[3, size, size]`.
fn run(case: &str, golden: &SafeTensors<'_>) -> Vec<f32> {
    let mut steps = case.split(" | ").map(|step| step.split(' ').collect::<Vec<_>>());
    let first = steps.next().expect("a first step");
    let stored = golden.tensor(&format!("image {}", first[1])).unwrap();
    let image = Image { height: stored.shape()[0], width: stored.shape()[1], rgb: stored.data().to_vec() };
    let number = |text: &str| text.parse::<usize>().unwrap();
    let mut scratch = Scratch::default();
    match first[..] {
        ["crop", _, left, top, width, height, size, ref flip @ ..] => {
            let window = CropBox {
                left: number(left),
                top: number(top),
                width: number(width),
                height: number(height),
            };
            scratch.crop(&image, window, number(size), flip == ["flip"]);
        }
        ["preprocess", _, size] => {
            Preprocess { size: number(size), mean: [0.0; 3], std: [1.0; 3] }.place(&image, &mut scratch);
        }
        _ => panic!("{case}"),
    }
    let mut adjusts = Vec::new();
    let mut normalised = None;
    for step in steps {
        let argument = |i: usize| step[i].parse::<f32>().unwrap();
        match step[0] {
            "brightness" => adjusts.push(Adjust::Brightness(argument(1))),
            "contrast" => adjusts.push(Adjust::Contrast(argument(1))),
            "saturation" => adjusts.push(Adjust::Saturation(argument(1))),
            "hue" => adjusts.push(Adjust::Hue(argument(1))),
            "grayscale" => scratch.apply(&Applied::Grayscale),
            "solarize" if step.len() == 1 => scratch.apply(&Applied::Solarize),
            "solarize" => solarize(&mut scratch.planes, argument(1)),
            "posterize" => posterize(&mut scratch.planes, number(step[1]) as u32),
            "sharpness" => sharpen(&mut scratch.planes, argument(1), &mut scratch.spare),
            "autocontrast" => autocontrast(&mut scratch.planes),
            "photometric" => scratch.apply(&Applied::Photometric {
                bits: number(step[1]) as u32,
                sharpness: argument(2),
                threshold: argument(3),
            }),
            "blur" => scratch.apply(&Applied::Blur { kernel: number(step[1]), sigma: argument(2) }),
            "patch" => {
                std::mem::swap(&mut scratch.planes, &mut scratch.sheet);
                let [left, top, size] = [1, 2, 3].map(|i| number(step[i]));
                scratch.patch(CropBox { left, top, width: size, height: size }, step[4..] == ["flip"]);
            }
            "normalize" => {
                let mut pixels = vec![0.0; scratch.planes.values.len()];
                scratch.planes.write_normalised([0.485, 0.456, 0.406], [0.229, 0.224, 0.225], &mut pixels);
                normalised = Some((0..3).flat_map(|c| pixels.iter().skip(c).step_by(3).copied()).collect());
            }
            _ => panic!("{case}"),
        }
        // Four in a row are one jitter; a single one is applied by itself.
        if let Ok(four) = <[Adjust; 4]>::try_from(adjusts.clone()) {
            scratch.apply(&Applied::Jitter(four));
            adjusts.clear();
        }
    }
    adjust(&mut scratch.planes, &adjusts);
    normalised.unwrap_or(scratch.planes.values)
}

#[test]
fn every_operation_agrees_with_torchvision() {
    let golden = SafeTensors::deserialize(GOLDEN).unwrap();
    let cases: Vec<&str> = golden.names().into_iter().filter(|name| !name.starts_with("image ")).collect();
    assert_eq!(cases.len(), 64);
    for case in cases {
        let expected = golden.tensor(case).unwrap();
        let expected = expected.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let actual = run(case, &golden);
        assert_eq!(actual.len(), expected.len(), "{case}");
        let worst = actual.iter().zip(expected).map(|(a, e)| (a - e).abs()).fold(0.0, f32::max);
        // Normalising divides by 0.22 and rounding errors with it.
        let bound = if case.ends_with("normalize") { 2e-5 } else { 5e-6 };
        assert!(worst <= bound, "{case}: off by {worst}");
    }
}

#[test]
fn unchanged_pixels_are_exactly_their_value_over_255() {
    let rgb: Vec<u8> = (0..16 * 16 * 3).map(|i| (i % 256) as u8).collect();
    let expected: Vec<f32> = rgb.iter().map(|&value| f32::from(value) / 255.0).collect();
    let image = Image { width: 16, height: 16, rgb };
    let mut out = vec![0.0; expected.len()];
    let key = ViewKey { seed: 1, epoch: 2, index: 3, view: 0 };
    Augmentation::none(16).render(&image, key, &mut Scratch::default(), &mut out);
    assert_eq!(out, expected);
}

fn keys(n: usize) -> impl Iterator<Item = ViewKey> {
    (0..n).map(|index| ViewKey { seed: 11, epoch: index as u64 % 7, index, view: (index % 2) as u8 })
}

#[track_caller]
fn check_uniform(what: &str, sample: &[f64], low: f64, high: f64) {
    let n = sample.len() as f64;
    let mean = sample.iter().sum::<f64>() / n;
    let variance = sample.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
    let range = high - low;
    // Five standard errors of the mean and of the variance.
    assert!((mean - (low + high) / 2.0).abs() < 5.0 * range / (12.0 * n).sqrt(), "{what}: mean {mean}");
    assert!(
        (variance / (range * range / 12.0) - 1.0).abs() < 5.0 * (0.8 / n).sqrt(),
        "{what}: variance {variance}"
    );
    assert!(sample.iter().all(|x| (low..=high).contains(x)), "{what} outside [{low}, {high}]");
}

#[track_caller]
fn check_share(what: &str, hits: usize, n: usize, p: f64) {
    let share = hits as f64 / n as f64;
    assert!((share - p).abs() <= 5.0 * (p * (1.0 - p) / n as f64).sqrt(), "{what}: {share} for {p}");
}

#[test]
fn jitter_is_drawn_as_published() {
    const N: usize = 24_000;
    let op = jitter(0.8, [0.8, 0.6, 0.4, 0.2]);
    let drawn: Vec<[Adjust; 4]> = keys(N)
        .filter_map(|key| match op.draw(key)? {
            Applied::Jitter(adjusts) => Some(adjusts),
            other => panic!("{other:?}"),
        })
        .collect();
    check_share("jitter", drawn.len(), N, 0.8);
    let mut samples: [Vec<f64>; 4] = Default::default();
    let mut orders = std::collections::BTreeMap::new();
    for adjusts in &drawn {
        let order = adjusts.map(|change| {
            let (kind, value) = match change {
                Adjust::Brightness(x) => (0, x),
                Adjust::Contrast(x) => (1, x),
                Adjust::Saturation(x) => (2, x),
                Adjust::Hue(x) => (3, x),
            };
            samples[kind].push(f64::from(value));
            kind
        });
        *orders.entry(order).or_insert(0usize) += 1;
    }
    for (kind, (low, high)) in [(0.2, 1.8), (0.4, 1.6), (0.6, 1.4), (-0.2, 0.2)].into_iter().enumerate() {
        check_uniform(
            ["brightness", "contrast", "saturation", "hue"][kind],
            &samples[kind],
            low - 1e-7,
            high + 1e-7,
        );
    }
    assert_eq!(orders.len(), 24, "orders of four");
    for (order, count) in orders {
        check_share(&format!("order {order:?}"), count, drawn.len(), 1.0 / 24.0);
    }
    // Strengths above 1 do not turn colours negative.
    let strong = jitter(1.0, [1.5, 0.0, 0.0, 0.0]).draw(ViewKey { seed: 0, epoch: 0, index: 0, view: 0 });
    assert!(
        matches!(strong, Some(Applied::Jitter(four)) if four.iter().all(|a| !matches!(a, Adjust::Brightness(x) if *x < 0.0)))
    );
}

#[test]
fn other_operations_are_drawn_as_published() {
    const N: usize = 20_000;
    let count = |op: &Op| keys(N).filter(|&key| op.draw(key).is_some()).count();
    check_share("grayscale", count(&Op::Grayscale { p: 0.2 }), N, 0.2);
    check_share("solarize", count(&Op::Solarize { p: 0.1 }), N, 0.1);
    let sigmas: Vec<f64> = keys(N)
        .filter_map(|key| match (Op::Blur { p: 0.5, kernel: 3 }).draw(key)? {
            Applied::Blur { sigma, .. } => Some(f64::from(sigma)),
            other => panic!("{other:?}"),
        })
        .collect();
    check_share("blur", sigmas.len(), N, 0.5);
    check_uniform("sigma", &sigmas, 0.1, 2.0);
}

#[test]
fn the_photometric_operation_is_drawn_as_published() {
    const N: usize = 20_000;
    let (mut bits, mut thresholds) = ([0; 9], [0; 257]);
    let mut sharpnesses = Vec::new();
    for key in keys(N) {
        match (Op::Photometric { p: 0.66 }).draw(key) {
            Some(Applied::Photometric { bits: of_view, sharpness, threshold }) => {
                bits[of_view as usize] += 1;
                thresholds[(threshold * 255.0).round() as usize] += 1;
                sharpnesses.push(f64::from(sharpness));
            }
            None => {}
            other => panic!("{other:?}"),
        }
    }
    let n = sharpnesses.len();
    check_share("photometric", n, N, 0.66);
    check_uniform("sharpness", &sharpnesses, 0.1 - 1e-7, 1.9 + 1e-7);
    for (kept, &hits) in bits.iter().enumerate() {
        check_share(&format!("{kept} bits"), hits, n, if kept < 4 { 0.0 } else { 0.2 });
    }
    for (threshold, &hits) in thresholds.iter().enumerate() {
        check_share(&format!("threshold {threshold}"), hits, n, 1.0 / 257.0);
    }
}

#[test]
fn crops_are_drawn_as_published() {
    const N: usize = 20_000;
    let crop = RandomCrop { area: [0.08, 1.0], aspect: [0.75, 4.0 / 3.0] };
    // A wide image of many pixels, so that rounding does not show; windows of up to 0.5 of it always fit.
    let boxes: Vec<CropBox> = keys(N)
        .map(|key| {
            RandomCrop { area: [0.08, 0.5], ..crop.clone() }.draw(1000, 1000, &mut key.draws(Purpose::Crop))
        })
        .collect();
    let of = |f: &dyn Fn(&CropBox) -> f64| boxes.iter().map(f).collect::<Vec<_>>();
    check_uniform("area", &of(&|b| (b.width * b.height) as f64 / 1e6), 0.079, 0.501);
    check_uniform("aspect", &of(&|b| (b.width as f64 / b.height as f64).ln()), 0.747f64.ln(), 1.339f64.ln());
    check_uniform("left", &of(&|b| b.left as f64 / (1000 - b.width) as f64), 0.0, 1.0);
    check_uniform("top", &of(&|b| b.top as f64 / (1000 - b.height) as f64), 0.0, 1.0);
    // Every window lies inside, of any image.
    for (key, (width, height)) in
        keys(N).zip([(32, 32), (1, 1), (500, 3), (3, 500), (2, 7)].into_iter().cycle())
    {
        let b = crop.draw(width, height, &mut key.draws(Purpose::Crop));
        assert!(
            b.width > 0 && b.height > 0 && b.left + b.width <= width && b.top + b.height <= height,
            "{b:?}"
        );
    }
    // No window of 0.9 of the area fits in a strip: the centred one of the widest aspect is taken.
    let strip =
        RandomCrop { area: [0.9, 1.0], ..crop }.draw(300, 30, &mut Draws::new(1, 0, 0, 0, Purpose::Crop));
    assert_eq!(strip, CropBox { left: 130, top: 0, width: 40, height: 30 });
}

#[test]
fn presets_are_the_published_ones() {
    let ops = |name: &str, size: usize| Augmentation::preset(name, size).unwrap().views.map(|view| view.ops);
    let names = |ops: &[Op]| {
        ops.iter()
            .map(|op| format!("{op:?}").split(' ').next().unwrap().to_owned())
            .collect::<Vec<_>>()
            .join(" ")
    };
    #[track_caller]
    fn check(actual: String, expected: &str) {
        assert_eq!(actual, expected);
    }
    check(names(&ops("simclr-cifar", 32)[0]), "Jitter Grayscale");
    check(names(&ops("simclr-imagenet", 224)[1]), "Jitter Grayscale Blur");
    check(names(&ops("moco-v1", 224)[0]), "Grayscale Jitter");
    check(names(&ops("pirl", 224)[0]), "Jitter Photometric Grayscale");
    check(names(&ops("moco-v3", 224)[1]), "Jitter Grayscale Blur Solarize");
    assert_eq!(ops("simclr-imagenet", 224)[0][2], Op::Blur { p: 0.5, kernel: 23 });
    assert_eq!(ops("moco-v3", 32)[0][2], Op::Blur { p: 1.0, kernel: 3 });
    assert_eq!(ops("moco-v3", 32)[1][2], Op::Blur { p: 0.1, kernel: 3 });
    // Transformers get the same, of smaller crops.
    assert_eq!(ops("moco-v3-vit", 32), ops("moco-v3", 32));
    let smallest = |name| {
        let [_, second] = Augmentation::preset(name, 32).unwrap().views;
        second.crop.unwrap().area[0]
    };
    assert_eq!(["moco-v3", "moco-v3-vit"].map(smallest), [0.2, 0.08]);
    assert_eq!(ops("moco-v2", 32)[0], ops("moco-v2", 32)[1]);
    for name in PRESETS {
        assert_eq!(Augmentation::preset(name, 24).unwrap().size, 24);
    }
    let message = Augmentation::preset("simclr", 32).unwrap_err().to_string();
    assert!(message.contains("\"simclr\"") && message.contains("simclr-cifar, moco-v1"), "{message}");
}

#[test]
fn views_differ_by_everything_they_are_keyed_by() {
    let image = Image { width: 40, height: 40, rgb: (0..4800).map(|i| (i * 7 % 251) as u8).collect() };
    let augmentation = Augmentation::preset("simclr-imagenet", 32).unwrap();
    let mut scratch = Scratch::default();
    let mut view = |key| {
        let mut out = vec![0.0; augmentation.view_len()];
        augmentation.render(&image, key, &mut scratch, &mut out);
        assert!(out.iter().all(|x| (0.0..=1.0).contains(x)));
        out
    };
    let key = ViewKey { seed: 1, epoch: 1, index: 1, view: 0 };
    let first = view(key);
    for other in [
        ViewKey { seed: 2, ..key },
        ViewKey { epoch: 2, ..key },
        ViewKey { index: 2, ..key },
        ViewKey { view: 1, ..key },
    ] {
        assert_ne!(view(other), first, "{other:?}");
    }
    assert_eq!(view(key), first, "and by nothing that went before");
}
