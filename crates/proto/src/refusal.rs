//! A refused call as both ends see it: a gRPC status whose details hold an `ErrorDetail`.

use prost::Message as _;
use tonic::{Code, Status};

use crate::v1::ErrorDetail;

/// A message lacks a field that its meaning depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("message without `{0}`")]
pub struct MissingField(pub &'static str);

impl From<MissingField> for Status {
    fn from(missing: MissingField) -> Status {
        Status::invalid_argument(missing.to_string())
    }
}

/// Why a call was refused, and whether to try again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The gRPC code.
    pub code: Code,
    /// One sentence.
    pub message: String,
    /// Machine-readable name of the reason, such as `stale_fence`; empty if the server gave none.
    pub reason: String,
    /// Whether the same call may succeed later.
    pub retryable: bool,
    /// What the caller can do about it; may be empty.
    pub hint: String,
    /// The run's generation as the server knows it; 0 if it does not matter.
    pub current_generation: u64,
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Status {
        let detail = ErrorDetail {
            code: refusal.reason,
            retryable: refusal.retryable,
            current_generation: refusal.current_generation,
            hint: refusal.hint,
        };
        Status::with_details(refusal.code, refusal.message, detail.encode_to_vec().into())
    }
}

impl From<&Status> for Refusal {
    fn from(status: &Status) -> Refusal {
        // Details that do not decode come from something that is not Himpun: the code still stands.
        let detail = ErrorDetail::decode(status.details()).unwrap_or_else(|_| ErrorDetail::default());
        let transient =
            matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted);
        Refusal {
            code: status.code(),
            message: status.message().to_owned(),
            retryable: detail.retryable || (detail.code.is_empty() && transient),
            reason: detail.code,
            hint: detail.hint,
            current_generation: detail.current_generation,
        }
    }
}

/// An error and its causes in one line: a status has no chain, and neither has a log.
pub fn one_line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some libraries repeat their source's message in their own.
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Outer {
        text: &'static str,
        source: MissingField,
    }

    #[test]
    fn one_line_says_everything_once() {
        let line = |text| one_line(&Outer { text, source: MissingField("fence") });
        assert_eq!(line("attach"), "attach: message without `fence`");
        assert_eq!(line("refused: message without `fence`"), "refused: message without `fence`");
    }

    #[test]
    fn a_refusal_survives_the_wire() {
        let refusal = Refusal {
            code: Code::FailedPrecondition,
            message: "generation 3 is over".into(),
            reason: "stale_fence".into(),
            retryable: false,
            hint: "join again".into(),
            current_generation: 4,
        };
        assert_eq!(Refusal::from(&Status::from(refusal.clone())), refusal);
    }

    #[test]
    fn a_foreign_status_keeps_its_code() {
        let refusal = Refusal::from(&Status::with_details(Code::Unavailable, "gone", b"\xff\xff"[..].into()));
        assert_eq!((refusal.code, refusal.retryable, refusal.reason.as_str()), (Code::Unavailable, true, ""));
        assert!(!Refusal::from(&Status::not_found("no")).retryable);
    }
}
