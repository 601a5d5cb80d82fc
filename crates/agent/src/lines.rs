//! What a worker writes, line by line.

use std::collections::VecDeque;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Bytes of a line beyond which it is cut: a worker that writes none must not fill the agent's memory.
const MAX_LINE_BYTES: usize = 16 << 10;

/// Lines of an output that are kept for the report of its worker's end.
const TAIL_LINES: usize = 200;

/// Bytes of them: the report must fit into a message, or it would break every session that it is sent in.
const TAIL_BYTES: usize = 256 << 10;

/// One output of a worker.
pub(crate) struct Output<R> {
    /// Absent once the output has ended.
    reader: Option<R>,
    partial: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Output<R> {
    pub fn new(reader: Option<R>) -> Self {
        Self { reader, partial: Vec::new() }
    }

    pub fn is_open(&self) -> bool {
        self.reader.is_some()
    }

    /// Waits for output and returns the lines it completes, possibly none. May be cancelled at any time
    /// without losing a byte.
    pub async fn read(&mut self) -> Vec<String> {
        let Some(reader) = &mut self.reader else { return Vec::new() };
        let mut chunk = [0; 8 << 10];
        match reader.read(&mut chunk).await {
            Ok(n) if n > 0 => self.split(&chunk[..n]),
            // A pipe that fails is as closed as one that ends.
            Ok(_) | Err(_) => {
                self.reader = None;
                let rest = std::mem::take(&mut self.partial);
                if rest.is_empty() { Vec::new() } else { vec![text(&rest)] }
            }
        }
    }

    fn split(&mut self, chunk: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for piece in chunk.split_inclusive(|&byte| byte == b'\n') {
            let (piece, ends) = piece.strip_suffix(b"\n").map_or((piece, false), |piece| (piece, true));
            let room = MAX_LINE_BYTES - self.partial.len();
            self.partial.extend_from_slice(&piece[..piece.len().min(room)]);
            if ends {
                lines.push(text(&self.partial));
                self.partial.clear();
            }
        }
        lines
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.strip_suffix(b"\r").unwrap_or(bytes)).into_owned()
}

/// The last lines of an output.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    lines: VecDeque<String>,
    bytes: usize,
}

impl Tail {
    pub fn extend(&mut self, lines: &[String]) {
        for line in lines {
            self.bytes += line.len();
            self.lines.push_back(line.clone());
            while self.lines.len() > TAIL_LINES || self.bytes > TAIL_BYTES {
                self.bytes -= self.lines.pop_front().map_or(0, |line| line.len());
            }
        }
    }

    pub fn into_lines(self) -> Vec<String> {
        self.lines.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(input: &[u8]) -> Vec<String> {
        let mut output = Output::new(Some(input));
        let mut lines = Vec::new();
        while output.is_open() {
            lines.extend(output.read().await);
        }
        lines
    }

    #[tokio::test]
    async fn splits_keeps_the_unfinished_and_cuts_the_endless() {
        assert_eq!(all(b"one\r\ntwo\n\nlast").await, ["one", "two", "", "last"]);
        assert_eq!(all(b"").await, [""; 0]);
        assert_eq!(all(b"\xff\n").await, ["\u{fffd}"]);
        let long = [vec![b'x'; 5 * MAX_LINE_BYTES], b"\nshort\n".to_vec()].concat();
        let lines = all(&long).await;
        assert_eq!((lines[0].len(), lines[1].as_str(), lines.len()), (MAX_LINE_BYTES, "short", 2));
    }

    #[test]
    fn a_tail_keeps_the_last_lines() {
        let mut tail = Tail::default();
        for i in 0..250 {
            tail.extend(&[i.to_string()]);
        }
        let lines = tail.into_lines();
        assert_eq!((lines.len(), lines[0].as_str(), lines[199].as_str()), (200, "50", "249"));
    }

    #[test]
    fn a_tail_of_long_lines_fits_into_a_message() {
        let mut tail = Tail::default();
        let long = "x".repeat(MAX_LINE_BYTES);
        for _ in 0..250 {
            tail.extend(std::slice::from_ref(&long));
        }
        tail.extend(&["the cause".to_owned()]);
        let lines = tail.into_lines();
        assert_eq!((lines.len(), lines[15].as_str()), (16, "the cause"));
    }
}
