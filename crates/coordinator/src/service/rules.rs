//! Who may call what: one table for every method of every service.
//!
//! The compiler knows all methods ([`proto::Method`]): one without a rule does not build.

use identity::{Caller, Role};
use proto::Method;

/// Who may call a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Everybody.
    Anybody,
    /// Whoever has shown who he is.
    Known,
    /// Reads, without weights.
    Read,
    /// Changes.
    Change,
    /// An agent, under its own id.
    Agent,
    /// A worker, for its own member.
    Worker,
    /// Weights: the workers that go on from them, and operators.
    Weights,
}

/// The rule of a request's path; nothing if there is no such method.
pub(crate) fn of_path(path: &str) -> Option<Rule> {
    if let Some(method) = Method::from_path(path) {
        return Some(of(method));
    }
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    match (service, method) {
        ("grpc.health.v1.Health", "Check") => Some(Rule::Anybody),
        ("grpc.health.v1.Health", _) => Some(Rule::Known),
        ("grpc.reflection.v1.ServerReflection" | "grpc.reflection.v1alpha.ServerReflection", _) => {
            Some(Rule::Known)
        }
        _ => None,
    }
}

fn of(method: Method) -> Rule {
    match method {
        Method::ControlGetServerInfo
        | Method::ControlListRuns
        | Method::ControlGetStatus
        | Method::ControlWatch
        | Method::ControlTailLogs
        | Method::ControlListCheckpoints
        | Method::ControlVerifyCheckpoint => Rule::Read,
        Method::ControlSubmitRun
        | Method::ControlPause
        | Method::ControlResume
        | Method::ControlStop
        | Method::ControlCheckpointNow => Rule::Change,
        Method::AgentSession => Rule::Agent,
        Method::WorkerAttach | Method::WorkerSession => Rule::Worker,
        Method::CheckpointBegin
        | Method::CheckpointPutShard
        | Method::CheckpointCommit
        | Method::CheckpointAbort => Rule::Worker,
        Method::CheckpointGet | Method::CheckpointGetShard => Rule::Weights,
    }
}

impl Rule {
    /// Whether it lets `caller` through.
    pub fn admits(self, caller: &Caller) -> bool {
        let role = match caller {
            Caller::Holder { role, .. } => Some(*role),
            Caller::Worker(_) | Caller::Nobody | Caller::ClearText => None,
        };
        let is_worker = matches!(caller, Caller::Worker(_));
        match self {
            Rule::Anybody => true,
            Rule::Known => role.is_some() || is_worker,
            Rule::Read => matches!(role, Some(Role::Admin | Role::Operator | Role::Viewer)),
            Rule::Change => matches!(role, Some(Role::Admin | Role::Operator)),
            Rule::Agent => matches!(role, Some(Role::Admin | Role::Agent)),
            Rule::Worker => is_worker,
            Rule::Weights => is_worker || matches!(role, Some(Role::Admin | Role::Operator)),
        }
    }

    /// Whom it lets through, for people.
    pub fn wants(self) -> &'static str {
        match self {
            Rule::Anybody => "anybody",
            Rule::Known => "any role",
            Rule::Read => "a viewer or an operator",
            Rule::Change => "an operator",
            Rule::Agent => "an agent",
            Rule::Worker => "a worker of the run",
            Rule::Weights => "an operator or a worker of the run",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_reach_what_is_theirs() {
        let holder = |role| Caller::Holder { role, name: None };
        let callers = [
            Caller::Nobody,
            Caller::ClearText,
            holder(Role::Viewer),
            holder(Role::Operator),
            holder(Role::Agent),
            holder(Role::Admin),
            Caller::Worker("n".to_owned()),
        ];
        #[track_caller]
        fn check(callers: &[Caller], path: &str, expected: &str) {
            let rule = of_path(path).unwrap();
            let admitted: String =
                callers.iter().map(|caller| if rule.admits(caller) { 'x' } else { '-' }).collect();
            assert_eq!(admitted, expected, "{path}");
        }
        //                                                             nobody clear viewer operator agent admin worker
        check(&callers, "/grpc.health.v1.Health/Check", "xxxxxxx");
        check(&callers, "/grpc.health.v1.Health/Watch", "--xxxxx");
        check(&callers, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "--xxxxx");
        check(&callers, "/himpun.v1.ControlService/GetStatus", "--xx-x-");
        check(&callers, "/himpun.v1.ControlService/Stop", "---x-x-");
        check(&callers, "/himpun.v1.AgentService/Session", "----xx-");
        check(&callers, "/himpun.v1.WorkerService/Attach", "------x");
        check(&callers, "/himpun.v1.CheckpointService/Commit", "------x");
        check(&callers, "/himpun.v1.CheckpointService/GetShard", "---x-xx");
        assert_eq!(of_path("/himpun.v1.ControlService/Nothing"), None);
        assert_eq!(of_path("nonsense"), None);
    }
}
