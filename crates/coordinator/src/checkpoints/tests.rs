//! When a checkpoint is written, and when one stands already.

use super::*;
use crate::run_dir::tests::directory;
use tempfile::TempDir;

const CONFIG: &str = "[run]\nsteps = 9\n";

/// A plan of two shards for step 5 that has a list of images.
fn plan(run: &TempDir) -> Plan {
    let list = checkpoint::digest(b"list");
    let metadata =
        serde_json::json!({ checkpoint::IMAGES_KEY: { checkpoint::LIST_KEY: checkpoint::hex(&list) } });
    Plan {
        fence: Fence { run_id: "run".to_owned(), incarnation: 1, generation: 2 },
        run_dir: run.path().to_owned(),
        step: 5,
        shard_limits: vec![200, 100],
        may_stand: true,
        keep: 2,
        config_toml: CONFIG.to_owned(),
        metadata: metadata.as_object().unwrap().clone(),
        images: Some(list),
    }
}

fn fill(checkpoints: &Checkpoints, fence: &Fence, id: &str, part: Part, bytes: &[u8]) {
    let (mut writer, _) = checkpoints.part(fence, id, part).unwrap();
    writer.append(bytes).unwrap();
    writer.finish(&checkpoint::digest(bytes)).unwrap();
}

/// The open checkpoint's name, and whether it wants the list of images.
#[track_caller]
fn opened(begun: Result<Begun, Error>) -> (String, bool) {
    match begun.unwrap() {
        Begun::Open { id, wants_images } => (id, wants_images),
        Begun::Stands(info) => panic!("{info:?} stands"),
    }
}

/// A run that has committed [`plan`].
fn committed() -> (TempDir, Checkpoints, CheckpointInfo) {
    let run = directory();
    let checkpoints = Checkpoints::default();
    let (plan, fence) = (plan(&run), plan(&run).fence);
    let (id, wants_images) = opened(checkpoints.begin(plan));
    assert!(wants_images);
    fill(&checkpoints, &fence, &id, Part::Shard(0), b"zero");
    fill(&checkpoints, &fence, &id, Part::Shard(1), b"one");
    fill(&checkpoints, &fence, &id, Part::Images, b"list");
    let info = checkpoints.commit(&fence, &id).unwrap();
    (run, checkpoints, info)
}

fn names(run: &TempDir) -> Vec<String> {
    let entries = std::fs::read_dir(run.path().join("checkpoints")).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn the_same_step_again_is_the_one_that_stands() {
    let (run, checkpoints, info) = committed();
    let before = names(&run);
    match checkpoints.begin(plan(&run)).unwrap() {
        Begun::Stands(stands) => assert_eq!(stands, info),
        Begun::Open { .. } => panic!("it is written anew"),
    }
    assert_eq!((info.step, info.bytes, info.world_size), (5, 7, 2));
    assert_eq!(names(&run), before, "nothing was written");
    // A generation that goes on from it takes it for its own.
    let next = Fence { generation: 3, ..plan(&run).fence };
    assert!(matches!(checkpoints.begin(Plan { fence: next, ..plan(&run) }).unwrap(), Begun::Stands(_)));
}

/// Whatever `change` makes of the plan, or of the run's directory, is written anew.
#[track_caller]
fn check_anew(change: impl FnOnce(&mut Plan)) {
    let (run, checkpoints, _) = committed();
    let mut plan = plan(&run);
    change(&mut plan);
    opened(checkpoints.begin(plan));
    assert!(names(&run).iter().any(|name| name.ends_with(".tmp")));
}

#[test]
fn what_differs_from_what_stands_is_written_anew() {
    check_anew(|plan| plan.may_stand = false);
    check_anew(|plan| plan.step = 6);
    check_anew(|plan| plan.shard_limits = vec![200; 3]);
    check_anew(|plan| plan.config_toml.push_str("seed = 1\n"));
    check_anew(|plan| plan.images = Some(checkpoint::digest(b"another list")));
    check_anew(|plan| plan.images = None);
    let manifest = |plan: &Plan| plan.run_dir.join("checkpoints/step-00000005/manifest.json");
    check_anew(|plan| std::fs::write(manifest(plan), "{}").unwrap());
    check_anew(|plan| std::fs::remove_file(manifest(plan)).unwrap());
    let list = |plan: &Plan| {
        let name = format!("checkpoints/images-{}.list", checkpoint::hex(&plan.images.unwrap()));
        plan.run_dir.join(name)
    };
    check_anew(|plan| std::fs::remove_file(list(plan)).unwrap());
}

#[test]
fn every_part_comes_with_its_limit() {
    let run = directory();
    let checkpoints = Checkpoints::default();
    let (id, _) = opened(checkpoints.begin(plan(&run)));
    let limit = |part| checkpoints.part(&plan(&run).fence, &id, part).map(|(_, limit)| limit);
    assert_eq!(limit(Part::Shard(0)).unwrap(), 200);
    assert_eq!(limit(Part::Shard(1)).unwrap(), 100);
    assert_eq!(limit(Part::Images).unwrap(), 1 << 30);
    assert!(limit(Part::Shard(2)).is_err());
}

/// What a run has begun goes with it, what is still being written into it as well, and nothing begins after its end.
#[test]
fn the_end_of_a_generation_leaves_no_staging() {
    let run = directory();
    let checkpoints = Checkpoints::default();
    let fence = plan(&run).fence;
    let (id, _) = opened(checkpoints.begin(plan(&run)));
    let (mut writer, _) = checkpoints.part(&fence, &id, Part::Shard(0)).unwrap();
    checkpoints.end("run", 2);
    assert_eq!(names(&run), [""; 0]);
    writer.append(b"zero").unwrap();
    writer.finish(&checkpoint::digest(b"zero")).unwrap();
    assert!(matches!(checkpoints.part(&fence, &id, Part::Shard(1)), Err(Error::NotOpen(_))));
    assert!(matches!(checkpoints.commit(&fence, &id), Err(Error::NotOpen(_))));
    assert_eq!(names(&run), [""; 0]);

    assert!(matches!(checkpoints.begin(plan(&run)), Err(Error::NotOpen(_))));
    assert_eq!(names(&run), [""; 0]);
    let next = Plan { fence: Fence { generation: 3, ..fence }, ..plan(&run) };
    opened(checkpoints.begin(next));
}
