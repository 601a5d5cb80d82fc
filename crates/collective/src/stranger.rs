//! The connections that others open to this rank's listener.

use std::io::{self, Write};
use std::net::TcpStream;

use ring::hmac;

use crate::handshake::{self, CHALLENGE_BYTES, HELLO_BYTES, Hello, PROOF_BYTES};
use crate::partial::Partial;
use crate::{Error, Refusal};

/// A connection to the listener that has not proved yet whose it is.
pub(crate) struct Stranger {
    pub stream: TcpStream,
    nonce: [u8; 32],
    stage: Stage,
}

/// What a stranger is to send next.
enum Stage {
    Hello(Partial<HELLO_BYTES>),
    Proof { hello: [u8; HELLO_BYTES], challenge: [u8; CHALLENGE_BYTES], proof: Partial<PROOF_BYTES> },
}

/// What came of listening to a stranger.
pub(crate) enum Heard {
    /// Its message is not complete, or there is another to come.
    Unfinished,
    /// It is the peer that it claims to be.
    Proved { communicator: usize, rank: usize },
    /// It has been told so, unless it is no worker.
    Refused(Refusal),
}

impl Stranger {
    pub(crate) fn new(stream: TcpStream) -> Result<Self, Error> {
        Ok(Self { stream, nonce: handshake::nonce()?, stage: Stage::Hello(Partial::new()) })
    }

    pub(crate) fn is_challenged(&self) -> bool {
        matches!(self.stage, Stage::Proof { .. })
    }

    /// Reads what has arrived, and answers it once it is a whole message.
    ///
    /// `admit` returns the communicator and rank that a `Hello` claims, if the claim can be accepted. Fails if the
    /// connection has closed: a new socket has room for every answer.
    pub(crate) fn advance(
        &mut self,
        key: &hmac::Key,
        admit: impl Fn(&Hello) -> Result<(usize, usize), Refusal>,
    ) -> io::Result<Heard> {
        let mut stream = &self.stream;
        match &mut self.stage {
            Stage::Hello(hello) => {
                let complete = hello.read_from(stream)?;
                if handshake::check_beginning(hello.received()) == Err(Refusal::NotAWorker) {
                    return Ok(Heard::Refused(Refusal::NotAWorker));
                }
                // Another version is answered after its last byte: closing with bytes unread discards the answer.
                let Some(hello) = complete else { return Ok(Heard::Unfinished) };
                if let Err(refusal) = Hello::decode(&hello).and_then(|hello| admit(&hello)) {
                    stream.write_all(&handshake::refuse(refusal))?;
                    return Ok(Heard::Refused(refusal));
                }
                let challenge = handshake::challenge(key, &hello, &self.nonce);
                stream.write_all(&challenge)?;
                self.stage = Stage::Proof { hello, challenge, proof: Partial::new() };
                Ok(Heard::Unfinished)
            }
            Stage::Proof { hello, challenge, proof } => {
                let Some(proof) = proof.read_from(stream)? else { return Ok(Heard::Unfinished) };
                // Asked again, since another connection may have proved the same claim meanwhile.
                let admitted = handshake::check_proof(key, hello, challenge, &proof)
                    .and_then(|()| admit(&Hello::decode(hello)?));
                stream.write_all(&handshake::encode_welcome(admitted.map(|_| ())))?;
                Ok(match admitted {
                    Ok((communicator, rank)) => Heard::Proved { communicator, rank },
                    Err(refusal) => Heard::Refused(refusal),
                })
            }
        }
    }
}
