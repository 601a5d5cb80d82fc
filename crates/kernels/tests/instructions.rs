//! A guard against slow code that does not look at the clock: the instructions of a convolution's backward pass, counted.
//!
//! A child runs the pass on one thread, and this program lets it go instruction by instruction (`ptrace`). The count is
//! the same on a busy machine, and needs neither counters of the hardware nor a simulator; at twenty microseconds an
//! instruction it is for small passes only. It says nothing about caches or latency. A count above its bound fails; after
//! a change that is meant,
//!
//! ```text
//! cargo test -p kernels --test instructions -- --print
//! ```
//!
//! prints the lines of [`COUNTED`] anew. They hold for the dev profile; a release build needs fewer.

#![expect(clippy::unwrap_used, reason = "a test, where a panic is the failure")]

use std::io::{self, Read, Write};

use kernels::{
    AlignedVec, Backward, Conv2d, ConvShape, Convolution, Input, InputGradient, KernelPath, OutputGradient,
    Pool,
};

/// Small, and yet of every part: tiles and strips, edges, packing or transforming the weights.
const SHAPE: ConvShape = ConvShape { n: 1, h: 8, w: 8, c_in: 16, c_out: 16, kernel: 3, stride: 1, pad: 1 };

/// What was counted, in thousands. The portable path, which needs several times as many, would take too long.
const COUNTED: &[(KernelPath, Convolution, u64)] = &[
    (KernelPath::Avx2, Convolution::Direct, 426),
    (KernelPath::Avx2, Convolution::Auto, 285),
    (KernelPath::Avx512, Convolution::Direct, 252),
    (KernelPath::Avx512, Convolution::Auto, 249),
];

/// Other compilers and C libraries need a little more or less; code that lost its wide instructions needs twice as many.
const MARGIN: f64 = 1.3;

/// Set for the child: the index of its case.
const CASE: &str = "HIMPUN_COUNTED_CASE";

fn main() {
    if let Ok(case) = std::env::var(CASE) {
        return counted_pass(case.parse().unwrap());
    }
    // As in other tests, a word on the command line picks those whose name holds it.
    let asked: Vec<String> = std::env::args().skip(1).collect();
    if asked.iter().any(|word| !word.starts_with('-') && !"instructions".contains(word.as_str()))
        || asked.iter().any(|word| word == "--list")
    {
        return;
    }
    let print = asked.iter().any(|word| word == "--print");
    let mut slower = Vec::new();
    for (case, &(path, convolution, before)) in COUNTED.iter().enumerate() {
        if !path.is_available() {
            tell(&format!("SKIP instructions: this machine has no {path}"));
            continue;
        }
        let now = match tracing::count(case) {
            Ok(count) => count / 1000,
            Err(reason) => return tell(&format!("SKIP instructions: {reason}")),
        };
        if print {
            tell(&format!("    (KernelPath::{path:?}, Convolution::{convolution:?}, {now}),"));
        } else if now as f64 > MARGIN * before as f64 {
            slower.push(format!("{path}, {convolution:?}: {now} thousand instructions, {before} before"));
        }
    }
    assert!(slower.is_empty(), "a pass takes many more instructions than it did: {slower:#?}");
}

/// The child: a pass that is not counted, in which pages are touched and functions bound, and one that is.
fn counted_pass(case: usize) {
    let (path, convolution, _) = COUNTED[case];
    io::stdin().read_exact(&mut [0]).unwrap();
    let pool = Pool::new(1, &[]);
    let conv = Conv2d::new::<f32>(SHAPE, path, convolution, 1);
    let numbers = |len: usize| (0..len).map(|i| (i % 7) as f32 - 3.0).collect::<Vec<_>>();
    let (dy, w) = (numbers(SHAPE.output_len()), numbers(SHAPE.weight_len()));
    let x = numbers(SHAPE.input_len());
    let (mut d_x, mut d_w) = (x.clone(), w.clone());
    let mut scratch = AlignedVec::zeroed(conv.scratch_len());
    let mut pass = || {
        let (input, d_y) = (Input::plain(&x), OutputGradient::Plain(&dy));
        let d_x = Some(InputGradient { d_x: &mut d_x, accumulate: false, then: None });
        let backward = Backward { input, d_y, w: &w, d_w: &mut d_w, d_x, scratch: &mut scratch };
        conv.backward(&pool, SHAPE.n, backward);
    };
    pass();
    tracing::mark();
    pass();
    tracing::mark();
}

/// Past the test harness, which there is none of here.
fn tell(line: &str) {
    io::stderr().write_all(format!("{line}\n").as_bytes()).unwrap();
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod tracing {
    use nix::sys::ptrace::{self, Options};
    use nix::sys::signal::{Signal, raise};
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::Pid;
    use std::io::Write;
    use std::process::{Command, Stdio};

    /// Stops this process where it is traced: the count begins, or ends.
    pub fn mark() {
        raise(Signal::SIGSTOP).unwrap();
    }

    /// The instructions of a case between its marks, or why they cannot be counted here.
    pub fn count(case: usize) -> Result<u64, String> {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .env(super::CASE, case.to_string())
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        let refused = ptrace::seize(pid, Options::PTRACE_O_EXITKILL).err();
        if refused.is_none() {
            child.stdin.take().unwrap().write_all(&[0]).unwrap();
            let count = between_marks(pid);
            ptrace::kill(pid).unwrap();
            child.wait().unwrap();
            return Ok(count);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        Err(format!("this process may not trace its child: {}", refused.unwrap()))
    }

    fn between_marks(pid: Pid) -> u64 {
        assert_eq!(waitpid(pid, None), Ok(WaitStatus::Stopped(pid, Signal::SIGSTOP)), "the first mark");
        let (mut count, mut last) = (0, 0);
        loop {
            ptrace::step(pid, None).unwrap();
            match waitpid(pid, None) {
                Ok(WaitStatus::Stopped(_, Signal::SIGTRAP)) => {}
                Ok(WaitStatus::Stopped(_, Signal::SIGSTOP)) => return count,
                other => panic!("the traced pass ended: {other:?}"),
            }
            // A repeated string instruction stops at each of its rounds, at the same address.
            let address = ptrace::getregs(pid).unwrap().rip;
            count += u64::from(address != last);
            last = address;
        }
    }
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
mod tracing {
    pub fn mark() {}

    pub fn count(_: usize) -> Result<u64, String> {
        Err("only x86-64 Linux is counted".to_owned())
    }
}
