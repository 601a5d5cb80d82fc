//! Real processes, and how a test waits for them.

#![expect(
    clippy::disallowed_methods,
    reason = "tests wait for real processes: a predicate with a deadline polls the clock"
)]

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{LazyLock, mpsc};
use std::time::{Duration, Instant};

/// Longest wait for anything that a test expects.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// The binary under test.
pub fn himpun() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_himpun"));
    for variable in ["RUST_LOG", "HIMPUN_COORDINATOR", "HIMPUN_TOKEN_FILE", "HIMPUN_CERTS"] {
        command.env_remove(variable);
    }
    command.env("HIMPUN_CONFIG_DIR", config_dir()).stdin(Stdio::null());
    command
}

/// Where the coordinators of all tests leave what commands and agents find them by.
pub fn config_dir() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("himpun-config")
}

/// Arguments of a run small enough for a debug build: built-in images, ResNet-20, a head without batch norm.
pub fn tiny_run(steps: u64) -> Vec<String> {
    let steps = format!("run.steps={steps}");
    let set = [
        steps.as_str(),
        "train.global_batch=16",
        "model.arch=resnet20",
        "model.head=mlp-64-32",
        "data.size=16",
        "optimizer.kind=sgd",
        "optimizer.lr=0.005",
        "schedule.warmup_steps=0",
        "eval.knn_every=0",
        "checkpoint.every=0",
    ];
    set.iter().flat_map(|pair| ["--set".to_owned(), (*pair).to_owned()]).collect()
}

/// Starts `himpun train` with two workers on a tiny run that outlasts every test.
#[track_caller]
pub fn endless(directory: &Path, name: &str, set: &[&str]) -> (Process, PathBuf) {
    let run = directory.join(name);
    let mut command = himpun();
    command.args(["train", "--workers", "2", "--out"]).arg(&run).args(tiny_run(100_000));
    command.args(set.iter().flat_map(|pair| ["--set", pair]));
    (Process::start(&mut command, directory, name), run)
}

/// Runs to the end and returns everything that was printed.
#[track_caller]
pub fn output(command: &mut Command) -> Output {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("spawn himpun");
    let (stdout, stderr) = (drain(child.stdout.take().unwrap()), drain(child.stderr.take().unwrap()));
    let status = wait(&mut child);
    Output { status, stdout: stdout.recv().unwrap(), stderr: stderr.recv().unwrap() }
}

/// Runs to the end and asserts that it succeeded; returns stdout.
#[track_caller]
pub fn succeed(command: &mut Command) -> String {
    let output = output(command);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{command:?}\n{stderr}");
    String::from_utf8(output.stdout).expect("stdout is UTF-8")
}

/// Runs to the end and asserts its exit code; returns stderr.
#[track_caller]
pub fn fail(command: &mut Command, code: i32) -> String {
    let output = output(command);
    let stderr = String::from_utf8(output.stderr).expect("stderr is UTF-8");
    assert_eq!(output.status.code(), Some(code), "{command:?}\n{stderr}");
    stderr
}

fn drain(mut pipe: impl Read + Send + 'static) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // A reader that ends early shows in the assertion on what was read.
        if pipe.read_to_end(&mut bytes).is_ok() {
            sender.send(bytes).ok();
        }
    });
    receiver
}

/// Waits for the end of a process that must end by itself.
#[track_caller]
pub fn wait(child: &mut Child) -> ExitStatus {
    until("the process to end", || child.try_wait().expect("wait for a child"))
}

/// Polls until `probe` gives a value.
#[track_caller]
pub fn until<T>(what: &str, probe: impl FnMut() -> Option<T>) -> T {
    until_within(DEADLINE, what, probe)
}

/// Polls until `probe` gives a value, which it must within `limit`.
#[track_caller]
pub fn until_within<T>(limit: Duration, what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(started.elapsed() < limit, "waited {limit:?} for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A process that a test started: ended by its id when the test ends, however it ends.
pub struct Process {
    child: Child,
    stdout: BufReader<std::process::ChildStdout>,
    stderr: PathBuf,
}

impl Process {
    /// Starts `command` with its stderr in `directory`.
    #[track_caller]
    pub fn start(command: &mut Command, directory: &Path, name: &str) -> Process {
        let stderr = directory.join(format!("{name}.stderr"));
        let file = std::fs::File::create(&stderr).expect("create a log");
        let mut child = command.stdout(Stdio::piped()).stderr(file).spawn().expect("spawn himpun");
        let stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        Process { child, stdout, stderr }
    }

    /// The next line of stdout.
    #[track_caller]
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        let n = self.stdout.read_line(&mut line).expect("read stdout");
        assert!(n > 0, "stdout ended; stderr:\n{}", self.stderr());
        line.trim_end().to_owned()
    }

    /// What it has written to stderr so far.
    pub fn stderr(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn kill(&mut self) {
        self.child.kill().expect("kill a child");
        self.child.wait().expect("wait for a child");
    }

    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        wait(&mut self.child)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        if matches!(self.child.try_wait(), Ok(None)) {
            self.child.kill().ok();
            self.child.wait().ok();
        }
    }
}

/// Reports a skipped test, or fails it where `REQUIRE_<what>` is set.
///
/// Written past the test harness, which would keep the line to itself: CI counts and bounds the skips.
#[track_caller]
pub fn require_or_skip(what: &str, why: &str) {
    let variable = format!("REQUIRE_{what}");
    assert!(std::env::var_os(&variable).is_none(), "{variable} is set: {why}");
    use std::io::Write;
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    writeln!(std::io::stderr(), "SKIP {test}: {why} ({variable}=1 makes this a failure)")
        .expect("write to stderr");
}

/// Ids of the processes whose parent is `parent`, with their command lines.
pub fn children(parent: u32) -> Vec<(u32, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("read /proc").flatten() {
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        // The second field is the name in parentheses and may hold spaces; state and parent follow it.
        let mut fields = stat[stat.rfind(')').map_or(0, |i| i + 1)..].split_whitespace();
        let (state, its_parent) = (fields.next(), fields.next());
        if state != Some("Z") && its_parent == Some(&parent.to_string()) {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            found.push((id, String::from_utf8_lossy(&line).replace('\0', " ")));
        }
    }
    found
}

/// Whether a process with this id is there and not a zombie.
pub fn alive(id: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{id}/stat"))
        .is_ok_and(|stat| !stat[stat.rfind(')').map_or(0, |i| i + 1)..].trim_start().starts_with('Z'))
}

/// Sends a signal to one process.
#[track_caller]
pub fn signal(id: u32, name: &str) {
    let status = Command::new("kill").args(["-s", name, &id.to_string()]).status().expect("run kill");
    assert!(status.success(), "kill -s {name} {id}");
}

/// Stops a process where it stands: returns once none of its threads runs.
#[track_caller]
pub fn freeze(id: u32) {
    signal(id, "STOP");
    until("every thread to stand still", || {
        let threads = std::fs::read_dir(format!("/proc/{id}/task")).expect("list the threads of a process");
        let mut states = threads.flatten().map(|thread| {
            let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            stat[stat.rfind(')').map_or(0, |i| i + 1)..].trim_start().starts_with('T')
        });
        states.all(|stands| stands).then_some(())
    });
}

/// Steps of a run's checkpoints, ascending.
pub fn checkpoints(run: &Path) -> Vec<u64> {
    let mut steps: Vec<u64> = names(&run.join("checkpoints"))
        .iter()
        .filter_map(|name| name.strip_prefix("step-")?.parse().ok())
        .collect();
    steps.sort_unstable();
    steps
}

/// The step of the checkpoint that is being written.
pub fn staged(run: &Path) -> Option<u64> {
    let names = names(&run.join("checkpoints"));
    names.iter().find_map(|name| name.strip_prefix(".step-")?.split_once(".gen-")?.0.parse().ok())
}

/// Names in a directory; none if it is not there.
fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Asserts that nothing in a run asked for a person: no warning and no error among its events and in the logs
/// of its workers, but lines that hold one of `expected`.
#[track_caller]
pub fn assert_quiet(run: &Path, expected: &[&str]) {
    let mut lines = Vec::new();
    for name in names(&run.join("logs")) {
        let text = std::fs::read_to_string(run.join("logs").join(&name)).expect("read a log");
        lines.extend(loud(&text).into_iter().map(|line| format!("{name}: {line}")));
    }
    let events = std::fs::read_to_string(run.join("events.jsonl")).expect("read the events");
    for line in events.lines() {
        let event: serde_json::Value = serde_json::from_str(line).expect("an event is JSON");
        if event["severity"] != "info" {
            lines.push(format!("events.jsonl: {line}"));
        }
    }
    lines.retain(|line| !expected.iter().any(|words| line.contains(words)));
    assert!(lines.is_empty(), "{lines:#?}");
}

/// Lines of a log of ours that are warnings or errors.
pub fn loud(log: &str) -> Vec<String> {
    let level = |line: &&str| matches!(line.split_whitespace().nth(1), Some("WARN" | "ERROR"));
    log.lines().filter(level).map(str::to_owned).collect()
}

/// Class folders `a` and `b` of small PNG files.
pub fn folder_of_images(directory: &Path, n: usize) -> PathBuf {
    let root = directory.join("images");
    for i in 0..n {
        let folder = root.join(if i < n / 2 { "a" } else { "b" });
        std::fs::create_dir_all(&folder).unwrap();
        let pixel =
            |x: u32, y: u32| image::Rgb([(x * 7 + i as u32 * 13) as u8, (y * 11) as u8, (i * 5) as u8]);
        image::RgbImage::from_fn(16, 16, pixel).save(folder.join(format!("{i:04}.png"))).unwrap();
    }
    root
}

/// Writes the `images` of a golden file, `[n, height, width, 3]`, as PNG files in their order.
pub fn write_images(folder: &Path, golden: &safetensors::SafeTensors) {
    std::fs::create_dir(folder).unwrap();
    let images = golden.tensor("images").unwrap();
    let &[_, height, width, channels] = images.shape() else {
        panic!("images of shape {:?}", images.shape())
    };
    for (i, pixels) in images.data().chunks_exact(height * width * channels).enumerate() {
        let image = image::RgbImage::from_raw(width as u32, height as u32, pixels.to_vec()).unwrap();
        image.save(folder.join(format!("{i:04}.png"))).unwrap();
    }
}

/// 600 small images in ten class folders, made once for all tests.
pub fn images_in_classes() -> &'static Path {
    static IMAGES: LazyLock<PathBuf> = LazyLock::new(|| {
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("images-in-classes");
        for i in 0..600u32 {
            let folder = root.join(format!("class-{}", i % 10));
            std::fs::create_dir_all(&folder).expect("make a folder");
            let pixel = |x: u32, y: u32| {
                let noise = (x + 31 * y + 977 * i).wrapping_mul(2_654_435_761) >> 26;
                image::Rgb([i % 10 * 20, x * 9, y * 9].map(|value| (value + noise) as u8))
            };
            let image = image::RgbImage::from_fn(16, 16, pixel);
            image.save(folder.join(format!("{i:04}.png"))).expect("write an image");
        }
        root
    });
    &IMAGES
}

/// Rows of a run's metrics.
pub fn metrics(run: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).expect("a row is JSON")).collect()
}

/// Exports the encoder of a checkpoint or run and returns the file's bytes.
#[track_caller]
pub fn exported(checkpoint: &Path, directory: &Path) -> Vec<u8> {
    let file = directory.join("export.safetensors");
    let mut command = himpun();
    command
        .args(["export", "--format", "state-dict", "--checkpoint"])
        .arg(checkpoint)
        .arg("--out")
        .arg(&file);
    succeed(&mut command);
    std::fs::read(&file).expect("read the export")
}
