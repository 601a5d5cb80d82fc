//! Checkpoints on a real disk: written, broken on purpose, found again.

mod links;

use crate::{
    Description, Directory, Error, Manifest, Staging, State, Tensor, checkpoint_dir, digest, encode_shard,
    list, load, locate, newest_good, retain, shard_file, verify,
};
use std::fs;
use std::path::{Path, PathBuf};

fn tensors(step: u64) -> [Tensor<'static>; 3] {
    [
        Tensor::from_f32("model.backbone.conv1.weight", &[2, 2], &[step as f32, 1.0, -2.5, 3.0]).into_owned(),
        Tensor::from_i64("model.backbone.bn1.num_batches_tracked", step as i64),
        Tensor::from_u64("counters.updates", step),
    ]
}

fn description() -> Description {
    let metadata = serde_json::json!({"config_toml": "[run]\nseed = 1\n", "threads": 2});
    Description {
        run_id: "the-run".to_owned(),
        world_size: 2,
        config_digest: "c".to_owned(),
        time_ns: 1,
        metadata: metadata.as_object().unwrap().clone(),
    }
}

fn opened(path: &Path) -> Directory {
    Directory::open(path).unwrap()
}

/// A staging of two shards in which everything has arrived, in small chunks.
fn staged(run: &Path, step: u64, generation: u64) -> Staging {
    let staging = Staging::begin(&opened(run), step, generation, 2).unwrap();
    let all = tensors(step);
    for (index, part) in [&all[..2], &all[2..]].into_iter().enumerate() {
        let bytes = encode_shard(part);
        let mut writer = staging.shard(index).unwrap();
        for (i, chunk) in bytes.chunks(7).enumerate() {
            writer.write_at(i as u64 * 7, chunk).unwrap();
        }
        writer.finish(&digest(&bytes)).unwrap();
    }
    staging
}

fn save(run: &Path, step: u64) -> PathBuf {
    staged(run, step, 1).commit(description()).unwrap().path
}

fn steps(run: &Path) -> Vec<u64> {
    let (checkpoints, problems) = list(&opened(run)).unwrap();
    assert!(problems.is_empty(), "{problems:?}");
    checkpoints.iter().map(|checkpoint| checkpoint.step).collect()
}

/// What lies in the run's `checkpoints`, hidden or not.
fn names(run: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(run.join("checkpoints"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_checkpoint_comes_back_as_it_was() {
    let run = tempfile::tempdir().unwrap();
    let info = staged(run.path(), 12, 3).commit(description()).unwrap();
    assert_eq!(info.path, run.path().join("checkpoints/step-00000012"));
    assert_eq!((info.step, info.world_size, info.time_ns), (12, 2, 1));
    assert_eq!(names(run.path()), ["step-00000012"]);

    let (manifest, state) = load(&info.path, |_| true).unwrap();
    let (_, counters) = load(&info.path, |name| name.starts_with("counters.")).unwrap();
    assert_eq!(counters.tensors().len(), 1);
    assert_eq!((manifest.step, manifest.generation), (12, 3));
    assert_eq!(manifest.metadata, description().metadata);
    assert_eq!(manifest.total_bytes(), info.bytes);
    for tensor in tensors(12) {
        assert_eq!(state.get(&tensor.name).unwrap(), &tensor);
    }
    assert_eq!(list(&opened(run.path())).unwrap().0, std::slice::from_ref(&info));
    assert_eq!(locate(run.path()).unwrap().dir, info.path);
    assert_eq!(locate(&info.path).unwrap().dir, info.path);
}

/// Damages one file of step 2 and asserts that it is named, and that step 1 takes over.
#[track_caller]
fn check_damage(run: &Path, file: &str, damaged: &[u8]) {
    let dir = checkpoint_dir(run, 2);
    let path = dir.join(file);
    let intact = fs::read(&path).unwrap();
    fs::write(&path, damaged).unwrap();
    let problems = verify(&dir);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].to_string().contains(file), "{}", problems[0]);
    assert_eq!(problems[0].exit_code(), 3);
    assert_eq!(load(&dir, |_| true).unwrap_err().to_string(), problems[0].to_string());
    let (good, problems) = newest_good(&opened(run));
    assert_eq!(good.unwrap().path(), checkpoint_dir(run, 1));
    assert_eq!(problems.len(), 1);
    fs::write(&path, intact).unwrap();
}

#[test]
fn every_flipped_byte_and_every_truncation_is_found_and_named() {
    let run = tempfile::tempdir().unwrap();
    save(run.path(), 1);
    let dir = save(run.path(), 2);
    for file in ["manifest.json".to_owned(), shard_file(0, 2), shard_file(1, 2)] {
        let intact = fs::read(dir.join(&file)).unwrap();
        for position in 0..intact.len() {
            let mut flipped = intact.clone();
            flipped[position] ^= 1 << (position % 8);
            check_damage(run.path(), &file, &flipped);
            check_damage(run.path(), &file, &intact[..position]);
        }
        check_damage(run.path(), &file, &[&intact[..], b" "].concat());
    }
    assert!(verify(&dir).is_empty());
}

#[test]
fn damage_is_described_with_what_was_expected() {
    let run = tempfile::tempdir().unwrap();
    let dir = save(run.path(), 2);
    let path = dir.join(shard_file(1, 2));
    let intact = fs::read(&path).unwrap();

    fs::write(&path, &intact[1..]).unwrap();
    let error = load(&dir, |_| true).unwrap_err().to_string();
    assert_eq!(
        error,
        format!("{} is truncated: {} bytes instead of {}", path.display(), intact.len() - 1, intact.len())
    );

    let mut flipped = intact.clone();
    flipped[9] ^= 1;
    fs::write(&path, &flipped).unwrap();
    let error = load(&dir, |_| true).unwrap_err();
    let (expected, actual) = (crate::hex(&digest(&intact)), crate::hex(&digest(&flipped)));
    assert_eq!(
        error.to_string(),
        format!("{} was altered: its BLAKE3 digest is {actual} instead of {expected}", path.display())
    );
    assert!(error.hint().unwrap().contains("restore the file"));

    fs::remove_file(&path).unwrap();
    assert_eq!(load(&dir, |_| true).unwrap_err().to_string(), format!("{} is missing", path.display()));

    // Nothing else is there to go on from.
    let error = locate(run.path()).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert!(error.to_string().ends_with("is missing"), "{error}");
}

#[test]
fn a_checkpoint_under_another_steps_name_is_refused() {
    let run = tempfile::tempdir().unwrap();
    let dir = save(run.path(), 2);
    let renamed = checkpoint_dir(run.path(), 3);
    fs::rename(dir, &renamed).unwrap();
    let error = load(&renamed, |_| true).unwrap_err();
    assert!(error.to_string().contains("it is of step 2, its directory is named after step 3"), "{error}");
    // A copy under a name of the user's own is fine.
    let copy = run.path().join("my-best");
    fs::rename(renamed, &copy).unwrap();
    assert_eq!(load(&copy, |_| true).unwrap().0.step, 2);
    assert_eq!(locate(&copy).unwrap().dir, copy);
}

/// A writer that knows how to compute digests: what it says is checked all the same.
#[test]
fn a_hostile_manifest_is_refused() {
    let run = tempfile::tempdir().unwrap();
    let dir = save(run.path(), 2);
    let good = Manifest::read(&opened(&dir)).unwrap();

    let mut elsewhere = good.clone();
    elsewhere.shards[0].file = "../step-00000001/manifest.json".to_owned();
    fs::write(dir.join("manifest.json"), elsewhere.to_json()).unwrap();
    assert!(verify(&dir)[0].to_string().contains("shard 0 is called"));

    let mut huge = good.clone();
    huge.shards[0].bytes = 1 << 60;
    fs::write(dir.join("manifest.json"), huge.to_json()).unwrap();
    assert!(verify(&dir)[0].to_string().contains("bytes instead of 1152921504606846976"));

    // The same tensors in both shards.
    let bytes = fs::read(dir.join(shard_file(0, 2))).unwrap();
    fs::write(dir.join(shard_file(1, 2)), &bytes).unwrap();
    let mut twice = good.clone();
    twice.shards[1] = crate::Shard { file: shard_file(1, 2), ..good.shards[0].clone() };
    fs::write(dir.join("manifest.json"), twice.to_json()).unwrap();
    let error = load(&dir, |_| true).unwrap_err().to_string();
    assert!(error.contains("shard-00001-of-00002") && error.contains("is also in another shard"), "{error}");
}

#[test]
fn a_crash_at_any_point_leaves_the_previous_checkpoint() {
    let run = tempfile::tempdir().unwrap();
    save(run.path(), 1);
    let leftover = ".step-00000002.gen-4.tmp";

    // In the middle of a shard, before the manifest, and before the rename.
    let staging = Staging::begin(&opened(run.path()), 2, 4, 2).unwrap();
    let mut writer = staging.shard(0).unwrap();
    writer.append(b"half of it").unwrap();
    drop((writer, staging));
    assert_eq!(names(run.path()), [leftover, "step-00000001"]);
    assert_eq!(steps(run.path()), [1]);

    drop(staged(run.path(), 2, 4));
    assert_eq!(names(run.path()), [leftover, "step-00000001"]);
    assert_eq!(newest_good(&opened(run.path())).0.unwrap().path(), checkpoint_dir(run.path(), 1));

    let manifest = Manifest::read(&opened(&checkpoint_dir(run.path(), 1))).unwrap();
    fs::write(run.path().join("checkpoints").join(leftover).join("manifest.json"), manifest.to_json())
        .unwrap();
    assert_eq!(steps(run.path()), [1]);
    assert_eq!(locate(run.path()).unwrap().dir, checkpoint_dir(run.path(), 1));

    // The next staging, of whatever step, sweeps up.
    let staging = Staging::begin(&opened(run.path()), 3, 5, 1).unwrap();
    assert_eq!(names(run.path()), [".step-00000003.gen-5.tmp", "step-00000001"]);
    staging.abort().unwrap();
    assert_eq!(names(run.path()), ["step-00000001"]);
}

#[test]
fn only_one_writes_at_a_time() {
    let run = tempfile::tempdir().unwrap();
    let staging = staged(run.path(), 2, 1);
    let error = Staging::begin(&opened(run.path()), 3, 2, 1).unwrap_err();
    assert!(matches!(error, Error::Busy { .. }), "{error}");
    assert_eq!(error.exit_code(), 75);
    staging.commit(description()).unwrap();
    assert_eq!(save(run.path(), 3), checkpoint_dir(run.path(), 3));
}

#[test]
fn a_commit_needs_every_shard_and_each_exactly_once() {
    let run = tempfile::tempdir().unwrap();
    let staging = Staging::begin(&opened(run.path()), 2, 1, 3).unwrap();
    let bytes = encode_shard(&tensors(2));

    let mut writer = staging.shard(1).unwrap();
    assert_eq!(staging.shard(1).unwrap_err().to_string(), "shard 1 is being written already");
    writer.append(&bytes).unwrap();
    let error = writer.write_at(3, &bytes).unwrap_err();
    assert_eq!(error.to_string(), format!("shard 1 continues at byte 3 instead of {}", bytes.len()));
    let error = writer.finish(&digest(b"something else")).unwrap_err();
    assert!(matches!(error, Error::Received { part: crate::Part::Shard(1), .. }), "{error}");

    // It did not arrive, so it may be sent again.
    let mut writer = staging.shard(1).unwrap();
    writer.append(&bytes).unwrap();
    let receipt = writer.finish(&digest(&bytes)).unwrap();
    assert_eq!(receipt.bytes, bytes.len() as u64);
    assert_eq!(staging.shard(1).unwrap_err().to_string(), "shard 1 has arrived already");
    assert_eq!(staging.shard(3).unwrap_err().to_string(), "shard 3 is none of the 3 of this checkpoint");

    let error = staging.commit(description()).unwrap_err();
    assert_eq!(error.to_string(), "shards [0, 2] of 3 have not arrived");
    assert_eq!(steps(run.path()), Vec::<u64>::new());
}

#[test]
fn a_step_that_comes_again_replaces_its_checkpoint() {
    let run = tempfile::tempdir().unwrap();
    let dir = save(run.path(), 2);
    fs::write(dir.join(shard_file(0, 2)), b"damaged").unwrap();
    assert_eq!(staged(run.path(), 2, 9).commit(description()).unwrap().path, dir);
    assert_eq!(load(&dir, |_| true).unwrap().0.generation, 9);
    assert_eq!(names(run.path()), ["step-00000002"]);

    // Until it is replaced, the old one keeps its name: a crash before that leaves it in place.
    drop(staged(run.path(), 2, 10));
    assert_eq!(load(&dir, |_| true).unwrap().0.generation, 9);
}

#[test]
fn the_newest_stay_and_so_does_step_zero() {
    let run = tempfile::tempdir().unwrap();
    for step in [0, 5, 10, 15, 20] {
        save(run.path(), step);
    }
    assert_eq!(retain(&opened(run.path()), 4).unwrap(), Vec::<PathBuf>::new());
    assert_eq!(retain(&opened(run.path()), 3).unwrap(), [checkpoint_dir(run.path(), 5)]);
    assert_eq!(names(run.path()), ["step-00000000", "step-00000010", "step-00000015", "step-00000020"]);

    // Damaged ones do not push out good ones, and stay to be looked at.
    let shard = checkpoint_dir(run.path(), 20).join(shard_file(0, 2));
    fs::write(&shard, b"short").unwrap();
    fs::remove_file(checkpoint_dir(run.path(), 15).join("manifest.json")).unwrap();
    assert_eq!(retain(&opened(run.path()), 1).unwrap(), Vec::<PathBuf>::new());
    assert_eq!(newest_good(&opened(run.path())).0.unwrap().path(), checkpoint_dir(run.path(), 10));
    save(run.path(), 25);
    assert_eq!(retain(&opened(run.path()), 0).unwrap(), [checkpoint_dir(run.path(), 10)]);
    assert_eq!(newest_good(&opened(run.path())).0.unwrap().path(), checkpoint_dir(run.path(), 25));
}

#[test]
fn what_is_no_run_is_said_to_be_none() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(steps(dir.path()), Vec::<u64>::new());
    assert!(newest_good(&opened(dir.path())).0.is_none());
    let error = locate(&dir.path().join("nowhere")).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.hint().unwrap().contains("step-*"));
    // A directory with a checkpoint's name and no manifest was one.
    let dir = checkpoint_dir(dir.path(), 7);
    fs::create_dir_all(&dir).unwrap();
    assert!(matches!(locate(&dir).unwrap_err(), Error::Missing { .. }));
}

#[test]
fn a_state_is_the_same_however_it_was_dealt_to_shards() {
    let run = tempfile::tempdir().unwrap();
    let (_, state) = load(&save(run.path(), 4), |_| true).unwrap();
    let whole = State::new(tensors(4)).unwrap();
    let export = |state: &State| encode_shard(&crate::export::state_dict(state).unwrap());
    assert_eq!(export(&state), export(&whole));
}

/// The list of images is kept once, whatever becomes of the checkpoints that name it.
#[test]
fn a_list_of_images_is_kept_once_a_run() {
    let run = tempfile::tempdir().unwrap();
    let list = b"what is in it, this crate does not know";
    let of_list = digest(list);
    let commit = |step: u64, with_list: bool| {
        let staging = staged(run.path(), step, 1);
        assert_eq!(staging.want_images(&of_list), with_list);
        if with_list {
            let mut writer = staging.images().unwrap();
            writer.append(&list[..5]).unwrap();
            writer.append(&list[5..]).unwrap();
            writer.finish(&of_list).unwrap();
        }
        assert!(staging.images().is_err(), "it has come, or is not wanted");
        let mut description = description();
        let named = serde_json::json!({ crate::LIST_KEY: crate::hex(&of_list) });
        description.metadata.insert(crate::IMAGES_KEY.to_owned(), named);
        staging.commit(description).unwrap().path
    };
    let first = commit(1, true);
    let second = commit(2, false);
    let file = format!("images-{}.list", crate::hex(&of_list));
    assert_eq!(names(run.path()), [&file, "step-00000001", "step-00000002"]);
    assert_eq!(retain(&opened(run.path()), 1).unwrap(), [first]);
    let read = || crate::read_images(&opened(run.path()), &Manifest::read(&opened(&second)).unwrap());
    assert_eq!(read().unwrap().as_deref(), Some(&list[..]));
    assert!(verify(&second).is_empty());

    let path = run.path().join("checkpoints").join(&file);
    fs::write(&path, b"another").unwrap();
    let error = read().unwrap_err();
    assert!(error.to_string().contains(&file) && error.exit_code() == 3, "{error}");
    fs::remove_file(&path).unwrap();
    assert_eq!(read().unwrap(), None);
    // Wanted and not there: nothing is committed, and what was staged is left for the next one to remove.
    let staging = staged(run.path(), 3, 1);
    assert!(staging.want_images(&of_list));
    let error = staging.commit(description()).unwrap_err();
    assert_eq!(error.to_string(), "the list of images has not arrived");
    assert_eq!(names(run.path()), [".step-00000003.gen-1.tmp", "step-00000002"]);
    let staging = Staging::begin(&opened(run.path()), 3, 2, 2).unwrap();
    assert_eq!(staging.images().unwrap_err().to_string(), "the list of images is not wanted: the run has it");
    assert!(staging.want_images(&of_list));
    let error = staging.commit(description()).unwrap_err();
    assert_eq!(error.to_string(), "shards [0, 1] of 2 and the list of images have not arrived");
}

#[test]
fn a_list_goes_with_the_last_checkpoint_that_names_it() {
    let run = tempfile::tempdir().unwrap();
    let commit = |step: u64, list: &[u8]| {
        let staging = staged(run.path(), step, 1);
        let digest = digest(list);
        if staging.want_images(&digest) {
            let mut writer = staging.images().unwrap();
            writer.append(list).unwrap();
            writer.finish(&digest).unwrap();
        }
        let mut description = description();
        let named = serde_json::json!({ crate::LIST_KEY: crate::hex(&digest) });
        description.metadata.insert(crate::IMAGES_KEY.to_owned(), named);
        staging.commit(description).unwrap();
    };
    let lists = || {
        let names = names(run.path());
        names.into_iter().filter(|name| name.starts_with("images-")).collect::<Vec<_>>()
    };
    let [before, after] =
        [b"before", &b"after"[..]].map(|list| format!("images-{}.list", crate::hex(&digest(list))));
    commit(1, b"before");
    commit(2, b"before");
    commit(3, b"after");
    retain(&opened(run.path()), 2).unwrap();
    assert_eq!(lists().len(), 2, "step 2 still names the first");

    // One that is being written may count on a list that no other names.
    let staging = Staging::begin(&opened(run.path()), 4, 1, 1).unwrap();
    retain(&opened(run.path()), 1).unwrap();
    assert_eq!(lists().len(), 2);
    staging.abort().unwrap();
    commit(4, b"after");
    retain(&opened(run.path()), 1).unwrap();
    assert_eq!(lists(), [after]);
    assert!(!run.path().join("checkpoints").join(before).exists());
}

/// A name in a manifest is a digest, and never a path.
#[test]
fn only_a_digest_names_a_list() {
    let run = tempfile::tempdir().unwrap();
    fs::write(run.path().join("secret.list"), "").unwrap();
    for named in ["../secret", "", "0", &"/".repeat(64), &"é".repeat(32)] {
        let mut description = description();
        let list = serde_json::json!({ crate::LIST_KEY: named });
        description.metadata.insert(crate::IMAGES_KEY.to_owned(), list);
        let path = staged(run.path(), 1, 1).commit(description).unwrap().path;
        assert_eq!(crate::images::named_list(&Manifest::read(&opened(&path)).unwrap()), None, "{named:?}");
    }
}
