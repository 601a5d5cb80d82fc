//! The handshake of a connection that is not encrypted: both sides prove a secret that neither sends.
//!
//! The client states whose secret it means (a role, or a worker's nonce) and a nonce; the server answers with a nonce of its own
//! and an HMAC over both; only when that is right does the client send its own. HTTP/2 follows. Whoever listens learns nothing
//! that opens another connection, because each side's nonce is in every HMAC; who can change the bytes on the way can change
//! what follows the handshake, which is what `--insecure` means.
//!
//! | from | bytes |
//! |---|---|
//! | client | magic (8), length of the claim (1), claim, nonce (32) |
//! | server | 1, nonce (32), HMAC (32); or 0, length (1), why not |
//! | client | HMAC (32) |
//! | server | 1; or 0, length (1), why not |

use ring::agreement::{EphemeralPrivateKey, UnparsedPublicKey, X25519, agree_ephemeral};
use ring::hmac;
use ring::rand::SystemRandom;
use std::io::{Error, ErrorKind, Result};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::Seal;
use crate::error::plain;

/// The first byte differs from that of TLS and of HTTP/2.
pub(crate) const MAGIC: [u8; 8] = *b"himpun\xf0\x02";

const NONCE_BYTES: usize = 32;
const MAC_BYTES: usize = 32;

/// How a client's attempt ended, if the connection itself held.
#[derive(Debug)]
pub(crate) enum Proved {
    /// Both know the secret.
    Both(Seal),
    /// The server does not know it; it was not told it.
    ServerUnknown,
    /// Whoever it is says no, and has not proven that it is the server.
    TurnedAway(String),
    /// The server says no.
    Refused(String),
}

/// The HMACs of one handshake.
struct Transcript {
    key: hmac::Key,
    bytes: Vec<u8>,
}

impl Transcript {
    fn new(secret: &[u8], claim: &str, nonces: [&[u8; NONCE_BYTES]; 2]) -> Transcript {
        let mut bytes = MAGIC.to_vec();
        bytes.push(claim.len() as u8);
        bytes.extend_from_slice(claim.as_bytes());
        nonces.iter().for_each(|nonce| bytes.extend_from_slice(&nonce[..]));
        Transcript { key: hmac::Key::new(hmac::HMAC_SHA256, secret), bytes }
    }

    fn mac(&self, label: &str) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(label.as_bytes());
        context.update(&self.bytes);
        context.sign()
    }

    fn is(&self, label: &str, mac: &[u8; MAC_BYTES]) -> bool {
        hmac::verify(&self.key, &[label.as_bytes(), &self.bytes].concat(), mac).is_ok()
    }

    /// The key of the connection: of the secret, and of a secret that the two have agreed on by their nonces, so that not even
    /// another holder of the same token can open what it overhears.
    fn seal(&self, own: EphemeralPrivateKey, theirs: &[u8; NONCE_BYTES]) -> Result<Seal> {
        let theirs = UnparsedPublicKey::new(&X25519, theirs);
        let seal = |agreed: &[u8]| {
            let key = hmac::Key::new(hmac::HMAC_SHA256, agreed);
            Seal::under(hmac::sign(&key, self.mac("himpun seal").as_ref()).as_ref())
        };
        agree_ephemeral(own, &theirs, seal).map_err(|_| ErrorKind::InvalidData.into())
    }
}

/// A nonce that is the public half of a key of this connection alone (X25519).
fn nonce() -> (EphemeralPrivateKey, [u8; NONCE_BYTES]) {
    let private = EphemeralPrivateKey::generate(&X25519, &SystemRandom::new());
    let private = private.expect("the system's random generator works once it has booted");
    let public = private.compute_public_key().expect("a private key has a public half");
    (private, public.as_ref().try_into().expect("a key of X25519 has 32 bytes"))
}

/// The client's side: `claim` says whose `secret` it is.
pub(crate) async fn prove<S>(stream: &mut S, claim: &str, secret: &[u8]) -> Result<Proved>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let length = u8::try_from(claim.len()).map_err(|_| Error::from(ErrorKind::InvalidInput))?;
    let (private, own) = nonce();
    let hello = [&MAGIC[..], &[length], claim.as_bytes(), &own].concat();
    stream.write_all(&hello).await?;
    if let Some(refusal) = read_verdict(stream).await? {
        return Ok(Proved::TurnedAway(refusal));
    }
    let (theirs, mac): ([u8; NONCE_BYTES], [u8; MAC_BYTES]) = (read(stream).await?, read(stream).await?);
    let transcript = Transcript::new(secret, claim, [&own, &theirs]);
    if !transcript.is("himpun server", &mac) {
        return Ok(Proved::ServerUnknown);
    }
    stream.write_all(transcript.mac("himpun client").as_ref()).await?;
    Ok(match read_verdict(stream).await? {
        None => Proved::Both(transcript.seal(private, &theirs)?),
        Some(refusal) => Proved::Refused(refusal),
    })
}

/// The server's side: `secret_of` knows the secret that a claim means. Returns the claim that was proven and the seal of the
/// connection, or, having said so to the client, why not.
pub(crate) async fn check<S>(
    stream: &mut S,
    secret_of: impl FnOnce(&str) -> Option<Vec<u8>>,
) -> Result<std::result::Result<(String, Seal), &'static str>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    if read::<8>(stream).await? != MAGIC {
        return Err(ErrorKind::InvalidData.into());
    }
    let claim = read_text(stream).await?;
    let theirs: [u8; NONCE_BYTES] = read(stream).await?;
    let Some(secret) = secret_of(&claim) else { return refuse(stream, "unknown role").await };
    let (private, own) = nonce();
    let transcript = Transcript::new(&secret, &claim, [&theirs, &own]);
    stream.write_all(&[&[1], &own[..], transcript.mac("himpun server").as_ref()].concat()).await?;
    if !transcript.is("himpun client", &read(stream).await?) {
        return refuse(stream, "wrong secret").await;
    }
    let seal = transcript.seal(private, &theirs)?;
    stream.write_all(&[1]).await?;
    Ok(Ok((claim, seal)))
}

/// Reads what a client sends first, and says no.
pub(crate) async fn turn_away<S>(stream: &mut S, why: &'static str) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    read::<8>(stream).await?;
    read_text(stream).await?;
    read::<NONCE_BYTES>(stream).await?;
    refuse::<S, ()>(stream, why).await.map(drop)
}

async fn refuse<S: AsyncWrite + Unpin, T>(
    stream: &mut S,
    why: &'static str,
) -> Result<std::result::Result<T, &'static str>> {
    let length = u8::try_from(why.len()).expect("refusals are short");
    stream.write_all(&[&[0, length], why.as_bytes()].concat()).await?;
    stream.shutdown().await?;
    Ok(Err(why))
}

async fn read<const N: usize>(stream: &mut (impl AsyncRead + Unpin)) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

async fn read_text(stream: &mut (impl AsyncRead + Unpin)) -> Result<String> {
    let length = stream.read_u8().await?;
    let mut bytes = vec![0; length.into()];
    stream.read_exact(&mut bytes).await?;
    String::from_utf8(bytes).map_err(|_| ErrorKind::InvalidData.into())
}

/// The server's refusal, if it refuses.
async fn read_verdict(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<String>> {
    match stream.read_u8().await? {
        1 => Ok(None),
        // HTTP/2 begins by two zeros as well.
        0 => match read_text(stream).await?.as_str() {
            "" => Err(ErrorKind::InvalidData.into()),
            text => Ok(Some(plain(text))),
        },
        _ => Err(ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests;
