//! In front of every service: who calls is found out, held against the table of rules, and written into the audit.

use http::header::AUTHORIZATION;
use identity::{Caller, Encryption, Guard, Peer};
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};

use super::refusal;
use super::rules::{self, Rule};
use crate::audit::{Audit, Entry};

/// Puts a [`Gate`] in front of a service.
#[derive(Clone)]
pub(crate) struct Gatekeeper {
    pub guard: Guard,
    pub audit: Audit,
}

impl<S> Layer<S> for Gatekeeper {
    type Service = Gate<S>;

    fn layer(&self, inner: S) -> Gate<S> {
        Gate { keeper: self.clone(), inner }
    }
}

/// A service that only those reach whom its rule admits. What it serves finds the [`Caller`] in the request's extensions.
#[derive(Clone)]
pub(crate) struct Gate<S> {
    keeper: Gatekeeper,
    inner: S,
}

impl<S> Service<http::Request<Body>> for Gate<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let audit = self.keeper.audit.clone();
        let path = request.uri().path().to_owned();
        let peer = request.extensions().get::<Peer>().cloned().expect("every connection of ours has a peer");
        let shown = self.keeper.guard.identify(&peer, request.headers().get(AUTHORIZATION));
        let (who, role) = shown.as_ref().map_or(("nobody".to_owned(), "nobody"), describe);
        let from = peer.address;
        match self.keeper.judge(&path, shown) {
            Err(status) => {
                audit.write(&Entry { who: &who, role, from, what: &path, outcome: &outcome(&status) });
                let response = status.into_http();
                Box::pin(async move { Ok(response) })
            }
            Ok(caller) => {
                request.extensions_mut().insert(caller);
                let response = self.inner.call(request);
                let mut line = Line { audit, who, role, from, what: path, outcome: GIVEN_UP.to_owned() };
                Box::pin(async move {
                    let response = response.await?;
                    // A refusal has no body: its status is among the headers.
                    let refused = Status::from_header_map(response.headers());
                    let refused = refused.filter(|status| status.code() != Code::Ok);
                    line.ends_with(refused.as_ref().map_or("ok".to_owned(), outcome));
                    Ok(response)
                })
            }
        }
    }
}

/// What the audit has of a call whose caller did not wait for the answer. It may have been carried out.
const GIVEN_UP: &str = "given up by the caller";

/// A line of the audit, written when the call is over, also if nobody waits for its answer any more.
struct Line {
    audit: Audit,
    who: String,
    role: &'static str,
    from: SocketAddr,
    what: String,
    outcome: String,
}

impl Line {
    fn ends_with(&mut self, outcome: String) {
        self.outcome = outcome;
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let Line { audit, who, role, from, what, outcome } = self;
        audit.write(&Entry { who, role, from: *from, what, outcome });
    }
}

impl Gatekeeper {
    /// Who may pass, and as whom.
    fn judge(&self, path: &str, shown: Result<Caller, &'static str>) -> Result<Caller, Status> {
        let rule = rules::of_path(path);
        let caller = match shown {
            // Whatever was shown, the answer is for everybody.
            Err(_) if rule == Some(Rule::Anybody) => Caller::Nobody,
            Err(why) => return Err(unauthenticated(format!("{why} was shown"))),
            Ok(Caller::ClearText) if !(rule == Some(Rule::Anybody) && self.is_clear()) => {
                return Err(self.other_protocol());
            }
            Ok(caller) => caller,
        };
        match rule {
            Some(rule) if rule.admits(&caller) => Ok(caller),
            // There is no such method, which only those hear who may know the others.
            None if Rule::Known.admits(&caller) => Ok(caller),
            Some(_) | None if caller == Caller::Nobody => {
                Err(unauthenticated("this coordinator is not open to everybody".to_owned()))
            }
            rule => {
                let wants = rule.map_or("nobody", Rule::wants);
                let (_, role) = describe(&caller);
                let method = path.trim_start_matches("/himpun.v1.");
                let message =
                    format!("{method} is for {wants}, and these are the credentials of a role `{role}`");
                Err(refusal(
                    Code::PermissionDenied,
                    "wrong_role",
                    message,
                    "use the credentials of that role",
                ))
            }
        }
    }

    fn is_clear(&self) -> bool {
        self.guard.encryption() == Encryption::None
    }

    fn other_protocol(&self) -> Status {
        let how = if self.is_clear() { "after a proof of its token" } else { "over TLS" };
        let message = format!(
            "this coordinator (himpun {}) speaks protocol {} {how}; the peer speaks clear text without credentials, as \
             protocol 1 did",
            env!("CARGO_PKG_VERSION"),
            proto::PROTOCOL
        );
        let hint = "start coordinator, agents and commands from the same version of himpun";
        refusal(Code::FailedPrecondition, "protocol_mismatch", message, hint)
    }
}

fn unauthenticated(message: String) -> Status {
    let hint = "name a token file of this coordinator by --token-file or HIMPUN_TOKEN_FILE, or certificates by --certs";
    refusal(Code::Unauthenticated, "unauthenticated", message, hint)
}

/// Who it is, and the role, as the audit names them.
fn describe(caller: &Caller) -> (String, &'static str) {
    match caller {
        Caller::Nobody => ("nobody".to_owned(), "nobody"),
        Caller::ClearText => ("nobody".to_owned(), "clear-text"),
        Caller::Holder { role, name } => {
            (name.clone().unwrap_or_else(|| role.name().to_owned()), role.name())
        }
        Caller::Worker(nonce) => (nonce.clone(), "worker"),
    }
}

fn outcome(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}
