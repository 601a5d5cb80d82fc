use std::path::Path;

use super::*;
use crate::augment::{Jigsaw, Op};
use crate::fixtures::{image, png, write_dataset, write_files};
use crate::views_of;

fn options(global_batch: usize) -> LoaderOptions {
    LoaderOptions {
        seed: 3,
        global_batch,
        rank: 0,
        world_size: 1,
        start_step: 0,
        origin: EpochOrigin::default(),
        threads: 2,
        prefetch: 2,
        max_corrupt_share: 0.5,
        parts: Parts::VIEWS,
        labels: false,
        chunk: 0,
    }
}

fn open(root: &Path) -> Arc<Dataset> {
    Arc::new(Dataset::open(root.to_str().unwrap()).unwrap())
}

fn augmentation() -> Augmentation {
    Augmentation::preset("simclr-imagenet", 12).unwrap()
}

fn batches(dataset: &Arc<Dataset>, options: LoaderOptions, n: usize) -> Vec<Batch> {
    let mut loader = Loader::new(Arc::clone(dataset), augmentation(), options).unwrap();
    (0..n).map(|_| loader.next_batch().unwrap()).collect()
}

#[test]
fn batches_are_what_the_sampler_deals_and_views_of_shows() {
    let folder = tempfile::tempdir().unwrap();
    write_dataset(folder.path(), 21, &[]);
    let dataset = open(folder.path());
    let sampler = Sampler::new(3, 21);
    let len = augmentation().view_len();
    for (step, batch) in batches(&dataset, options(8), 5).into_iter().enumerate() {
        let (epoch, indices) = sampler.batch(step as u64, 8, &[0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!((batch.step, batch.epoch, &batch.indices), (step as u64, epoch, &indices));
        assert_eq!(batch.images.len(), 16 * len);
        for (row, &index) in indices.iter().enumerate() {
            let views = views_of(&dataset, &augmentation(), &Parts::VIEWS, (3, epoch, index)).unwrap();
            assert_eq!(views.index, index);
            assert_eq!(batch.images[row * len..][..len], views.images[..len], "first view of {index}");
            assert_eq!(batch.images[(8 + row) * len..][..len], views.images[len..], "second view of {index}");
        }
    }
}

/// The same images give the same bits, wherever and whenever they are prepared, corrupt ones included.
#[test]
fn views_do_not_depend_on_threads_ranks_or_restarts() {
    const STEPS: usize = 6;
    let folder = tempfile::tempdir().unwrap();
    write_dataset(folder.path(), 40, &[4, 17, 18, 33]);
    let dataset = open(folder.path());
    let reference = batches(&dataset, options(10), STEPS);
    let same = |what: &str, batches: &[Batch], from: usize| {
        for (batch, reference) in batches.iter().zip(&reference[from..]) {
            assert_eq!((batch.step, &batch.indices), (reference.step, &reference.indices), "{what}");
            assert!(batch.images == reference.images, "{what}: step {}", batch.step);
        }
    };
    for (threads, prefetch) in [(1, 1), (1, 3), (5, 1), (3, 4)] {
        let what = format!("{threads} threads, {prefetch} ahead");
        same(
            &what,
            &batches(&open(folder.path()), LoaderOptions { threads, prefetch, ..options(10) }, STEPS),
            0,
        );
    }
    for start_step in 1..STEPS {
        let resumed = batches(
            &dataset,
            LoaderOptions { start_step: start_step as u64, ..options(10) },
            STEPS - start_step,
        );
        same("resumed", &resumed, start_step);
    }
    let len = augmentation().view_len();
    for world_size in [2, 3, 4, 12] {
        let ranks: Vec<_> = (0..world_size)
            .map(|rank| {
                batches(&open(folder.path()), LoaderOptions { rank, world_size, ..options(10) }, STEPS)
            })
            .collect();
        for (step, reference) in reference.iter().enumerate() {
            let view = |second: bool| -> Vec<f32> {
                ranks
                    .iter()
                    .flat_map(|batches| {
                        let batch = &batches[step];
                        let (one, two) = batch.images.split_at(batch.indices.len() * len);
                        if second { two } else { one }.to_vec()
                    })
                    .collect()
            };
            assert!(
                [view(false), view(true)].concat() == reference.images,
                "world size {world_size}, step {step}"
            );
        }
    }
}

/// Chunks order the rows and nothing else; labels, positions and patches follow the images to every rank.
#[test]
fn chunks_labels_and_jigsaws_do_not_depend_on_ranks_threads_or_restarts() {
    const STEPS: usize = 5;
    const BATCH: usize = 10;
    let folder = tempfile::tempdir().unwrap();
    write_dataset(folder.path(), 40, &[4, 17]);
    let dataset = open(folder.path());
    let classes = dataset.labels().unwrap();
    let jigsaw = Jigsaw::of(&augmentation());
    let (view_len, jigsaw_len) = (augmentation().view_len(), jigsaw.len());
    for (views, chunk) in [(1, 0), (1, 4), (2, 4), (2, 3), (2, 12)] {
        let parts = Parts { views, jigsaw: Some(jigsaw.clone()) };
        let sampler = Sampler::new(3, 40);
        for (world_size, threads, start_step) in [(1, 1, 0), (1, 3, 2), (2, 2, 0), (3, 2, 1), (12, 1, 4)] {
            let what = format!("{views} views, chunks of {chunk}, {world_size} ranks");
            let mut seen = vec![Vec::new(); STEPS - start_step];
            for rank in 0..world_size {
                let parts = parts.clone();
                let options = LoaderOptions {
                    parts: parts.clone(),
                    chunk,
                    labels: true,
                    rank,
                    world_size,
                    threads,
                    start_step: start_step as u64,
                    ..options(BATCH)
                };
                let batches = batches(&open(folder.path()), options, STEPS - start_step);
                for (batch, seen) in batches.iter().zip(&mut seen) {
                    let ranges = chunk_ranges(BATCH, chunk, rank, world_size);
                    assert_eq!(batch.chunks, ranges.iter().map(|r| r.len()).collect::<Vec<_>>(), "{what}");
                    assert_eq!(batch.positions, ranges.into_iter().flatten().collect::<Vec<_>>(), "{what}");
                    let (epoch, order) = sampler.batch(batch.step, BATCH, &batch.positions);
                    assert_eq!((batch.epoch, &batch.indices), (epoch, &order), "{what}");
                    let mut rows = Vec::new();
                    for (image, &index) in order.iter().enumerate() {
                        let key = (3, epoch, index);
                        let expected = views_of(&dataset, &augmentation(), &parts, key).unwrap();
                        for (view, expected) in expected.images.chunks_exact(view_len).enumerate() {
                            let row = batch.row(views, view, image);
                            assert!(
                                batch.images[row * view_len..][..view_len] == *expected,
                                "{what}: row {row}"
                            );
                            rows.push(row);
                        }
                        assert!(
                            batch.jigsaw[image * jigsaw_len..][..jigsaw_len] == expected.jigsaw,
                            "{what}"
                        );
                        assert_eq!(
                            batch.labels[image], classes[expected.index],
                            "{what}: the class that is shown"
                        );
                    }
                    rows.sort_unstable();
                    assert_eq!(rows, (0..views * order.len()).collect::<Vec<_>>(), "{what}");
                    assert_eq!(batch.images.len(), rows.len() * view_len);
                    seen.extend(batch.positions.iter().copied());
                }
            }
            for mut seen in seen {
                seen.sort_unstable();
                assert_eq!(seen, (0..BATCH).collect::<Vec<_>>(), "{what}");
            }
        }
    }
}

#[test]
fn rows_are_chunk_then_view_then_image() {
    let batch = Batch {
        step: 0,
        epoch: 0,
        chunks: vec![2, 0, 3],
        positions: vec![],
        indices: vec![],
        labels: vec![],
        images: vec![],
        jigsaw: vec![],
        replaced: vec![],
    };
    let rows = |view| (0..5).map(|image| batch.row(2, view, image)).collect::<Vec<_>>();
    assert_eq!((rows(0), rows(1)), (vec![0, 1, 4, 5, 6], vec![2, 3, 7, 8, 9]));
    assert_eq!((0..5).map(|image| batch.row(1, 0, image)).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
}

#[test]
fn classes_that_are_asked_for_must_exist() {
    let folder = tempfile::tempdir().unwrap();
    let flat = |name, seed| (name, png(&image(16, 16, seed)));
    write_files(folder.path(), &[flat("0.png", 0), flat("1.png", 1)]);
    let options = LoaderOptions { labels: true, ..options(2) };
    let error = Loader::new(open(folder.path()), augmentation(), options).err().unwrap();
    assert!(error.to_string().contains("has no classes, which objective.kind needs"), "{error}");
}

#[test]
fn a_corrupt_image_is_reported_once_and_replaced() {
    let folder = tempfile::tempdir().unwrap();
    write_dataset(folder.path(), 30, &[3, 20]);
    let dataset = open(folder.path());
    let batches = batches(&dataset, options(10), 9);
    let mut replaced: Vec<_> =
        batches.iter().flat_map(|batch| &batch.replaced).map(|r| r.path.as_str()).collect();
    replaced.sort_unstable();
    assert_eq!(replaced, ["a/003.png", "b/020.png"]);
    assert!(batches.iter().flat_map(|batch| &batch.replaced).all(|r| r.reason.contains("neither JPEG")));

    let shown = |epoch| views_of(&dataset, &augmentation(), &Parts::VIEWS, (3, epoch, 20)).unwrap().index;
    let over_epochs: Vec<usize> = (0..20).map(shown).collect();
    assert!(over_epochs.iter().all(|index| ![3, 20].contains(index)), "{over_epochs:?}");
    assert!(over_epochs.iter().any(|&index| index != over_epochs[0]), "another one every epoch");
    assert_eq!((0..20).map(shown).collect::<Vec<_>>(), over_epochs);
}

#[test]
fn replacements_are_chained_until_one_decodes() {
    let folder = tempfile::tempdir().unwrap();
    let all_but_one: Vec<usize> = (0..150).filter(|&index| index != 77).collect();
    write_dataset(folder.path(), 150, &all_but_one);
    let dataset = open(folder.path());
    for epoch in 0..5 {
        assert_eq!(views_of(&dataset, &augmentation(), &Parts::VIEWS, (3, epoch, 5)).unwrap().index, 77);
    }
    write_dataset(folder.path(), 150, &[77]);
    write_dataset(folder.path(), 150, &(0..150).collect::<Vec<_>>());
    let error = views_of(&open(folder.path()), &augmentation(), &Parts::VIEWS, (3, 0, 5)).unwrap_err();
    assert_eq!(error.to_string(), "none of the 150 images can be decoded");
}

#[test]
fn too_many_corrupt_images_end_the_run_with_their_names() {
    let folder = tempfile::tempdir().unwrap();
    write_dataset(folder.path(), 20, &[1, 3, 5, 6, 7, 12, 13, 15, 16]);
    let run = |max_corrupt_share| {
        let options = LoaderOptions { max_corrupt_share, threads: 1, ..options(20) };
        let mut loader = Loader::new(open(folder.path()), augmentation(), options).unwrap();
        loader.next_batch().map(|batch| batch.replaced.len())
    };
    assert_eq!(run(0.45).unwrap(), 9, "a share that is just allowed");
    let error = run(0.4).unwrap_err();
    assert_eq!(
        error.to_string(),
        "9 of 20 images cannot be read or decoded, more than 8 and more than the share of 0.4 that \
         data.max_corrupt_share allows: a/001.png, a/003.png, a/005.png, a/006.png, a/007.png, b/012.png, b/013.png, \
         b/015.png, b/016.png"
    );
    let Err(Error::TooManyCorrupt { paths, .. }) = run(0.0) else { panic!("none is allowed") };
    assert_eq!(paths.len(), 1);
}

/// The rule itself: more than eight, and more than the share; a share of 0 is a rule of its own.
#[test]
fn a_few_corrupt_images_are_tolerated_whatever_share_they_are() {
    #[track_caller]
    fn check(n: usize, len: usize, max_share: f64, expected: bool) {
        assert_eq!(crate::tolerates(n, len, max_share), expected, "{n} of {len}, {max_share}");
    }
    check(8, 8, 0.01, true);
    check(9, 899, 0.01, false);
    check(9, 900, 0.01, true);
    check(10, 900, 0.01, false);
    check(0, 900, 0.0, true);
    check(1, 900, 0.0, false);
    check(900, 900, 1.0, true);
}

#[test]
fn a_missing_file_is_replaced_like_a_damaged_one() {
    let folder = tempfile::tempdir().unwrap();
    write_dataset(folder.path(), 20, &[3]);
    let dataset = open(folder.path());
    let damaged = batches(&dataset, options(10), 3);
    std::fs::remove_file(folder.path().join("a/003.png")).unwrap();
    let missing = batches(&dataset, options(10), 3);
    for (missing, damaged) in missing.iter().zip(&damaged) {
        assert!(missing.images == damaged.images, "step {}: another replacement", missing.step);
    }
    let replaced: Vec<_> = missing.iter().flat_map(|batch| &batch.replaced).collect();
    let expected = Replaced { path: "a/003.png".to_owned(), reason: "there is no such file".to_owned() };
    assert_eq!(replaced, [&expected]);
}

#[test]
fn a_data_set_that_is_gone_is_one_error_and_not_one_of_each_image() {
    let error_of = |dataset: Arc<Dataset>| {
        let options = LoaderOptions { max_corrupt_share: 1.0, ..options(6) };
        Loader::new(dataset, augmentation(), options).unwrap().next_batch().unwrap_err()
    };
    for emptied in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("images");
        write_dataset(&root, 6, &[]);
        let dataset = open(&root);
        std::fs::remove_dir_all(&root).unwrap();
        if emptied {
            // As where a disk is no longer mounted.
            std::fs::create_dir(&root).unwrap();
        }
        let error = error_of(dataset);
        assert!(matches!(&error, Error::RootGone { path } if *path == root), "{error}");
        assert!(error.to_string().contains("(data.source or eval.data)"), "{error}");
    }
}

#[test]
fn a_panic_reaches_the_caller_and_later_batches_still_come() {
    let folder = tempfile::tempdir().unwrap();
    write_dataset(folder.path(), 8, &[]);
    let mut broken = augmentation();
    broken.views[1].ops = vec![Op::Blur { p: 1.0, kernel: 99 }];
    let mut loader = Loader::new(open(folder.path()), broken, options(4)).unwrap();
    for step in 0..3 {
        let error = loader.next_batch().unwrap_err();
        let expected = format!(
            "a data loader thread panicked while preparing step {step}: a kernel of 99 pixels on an image of 12"
        );
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn buffers_are_used_again() {
    let folder = tempfile::tempdir().unwrap();
    write_dataset(folder.path(), 12, &[]);
    let mut loader = Loader::new(open(folder.path()), augmentation(), options(4)).unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..20 {
        let batch = loader.next_batch().unwrap();
        seen.insert(batch.images.as_ptr());
        loader.recycle(batch);
    }
    // Two ahead, one with the consumer.
    assert!(seen.len() <= 3, "{} buffers", seen.len());
}

#[test]
fn a_batch_larger_than_the_set_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    write_dataset(folder.path(), 8, &[]);
    let error = Loader::new(open(folder.path()), augmentation(), options(9)).err().unwrap();
    assert!(
        error.to_string().starts_with("a global batch of 9 images cannot be drawn from a data set of 8"),
        "{error}"
    );
}

/// Dropping joins the threads, whether they wait for room, are at work, or wait for nothing.
#[test]
fn dropping_ends_the_threads() {
    let folder = tempfile::tempdir().unwrap();
    write_dataset(folder.path(), 12, &[]);
    let dataset = open(folder.path());
    for taken in [0, 1, 5] {
        let mut loader = Loader::new(Arc::clone(&dataset), augmentation(), options(4)).unwrap();
        for _ in 0..taken {
            loader.next_batch().unwrap();
        }
    }
    assert_eq!(Arc::strong_count(&dataset), 1, "no thread holds the set any more");
}
