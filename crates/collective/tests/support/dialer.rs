//! A rank that dials, written out by hand from the layout in the documentation of `handshake`.

use std::io::{Read, Write};
use std::net::TcpStream;

use ring::hmac;

pub const WELCOME: u32 = 0;

/// The greeting of rank `rank` of two, generation 2, to rank 0's communicator 0 of `n_communicators`.
pub fn hello(rank: u32, n_communicators: u16, nonce: u8) -> Vec<u8> {
    let mut fields = Vec::new();
    fields.extend(rank.to_le_bytes());
    fields.extend([0; 4]);
    fields.extend([0, 0]);
    fields.extend(n_communicators.to_le_bytes());
    fields.extend(2u32.to_le_bytes());
    fields.extend(2u64.to_le_bytes());
    fields.extend([nonce; 32]);
    sealed(&fields)
}

pub fn proof(key: &[u8; 32], hello: &[u8], challenge: &[u8]) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    sealed(hmac::sign(&key, &[b"dialer", hello, challenge].concat()).as_ref())
}

/// `fields` between magic and version and a checksum.
pub fn sealed(fields: &[u8]) -> Vec<u8> {
    let mut bytes = [b"himpun\xf0\x0a\x02\0\0\0", fields].concat();
    bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
    bytes
}

/// Sends `message` and reads the answer.
pub fn ask<const N: usize>(mut stream: &TcpStream, message: &[u8]) -> [u8; N] {
    stream.write_all(message).unwrap();
    let mut answer = [0; N];
    stream.read_exact(&mut answer).unwrap();
    answer
}

/// Greets and reads the challenge.
pub fn greet(stream: &TcpStream, hello: &[u8]) -> [u8; 84] {
    let challenge = ask(stream, hello);
    assert_eq!(verdict(&challenge), WELCOME);
    challenge
}

pub fn verdict(answer: &[u8]) -> u32 {
    u32::from_le_bytes(answer[12..16].try_into().unwrap())
}
