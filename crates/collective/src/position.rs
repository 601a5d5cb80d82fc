//! Where a rank is: in its group, and in the sequence of its exchanges.

use crate::frame::{Header, Op};
use crate::{AbortHandle, Error};

/// What the headers of a rank's frames state, and how far it has come.
#[derive(Debug)]
pub(crate) struct Position {
    pub rank: usize,
    pub world_size: usize,
    pub generation: u64,
    pub step: u64,
    /// Exchanges since the group was formed.
    pub sequence: u64,
    /// Payload bytes, headers not counted.
    pub bytes_sent: u64,
    pub abort: AbortHandle,
    pub failed: bool,
    /// The exchange that is to fail, in a test of what a failure leaves behind.
    pub fails_at: Option<u64>,
}

impl Position {
    pub fn new(rank: usize, world_size: usize, generation: u64, abort: AbortHandle) -> Position {
        Position {
            rank,
            world_size,
            generation,
            step: 0,
            sequence: 0,
            bytes_sent: 0,
            abort,
            failed: false,
            fails_at: None,
        }
    }

    /// Begins an exchange.
    pub fn enter(&mut self) -> Result<(), Error> {
        if self.failed {
            self.abort.check()?;
            return Err(Error::Failed);
        }
        if self.fails_at == Some(self.sequence) {
            self.failed = true;
            let source = std::io::Error::other("this exchange was told to fail");
            return Err(Error::PeerLost { rank: self.rank, source });
        }
        Ok(())
    }

    /// The header of the exchange's frames, without the length.
    pub fn header(&self, op: Op, element: u8) -> Header {
        let Position { generation, step, sequence, .. } = *self;
        Header { op: op as u8, element, generation, step, sequence, payload_bytes: 0 }
    }

    /// Ends an exchange in which this rank sent `bytes` of payload.
    pub fn leave(&mut self, bytes: usize, outcome: Result<(), Error>) -> Result<(), Error> {
        self.failed = outcome.is_err();
        self.sequence += 1;
        self.bytes_sent += bytes as u64;
        outcome
    }
}
