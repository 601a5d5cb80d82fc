//! Checkpoints to and from the coordinator.
//!
//! Rank 0 begins a checkpoint, every rank streams its share of the state in chunks, and rank 0 commits once
//! all have their receipts. A checkpoint that fails changes nothing: the group agrees that it failed.

use bytes::Bytes;
use checkpoint::{Manifest, Tensor};
use collective::Communicator;
use proto::transport::{CALL_DEADLINE, CHUNK_BYTES, MAX_MESSAGE_BYTES};
use proto::v1::checkpoint_service_client::CheckpointServiceClient;
use proto::v1::put_shard_message::Message;
use proto::v1::{
    AbortCheckpointRequest, BeginCheckpointRequest, Chunk, CommitCheckpointRequest, Digest,
    GetCheckpointRequest, GetShardRequest, PutShardMessage, ShardHeader, ShardTrailer,
};
use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::Error;
use crate::session::{self, Session};

/// How long a commit waits for the rows of metrics before it: a run that goes on from the checkpoint makes
/// no such row again.
const ROWS_FIRST: Duration = Duration::from_secs(2);

/// A shard's deadline is that of a call, and what its bytes take at this rate.
const SLOWEST_BYTES_PER_S: u64 = 4 << 20;

/// Streams this rank's `shard` of the checkpoint of `step` to the coordinator; collective.
///
/// `metadata` is what the manifest records of the run, and counts on rank 0. Returns `false`, on every rank,
/// if the coordinator could not be reached: the checkpoint can be tried again.
///
/// # Errors
/// If the coordinator refuses the checkpoint, or a peer is lost.
pub fn save(
    session: &Session,
    communicator: &mut Communicator,
    step: u64,
    shard: Vec<u8>,
    metadata: serde_json::Map<String, serde_json::Value>,
) -> Result<bool, Error> {
    let leader = communicator.rank() == 0;
    let world_size = communicator.world_size();
    let begun = if leader { begin(session, step, world_size, metadata) } else { Ok(String::new()) };
    let Some(id) = agreed(communicator, begun, step)? else { return Ok(false) };
    let id = broadcast_text(communicator, id)?;

    let header = ShardHeader {
        fence: Some(session.fence().clone()),
        checkpoint_id: id.clone(),
        shard: communicator.rank() as u32,
        total_bytes: shard.len() as u64,
    };
    let sent = put(session, header, shard.into());
    let all_sent = agreed(communicator, sent, step);
    let committed = match &all_sent {
        Ok(Some(())) if leader => commit(session, &id),
        Ok(None) | Err(Error::Sync { .. }) if leader => {
            abort(session, &id);
            Ok(())
        }
        _ => Ok(()),
    };
    if all_sent?.is_none() {
        return Ok(false);
    }
    Ok(agreed(communicator, committed, step)?.is_some())
}

/// Reads the checkpoint of `step` back, comparing every digest, and hands its tensors to `take`: one shard is in memory
/// at a time.
///
/// # Errors
/// If the coordinator does not have it, or it is damaged, or `take` refuses a tensor.
pub fn fetch(
    session: &Session,
    step: u64,
    take: &mut dyn FnMut(&Tensor) -> Result<(), Error>,
) -> Result<Manifest, Error> {
    let damaged = |source| Error::Checkpoint { step, source };
    let mut client = client(session);
    let request = with_deadline(GetCheckpointRequest { fence: Some(session.fence().clone()), step }, 0);
    let response =
        session.block_on(client.get(request)).map_err(|status| sync_error("fetch", step, &status))?;
    let manifest =
        Manifest::from_json(&response.into_inner().manifest_json, Path::new(checkpoint::MANIFEST_FILE))
            .map_err(damaged)?;
    let mut names = HashSet::new();
    for (index, shard) in manifest.shards.iter().enumerate() {
        let request = GetShardRequest { fence: Some(session.fence().clone()), step, shard: index as u32 };
        let bytes = session
            .block_on(get_shard(&mut client, with_deadline(request, shard.bytes), shard.bytes))
            .map_err(|status| sync_error("fetch", step, &status))?;
        shard.check(&bytes, Path::new(&shard.file)).map_err(damaged)?;
        for tensor in checkpoint::decode_shard(&bytes).map_err(damaged)? {
            take(&tensor)?;
            if let Some(name) = names.replace(tensor.name) {
                let reason = format!("tensor `{name}` is there twice");
                return Err(damaged(checkpoint::Error::Shard { reason }));
            }
        }
    }
    Ok(manifest)
}

/// Turns each rank's outcome into one that all share: `Some` if all are done, `None` if the coordinator was
/// out of reach of any, an error if it refused any.
fn agreed<T>(communicator: &mut Communicator, own: Result<T, Status>, step: u64) -> Result<Option<T>, Error> {
    let (unreachable, refused) = match &own {
        Ok(_) => (false, false),
        Err(status) if session::is_transient(&status.into()) => (true, false),
        Err(_) => (false, true),
    };
    let mut counts = [unreachable, refused].map(u64::from);
    communicator.all_reduce_sum(&mut counts).map_err(Error::Collective)?;
    let [n_unreachable, n_refused] = counts;
    match own {
        Err(status) if refused => Err(sync_error("save", step, &status)),
        _ if n_refused > 0 => {
            Err(Error::Sync { what: "save", step, reason: "it was refused to another rank".into() })
        }
        Err(status) => {
            tracing::warn!(step, reason = status.message(), "checkpoint not saved: coordinator out of reach");
            Ok(None)
        }
        Ok(_) if n_unreachable > 0 => Ok(None),
        Ok(value) => Ok(Some(value)),
    }
}

fn begin(
    session: &Session,
    step: u64,
    world_size: usize,
    metadata: serde_json::Map<String, serde_json::Value>,
) -> Result<String, Status> {
    let request = BeginCheckpointRequest {
        fence: Some(session.fence().clone()),
        step,
        n_shards: world_size as u32,
        metadata_json: serde_json::Value::Object(metadata).to_string(),
    };
    let response = session.block_on(client(session).begin(with_deadline(request, 0)))?;
    Ok(response.into_inner().checkpoint_id)
}

fn put(session: &Session, header: ShardHeader, shard: Bytes) -> Result<(), Status> {
    let n_bytes = header.total_bytes;
    let digest = checkpoint::digest(&shard);
    let messages = tokio_stream::iter(shard_messages(header, shard, digest));
    let receipt = session.block_on(client(session).put_shard(with_deadline(messages, n_bytes)))?.into_inner();
    let received = receipt.digest.map(|digest| digest.blake3).unwrap_or_default();
    if receipt.durable_bytes == n_bytes && received == digest {
        Ok(())
    } else {
        Err(Status::data_loss("the receipt of a shard does not match what was sent"))
    }
}

/// Header, chunks in order, trailer.
fn shard_messages(
    header: ShardHeader,
    shard: Bytes,
    digest: checkpoint::Digest,
) -> impl Iterator<Item = PutShardMessage> + Send {
    let chunks = (0..shard.len()).step_by(CHUNK_BYTES).map(move |start| {
        let data = shard.slice(start..shard.len().min(start + CHUNK_BYTES));
        Message::Chunk(Chunk { offset: start as u64, crc32c: crc32c::crc32c(&data), data })
    });
    let trailer = Message::Trailer(ShardTrailer { digest: Some(Digest { blake3: digest.to_vec() }) });
    std::iter::once(Message::Header(header))
        .chain(chunks)
        .chain(std::iter::once(trailer))
        .map(|message| PutShardMessage { message: Some(message) })
}

fn commit(session: &Session, id: &str) -> Result<(), Status> {
    session.flush(ROWS_FIRST);
    let request =
        CommitCheckpointRequest { fence: Some(session.fence().clone()), checkpoint_id: id.to_owned() };
    // The coordinator waits for its disk.
    let request = with_deadline(request, SLOWEST_BYTES_PER_S * 60);
    session.block_on(client(session).commit(request)).map(drop)
}

fn abort(session: &Session, id: &str) {
    let request =
        AbortCheckpointRequest { fence: Some(session.fence().clone()), checkpoint_id: id.to_owned() };
    if let Err(status) = session.block_on(client(session).abort(with_deadline(request, 0))) {
        // Its staging directory is removed when the next one begins.
        tracing::warn!(checkpoint_id = id, reason = status.message(), "checkpoint not aborted");
    }
}

async fn get_shard(
    client: &mut CheckpointServiceClient<Channel>,
    request: Request<GetShardRequest>,
    n_bytes: u64,
) -> Result<Vec<u8>, Status> {
    let mut chunks = client.get_shard(request).await?.into_inner();
    let mut assembly = Assembly { bytes: Vec::new(), expected: n_bytes };
    while let Some(chunk) = chunks.message().await? {
        assembly.add(&chunk).map_err(Status::data_loss)?;
    }
    assembly.finish().map_err(Status::data_loss)
}

/// A shard whose chunks arrive in order.
struct Assembly {
    bytes: Vec<u8>,
    expected: u64,
}

impl Assembly {
    fn add(&mut self, chunk: &Chunk) -> Result<(), String> {
        let at = self.bytes.len() as u64;
        if chunk.offset != at || at + chunk.data.len() as u64 > self.expected {
            return Err(format!(
                "chunk of {} bytes at {} after {at} of {}",
                chunk.data.len(),
                chunk.offset,
                self.expected
            ));
        }
        if crc32c::crc32c(&chunk.data) != chunk.crc32c {
            return Err(format!("chunk at {at} has another checksum than it states"));
        }
        self.bytes.extend_from_slice(&chunk.data);
        Ok(())
    }

    fn finish(self) -> Result<Vec<u8>, String> {
        if self.bytes.len() as u64 == self.expected {
            Ok(self.bytes)
        } else {
            Err(format!("the shard ended after {} of {} bytes", self.bytes.len(), self.expected))
        }
    }
}

fn client(session: &Session) -> CheckpointServiceClient<Channel> {
    CheckpointServiceClient::new(session.bulk_channel()).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

fn with_deadline<T>(message: T, n_bytes: u64) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_DEADLINE + Duration::from_secs(n_bytes / SLOWEST_BYTES_PER_S));
    request
}

/// Rank 0's text, on every rank.
fn broadcast_text(communicator: &mut Communicator, text: String) -> Result<String, Error> {
    let mut len = [text.len() as u64];
    communicator.broadcast(&mut len, 0).map_err(Error::Collective)?;
    let mut bytes = text.into_bytes();
    bytes.resize(len[0] as usize, 0);
    communicator.broadcast(&mut bytes, 0).map_err(Error::Collective)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn sync_error(what: &'static str, step: u64, status: &Status) -> Error {
    Error::Sync { what, step, reason: status.message().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::over_ranks;

    fn messages(n_bytes: usize) -> (Vec<u8>, Vec<Message>) {
        let shard: Vec<u8> = (0..n_bytes).map(|i| (i * 31 % 251) as u8).collect();
        let header = ShardHeader { total_bytes: n_bytes as u64, ..ShardHeader::default() };
        let digest = checkpoint::digest(&shard);
        let messages = shard_messages(header, shard.clone().into(), digest);
        (shard, messages.map(|message| message.message.unwrap()).collect())
    }

    fn assemble(messages: &[Message], expected: u64) -> Result<Vec<u8>, String> {
        let mut assembly = Assembly { bytes: Vec::new(), expected };
        for message in messages {
            if let Message::Chunk(chunk) = message {
                assembly.add(chunk)?;
            }
        }
        assembly.finish()
    }

    #[test]
    fn a_shard_travels_in_chunks_between_header_and_trailer() {
        for (n_bytes, n_chunks) in [(0, 0), (1, 1), (CHUNK_BYTES, 1), (2 * CHUNK_BYTES + 5, 3)] {
            let (shard, messages) = messages(n_bytes);
            assert_eq!(messages.len(), n_chunks + 2, "{n_bytes} bytes");
            assert!(matches!(messages[0], Message::Header(_)));
            let expected = Digest { blake3: checkpoint::digest(&shard).to_vec() };
            assert!(matches!(messages.last(), Some(Message::Trailer(t)) if t.digest == Some(expected)));
            assert_eq!(assemble(&messages, n_bytes as u64).unwrap(), shard);
        }
    }

    #[test]
    fn a_chunk_that_is_damaged_missing_or_too_much_is_refused() {
        let n_bytes = 2 * CHUNK_BYTES + 5;
        let (_, messages) = messages(n_bytes);
        #[track_caller]
        fn check(messages: &[Message], expected: u64, reason: &str) {
            let error = assemble(messages, expected).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
        check(&messages[..2], n_bytes as u64, "ended after 1048576 of 2097157");
        check(&messages[2..], n_bytes as u64, "at 1048576 after 0");
        check(&messages, n_bytes as u64 - 1, "at 2097152 after 2097152");
        let mut damaged = messages.clone();
        if let Message::Chunk(chunk) = &mut damaged[2] {
            let mut data = chunk.data.to_vec();
            data[7] ^= 1;
            chunk.data = data.into();
        }
        check(&damaged, n_bytes as u64, "another checksum");
    }

    #[test]
    fn ranks_agree_on_how_a_checkpoint_went() {
        let outcomes = |failing: fn(usize) -> Option<Status>| {
            over_ranks(3, |rank| {
                let own = failing(rank.rank()).map_or(Ok(()), Err);
                agreed(rank, own, 5).map_err(|error| error.to_string())
            })
        };
        assert_eq!(outcomes(|_| None), vec![Ok(Some(())); 3]);
        assert_eq!(outcomes(|rank| (rank == 1).then(|| Status::unavailable("gone"))), vec![Ok(None); 3]);
        let refused = outcomes(|rank| match rank {
            0 => Some(Status::unavailable("gone")),
            2 => Some(Status::failed_precondition("disk is full")),
            _ => None,
        });
        let other = "failed to save the checkpoint of step 5: it was refused to another rank";
        assert_eq!(refused[..2], [Err(other.to_owned()), Err(other.to_owned())]);
        assert_eq!(refused[2], Err("failed to save the checkpoint of step 5: disk is full".to_owned()));
    }

    #[test]
    fn every_rank_hears_rank_0s_text() {
        let texts =
            over_ranks(2, |rank| broadcast_text(rank, format!("text of rank {}", rank.rank())).unwrap());
        assert_eq!(texts, ["text of rank 0", "text of rank 0"]);
    }
}
