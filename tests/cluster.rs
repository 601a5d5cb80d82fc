//! A coordinator and agents as processes of their own, as on a cluster.

use crate::support::{
    Process, alive, assert_quiet, checkpoints, children, exported, fail, folder_of_images, himpun, loud,
    metrics, signal, succeed, tiny_run, until,
};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// One coordinator and its agents; every process ends with the test.
struct Cluster {
    directory: tempfile::TempDir,
    coordinator: Process,
    agents: Vec<Process>,
    address: String,
}

impl Cluster {
    fn start(slots: &[usize]) -> Cluster {
        let directory = tempfile::tempdir().unwrap();
        let (coordinator, address) = start_coordinator(directory.path(), "127.0.0.1:0");
        let mut cluster = Cluster { directory, coordinator, agents: Vec::new(), address };
        for (i, slots) in slots.iter().enumerate() {
            let agent = start_agent(cluster.directory.path(), &cluster.address, &format!("node-{i}"), *slots);
            cluster.agents.push(agent);
        }
        cluster
    }

    /// Runs a command that speaks to the coordinator and returns its stdout.
    #[track_caller]
    fn call(&self, arguments: &[&str]) -> String {
        succeed(himpun().env("HIMPUN_COORDINATOR", &self.address).args(arguments))
    }

    #[track_caller]
    fn submit(&self, name: &str, workers: usize, arguments: &[String]) -> (String, PathBuf) {
        let run = self.directory.path().join(name);
        let mut command = himpun();
        command.env("HIMPUN_COORDINATOR", &self.address).args([
            "submit",
            "--json",
            "--workers",
            &workers.to_string(),
            "--out",
        ]);
        let stdout = succeed(command.arg(&run).args(arguments));
        let answer: Value = serde_json::from_str(stdout.trim()).unwrap();
        (answer["run_id"].as_str().unwrap().to_owned(), run)
    }

    #[track_caller]
    fn status(&self, run_id: &str) -> Value {
        serde_json::from_str(self.call(&["status", "--json", run_id]).trim()).unwrap()
    }

    #[track_caller]
    fn until_state(&self, run_id: &str, state: &str) -> Value {
        until(&format!("{run_id} to be {state}"), || {
            let status = self.status(run_id);
            (status["state"] == state).then_some(status)
        })
    }

    /// Asserts that neither the run nor those who served it asked for a person.
    #[track_caller]
    fn assert_quiet(&self, run: &Path) {
        assert_quiet(run, &[]);
        for process in self.agents.iter().chain([&self.coordinator]) {
            assert_eq!(loud(&process.stderr()), [""; 0]);
        }
    }

    fn workers(&self) -> Vec<u32> {
        self.agents.iter().flat_map(|agent| children(agent.id())).map(|(id, _)| id).collect()
    }
}

pub fn start_coordinator(directory: &Path, bind: &str) -> (Process, String) {
    let mut command = himpun();
    command.args(["coordinator", "--bind", bind, "--dir"]).arg(directory.join("coordinator"));
    let mut coordinator = Process::start(&mut command, directory, "coordinator");
    // The line names the address that was bound, the port chosen by the system.
    let line = coordinator.line();
    let address = line.rsplit(' ').next().unwrap().to_owned();
    (coordinator, address)
}

/// What a configuration names below this, each node has in a place of its own.
const DATA_ROOT: &str = "/data-of-the-cluster";

/// Where the node `id` has it.
fn data_of(directory: &Path, id: &str) -> PathBuf {
    directory.join("data").join(id)
}

fn start_agent(directory: &Path, coordinator: &str, id: &str, slots: usize) -> Process {
    let mut command = himpun();
    command.args(["agent", "--coordinator", coordinator, "--id", id, "--slots", &slots.to_string()]);
    command.arg("--data-root").arg(format!("{DATA_ROOT}={}", data_of(directory, id).display()));
    Process::start(&mut command, directory, id)
}

#[test]
fn two_agents_four_workers_submit_to_finish() {
    let cluster = Cluster::start(&[2, 2]);
    let mut arguments = tiny_run(60);
    // The same images, in another place on each node.
    for id in ["node-0", "node-1"] {
        folder_of_images(&data_of(cluster.directory.path(), id), 40);
    }
    let source = format!("data.source={DATA_ROOT}/images");
    for pair in ["checkpoint.keep=2", "checkpoint.at_start=true", &source] {
        arguments.extend(["--set".to_owned(), pair.to_owned()]);
    }
    let (run_id, run) = cluster.submit("run", 4, &arguments);
    until("a trained step", || (!metrics(&run).is_empty()).then_some(()));

    cluster.call(&["pause", &run_id]);
    let paused = cluster.until_state(&run_id, "paused");
    assert_eq!(paused["world_size"], 4);
    assert_eq!(paused["members"].as_array().unwrap().len(), 4);
    let at = metrics(&run).len();
    // Paused: a checkpoint can be taken, and no step is.
    let taken: Value =
        serde_json::from_str(cluster.call(&["checkpoint", "now", "--json", &run_id]).trim()).unwrap();
    assert_eq!(taken["step"].as_u64().unwrap() as usize, at);
    assert_eq!(metrics(&run).len(), at);
    cluster.call(&["resume", &run_id]);
    until("the next step", || (metrics(&run).len() > at).then_some(()));
    cluster.call(&["checkpoint", "now", &run_id]);

    let finished = cluster.until_state(&run_id, "finished");
    assert_eq!(finished["step"], 60);
    assert_eq!(finished["exit_code"], 0);
    for row in metrics(&run) {
        assert_eq!(row["rows_encoded"], serde_json::json!([8, 8, 8, 8]));
    }
    let steps: Vec<u64> = metrics(&run).iter().map(|row| row["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, (1..=60).collect::<Vec<_>>());
    let listed: Value =
        serde_json::from_str(cluster.call(&["checkpoint", "list", "--json", &run_id]).trim()).unwrap();
    // Two are kept, and the one from before the first step.
    assert_eq!(listed.as_array().unwrap().len(), 3, "{listed}");
    assert_eq!((&listed[0]["step"], &listed[2]["step"]), (&0.into(), &60.into()), "{listed}");
    cluster.call(&["checkpoint", "verify", &run_id]);
    let runs: Value = serde_json::from_str(cluster.call(&["runs", "--json"]).trim()).unwrap();
    assert_eq!(runs.as_array().unwrap().len(), 1);
    assert!(cluster.call(&["logs", &run_id]).lines().count() >= 4);
    until("the workers to end", || cluster.workers().is_empty().then_some(()));
    cluster.assert_quiet(&run);
}

/// Resumes a run for a few steps from its newest checkpoint, and compares it with an undisturbed one.
#[track_caller]
fn assert_goes_on(cluster: &Cluster, run: &Path) {
    let end = checkpoints(run).last().unwrap() + 5;
    let set = format!("run.stop_after={end}");
    cluster.call(&["submit", "--wait", "--set", &set, "--resume", run.to_str().unwrap()]);
    assert_eq!(metrics(run).last().unwrap()["step"], end);
    let mut arguments = tiny_run(100_000);
    arguments.extend(["--set".to_owned(), set]);
    let (run_id, undisturbed) = cluster.submit("undisturbed", 2, &arguments);
    cluster.until_state(&run_id, "finished");
    assert!(exported(run, cluster.directory.path()) == exported(&undisturbed, cluster.directory.path()));
}

#[test]
fn stop_leaves_a_checkpoint_from_which_the_run_goes_on() {
    let cluster = Cluster::start(&[1, 1]);
    let (run_id, run) = cluster.submit("run", 2, &tiny_run(100_000));
    until("a trained step", || (!metrics(&run).is_empty()).then_some(()));
    cluster.call(&["stop", &run_id]);
    let stopped = cluster.until_state(&run_id, "stopped");
    assert_eq!(stopped["exit_code"], 85, "{stopped}");
    assert_eq!(stopped["step"], *checkpoints(&run).last().unwrap(), "{stopped}");
    assert_goes_on(&cluster, &run);
    cluster.assert_quiet(&run);
}

#[test]
fn a_killed_agent_ends_the_run_and_its_workers() {
    let mut cluster = Cluster::start(&[1, 1]);
    let (run_id, run) = cluster.submit("run", 2, &tiny_run(100_000));
    until("a trained step", || (!metrics(&run).is_empty()).then_some(()));
    let workers = cluster.workers();
    cluster.agents[1].kill();
    let failed = cluster.until_state(&run_id, "failed");
    assert!(failed["reason"].as_str().unwrap().contains("node-1"), "{failed}");
    until("the workers to end", || workers.iter().all(|id| !alive(*id)).then_some(()));
}

#[test]
fn a_killed_coordinator_ends_its_workers_and_the_run_is_resumed_bit_equal() {
    let mut cluster = Cluster::start(&[1, 1]);
    let mut arguments = tiny_run(100_000);
    for pair in ["checkpoint.every=2", "cluster.orphan_ttl=1s"] {
        arguments.extend(["--set".to_owned(), pair.to_owned()]);
    }
    let (run_id, run) = cluster.submit("run", 2, &arguments);
    until("a checkpoint", || (!checkpoints(&run).is_empty()).then_some(()));
    let workers = cluster.workers();
    cluster.coordinator.kill();
    until("the orphans to end", || workers.iter().all(|id| !alive(*id)).then_some(()));

    let (coordinator, _) = start_coordinator(cluster.directory.path(), &cluster.address.clone());
    cluster.coordinator = coordinator;
    let failed = cluster.until_state(&run_id, "failed");
    assert!(failed["reason"].as_str().unwrap().contains("coordinator"), "{failed}");
    assert_goes_on(&cluster, &run);
}

#[test]
fn a_stopped_agent_ends_its_workers_first() {
    let mut cluster = Cluster::start(&[2]);
    let (run_id, run) = cluster.submit("run", 2, &tiny_run(100_000));
    until("a trained step", || (!metrics(&run).is_empty()).then_some(()));
    let workers = cluster.workers();
    signal(cluster.agents[0].id(), "TERM");
    assert_eq!(cluster.agents[0].wait().code(), Some(75), "{}", cluster.agents[0].stderr());
    assert!(workers.iter().all(|id| !alive(*id)), "{workers:?}");
    cluster.until_state(&run_id, "failed");
}

#[test]
fn garbage_on_the_coordinator_port_hurts_nobody() {
    use std::io::Write;
    let mut cluster = Cluster::start(&[1]);
    let (run_id, _) = cluster.submit("run", 1, &tiny_run(10));
    for _ in 0..20 {
        let mut socket = std::net::TcpStream::connect(&cluster.address).unwrap();
        // The server may close the connection before all of it is written.
        socket.write_all(&[0xa5; 4096]).ok();
    }
    assert_eq!(cluster.until_state(&run_id, "finished")["step"], 10);
    // An agent that leaves with nothing to do has cut nothing short.
    signal(cluster.agents[0].id(), "TERM");
    assert_eq!(cluster.agents[0].wait().code(), Some(0), "{}", cluster.agents[0].stderr());
}

#[test]
fn waiting_for_slots_is_said_and_an_unreachable_coordinator_is_try_again() {
    let cluster = Cluster::start(&[1]);
    let (run_id, _) = cluster.submit("run", 2, &tiny_run(5));
    let queued = cluster.until_state(&run_id, "queued");
    assert!(queued["reason"].as_str().unwrap().contains("1 of 2 slots"), "{queued}");

    // Whoever waits for a run that is stopped hears that it was.
    let mut command = himpun();
    command.env("HIMPUN_COORDINATOR", &cluster.address).args(["submit", "--wait", "--workers", "2"]);
    let mut submit = Process::start(command.args(tiny_run(5)), cluster.directory.path(), "submit");
    let run_id = submit.line();
    cluster.call(&["stop", &run_id]);
    assert_eq!(submit.wait().code(), Some(85), "{}", submit.stderr());

    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let stderr = fail(himpun().args(["status", "--coordinator", &free]), 75);
    assert!(stderr.contains(&free) && stderr.contains("hint:"), "{stderr}");
}
