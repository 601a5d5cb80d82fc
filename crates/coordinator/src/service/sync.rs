//! Checkpoint sync: shards stream in from the workers, and back to them.

use bytes::Bytes;
use checkpoint::{Part, ShardWriter};
use identity::Caller;
use proto::v1::checkpoint_service_server::CheckpointService;
use proto::v1::{
    AbortCheckpointRequest, AbortCheckpointResponse, BeginCheckpointRequest, BeginCheckpointResponse,
    CheckpointInfo, Chunk, CommitCheckpointRequest, Digest, Fence, GetCheckpointRequest,
    GetCheckpointResponse, GetShardRequest, PutShardMessage, ShardHeader, ShardReceipt, put_shard_message,
};
use proto::{MissingField, transport};
use std::path::PathBuf;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{blocking, caller, nonce, refusal};
use crate::checkpoints::{self, Begun, Checkpoints, Error, Plan};
use crate::owner::Owner;
use crate::run_dir;
use crate::state::{CheckpointPlan, Input, State};

/// Chunks between the network and the disk; HTTP/2's windows hold back the rest.
const IN_FLIGHT: usize = 4;

/// Serves [`CheckpointService`].
pub(crate) struct CheckpointSync {
    pub owner: Owner,
    pub checkpoints: Checkpoints,
}

#[tonic::async_trait]
impl CheckpointService for CheckpointSync {
    async fn begin(
        &self,
        request: Request<BeginCheckpointRequest>,
    ) -> Result<Response<BeginCheckpointResponse>, Status> {
        let nonce = nonce(&request)?;
        let BeginCheckpointRequest { fence, step, n_shards, metadata_json, images } = request.into_inner();
        let fence = fence.ok_or(MissingField("fence"))?;
        let images = images.map(|digest| digest_of(&digest)).transpose()?;
        let bad_metadata =
            |error: serde_json::Error| Status::invalid_argument(format!("metadata_json: {error}"));
        let metadata = if metadata_json.is_empty() {
            serde_json::Map::new()
        } else {
            serde_json::from_str(&metadata_json).map_err(bad_metadata)?
        };
        let plan_of = fence.clone();
        let CheckpointPlan { run_dir, config_toml, shard_limits, may_stand, .. } =
            self.owner.read(move |state| state.admit_checkpoint(&plan_of, &nonce, step, n_shards)).await??;
        let keep = config::RunConfig::from_toml(&config_toml)
            .map_err(|error| Status::internal(format!("the stored configuration: {error}")))?
            .checkpoint
            .keep;
        let plan = Plan {
            fence: fence.clone(),
            run_dir: PathBuf::from(run_dir),
            step,
            shard_limits,
            may_stand,
            keep,
            config_toml,
            metadata,
            images,
        };
        let checkpoints = self.checkpoints.clone();
        Ok(Response::new(match blocking(move || checkpoints.begin(plan)).await? {
            Begun::Open { id, wants_images } => {
                BeginCheckpointResponse { checkpoint_id: id, wants_images, committed: None }
            }
            Begun::Stands(info) => {
                self.owner.tell(Input::CheckpointStands { fence, info: info.clone() }).await?;
                BeginCheckpointResponse { committed: Some(info), ..BeginCheckpointResponse::default() }
            }
        }))
    }

    async fn put_shard(
        &self,
        request: Request<Streaming<PutShardMessage>>,
    ) -> Result<Response<ShardReceipt>, Status> {
        let nonce = nonce(&request)?;
        let mut inbox = request.into_inner();
        let first = tokio::time::timeout(transport::CALL_DEADLINE, next(&mut inbox))
            .await
            .map_err(|_| Status::deadline_exceeded("the shard began without a header"))?;
        let Some(put_shard_message::Message::Header(header)) = first? else {
            return Err(MissingField("header").into());
        };
        let fence = header.fence.clone().ok_or(MissingField("fence"))?;
        self.admit_part(&fence, nonce, &header).await?;
        let checkpoints = self.checkpoints.clone();
        let (id, part) = (header.checkpoint_id.clone(), checkpoints::part(header.shard, header.images));
        let (writer, limit) = blocking(move || checkpoints.part(&fence, &id, part)).await?;
        if header.total_bytes > limit {
            return Err(Error::TooLarge { part, bytes: header.total_bytes, limit }.into());
        }
        receive(inbox, writer, (part, header.total_bytes)).await.map(Response::new)
    }

    async fn commit(
        &self,
        request: Request<CommitCheckpointRequest>,
    ) -> Result<Response<CheckpointInfo>, Status> {
        let nonce = nonce(&request)?;
        let CommitCheckpointRequest { fence, checkpoint_id } = request.into_inner();
        let fence = fence.ok_or(MissingField("fence"))?;
        self.admit_leader(&fence, nonce, "a commit").await?;
        let (checkpoints, of) = (self.checkpoints.clone(), fence.clone());
        let info = blocking(move || checkpoints.commit(&of, &checkpoint_id)).await?;
        self.owner.tell(Input::CheckpointCommitted { fence, info: info.clone() }).await?;
        Ok(Response::new(info))
    }

    async fn abort(
        &self,
        request: Request<AbortCheckpointRequest>,
    ) -> Result<Response<AbortCheckpointResponse>, Status> {
        let nonce = nonce(&request)?;
        let AbortCheckpointRequest { fence, checkpoint_id } = request.into_inner();
        let fence = fence.ok_or(MissingField("fence"))?;
        self.admit_leader(&fence, nonce, "giving a checkpoint up").await?;
        let checkpoints = self.checkpoints.clone();
        blocking(move || checkpoints.abort(&fence, &checkpoint_id)).await?;
        Ok(Response::new(AbortCheckpointResponse {}))
    }

    async fn get(
        &self,
        request: Request<GetCheckpointRequest>,
    ) -> Result<Response<GetCheckpointResponse>, Status> {
        let caller = caller(&request);
        let GetCheckpointRequest { fence, step } = request.into_inner();
        let run_dir = self.admit_reader(&fence.ok_or(MissingField("fence"))?, caller).await?;
        let run = blocking(move || run_dir::open(&run_dir)).await?;
        let manifest_json = blocking(move || checkpoints::manifest_json(&run, step)).await?;
        Ok(Response::new(GetCheckpointResponse { manifest_json }))
    }

    type GetShardStream = ReceiverStream<Result<Chunk, Status>>;

    async fn get_shard(
        &self,
        request: Request<GetShardRequest>,
    ) -> Result<Response<Self::GetShardStream>, Status> {
        let caller = caller(&request);
        let GetShardRequest { fence, step, shard, images } = request.into_inner();
        let part = checkpoints::part(shard, images);
        let run_dir = self.admit_reader(&fence.ok_or(MissingField("fence"))?, caller).await?;
        let run = blocking(move || run_dir::open(&run_dir)).await?;
        let (chunks, stream) = mpsc::channel(IN_FLIGHT);
        // The thread ends with the file or with the stream's reader; its error goes down the stream.
        tokio::task::spawn_blocking(move || {
            let sent = checkpoints::read_part(&run, step, part, transport::CHUNK_BYTES, |offset, data| {
                let crc32c = crc32c::crc32c(&data);
                chunks.blocking_send(Ok(Chunk { offset, data: Bytes::from(data), crc32c })).is_ok()
            });
            if let Err(error) = sent {
                chunks.blocking_send(Err(error.into())).ok();
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

impl CheckpointSync {
    /// Rank 0 does `what`.
    async fn admit_leader(&self, fence: &Fence, nonce: String, what: &'static str) -> Result<(), Status> {
        let fence = fence.clone();
        let admitted = move |state: &State| state.admit_leader(&fence, &nonce, what).map(drop);
        Ok(self.owner.read(admitted).await??)
    }

    /// A rank sends its own shard, and rank 0 the list of images.
    async fn admit_part(&self, fence: &Fence, nonce: String, header: &ShardHeader) -> Result<(), Status> {
        if header.images {
            return self.admit_leader(fence, nonce, "the list of images").await;
        }
        let (fence, shard) = (fence.clone(), header.shard);
        let rank = move |state: &State| state.admit_member(&fence, &nonce).map(|admitted| admitted.rank);
        let rank = self.owner.read(rank).await??;
        if rank == shard as usize {
            return Ok(());
        }
        let message = format!("rank {rank} sends its own shard, and not shard {shard}");
        Err(refusal(tonic::Code::PermissionDenied, "not_yours", message, ""))
    }

    /// The directory of the run that a worker is a member of, or that an operator names.
    async fn admit_reader(&self, fence: &Fence, caller: Caller) -> Result<PathBuf, Status> {
        let fence = fence.clone();
        let run_dir = move |state: &State| match caller {
            Caller::Worker(nonce) => {
                state.admit_member(&fence, &nonce).map(|admitted| admitted.record.run_dir.clone())
            }
            _ => {
                let run_id = state.resolve(&fence.run_id)?;
                Ok(state.record(run_id).expect("a resolved id has a record").run_dir.clone())
            }
        };
        Ok(PathBuf::from(self.owner.read(run_dir).await??))
    }
}

/// Writes chunks as they come; the receipt follows once the shard is on the disk and is what was sent.
async fn receive(
    mut inbox: Streaming<PutShardMessage>,
    writer: ShardWriter,
    (part, total_bytes): (Part, u64),
) -> Result<ShardReceipt, Status> {
    let (chunks, queue) = mpsc::channel(IN_FLIGHT);
    let writing = tokio::task::spawn_blocking(move || write(writer, queue, part, total_bytes));
    let trailer = async {
        loop {
            match next(&mut inbox).await? {
                Some(put_shard_message::Message::Chunk(chunk)) => {
                    // The writer has ended with an error, which is told below.
                    if chunks.send(chunk).await.is_err() {
                        return Ok(None);
                    }
                }
                Some(put_shard_message::Message::Trailer(trailer)) => return Ok(Some(trailer)),
                Some(put_shard_message::Message::Header(_)) => {
                    return Err(Status::invalid_argument("a second header"));
                }
                None => {
                    let cut = format!("the stream of {part} ended before its trailer");
                    return Err(refusal(tonic::Code::DataLoss, "shard_truncated", cut, ""));
                }
            }
        }
    }
    .await;
    drop(chunks);
    let written =
        writing.await.map_err(|error| Status::internal(format!("writing a shard failed: {error}")))?;
    let trailer = trailer?;
    let writer = written?;
    let digest = trailer.and_then(|trailer| trailer.digest).ok_or(MissingField("digest"))?;
    let expected = digest_of(&digest)?;
    let durable = blocking(move || writer.finish(&expected).map_err(Error::from)).await?;
    Ok(ShardReceipt { durable_bytes: durable.bytes, digest: Some(Digest { blake3: expected.to_vec() }) })
}

fn digest_of(digest: &Digest) -> Result<checkpoint::Digest, Status> {
    digest.blake3.as_slice().try_into().map_err(|_| Status::invalid_argument("a digest of not 32 bytes"))
}

fn write(
    mut writer: ShardWriter,
    mut chunks: mpsc::Receiver<Chunk>,
    part: Part,
    total_bytes: u64,
) -> Result<ShardWriter, Error> {
    while let Some(chunk) = chunks.blocking_recv() {
        let actual = crc32c::crc32c(&chunk.data);
        if actual != chunk.crc32c {
            return Err(Error::Chunk { part, offset: chunk.offset, expected: chunk.crc32c, actual });
        }
        let end = chunk.offset.saturating_add(chunk.data.len() as u64);
        if end > total_bytes {
            return Err(Error::Length { part, expected: total_bytes, actual: end });
        }
        writer.write_at(chunk.offset, &chunk.data)?;
    }
    if writer.bytes() != total_bytes {
        return Err(Error::Length { part, expected: total_bytes, actual: writer.bytes() });
    }
    Ok(writer)
}

async fn next(inbox: &mut Streaming<PutShardMessage>) -> Result<Option<put_shard_message::Message>, Status> {
    match inbox.message().await? {
        None => Ok(None),
        Some(PutShardMessage { message: Some(message) }) => Ok(Some(message)),
        Some(PutShardMessage { message: None }) => Err(MissingField("message").into()),
    }
}
