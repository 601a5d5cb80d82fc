use super::*;
use kernels::KernelPath;

const SEVEN: Epochs = Epochs { steps_per_epoch: 7, origin: EpochOrigin { step: 0, epoch: 0 } };

fn config(text: &str) -> RunConfig {
    RunConfig::from_toml(text).unwrap()
}

#[test]
fn an_impossible_batch_is_refused_by_its_key() {
    #[track_caller]
    fn check(global_batch: usize, n_images: usize, world_size: usize, expected: &str) {
        let error = check_batch(global_batch, n_images, world_size).unwrap_err();
        assert_eq!((error.to_string().as_str(), error.exit_code()), (expected, 2));
    }
    check(64, 63, 1, "train.global_batch = 64: the data set has 63 images; use at most that many");
    check(2, 63, 3, "train.global_batch = 2: each of the 3 workers needs at least one image");
    assert!(check_batch(64, 64, 4).is_ok());
}

#[test]
fn the_limit_of_pixels_holds_for_both_data_sets() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a/0.png", "a/1.png"] {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        image::RgbImage::new(5, 3).save(path).unwrap();
    }
    let source = dir.path().display();
    let with = |max_pixels: usize| {
        config(&format!(
            "[data]\nsource = \"{source}\"\nmax_pixels = {max_pixels}\n[eval]\ndata = \"{source}\"\n\
             [train]\nglobal_batch = 2\n[model]\narch = \"resnet20\"\n"
        ))
    };
    let decodes = |max_pixels| {
        let plan = Plan::resolve(&with(max_pixels), 0, 1).unwrap();
        [plan.dataset.load(0).is_ok(), plan.test.unwrap().load(0).is_ok()]
    };
    assert_eq!(decodes(15), [true; 2]);
    assert_eq!(decodes(14), [false; 2]);
}

#[test]
fn what_a_bank_cannot_do_is_refused() {
    let refused = |text: &str, world_size| {
        let text = format!("[objective]\nkind = \"npid\"\n{text}");
        check_bank(&config(&text), world_size).map_err(|error| error.to_string()).err()
    };
    assert_eq!(refused("negatives = 5\nexclude_positive = true\n", 2), None);
    let all = refused("negatives = 0\nexclude_positive = true\n", 2).unwrap();
    assert!(all.starts_with("objective.exclude_positive = true: with objective.negatives = 0"), "{all}");
    let local = "[bank]\nrefresh_age = 9\n[model]\nbatch_norm = \"local\"\n";
    assert_eq!(refused(local, 1), None);
    assert!(refused(local, 2).unwrap().starts_with("bank.refresh_age = 9: "));
}

#[test]
fn a_temperature_whose_exponentials_overflow_is_refused() {
    let of_kind = |kind, t| {
        let text = format!("[objective]\nkind = \"{kind}\"\ntemperature = {t}\n");
        check_temperature(&config(&text)).map_err(|error| error.to_string())
    };
    assert_eq!(of_kind("moco", 0.03), Ok(()));
    assert_eq!(of_kind("simclr", 0.001), Ok(()));
    assert!(of_kind("moco-v3", 0.02).is_err());
    let refused = "objective.temperature = 0.01: objective.kind = pirl takes 0.03 or more";
    assert_eq!(of_kind("pirl", 0.01), Err(refused.to_owned()));
}

#[test]
fn patches_tile_what_a_transformer_sees() {
    let of = |patch, size, kind: &str| {
        let text = format!(
            "[model]\narch = \"vit-24-2-3\"\npatch = {patch}\nhead = \"linear-8\"\n[data]\nsize = {size}\n\
             [objective]\nkind = \"{kind}\"\n"
        );
        check_patch(&config(&text)).map_err(|error| error.to_string())
    };
    assert_eq!(of(4, 32, "simclr"), Ok(()));
    assert_eq!(of(16, 224, "pirl"), Ok(()));
    assert_eq!(of(5, 32, "simclr"), Err("model.patch = 5: it must divide data.size = 32".to_owned()));
    let jigsaw = of(16, 32, "pirl").unwrap_err();
    assert!(
        jigsaw.starts_with("model.patch = 16: objective.kind = pirl cuts views of 32 pixels"),
        "{jigsaw}"
    );
    assert!(check_patch(&config("[data]\nsize = 33\n")).is_ok(), "no transformer");
}

#[test]
fn a_chunk_without_images_for_a_rank_is_refused() {
    let layout_of = |chunk| layout(&config(&format!("[train]\nglobal_batch = 9\nchunk = {chunk}\n")), 2);
    assert_eq!(layout_of(3).unwrap().n_chunks(), 3);
    let error = layout_of(4).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().starts_with("train.chunk = 4: some chunk of the 9 images has none"), "{error}");
}

/// Both networks of MoCo are planned for a chunk, and everything else stays.
#[test]
fn predicted_memory_follows_the_chunk() {
    let predicted = |chunk| {
        let text = format!(
            "[train]\nglobal_batch = 64\nchunk = {chunk}\n[model]\narch = \"resnet20\"\nstem = \"cifar\"\n\
             [objective]\nkind = \"moco\"\nqueue = 1\n"
        );
        Plan::resolve(&config(&text), 0, 1)
            .unwrap()
            .predicted_bytes(&DeviceOptions::of_threads(1, KernelPath::detect()))
    };
    let [whole, half, quarter] = [0, 32, 16].map(predicted);
    // Weights, their gradients and the convolutions' scratch stay; activations are proportional to the chunk.
    let (first, second) = ((whole - half) as f64, (half - quarter) as f64);
    assert!((first / second - 2.0).abs() < 0.1, "{whole} {half} {quarter}");
    assert!(first > 0.3 * whole as f64, "{whole} {half} {quarter}");
}

#[test]
fn epochs_count_whole_batches_and_the_warm_up_ends_with_the_run() {
    let epochs = config("[run]\nepochs = 3\n[schedule]\nwarmup_steps = 100\n[optimizer]\nlr = 0.5\n");
    let plan = schedule(&epochs, SEVEN);
    assert_eq!((plan.total_steps, plan.warmup_steps, plan.base_lr), (21, 21, 0.5));
    let steps = config("[run]\nsteps = 300\n[schedule]\nwarmup_steps = 100\n");
    let plan = schedule(&steps, SEVEN);
    assert_eq!((plan.total_steps, plan.warmup_steps), (300, 100));
}

/// The third pass began anew at step 10, with 5 updates each instead of 4.
#[test]
fn passes_of_another_length_are_counted_from_where_it_changed() {
    let epochs = Epochs { steps_per_epoch: 5, origin: EpochOrigin { step: 10, epoch: 2 } };
    assert_eq!([0, 1, 2, 3, 4].map(|n| epochs.updates(n)), [0, 5, 10, 15, 20]);
    assert_eq!([10, 15, 16].map(|step| epochs.at(step)), [2.0, 3.0, 3.2]);
    assert_eq!([0, 7, 10].map(|step| SEVEN.at(step)), [0.0, 1.0, 10.0 / 7.0]);
}

#[test]
fn milestones_become_updates() {
    let steps =
        config("[schedule]\nkind = \"step\"\nmilestones = [2, 3]\ngamma = 0.5\n[optimizer]\nlr = 0.8\n");
    let plan = schedule(&steps, SEVEN);
    assert_eq!([13, 14, 20, 21].map(|update| plan.lr(update)), [0.8, 0.4, 0.4, 0.2]);
    let cosine = config("[run]\nsteps = 8\n[schedule]\nfinal_lr = 0.25\n");
    assert_eq!(schedule(&cosine, SEVEN).lr(8), 0.25);
}

#[test]
fn names_become_the_engines_types() {
    let config = config(
        "[optimizer]\nkind = \"lars\"\nmomentum = 0.8\neta = 0.01\n[data]\nsize = 16\nstd = [0.5, 0.25, 0.125]\n",
    );
    assert_eq!(optimizer_spec(&config).kind, OptimizerKind::Lars { momentum: 0.8, eta: 0.01 });
    let preprocess = augmentation(&config).unwrap().preprocess();
    assert_eq!((preprocess.size, preprocess.mean, preprocess.std), (16, [0.0; 3], [0.5, 0.25, 0.125]));
}

#[test]
fn every_pipeline_that_can_be_configured_exists() {
    for name in config::Augment::NAMES {
        assert!(augmentation(&config(&format!("[data]\naugment = \"{name}\"\n"))).is_ok(), "{name}");
    }
}
