use super::*;
use crate::fixtures;
use crate::plan::limits;
use std::fs;
use std::path::PathBuf;

const CLASSES: [(&str, [u8; 3]); 2] = [("a", [150, 20, 20]), ("b", [20, 150, 20])];

/// A folder of 24 images, and a run on it that made a checkpoint at step 7: batches of 8, so 3 steps an epoch.
struct Fixture {
    dir: tempfile::TempDir,
    config: RunConfig,
    past: Past,
}

impl Fixture {
    fn new(kind: &str) -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        fixtures::images(&dir.path().join("set"), &CLASSES, 12);
        let text = format!(
            "[data]\nsource = \"{}\"\n[objective]\nkind = \"{kind}\"\n[train]\nglobal_batch = 8\n",
            dir.path().join("set").display()
        );
        let config = RunConfig::from_toml(&text).unwrap();
        let list = Images::open(&config, limits(&config), None).unwrap().list();
        let past = Past { step: 7, list: PastList::Bytes(list), ..Past::default() };
        Fixture { dir, config, past }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("set").join(name)
    }

    /// The list of the checkpoint.
    fn list(&self) -> Option<&Vec<u8>> {
        let PastList::Bytes(list) = &self.past.list else { return None };
        Some(list)
    }

    fn open(&self) -> Result<Images, Error> {
        Images::open(&self.config, limits(&self.config), Some(&self.past))
    }

    /// The message and hint that refuse the set as it is now.
    #[track_caller]
    fn refused(&self) -> String {
        let error = self.open().err().expect("it is refused");
        assert_eq!(error.exit_code(), 2, "{error}");
        format!("{error}; {}", error.hint().unwrap())
    }
}

fn names(images: &Images) -> Vec<String> {
    (0..images.train.len()).map(|index| images.train.path_of(index)).collect()
}

#[test]
fn the_same_set_goes_on_without_a_word_wherever_it_lies() {
    for kind in ["simclr", "npid"] {
        let mut fixture = Fixture::new(kind);
        assert_eq!(fixture.open().unwrap().notices, [""; 0]);
        let moved = fixture.dir.path().join("moved/here");
        fs::create_dir_all(moved.parent().unwrap()).unwrap();
        fs::rename(fixture.dir.path().join("set"), &moved).unwrap();
        fixture.config.data.source = moved.to_str().unwrap().to_owned();
        let images = fixture.open().unwrap();
        assert_eq!(images.notices, [""; 0]);
        // The next checkpoint names the same list.
        assert_eq!(Some(&images.list()), fixture.list());
    }
}

/// The renamed image was the second: without a list, all behind it would be another image than before.
#[test]
fn a_renamed_image_moves_no_other() {
    for kind in ["simclr", "npid", "pirl", "moco"] {
        let fixture = Fixture::new(kind);
        let before = names(&fixture.open().unwrap());
        fs::rename(fixture.path("a/001.png"), fixture.path("b/zzz.png")).unwrap();
        let images = fixture.open().unwrap();
        assert_eq!(names(&images), before);
        assert_eq!(images.notices.len(), 2, "{:?}", images.notices);
        assert!(images.notices[0].starts_with("image a/001.png of the run's list is no longer in "));
        assert!(
            images.notices[1].starts_with("image b/zzz.png of ") && images.notices[1].ends_with("left out")
        );
        assert_eq!(Some(&images.list()), fixture.list());
        assert_eq!(images.origin, EpochOrigin::default());
    }
}

#[test]
fn images_that_were_added_are_left_out_and_counted() {
    let fixture = Fixture::new("npid");
    fixtures::images(&fixture.path(""), &[("c", [9, 9, 9])], 3);
    let images = fixture.open().unwrap();
    assert_eq!(images.train.len(), 24);
    assert_eq!(images.train.class_names(), ["a", "b"]);
    assert!(images.notices[0].starts_with("3 images, the first c/000.png, of "), "{:?}", images.notices);
}

#[test]
fn another_image_under_an_old_name_is_refused() {
    let replace = |fixture: &Fixture| {
        fs::copy(fixture.path("b/005.png"), fixture.path("a/003.png")).unwrap();
    };
    for kind in ["simclr", "moco"] {
        let mut fixture = Fixture::new(kind);
        replace(&fixture);
        let refused = fixture.refused();
        assert!(
            refused.contains(
                "set is not the data set of the checkpoint: a/003.png is not the image that it was"
            )
        );
        assert!(refused.contains("--accept-changed-data"), "{refused}");
        // Taken as it is: as many images, so that the epoch goes on.
        fixture.past.accept_changes = true;
        let images = fixture.open().unwrap();
        assert!(images.notices[0].ends_with("is taken as it is now, with 24 images instead of 24"));
        assert_eq!(images.origin, EpochOrigin::default());
        assert_ne!(Some(&images.list()), fixture.list(), "the next checkpoint lists what is there now");
    }
    for kind in ["npid", "pirl"] {
        let mut fixture = Fixture::new(kind);
        replace(&fixture);
        for accept in [false, true] {
            fixture.past.accept_changes = accept;
            let refused = fixture.refused();
            assert!(
                refused.contains(&format!("objective.kind = {kind} keeps an entry for each image")),
                "{refused}"
            );
            assert!(!refused.contains("--accept-changed-data"), "{refused}");
        }
    }
}

#[test]
fn accepted_with_another_count_the_epoch_begins_anew() {
    let mut fixture = Fixture::new("simclr");
    fixture.past.accept_changes = true;
    fixtures::images(&fixture.path(""), &[("c", [9, 9, 9])], 8);
    let images = fixture.open().unwrap();
    assert_eq!((images.train.len(), images.train.class_names().len()), (32, 3));
    // Seven steps of three an epoch: the third epoch was in progress.
    assert_eq!(images.origin, EpochOrigin { step: 7, epoch: 2 });
    assert!(
        images.notices[0].ends_with("with 32 images instead of 24: epoch 2 begins anew at step 7"),
        "{:?}",
        images.notices
    );
    // And again, from a checkpoint that was counted so: four steps an epoch since step 7.
    fixture.past =
        Past { step: 12, list: PastList::Bytes(images.list()), origin: images.origin, ..fixture.past };
    fs::remove_dir_all(fixture.path("c")).unwrap();
    assert_eq!(fixture.open().unwrap().origin, EpochOrigin { step: 12, epoch: 3 });
    // Nothing changed: the option changes nothing.
    let images = Images::open(&fixture.config, limits(&fixture.config), None).unwrap();
    fixture.past.list = PastList::Bytes(images.list());
    let images = fixture.open().unwrap();
    assert_eq!((images.origin, images.notices), (EpochOrigin { step: 7, epoch: 2 }, Vec::new()));
}

/// A bank goes on with its own images; the option is for objectives that keep none.
#[test]
fn a_bank_passes_over_what_came_and_went() {
    let mut fixture = Fixture::new("npid");
    fixture.past.accept_changes = true;
    fixtures::images(&fixture.path(""), &[("c", [9, 9, 9])], 1);
    fs::remove_file(fixture.path("a/000.png")).unwrap();
    let images = fixture.open().unwrap();
    assert_eq!((images.train.len(), images.notices.len()), (24, 2));
}

#[test]
fn more_gone_than_a_run_tolerates_is_another_set() {
    let mut fixture = Fixture::new("moco");
    for i in 0..8 {
        fs::remove_file(fixture.path(&format!("a/{i:03}.png"))).unwrap();
    }
    assert!(fixture.open().is_ok(), "as many are tolerated as may be corrupt");
    fixture.config.data.max_corrupt_share = 0.0;
    assert!(fixture.refused().contains("8 of its 24 images are gone, the first: a/000.png"));
    fixture.config.data.max_corrupt_share = 0.01;
    fs::remove_file(fixture.path("a/008.png")).unwrap();
    assert!(fixture.refused().contains("9 of its 24 images are gone, the first: a/000.png"));
    fixture.config.data.max_corrupt_share = 0.5;
    assert!(fixture.open().is_ok());
    fixture.config.data.source = "builtin".to_owned();
    assert!(fixture.refused().contains("the built-in images where the list is of image files"));
}

#[test]
fn a_checkpoint_without_a_list_says_so() {
    let mut fixture = Fixture::new("npid");
    for list in [PastList::OfVersion01, PastList::Lost] {
        fixture.past.list = list;
        let notices = fixture.open().unwrap().notices;
        assert!(notices[0].starts_with("the checkpoint has no list of its images"), "{notices:?}");
    }
    fixture.past.list = PastList::Bytes(b"\x89HLIST\r\nwhatever".to_vec());
    let error = fixture.open().err().unwrap();
    assert!(error.to_string().contains("failed to read the data") && error.exit_code() == 3, "{error}");
}

/// Layouts and endings that are taken in another way since: the first resume lists the images, all others have the list.
#[test]
fn a_run_of_version_0_1_goes_on_with_its_images_as_often_as_it_is_resumed() {
    let layouts: [&[&str]; 4] = [
        &["train/a/1.png", "validation/a/1.png"],
        &["train/a/1.png", "train/a/2.gif", "test/a/1.png", "unlabeled/1.png"],
        // Which of these is to be trained on cannot be told today.
        &["val/a/1.png", "test/a/1.png"],
        &["a/1.png", "a/2.bmp", "a/3.png"],
    ];
    let listed: [&[&str]; 4] = [
        &["train/a/1.png", "validation/a/1.png"],
        &["train/a/1.png"],
        &["test/a/1.png", "val/a/1.png"],
        &["a/1.png", "a/3.png"],
    ];
    for (layout, listed) in layouts.into_iter().zip(listed) {
        let mut fixture = Fixture::new("npid");
        let image = fs::read(fixture.path("a/001.png")).unwrap();
        fs::remove_dir_all(fixture.path("")).unwrap();
        for name in layout {
            fs::create_dir_all(fixture.path(name).parent().unwrap()).unwrap();
            fs::write(fixture.path(name), &image).unwrap();
        }
        fixture.past.list = PastList::OfVersion01;
        for resume in 1..=3 {
            let images = fixture.open().unwrap();
            assert_eq!(names(&images), listed, "resumed {resume} times: {:?}", images.notices);
            let in_order =
                open_in_order(&fixture.config, limits(&fixture.config), Some(&fixture.past)).unwrap();
            assert_eq!(in_order.blocks(), images.train.blocks());
            fixture.past.list = PastList::Bytes(images.list());
        }
    }
}

/// Without its list a run of today is opened by the rules of today.
#[test]
fn where_a_list_is_lost_no_image_drops_out() {
    let mut fixture = Fixture::new("npid");
    fs::copy(fixture.path("a/001.png"), fixture.path("b/1.gif")).unwrap();
    for (list, n) in [(PastList::Lost, 25), (PastList::OfVersion01, 24)] {
        fixture.past.list = list;
        assert_eq!(fixture.open().unwrap().train.len(), n);
    }
}

#[test]
fn other_test_images_are_told_and_nothing_more() {
    let mut fixture = Fixture::new("simclr");
    fixture.config.eval.data = Some("builtin#test".to_owned());
    let digest = |images: &Images| checkpoint::hex(&images.test.as_ref().unwrap().1.digest());
    fixture.past.test = Some(digest(&fixture.open().unwrap()));
    assert_eq!(fixture.open().unwrap().notices, [""; 0]);
    fixture.config.eval.data = Some("builtin".to_owned());
    assert!(fixture.open().unwrap().notices[0].starts_with("builtin holds other images than before"));
}

#[test]
fn what_a_manifest_records_comes_back() {
    let fixture = Fixture::new("simclr");
    let mut images = fixture.open().unwrap();
    images.origin = EpochOrigin { step: 40, epoch: 3 };
    let list = checkpoint::digest(&images.list());
    let run = fixture.dir.path().join("run");
    let network = fixtures::network(&fixtures::config(), 2, &fixtures::device());
    let checkpoint =
        fixtures::checkpoint_with(&run, 41, &fixtures::config().to_toml(), &network, |staging, metadata| {
            assert!(staging.want_images(&list));
            let mut writer = staging.images().unwrap();
            writer.append(&images.list()).unwrap();
            writer.finish(&list).unwrap();
            metadata.extend(images.metadata(&list).map(|(key, value)| (key.to_owned(), value)));
        });
    let past = Past::of_run(&run, false).unwrap().unwrap();
    assert_eq!((past.step, past.origin), (41, EpochOrigin { step: 40, epoch: 3 }));
    assert!(matches!(past.list, PastList::Bytes(list) if Some(&list) == fixture.list()));
    // A newer one that is damaged is not what the run goes on from.
    let newer = fixtures::checkpoint_with(&run, 42, &fixtures::config().to_toml(), &network, |_, _| ());
    fs::write(newer.join("shard-00000-of-00002.safetensors"), b"damaged").unwrap();
    assert_eq!(Past::of_run(&run, false).unwrap().unwrap().step, 41);
    fs::remove_dir_all(newer).unwrap();
    // Without the file beside it, as where a checkpoint was copied alone, there is no list; with another, an error.
    let file = run.join(format!("checkpoints/images-{}.list", checkpoint::hex(&list)));
    fs::write(&file, b"something else").unwrap();
    let error = Past::of_run(&run, false).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    fs::remove_file(&file).unwrap();
    assert!(matches!(Past::of_run(&run, false).unwrap().unwrap().list, PastList::Lost));
    fs::remove_dir_all(checkpoint).unwrap();
    assert!(Past::of_run(&run, false).unwrap().is_none());
}
