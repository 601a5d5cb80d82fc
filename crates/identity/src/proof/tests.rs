//! The handshake between the two sides, and between each and somebody who does not know the secret.

use super::*;
use tokio::io::{DuplexStream, duplex};

type Checked = Result<std::result::Result<(String, Seal), &'static str>>;

const SECRET: [u8; 32] = [7; 32];

/// Bytes of the client's first message, and of the server's answer.
const HELLO: usize = 8 + 1 + "operator".len() + 32;
const ANSWER: usize = 1 + 32 + 32;

fn known(claim: &str) -> Option<Vec<u8>> {
    (claim == "operator").then(|| SECRET.to_vec())
}

/// What passed between the two.
#[derive(Default)]
struct Wire {
    up: Vec<u8>,
    down: Vec<u8>,
}

/// A byte on the way that has one bit flipped: of those up, or of those down.
#[derive(Clone, Copy)]
enum Flip {
    None,
    Up(usize),
    Down(usize),
}

/// Carries a message of `n` bytes from one to the other.
async fn carry(
    from: &mut DuplexStream,
    to: &mut DuplexStream,
    seen: &mut Vec<u8>,
    n: usize,
    flip: Option<usize>,
) {
    let mut bytes = vec![0; n];
    if from.read_exact(&mut bytes).await.is_err() {
        to.shutdown().await.unwrap();
        return;
    }
    let begun = seen.len() * 8;
    seen.extend_from_slice(&bytes);
    if let Some(bit) = flip.and_then(|bit| bit.checked_sub(begun)).filter(|bit| *bit < n * 8) {
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    to.write_all(&bytes).await.ok();
}

/// A handshake through somebody who sees, and may change, what passes.
async fn handshake(secret: &[u8], flip: Flip) -> (Result<Proved>, Checked, Wire) {
    let [(mut client, mut near), (mut far, mut server)] = [duplex(256), duplex(256)];
    let (up, down) = match flip {
        Flip::None => (None, None),
        Flip::Up(bit) => (Some(bit), None),
        Flip::Down(bit) => (None, Some(bit)),
    };
    let mut wire = Wire::default();
    let between = async {
        carry(&mut near, &mut far, &mut wire.up, HELLO, up).await;
        carry(&mut far, &mut near, &mut wire.down, ANSWER, down).await;
        if down.is_some() {
            // A refusal may be longer than this answer: it would be waited for.
            near.shutdown().await.unwrap();
        }
        carry(&mut near, &mut far, &mut wire.up, 32, up).await;
        tokio::io::copy(&mut far, &mut near).await.ok();
        drop((near, far));
    };
    let client = async move { prove(&mut client, "operator", secret).await };
    let server = async move { check(&mut server, known).await };
    let (proved, checked, ()) = tokio::join!(client, server, between);
    (proved, checked, wire)
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[tokio::test]
async fn who_knows_the_secret_is_known_and_both_seal_alike() {
    let (proved, checked, wire) = handshake(&SECRET, Flip::None).await;
    let (Proved::Both(client), (claim, server)) = (proved.unwrap(), checked.unwrap().unwrap()) else {
        panic!("not proven");
    };
    assert_eq!(claim, "operator");
    let sealed = server.apply("worker", &[3; 16]);
    assert_eq!(client.apply("worker", &sealed), [3; 16]);
    assert_ne!(sealed, [3; 16]);
    assert!(!contains(&wire.up, &SECRET) && !contains(&wire.down, &SECRET));
    assert_eq!((wire.up.len(), wire.down.len()), (HELLO + 32, ANSWER));
}

#[tokio::test]
async fn a_client_tells_a_server_that_does_not_know_its_secret_nothing() {
    let other = [8; 32];
    let (proved, checked, wire) = handshake(&other, Flip::None).await;
    assert!(matches!(proved.unwrap(), Proved::ServerUnknown));
    assert!(checked.is_err(), "the client has gone");
    // The hello, and no HMAC of its own after it.
    assert_eq!(wire.up.len(), HELLO);
    assert!(!contains(&wire.up, &other));
}

#[tokio::test]
async fn a_claim_that_is_unknown_and_one_that_is_turned_away_are_told_why() {
    let (mut client, mut server) = duplex(256);
    let (proved, checked) = tokio::join!(prove(&mut client, "nobody", &SECRET), check(&mut server, known));
    assert_eq!(checked.unwrap().unwrap_err(), "unknown role");
    assert!(matches!(proved.unwrap(), Proved::TurnedAway(why) if why == "unknown role"));

    let (mut client, mut server) = duplex(256);
    let (proved, turned) =
        tokio::join!(prove(&mut client, "operator", &SECRET), turn_away(&mut server, "not\x1b[2J today"));
    turned.unwrap();
    assert!(matches!(proved.unwrap(), Proved::TurnedAway(why) if why == "not[2J today"), "plain text");
}

#[tokio::test]
async fn a_client_without_the_secret_is_refused_after_the_server_has_proven_itself() {
    let (mut client, mut server) = duplex(256);
    let guess = async {
        client.write_all(&[&MAGIC[..], &[8], b"operator", &[1; 32]].concat()).await.unwrap();
        let answer: [u8; ANSWER] = read(&mut client).await.unwrap();
        let nonce: [u8; 32] = answer[1..33].try_into().unwrap();
        let transcript = Transcript::new(&[8; 32], "operator", [&[1; 32], &nonce]);
        client.write_all(transcript.mac("himpun client").as_ref()).await.unwrap();
        read_verdict(&mut client).await.unwrap()
    };
    let (told, checked) = tokio::join!(guess, check(&mut server, known));
    assert_eq!(checked.unwrap().unwrap_err(), "wrong secret");
    assert_eq!(told.as_deref(), Some("wrong secret"));
}

#[tokio::test]
async fn a_connection_that_was_recorded_opens_no_other() {
    let (_, checked, Wire { up, .. }) = handshake(&SECRET, Flip::None).await;
    assert!(checked.unwrap().is_ok());
    let (mut client, mut server) = duplex(256);
    client.write_all(&up).await.unwrap();
    assert_eq!(check(&mut server, known).await.unwrap().unwrap_err(), "wrong secret");
}

/// A stranger sends each side what the side itself has sent.
#[tokio::test]
async fn what_a_side_has_sent_does_not_prove_anything_to_it() {
    let (mut client, mut stranger) = duplex(256);
    let reflect = async {
        let hello: [u8; HELLO] = read(&mut stranger).await.unwrap();
        // Its own nonce, and in the place of the HMAC that nonce again.
        let nonce = &hello[HELLO - 32..];
        stranger.write_all(&[&[1], nonce, nonce].concat()).await.unwrap();
    };
    let (proved, ()) = tokio::join!(prove(&mut client, "operator", &SECRET), reflect);
    assert!(matches!(proved.unwrap(), Proved::ServerUnknown));

    let (mut stranger, mut server) = duplex(256);
    let reflect = async {
        stranger.write_all(&[&MAGIC[..], &[8], b"operator", &[1; 32]].concat()).await.unwrap();
        let answer: [u8; ANSWER] = read(&mut stranger).await.unwrap();
        stranger.write_all(&answer[33..]).await.unwrap();
    };
    let ((), checked) = tokio::join!(reflect, check(&mut server, known));
    assert_eq!(checked.unwrap().unwrap_err(), "wrong secret");
}

#[tokio::test]
async fn a_bit_that_is_changed_on_the_way_is_noticed() {
    for bit in 0..ANSWER * 8 {
        let (proved, checked, wire) = handshake(&SECRET, Flip::Down(bit)).await;
        assert!(!matches!(proved, Ok(Proved::Both(_))), "bit {bit} of the answer");
        assert!(!matches!(checked, Ok(Ok(_))), "bit {bit} of the answer");
        assert_eq!(wire.up.len(), HELLO, "nothing more is told, bit {bit}");
    }
    // Of the length of the claim on: a longer claim would be waited for, and the magic is looked at first.
    let after_length = (9 * 8)..(HELLO + 32) * 8;
    for bit in (0..8 * 8).chain(after_length) {
        let (proved, checked, _) = handshake(&SECRET, Flip::Up(bit)).await;
        assert!(!matches!(proved, Ok(Proved::Both(_))), "bit {bit} of the client's");
        assert!(!matches!(checked, Ok(Ok(_))), "bit {bit} of the client's");
    }
}

#[tokio::test]
async fn http2_is_no_answer() {
    let (mut client, mut server) = duplex(256);
    // The beginning of HTTP/2's settings.
    server.write_all(&[0, 0, 18, 4, 0, 0, 0, 0, 0]).await.unwrap();
    let error = prove(&mut client, "operator", &SECRET).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidData);
}
