//! Checkpoints to and from the coordinator.
//!
//! Rank 0 begins a checkpoint, every rank streams its share of the state in chunks, and rank 0 commits once
//! all have their receipts. A checkpoint that fails changes nothing: the group agrees that it failed.

use checkpoint::{Manifest, ShardDecoder, ShardEncoder, Tensor};
use collective::Communicator;
use identity::Channel;
use proto::Refusal;
use proto::transport::{CALL_DEADLINE, CHUNK_BYTES, MAX_MESSAGE_BYTES};
use proto::v1::checkpoint_service_client::CheckpointServiceClient;
use proto::v1::put_shard_message::Message;
use proto::v1::{
    AbortCheckpointRequest, BeginCheckpointRequest, BeginCheckpointResponse, Chunk, CommitCheckpointRequest,
    Digest, GetCheckpointRequest, GetShardRequest, PutShardMessage, ShardHeader, ShardTrailer,
};
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status};

use crate::Error;
use crate::session::{self, Session};

/// How long a commit waits for the rows of metrics before it: a run that goes on from the checkpoint makes
/// no such row again.
const ROWS_FIRST: Duration = Duration::from_secs(2);

/// Chunks that wait for the wire.
const CHUNKS_AHEAD: usize = 4;

/// A shard's deadline is that of a call, and what its bytes take at this rate.
const SLOWEST_BYTES_PER_S: u64 = 4 << 20;

/// How often a checkpoint is begun that the coordinator cannot take yet, and the pause between: rank 0's call may overtake
/// the ranks' word that they are ready, on connections of their own.
const READY_ATTEMPTS: usize = 100;
const READY_PAUSE: Duration = Duration::from_millis(50);

/// What rank 0 says of a checkpoint beside its shards.
pub struct Description {
    /// What the manifest records of the run.
    pub metadata: serde_json::Map<String, serde_json::Value>,
    /// The list of the run's images, as bytes, which travels where the run does not have it yet.
    pub images: Arc<[u8]>,
}

/// Streams this rank's `shard` of the checkpoint of `step` to the coordinator; collective. A few chunks of it are copied
/// at a time. A checkpoint of this step that the coordinator has already is not sent again.
///
/// `description` is rank 0's. Returns `false`, on every rank,
/// if the coordinator could not be reached: the checkpoint can be tried again.
///
/// # Errors
/// If the coordinator refuses the checkpoint, or a peer is lost.
pub fn save(
    session: &Session,
    communicator: &mut Communicator,
    step: u64,
    shard: &[Tensor<'_>],
    description: Option<Description>,
) -> Result<bool, Error> {
    let leader = communicator.rank() == 0;
    let world_size = communicator.world_size();
    let begun = description.map_or(Ok(None), |description| begin(session, step, world_size, description));
    let Some(id) = agreed(communicator, begun, step)? else { return Ok(false) };
    // No checkpoint's name is empty: that is how the others learn that there is none to fill.
    let id = broadcast_text(communicator, id.unwrap_or_default())?;
    if id.is_empty() {
        return Ok(true);
    }

    let encoder = ShardEncoder::new(shard);
    let header = ShardHeader {
        fence: Some(session.fence().clone()),
        checkpoint_id: id.clone(),
        shard: communicator.rank() as u32,
        total_bytes: encoder.total_bytes(),
        images: false,
    };
    let sent = put(session, header, Upload::Shard(Box::new(encoder)));
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

/// Reads the manifest of the checkpoint of `step`.
///
/// # Errors
/// If the coordinator does not have it, or it is damaged.
pub fn fetch_manifest(session: &Session, step: u64) -> Result<Manifest, Error> {
    let request = with_deadline(GetCheckpointRequest { fence: Some(session.fence().clone()), step }, 0);
    let response = session
        .block_on(client(session).get(request))
        .map_err(|status| sync_error("fetch", step, &status))?;
    Manifest::from_json(&response.into_inner().manifest_json, Path::new(checkpoint::MANIFEST_FILE))
        .map_err(|source| Error::Checkpoint { step, source })
}

/// Reads the list of images that a checkpoint names; nothing if it names none, or the list is not with it.
///
/// # Errors
/// If the coordinator cannot be reached, or the list is damaged.
pub fn fetch_images(session: &Session, manifest: &Manifest) -> Result<Option<Vec<u8>>, Error> {
    let step = manifest.step;
    let named =
        manifest.metadata.get(checkpoint::IMAGES_KEY).and_then(|images| images.get(checkpoint::LIST_KEY));
    let Some(digest) = named.and_then(serde_json::Value::as_str) else { return Ok(None) };
    let failed = |status| sync_error("fetch", step, &status);
    let request = GetShardRequest {
        fence: Some(session.fence().clone()),
        step,
        images: true,
        ..GetShardRequest::default()
    };
    let mut chunks =
        session.block_on(client(session).get_shard(with_deadline(request, 0))).map_err(failed)?.into_inner();
    let mut list = Vec::new();
    loop {
        match session.block_on(within_deadline(chunks.message())) {
            Ok(Some(chunk)) => list.extend_from_slice(&chunk.data),
            Ok(None) => break,
            Err(status) if status.code() == tonic::Code::NotFound => return Ok(None),
            Err(status) => return Err(failed(status)),
        }
    }
    let file = Path::new("the run's list of images");
    checkpoint::check_images(&list, digest, file).map_err(|source| Error::Checkpoint { step, source })?;
    Ok(Some(list))
}

/// Reads a checkpoint back and hands its tensors to `take`, one at a time as they arrive. What was taken
/// counts only once every digest has been compared, which is when this returns.
///
/// # Errors
/// If the coordinator does not have it, or it is damaged, or `take` refuses a tensor.
pub fn fetch(
    session: &Session,
    manifest: &Manifest,
    take: &mut dyn FnMut(&Tensor<'_>) -> Result<(), Error>,
) -> Result<(), Error> {
    let step = manifest.step;
    let damaged = |source| Error::Checkpoint { step, source };
    let mut client = client(session);
    let mut names = HashSet::new();
    for (index, shard) in manifest.shards.iter().enumerate() {
        let request = GetShardRequest {
            fence: Some(session.fence().clone()),
            step,
            shard: index as u32,
            images: false,
        };
        let request = with_deadline(request, shard.bytes);
        let refused = |status| sync_error("fetch", step, &status);
        let mut chunks = session.block_on(client.get_shard(request)).map_err(refused)?.into_inner();
        let mut decoder = ShardDecoder::new(shard, Path::new(&shard.file));
        // The call's own deadline is that of its beginning.
        while let Some(chunk) = session.block_on(within_deadline(chunks.message())).map_err(refused)? {
            receive(&mut decoder, &chunk).map_err(|reason| Error::Sync { what: "fetch", step, reason })?;
            while let Some(tensor) = decoder.next_tensor() {
                take(&tensor)?;
                if let Some(name) = names.replace(tensor.name) {
                    let reason = format!("tensor `{name}` is there twice");
                    return Err(damaged(checkpoint::Error::Shard { reason }));
                }
            }
        }
        decoder.finish().map_err(damaged)?;
    }
    Ok(())
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
    communicator.all_reduce_sum(&mut counts)?;
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

/// Begins a checkpoint, and sends the list of images if the run does not have it; the checkpoint's name, or nothing if this
/// step is committed already.
fn begin(
    session: &Session,
    step: u64,
    world_size: usize,
    Description { metadata, images }: Description,
) -> Result<Option<String>, Status> {
    let request = BeginCheckpointRequest {
        fence: Some(session.fence().clone()),
        step,
        n_shards: world_size as u32,
        metadata_json: serde_json::Value::Object(metadata).to_string(),
        images: Some(Digest { blake3: checkpoint::digest(&images).to_vec() }),
    };
    let BeginCheckpointResponse { checkpoint_id, wants_images, committed } =
        session.block_on(begin_when_ready(session, request))?;
    if committed.is_some() {
        return Ok(None);
    }
    if wants_images {
        let header = ShardHeader {
            fence: Some(session.fence().clone()),
            checkpoint_id: checkpoint_id.clone(),
            shard: 0,
            total_bytes: images.len() as u64,
            images: true,
        };
        put(session, header, Upload::List { bytes: &images, sent: 0 })?;
    }
    Ok(Some(checkpoint_id))
}

async fn begin_when_ready(
    session: &Session,
    request: BeginCheckpointRequest,
) -> Result<BeginCheckpointResponse, Status> {
    let is_early = |status: &Status| Refusal::from(status).reason == "group_not_ready";
    for _ in 1..READY_ATTEMPTS {
        match client(session).begin(with_deadline(request.clone(), 0)).await {
            Err(status) if is_early(&status) => tokio::time::sleep(READY_PAUSE).await,
            answer => return Ok(answer?.into_inner()),
        }
    }
    Ok(client(session).begin(with_deadline(request, 0)).await?.into_inner())
}

/// What travels in chunks.
enum Upload<'a> {
    Shard(Box<ShardEncoder<'a>>),
    List { bytes: &'a [u8], sent: usize },
}

impl Upload<'_> {
    /// At most `size` of the bytes that are left; none once all were given.
    fn next_chunk(&mut self, size: usize) -> Option<Vec<u8>> {
        match self {
            Upload::Shard(encoder) => encoder.next_chunk(size),
            Upload::List { bytes, sent } => {
                let rest = &bytes[*sent..];
                let chunk = &rest[..size.min(rest.len())];
                *sent += chunk.len();
                (!chunk.is_empty()).then(|| chunk.to_vec())
            }
        }
    }

    /// Of all that was given.
    fn digest(&self) -> checkpoint::Digest {
        match self {
            Upload::Shard(encoder) => encoder.digest(),
            Upload::List { bytes, sent } => checkpoint::digest(&bytes[..*sent]),
        }
    }
}

fn put(session: &Session, header: ShardHeader, upload: Upload<'_>) -> Result<(), Status> {
    let n_bytes = header.total_bytes;
    let (messages, stream) = mpsc::channel(CHUNKS_AHEAD);
    let send = async {
        let mut shard = ShardMessages { header: Some(header), offset: Some(0), upload };
        for message in &mut shard {
            // The call has ended, and says why.
            if messages.send(message).await.is_err() {
                break;
            }
        }
        drop(messages);
        shard.upload.digest()
    };
    let mut client = client(session);
    let call = client.put_shard(with_deadline(ReceiverStream::new(stream), n_bytes));
    let (receipt, digest) = session.block_on(async { tokio::join!(call, send) });
    let receipt = receipt?.into_inner();
    let received = receipt.digest.map(|digest| digest.blake3).unwrap_or_default();
    if receipt.durable_bytes == n_bytes && received == digest {
        Ok(())
    } else {
        Err(Status::data_loss("the receipt of a shard does not match what was sent"))
    }
}

/// Header, chunks in order, trailer.
struct ShardMessages<'a> {
    header: Option<ShardHeader>,
    /// Of the next chunk; `None` after the trailer.
    offset: Option<u64>,
    upload: Upload<'a>,
}

impl Iterator for ShardMessages<'_> {
    type Item = PutShardMessage;

    fn next(&mut self) -> Option<PutShardMessage> {
        let message = if let Some(header) = self.header.take() {
            Message::Header(header)
        } else {
            let offset = self.offset.take()?;
            match self.upload.next_chunk(CHUNK_BYTES) {
                Some(data) => {
                    self.offset = Some(offset + data.len() as u64);
                    Message::Chunk(Chunk { offset, crc32c: crc32c::crc32c(&data), data: data.into() })
                }
                None => {
                    let digest = Digest { blake3: self.upload.digest().to_vec() };
                    Message::Trailer(ShardTrailer { digest: Some(digest) })
                }
            }
        };
        Some(PutShardMessage { message: Some(message) })
    }
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

/// Takes a chunk that continues what has arrived.
fn receive(decoder: &mut ShardDecoder<'_>, chunk: &Chunk) -> Result<(), String> {
    let at = decoder.bytes();
    if chunk.offset != at {
        return Err(format!("a chunk is of byte {} instead of {at}", chunk.offset));
    }
    if crc32c::crc32c(&chunk.data) != chunk.crc32c {
        return Err(format!("chunk at {at} has another checksum than it states"));
    }
    decoder.push(&chunk.data).map_err(|error| error.to_string())
}

async fn within_deadline<T>(answer: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let late = |_| Status::deadline_exceeded(format!("nothing has come for {} s", CALL_DEADLINE.as_secs()));
    tokio::time::timeout(CALL_DEADLINE, answer).await.map_err(late)?
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
    communicator.broadcast(&mut len, 0)?;
    let mut bytes = text.into_bytes();
    bytes.resize(len[0] as usize, 0);
    communicator.broadcast(&mut bytes, 0)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn sync_error(what: &'static str, step: u64, status: &Status) -> Error {
    Error::Sync { what, step, reason: status.message().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trainer::fixtures::over_ranks;

    /// A shard of `n` numbers, and its messages.
    fn messages(n: usize) -> (Vec<u8>, Vec<Message>) {
        let values: Vec<f32> = (0..n).map(|i| (i * 31 % 251) as f32).collect();
        let tensors = [Tensor::from_f32("values", &[n], &values)];
        let (shard, encoder) = (checkpoint::encode_shard(&tensors), ShardEncoder::new(&tensors));
        let header = ShardHeader { total_bytes: encoder.total_bytes(), ..ShardHeader::default() };
        let messages =
            ShardMessages { header: Some(header), offset: Some(0), upload: Upload::Shard(Box::new(encoder)) };
        (shard, messages.map(|message| message.message.unwrap()).collect())
    }

    /// Receives the chunks of a shard of that many bytes.
    fn assemble(messages: &[Message], shard: &[u8], bytes: u64) -> Result<(), String> {
        let blake3 = checkpoint::hex(&checkpoint::digest(shard));
        let shard = checkpoint::Shard { file: "a.safetensors".to_owned(), bytes, blake3 };
        let mut decoder = ShardDecoder::new(&shard, Path::new(&shard.file));
        for message in messages {
            if let Message::Chunk(chunk) = message {
                receive(&mut decoder, chunk)?;
            }
        }
        decoder.finish().map_err(|error| error.to_string())
    }

    #[test]
    fn a_shard_travels_in_chunks_between_header_and_trailer() {
        const IN_A_CHUNK: usize = CHUNK_BYTES / 4;
        for (n, n_chunks) in [(0, 1), (1, 1), (IN_A_CHUNK - 64, 1), (2 * IN_A_CHUNK + 5, 3)] {
            let (shard, messages) = messages(n);
            assert_eq!(messages.len(), n_chunks + 2, "{n} numbers");
            assert!(matches!(&messages[0], Message::Header(h) if h.total_bytes == shard.len() as u64));
            let expected = Digest { blake3: checkpoint::digest(&shard).to_vec() };
            assert!(matches!(messages.last(), Some(Message::Trailer(t)) if t.digest == Some(expected)));
            assemble(&messages, &shard, shard.len() as u64).unwrap();
        }
    }

    #[test]
    fn a_chunk_that_is_damaged_missing_or_too_much_is_refused() {
        let (shard, messages) = messages(CHUNK_BYTES / 2);
        let n_bytes = shard.len() as u64;
        #[track_caller]
        fn check(messages: &[Message], (shard, bytes): (&[u8], u64), reason: &str) {
            let error = assemble(messages, shard, bytes).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
        check(
            &messages[..2],
            (&shard, n_bytes),
            &format!("is truncated: 1048576 bytes instead of {n_bytes}"),
        );
        check(&messages[2..], (&shard, n_bytes), "a chunk is of byte 1048576 instead of 0");
        check(&messages, (&shard, n_bytes - 1), "has grown");
        let mut damaged = messages.clone();
        if let Message::Chunk(chunk) = &mut damaged[2] {
            let mut data = chunk.data.to_vec();
            data[7] ^= 1;
            chunk.data = data.into();
        }
        check(&damaged, (&shard, n_bytes), "another checksum");
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
