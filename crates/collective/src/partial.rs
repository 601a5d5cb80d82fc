//! A message of which some bytes may have arrived.

use std::io::{self, ErrorKind, Read};

use crate::exchange::retrying;

pub(crate) struct Partial<const N: usize> {
    bytes: [u8; N],
    received: usize,
}

impl<const N: usize> Partial<N> {
    pub(crate) fn new() -> Self {
        Self { bytes: [0; N], received: 0 }
    }

    /// Reads what has arrived; returns the message once it is complete. Nothing behind it is read.
    pub(crate) fn read_from(&mut self, mut stream: impl Read) -> io::Result<Option<[u8; N]>> {
        match retrying(|| stream.read(&mut self.bytes[self.received..])) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => self.received += count,
            Err(error) => return Err(error),
        }
        Ok((self.received == N).then_some(self.bytes))
    }

    pub(crate) fn received(&self) -> &[u8] {
        &self.bytes[..self.received]
    }
}
