//! The stream of a session, opened again while `cluster.orphan_ttl` lasts.

use identity::Seal;
use proto::transport;
use proto::v1::worker_service_client::WorkerServiceClient;
use proto::v1::{Assign, Heartbeat, Notice, Order, Severity, WorkerDown, WorkerUp, worker_down, worker_up};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::shared::Shared;
use super::{Error, Identity};

const HEARTBEAT: Duration = Duration::from_millis(500);

/// Messages handed to HTTP/2 and not yet sent.
const IN_FLIGHT: usize = 64;

/// Between attempts to reach a lost coordinator; each worker waits a different part of it.
const RETRY: Duration = Duration::from_secs(2);

/// The session's task.
pub(super) struct Stream {
    pub identity: Identity,
    pub orphan_ttl: Duration,
    pub shared: Arc<Shared>,
    pub messages: mpsc::UnboundedReceiver<worker_up::Message>,
    pub assignment: Sender<Assign>,
    pub orders: Sender<Order>,
    pub closing: watch::Receiver<bool>,
}

/// One connection's ends.
struct Link {
    up: mpsc::Sender<WorkerUp>,
    down: Streaming<WorkerDown>,
    seal: Seal,
}

/// Why a connection is over, when the session goes on.
struct Broken(String);

impl Stream {
    /// Speaks until the session is closed or over.
    pub async fn keep_open(mut self) {
        let mut alive = Instant::now();
        let mut attempt = 0u32;
        loop {
            let broken = match self.connect().await {
                Ok(mut link) => {
                    attempt = 0;
                    let outcome = self.speak(&mut link).await;
                    alive = Instant::now();
                    match outcome {
                        Ok(()) => return,
                        Err(broken) => broken,
                    }
                }
                Err(error) if error.is_transient() => Broken(error.to_string()),
                Err(error) => return self.shared.finish(error),
            };
            if self.shared.is_over() || self.has_nothing_to_say() {
                return;
            }
            let left = self.orphan_ttl.saturating_sub(alive.elapsed());
            if left.is_zero() {
                return self.shared.finish(Error::Lost { reason: broken.0 });
            }
            if attempt == 0 {
                tracing::warn!(reason = broken.0, ?left, "coordinator lost, training goes on for a while");
            }
            let pause = self.retry_after(attempt).min(left);
            attempt += 1;
            tokio::select! {
                () = sleep(pause) => {}
                () = closed(&mut self.closing), if self.messages.is_empty() => return,
            }
        }
    }

    /// The session was closed, and what was said before is on its way. Whoever closes waits no longer than
    /// for a farewell.
    fn has_nothing_to_say(&self) -> bool {
        *self.closing.borrow() && self.messages.is_empty()
    }

    /// Spreads the workers of a run over the interval, the first attempts coming early.
    fn retry_after(&self, attempt: u32) -> Duration {
        let hash = blake3::hash(format!("{}{attempt}", self.identity.worker.nonce).as_bytes());
        let share = f64::from(hash.as_bytes()[0]) / 255.0;
        let range = RETRY.min(Duration::from_millis(100) * (1 << attempt.min(5)));
        range.mul_f64(0.5 + share / 2.0)
    }

    async fn connect(&self) -> Result<Link, Error> {
        let coordinator = &self.identity.coordinator;
        let connection = super::connect(&self.identity).await?;
        let seal = connection.seal();
        let (up, outgoing) = mpsc::channel(IN_FLIGHT);
        up.try_send(self.message(self.heartbeat()))
            .expect("a new channel has room and its receiver stands above");
        if let Some(ready) = self.shared.ready() {
            up.try_send(self.message(worker_up::Message::Ready(ready)))
                .expect("a new channel has room for two messages");
        }
        let mut client = WorkerServiceClient::new(connection.channel)
            .max_decoding_message_size(transport::MAX_MESSAGE_BYTES);
        let down = client.session(ReceiverStream::new(outgoing)).await;
        let down = down.map_err(|status| Error::from_status(coordinator, &status))?.into_inner();
        Ok(Link { up, down, seal })
    }

    /// Carries messages both ways until either side closes the session (`Ok`) or the connection breaks.
    async fn speak(&mut self, link: &mut Link) -> Result<(), Broken> {
        let mut beat = interval(HEARTBEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                // What is queued goes out before a close takes effect.
                biased;
                message = link.down.message() => match message {
                    Ok(Some(message)) => self.hear(message, &link.seal)?,
                    Ok(None) => {
                        self.shared.finish_quietly(Error::Ended);
                        return Ok(());
                    }
                    Err(status) => {
                        let error = Error::from_status(&self.identity.coordinator, &status);
                        let text = error.to_string();
                        if !error.is_transient() {
                            self.shared.finish(error);
                        }
                        return Err(Broken(text));
                    }
                },
                _ = beat.tick() => self.send(link, self.heartbeat()).await?,
                Some(message) = self.messages.recv() => {
                    let sent = self.send(link, message).await;
                    self.shared.count_taken();
                    sent?;
                    let dropped = self.shared.take_dropped_rows();
                    if dropped > 0 {
                        let text = format!("{dropped} rows of metrics were dropped while the coordinator was gone");
                        let notice = Notice { severity: Severity::Warn.into(), text };
                        self.send(link, worker_up::Message::Notice(notice)).await?;
                    }
                }
                () = closed(&mut self.closing) => return self.part(link).await,
            }
        }
    }

    /// Closes this side, and waits until the coordinator has read everything and closes its own.
    async fn part(&self, link: &mut Link) -> Result<(), Broken> {
        link.up = mpsc::channel(1).0;
        while let Ok(Some(_)) = link.down.message().await {}
        Ok(())
    }

    fn hear(&self, message: WorkerDown, seal: &Seal) -> Result<(), Broken> {
        if message.fence.as_ref().is_none_or(|fence| fence.is_older_than(&self.identity.fence)) {
            tracing::warn!("message of an older fence ignored");
            return Ok(());
        }
        let heard = match message.message {
            Some(worker_down::Message::Assign(mut assign)) => {
                // What is longer is no key, as the group says.
                assign.group_key.truncate(32);
                assign.group_key = seal.apply("group", &assign.group_key);
                self.assignment.send(assign).is_ok()
            }
            Some(worker_down::Message::Order(order)) => self.orders.send(order).is_ok(),
            Some(worker_down::Message::Abort(abort)) => {
                self.shared.finish(Error::Aborted { reason: abort.reason });
                return Err(Broken("aborted".into()));
            }
            None => true,
        };
        if !heard {
            // An assignment repeated after a reconnection, or an order to a rank that is leaving.
            tracing::debug!("message that nobody waits for ignored");
        }
        Ok(())
    }

    async fn send(&self, link: &Link, message: worker_up::Message) -> Result<(), Broken> {
        link.up.send(self.message(message)).await.map_err(|_| Broken("the stream broke".into()))
    }

    fn heartbeat(&self) -> worker_up::Message {
        worker_up::Message::Heartbeat(Heartbeat { progress: Some(self.shared.to_proto()) })
    }

    fn message(&self, message: worker_up::Message) -> WorkerUp {
        WorkerUp {
            fence: Some(self.identity.fence.clone()),
            worker: Some(self.identity.worker.clone()),
            message: Some(message),
        }
    }
}

/// Returns once the session is closed, or dropped by a training thread that gave up.
async fn closed(closing: &mut watch::Receiver<bool>) {
    drop(closing.wait_for(|closing| *closing).await);
}
