//! Who may speak with a coordinator: users, roles, certificates, and clients that are not ours.

use crate::cluster::start_coordinator;
use crate::support::{
    Process, assert_quiet, fail, himpun, metrics, output, require_or_skip, signal, succeed, tiny_run, until,
};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
}

fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// The binary as another user of the machine runs it: with nothing of ours in its home.
fn as_stranger(home: &Path) -> Command {
    let mut command = himpun();
    command.env_remove("HIMPUN_CONFIG_DIR").env("HOME", home);
    command
}

#[track_caller]
fn assert_says(stderr: &str, words: &[&str]) {
    for words in words {
        assert!(stderr.contains(words), "`{words}` is not in\n{stderr}");
    }
}

#[test]
fn a_coordinator_is_found_in_the_home_and_by_nobody_else() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let (home, dir) = (path("home"), path("coordinator"));
    std::fs::create_dir(&home).unwrap();
    let mut command = as_stranger(&home);
    command.args(["coordinator", "--bind", "0.0.0.0:0", "--dir"]).arg(&dir);
    let mut coordinator = Process::start(&mut command, directory.path(), "coordinator");
    let line = coordinator.line();
    let port = line.rsplit(':').next().unwrap();
    let loopback = format!("127.0.0.1:{port}");

    // By any address of the machine, under private names.
    for address in [&loopback, &format!("0.0.0.0:{port}"), &format!("localhost:{port}")] {
        succeed(as_stranger(&home).args(["runs", "--coordinator", address]));
    }
    let entries = || -> Vec<PathBuf> {
        let entries = std::fs::read_dir(home.join(".config/himpun")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    };
    assert!(!entries().is_empty());
    assert!(entries().iter().all(|entry| mode(entry) == 0o600), "{:?}", entries());
    assert_eq!((mode(&home.join(".config/himpun")), mode(&dir.join("credentials"))), (0o700, 0o700));

    // Another user hears which file to copy, and is let in with it, as far as it goes.
    let stranger = path("stranger");
    std::fs::create_dir(&stranger).unwrap();
    let stderr = fail(as_stranger(&stranger).args(["runs", "--coordinator", &loopback]), 2);
    assert_says(&stderr, &["no credentials", &loopback, "credentials/operator.token", "--token-file"]);
    let stderr = fail(as_stranger(&stranger).args(["agent", "--coordinator", &loopback]), 2);
    assert_says(&stderr, &["credentials/agent.token"]);
    let copy = path("viewer.token");
    std::fs::copy(dir.join("credentials/viewer.token"), &copy).unwrap();
    let viewer = || {
        let mut command = as_stranger(&stranger);
        command.env("HIMPUN_TOKEN_FILE", &copy).env("HIMPUN_COORDINATOR", &loopback);
        command
    };
    succeed(viewer().arg("runs"));
    let stderr = fail(viewer().args(["submit", "--workers", "1"]).args(tiny_run(1)), 2);
    assert_says(&stderr, &["ControlService/SubmitRun is for an operator", "`viewer`", "hint:"]);
    chmod(&copy, 0o666);
    assert_says(&fail(viewer().arg("runs"), 2), &["writable by others", "chmod go-w"]);

    signal(coordinator.id(), "TERM");
    assert_eq!(coordinator.wait().code(), Some(0), "{}", coordinator.stderr());
    assert_eq!(entries(), Vec::<PathBuf>::new());
    let audit = std::fs::read_to_string(dir.join("audit.jsonl")).unwrap();
    assert!(
        audit.lines().any(|line| line.contains("\"viewer\"") && line.contains("PermissionDenied")),
        "{audit}"
    );
    assert_eq!(mode(&dir.join("audit.jsonl")), 0o600);

    // What lies open to others is not used.
    chmod(&dir.join("credentials"), 0o755);
    let mut again = as_stranger(&home);
    let stderr = fail(again.args(["coordinator", "--bind", "127.0.0.1:0", "--dir"]).arg(&dir), 2);
    assert_says(&stderr, &["open to other users", "chmod 700"]);
}

#[test]
fn another_process_on_the_port_is_told_nothing() {
    use std::io::Read as _;
    let directory = tempfile::tempdir().unwrap();
    let (mut coordinator, address) = start_coordinator(directory.path(), "127.0.0.1:0");
    // Killed, it leaves its entry, and a stranger takes its port.
    coordinator.kill();
    let listener = std::net::TcpListener::bind(&address).unwrap();
    let heard = std::thread::spawn(move || {
        let mut heard = Vec::new();
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(std::time::Duration::from_secs(1))).unwrap();
            let mut bytes = [0; 4096];
            heard.push(stream.read(&mut bytes).map_or(Vec::new(), |n| bytes[..n].to_vec()));
        }
        heard
    });
    fail(himpun().args(["runs", "--coordinator", &address]), 75);
    let token =
        std::fs::read_to_string(directory.path().join("coordinator/credentials/admin.token")).unwrap();
    let token: serde_json::Value = serde_json::from_str(&token).unwrap();
    let token = token["token"].as_str().unwrap();
    let raw: Vec<u8> = (0..32).map(|i| u8::from_str_radix(&token[2 * i..2 * i + 2], 16).unwrap()).collect();
    // A greeting of TLS, and the question of an old version.
    for heard in heard.join().unwrap() {
        assert!(!heard.is_empty());
        assert!(!heard.windows(8).any(|bytes| raw.windows(8).any(|part| part == bytes)));
        assert!(!String::from_utf8_lossy(&heard).contains(&token[..8]));
    }
}

/// A coordinator with certificates, an agent with its own, and the folders of the others.
struct Certified {
    directory: tempfile::TempDir,
    address: String,
    /// They end with the test.
    processes: Vec<Process>,
}

impl Certified {
    fn start() -> Certified {
        let directory = tempfile::tempdir().unwrap();
        let certs = directory.path().join("certs");
        succeed(
            himpun().args(["certs", "init", "--host", "127.0.0.1", "--agent", "node-a", "--dir"]).arg(&certs),
        );
        let mut command = himpun();
        command.args(["coordinator", "--bind", "127.0.0.1:0", "--certs"]).arg(certs.join("coordinator"));
        command.env("HIMPUN_CONFIG_DIR", directory.path().join("nothing"));
        command.arg("--dir").arg(directory.path().join("coordinator"));
        let mut coordinator = Process::start(&mut command, directory.path(), "coordinator");
        let address = coordinator.line().rsplit(' ').next().unwrap().to_owned();
        let mut certified = Certified { directory, address, processes: vec![coordinator] };
        // Its own copy, as on another machine.
        let own = certified.copy("agent-node-a");
        let mut agent = certified.command("agent-node-a");
        agent.env("HIMPUN_CERTS", own).args(["agent", "--id", "node-a", "--slots", "1"]);
        certified.processes.push(Process::start(&mut agent, certified.directory.path(), "agent"));
        certified
    }

    fn certs(&self, holder: &str) -> PathBuf {
        self.directory.path().join("certs").join(holder)
    }

    /// A copy of a holder's folder, which a revocation does not reach.
    fn copy(&self, holder: &str) -> PathBuf {
        let copy = self.directory.path().join(format!("copy-of-{holder}"));
        std::fs::create_dir(&copy).unwrap();
        for name in ["ca.pem", "cert.pem", "key.pem"] {
            std::fs::copy(self.certs(holder).join(name), copy.join(name)).unwrap();
        }
        copy
    }

    /// The binary with the certificate of this holder and nothing else.
    fn command(&self, holder: &str) -> Command {
        let mut command = himpun();
        command.env("HIMPUN_CONFIG_DIR", self.directory.path().join("empty"));
        command.env("HIMPUN_COORDINATOR", &self.address).env("HIMPUN_CERTS", self.certs(holder));
        command
    }
}

#[test]
fn certificates_carry_roles_and_can_be_revoked() {
    let mut cluster = Certified::start();
    let run = cluster.directory.path().join("coordinator/runs/a");
    let mut submit = cluster.command("operator");
    submit.args(["submit", "--wait", "--workers", "1", "--out"]).arg(&run).args(tiny_run(3));
    succeed(&mut submit);
    assert_eq!(metrics(&run).len(), 3);
    assert_quiet(&run, &[]);
    let mut elsewhere = cluster.command("operator");
    elsewhere
        .args(["submit", "--workers", "1", "--out"])
        .arg(cluster.directory.path().join("b"))
        .args(tiny_run(1));
    assert_says(&fail(&mut elsewhere, 2), &["--allow-dir"]);
    assert!(!cluster.directory.path().join("b").exists());

    succeed(cluster.command("viewer").arg("status"));
    assert_says(&fail(cluster.command("viewer").arg("stop"), 2), &["is for an operator", "`viewer`"]);
    let stderr = fail(cluster.command("agent-node-a").args(["agent", "--id", "node-b"]), 2);
    assert_says(&stderr, &["a certificate of agent node-a does not speak for agent node-b"]);

    let certs = cluster.directory.path().join("certs");
    let kept = cluster.copy("operator");
    succeed(himpun().args(["certs", "revoke", "operator", "--dir"]).arg(&certs));
    let mut revoked = cluster.command("operator");
    let stderr = fail(revoked.env("HIMPUN_CERTS", &kept).arg("runs"), 2);
    assert_says(&stderr, &["refused these credentials", "Revoked"]);
    // An agent whose session is open loses it, and is not let in again.
    succeed(himpun().args(["certs", "revoke", "agent-node-a", "--dir"]).arg(&certs));
    let agent = &mut cluster.processes[1];
    assert_eq!(agent.wait().code(), Some(2), "{}", agent.stderr());
    // A new one is another.
    let mut init = himpun();
    succeed(init.args(["certs", "init", "--host", "127.0.0.1", "--agent", "node-a", "--dir"]).arg(&certs));
    succeed(cluster.command("operator").arg("runs"));
    let shown = succeed(himpun().args(["certs", "show"]).arg(&certs));
    assert!(shown.lines().any(|line| line.starts_with("agent-node-a") && line.contains("valid")), "{shown}");
    // One of another authority is none.
    let foreign = cluster.directory.path().join("foreign");
    succeed(himpun().args(["certs", "init", "--host", "127.0.0.1", "--dir"]).arg(&foreign));
    let mut stranger = cluster.command("operator");
    let stderr = fail(stranger.env("HIMPUN_CERTS", foreign.join("operator")).arg("runs"), 2);
    assert_says(&stderr, &["not the coordinator that these credentials are for"]);
}

/// A Python with gRPC, installed once for all tests.
fn python() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("grpc-client");
    let python = root.join("bin/python");
    let done = root.join("complete");
    if !done.exists() {
        let run = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
        let packages = ["grpcio-tools==1.85.1", "grpcio-reflection==1.85.1"];
        let made = run(Command::new("python3").args(["-m", "venv"]).arg(&root))
            && run(Command::new(&python).args(["-m", "pip", "install", "-q"]).args(packages));
        if !made {
            return None;
        }
        std::fs::write(&done, "").unwrap();
    }
    Some(python)
}

#[test]
fn clients_that_are_not_ours_submit_watch_and_stop() {
    let Some(python) = python() else {
        return require_or_skip("PYTHON_GRPC", "a Python with venv and grpcio from PyPI are needed");
    };
    let cluster = Certified::start();
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let stubs = cluster.directory.path().join("stubs");
    std::fs::create_dir(&stubs).unwrap();
    let mut generate = Command::new(&python);
    generate.args(["-m", "grpc_tools.protoc", "-I"]).arg(repository.join("proto"));
    generate
        .arg(format!("--python_out={}", stubs.display()))
        .arg(format!("--grpc_python_out={}", stubs.display()));
    for name in ["common", "checkpoint", "control"] {
        generate.arg(format!("himpun/v1/{name}.proto"));
    }
    let generated = output(&mut generate);
    assert!(generated.status.success(), "{}", String::from_utf8_lossy(&generated.stderr));
    let config = cluster.directory.path().join("config.toml");
    let mut resolve = himpun();
    resolve.args(["train", "--out"]).arg(cluster.directory.path().join("resolved"));
    succeed(resolve.args(["--set", "run.stop_after=1"]).args(tiny_run(100_000)));
    let text = std::fs::read_to_string(cluster.directory.path().join("resolved/config.toml")).unwrap();
    let endless: Vec<&str> = text.lines().filter(|line| !line.starts_with("stop_after")).collect();
    std::fs::write(&config, endless.join("\n")).unwrap();

    for kind in [stubs.to_str().unwrap(), "reflection"] {
        let run_id = if kind == "reflection" { "by-reflection" } else { "by-stubs" };
        let mut client = Command::new(&python);
        client.arg(repository.join("tests/clients.py")).args([kind, &cluster.address]);
        client.arg(cluster.certs("operator")).arg(cluster.certs("viewer")).arg(&config).arg(run_id);
        let seen: serde_json::Value = serde_json::from_str(succeed(&mut client).trim()).unwrap();
        assert_eq!(seen["submitted"], run_id, "{seen}");
        assert!(seen["stopped_after"].as_u64().unwrap() > 0, "{seen}");
        assert_eq!((&seen["exit_code"], &seen["viewer_reads"]), (&85.into(), &run_id.into()), "{seen}");
        assert_eq!(seen["viewer_stops"], "PERMISSION_DENIED", "{seen}");
        assert_eq!(seen["nobody_lists"], "UNAUTHENTICATED", "{seen}");
    }
}

#[test]
fn train_needs_no_home_and_a_coordinator_without_one_names_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let run = directory.path().join("run");
    let mut train = himpun();
    train.env_remove("HOME").env("HIMPUN_CONFIG_DIR", "/proc/no-home/himpun");
    succeed(train.args(["train", "--workers", "1", "--out"]).arg(&run).args(tiny_run(1)));

    let mut command = himpun();
    command.env("HIMPUN_CONFIG_DIR", "/proc/no-home/himpun");
    command.args(["coordinator", "--bind", "127.0.0.1:0", "--dir"]).arg(directory.path().join("coordinator"));
    let mut coordinator = Process::start(&mut command, directory.path(), "coordinator");
    let address = coordinator.line().rsplit(' ').next().unwrap().to_owned();
    let token = directory.path().join("coordinator/credentials/admin.token");
    until("the note", || coordinator.stderr().contains(token.to_str().unwrap()).then_some(()));
    succeed(himpun().args(["runs", "--coordinator", &address, "--token-file"]).arg(&token));
}
