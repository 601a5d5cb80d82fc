//! Follows a run's events to its end.

use anyhow::anyhow;
use proto::v1::{Event, RunEnded, RunState, WatchRequest, event};
use tonic::Streaming;

use crate::client::{Client, call};
use crate::failure::{Exit, Failure};
use crate::progress::Progress;

/// The events of one run, as they happen.
pub struct Events {
    stream: Streaming<Event>,
    run_id: String,
}

impl Events {
    /// Opens the stream, from the run's first event on.
    pub async fn open(client: &mut Client, run_id: &str) -> Result<Events, Failure> {
        let request = WatchRequest { run_id: run_id.to_owned(), since_seq: 0 };
        Ok(Events { stream: call(client.control.watch(request)).await?, run_id: run_id.to_owned() })
    }

    /// The next event; `None` once the run has ended.
    pub async fn next(&mut self) -> Result<Option<Event>, Failure> {
        self.stream.message().await.map_err(|status| {
            let failure = Failure::from(status);
            Failure {
                exit: Exit::TRY_AGAIN,
                error: failure
                    .error
                    .context(format!("lost the coordinator while following run {}", self.run_id)),
                ..failure
            }
        })
    }
}

/// Shows the run until it ends, and returns how it did.
pub async fn to_end(client: &mut Client, run_id: &str, progress: &mut Progress) -> Result<RunEnded, Failure> {
    let mut events = Events::open(client, run_id).await?;
    // A resumed run has the end of its earlier life among its events: the last one counts.
    let mut last_end = None;
    while let Some(event) = events.next().await? {
        progress.event(&event);
        match event.kind {
            Some(event::Kind::Ended(ended)) => last_end = Some(ended),
            Some(event::Kind::State(state)) if state.state == RunState::Running as i32 => {
                progress.total_steps(client.status(run_id).await?.total_steps);
            }
            _ => {}
        }
    }
    progress.finish();
    last_end.ok_or_else(|| {
        Failure::new(Exit::TRY_AGAIN, anyhow!("the events of run {run_id} ended before the run did"))
    })
}

/// The run's own exit code, or its error, hint and log.
pub fn outcome(ended: RunEnded) -> Result<Exit, Failure> {
    let exit = Exit::of_run(ended.exit_code);
    if ended.state != RunState::Failed as i32 {
        return Ok(exit);
    }
    let failure = Failure { log_tail: ended.log_tail, ..Failure::new(exit, anyhow::Error::msg(ended.error)) };
    Err(if ended.hint.is_empty() { failure } else { failure.hint(ended.hint) })
}
