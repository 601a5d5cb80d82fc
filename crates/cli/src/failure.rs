//! How a command ends: the exit codes of the contract, and what an error carries besides its message.

use proto::Refusal;
use std::process::ExitCode;
use tonic::{Code, Status};

/// An exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit(pub u8);

impl Exit {
    /// Done.
    pub const DONE: Exit = Exit(0);
    /// The run, or what was asked, failed.
    pub const FAILED: Exit = Exit(1);
    /// Usage or configuration.
    pub const USAGE: Exit = Exit(2);
    /// Diverged, or corrupt state.
    pub const CORRUPT: Exit = Exit(3);
    /// Try again: unreachable or busy.
    pub const TRY_AGAIN: Exit = Exit(75);

    /// The exit code that a run ended with.
    pub fn of_run(code: i32) -> Exit {
        // Codes are bytes; whatever is not one is a failure all the same.
        u8::try_from(code).map_or(Exit::FAILED, Exit)
    }

    /// What a shell reports of a process that a signal ended.
    pub fn by_signal(number: i32) -> Exit {
        Exit::of_run(128 + number)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.0)
    }
}

/// An error, what to do about it, and the exit code it ends the process with.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// What happened, with its causes.
    pub error: anyhow::Error,
    /// What the user can do.
    pub hint: Option<String>,
    /// Last lines of the log of the worker that failed.
    pub log_tail: Vec<String>,
}

impl Failure {
    /// An error with its exit code.
    pub fn new(exit: Exit, error: impl Into<anyhow::Error>) -> Failure {
        Failure { exit, error: error.into(), hint: None, log_tail: Vec::new() }
    }

    /// A command that cannot be carried out as it was given.
    pub fn usage(message: impl Into<String>) -> Failure {
        Failure::new(Exit::USAGE, anyhow::Error::msg(message.into()))
    }

    /// Says what to do about it.
    pub fn hint(self, hint: impl Into<String>) -> Failure {
        Failure { hint: Some(hint.into()), ..self }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        Failure::new(Exit::FAILED, error)
    }
}

impl From<config::Error> for Failure {
    fn from(error: config::Error) -> Failure {
        let hint = error.hint();
        Failure { hint, ..Failure::new(Exit::USAGE, error) }
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Failure {
        Failure::from(Refusal::from(&status))
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        let exit = match refusal.code {
            _ if refusal.retryable => Exit::TRY_AGAIN,
            Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::Unauthenticated
            | Code::PermissionDenied => Exit::USAGE,
            Code::DataLoss => Exit::CORRUPT,
            _ => Exit::FAILED,
        };
        let failure = Failure::new(exit, anyhow::Error::msg(refusal.message));
        if refusal.hint.is_empty() { failure } else { failure.hint(refusal.hint) }
    }
}

impl From<agent::Error> for Failure {
    fn from(error: agent::Error) -> Failure {
        match error {
            agent::Error::Identity(error) => error.into(),
            agent::Error::Refused { coordinator, refusal } => {
                let failure = Failure::from(refusal);
                let context = format!("the coordinator at {coordinator} refused this agent");
                Failure { error: failure.error.context(context), ..failure }
            }
            agent::Error::Spawner(_) => Failure::new(Exit::FAILED, error),
        }
    }
}

/// The exit code of an error that would end with `exit`: where a path that was given is at fault, and not the machine, it
/// is wrong usage.
fn of_path(error: &(dyn std::error::Error + 'static), exit: Exit) -> Exit {
    use std::io::ErrorKind::{IsADirectory, NotADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem};
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    let system = causes.find_map(|cause| cause.downcast_ref::<std::io::Error>());
    let misplaced = [IsADirectory, NotADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem];
    match system {
        Some(system) if exit == Exit::FAILED && misplaced.contains(&system.kind()) => Exit::USAGE,
        _ => exit,
    }
}

impl From<identity::Error> for Failure {
    fn from(error: identity::Error) -> Failure {
        let hint = error.hint();
        Failure { hint, ..Failure::new(Exit::of_run(error.exit_code()), error) }
    }
}

impl From<coordinator::Error> for Failure {
    fn from(error: coordinator::Error) -> Failure {
        let hint = error.hint();
        let exit = match error {
            coordinator::Error::DirectoryInUse { .. } | coordinator::Error::Bind { .. } => Exit::USAGE,
            coordinator::Error::Identity(ref error) => Exit::of_run(error.exit_code()),
            coordinator::Error::Io { .. } => of_path(&error, Exit::FAILED),
            _ => Exit::FAILED,
        };
        Failure { hint, ..Failure::new(exit, error) }
    }
}

impl From<checkpoint::Error> for Failure {
    fn from(error: checkpoint::Error) -> Failure {
        let hint = error.hint().map(str::to_owned);
        Failure { hint, ..Failure::new(of_path(&error, Exit::of_run(error.exit_code())), error) }
    }
}

impl From<trainer::Error> for Failure {
    fn from(error: trainer::Error) -> Failure {
        tools::Error::from(error).into()
    }
}

impl From<tools::Error> for Failure {
    fn from(error: tools::Error) -> Failure {
        let hint = error.hint();
        Failure { hint, ..Failure::new(of_path(&error, Exit::of_run(error.exit_code())), error) }
    }
}

impl From<data::Error> for Failure {
    fn from(error: data::Error) -> Failure {
        trainer::Error::from(error).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(code: Code, retryable: bool, expected: Exit) {
        let refusal = Refusal {
            code,
            message: "no".into(),
            reason: "because".into(),
            retryable,
            hint: "do".into(),
            current_generation: 0,
        };
        let failure = Failure::from(Status::from(refusal));
        assert_eq!((failure.exit, failure.hint.as_deref()), (expected, Some("do")));
    }

    #[test]
    fn refusals_end_with_the_contracts_codes() {
        check(Code::InvalidArgument, false, Exit::USAGE);
        check(Code::NotFound, false, Exit::USAGE);
        check(Code::FailedPrecondition, false, Exit::USAGE);
        check(Code::FailedPrecondition, true, Exit::TRY_AGAIN);
        check(Code::Unavailable, true, Exit::TRY_AGAIN);
        check(Code::Unauthenticated, false, Exit::USAGE);
        check(Code::PermissionDenied, false, Exit::USAGE);
        check(Code::DataLoss, false, Exit::CORRUPT);
        check(Code::Internal, false, Exit::FAILED);
    }

    #[test]
    fn a_path_that_is_at_fault_is_wrong_usage() {
        use std::io::{Error, ErrorKind};
        let write = |kind| checkpoint::Error::Io {
            action: "write",
            path: "/nope/x".into(),
            source: Error::from(kind),
        };
        let exit = |kind| Failure::from(write(kind)).exit;
        assert_eq!(
            (exit(ErrorKind::NotFound), exit(ErrorKind::PermissionDenied)),
            (Exit::USAGE, Exit::USAGE)
        );
        assert_eq!((exit(ErrorKind::StorageFull), exit(ErrorKind::Other)), (Exit::FAILED, Exit::FAILED));
        let pack =
            data::Error::Write { path: "/nope/x".into(), source: Error::from(ErrorKind::NotADirectory) };
        assert_eq!(Failure::from(pack).exit, Exit::USAGE);
        let embed = tools::Error::Output(write(ErrorKind::IsADirectory));
        assert_eq!(Failure::from(embed).exit, Exit::USAGE);
        // What is corrupt is not mended by another path.
        let missing = checkpoint::Error::Missing { file: "/run/shard".into() };
        assert_eq!(Failure::from(missing).exit, Exit::CORRUPT);
        let directory = coordinator::Error::Io {
            what: "create the directory",
            path: "/dev/null/x".into(),
            source: Error::from(ErrorKind::NotADirectory),
        };
        assert_eq!(Failure::from(directory).exit, Exit::USAGE);
    }

    #[test]
    fn a_code_that_is_no_byte_is_a_failure() {
        assert_eq!(Exit::of_run(85), Exit(85));
        assert_eq!(Exit::of_run(-1), Exit::FAILED);
        assert_eq!(Exit::of_run(300), Exit::FAILED);
        assert_eq!(Exit::by_signal(9), Exit(137));
    }
}
