//! A connection is a peer's only if both ends prove the key of the generation, whatever else is said.

#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

#[path = "support/dialer.rs"]
mod dialer;

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use collective::{AbortHandle, Error, Listener, Membership, Refusal, form};
use dialer::{WELCOME, ask, greet, hello, proof, sealed, verdict};
use ring::hmac;

const HOST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
const KEY: [u8; 32] = [7; 32];
const OTHER_KEY: [u8; 32] = [8; 32];
const LONG: Duration = Duration::from_secs(30);

const VERSION: u32 = 1;
const NOT_THE_KEY: u32 = 2;
const GENERATION: u32 = 3;
const PLACE: u32 = 4;

/// Runs `dialling` against rank 0 of two, which forms two communicators and must still wait for rank 1 afterwards.
fn with_rank_0_waiting<R>(dialling: impl FnOnce(SocketAddr) -> R) -> R {
    let listener = Listener::bind(HOST).unwrap();
    let address = listener.address();
    let peers = vec![address.to_string(), "127.0.0.1:1".to_owned()];
    let group = Membership { key: KEY, generation: 2, rank: 0, peers };
    let abort = AbortHandle::new().unwrap();
    let handle = abort.clone();
    let waiting = thread::spawn(move || form(listener, group, 2, LONG, &abort).unwrap_err());
    let result = dialling(address);
    handle.abort("the test is over");
    assert_eq!(waiting.join().unwrap().to_string(), "aborted: the test is over");
    result
}

/// Greets rank 0, answers its challenge by `answer`, and returns the final verdict.
fn prove_by(answer: impl FnOnce(&[u8], &[u8; 84]) -> Vec<u8>) -> u32 {
    with_rank_0_waiting(|address| {
        let stream = TcpStream::connect(address).unwrap();
        let hello = hello(1, 2, 0xa5);
        let challenge = greet(&stream, &hello);
        verdict(&ask::<20>(&stream, &answer(&hello, &challenge)))
    })
}

#[test]
fn a_dialer_must_prove_the_key_for_its_own_greeting_and_challenge() {
    assert_eq!(prove_by(|hello, challenge| proof(&KEY, hello, challenge)), WELCOME);

    assert_eq!(prove_by(|hello, challenge| proof(&OTHER_KEY, hello, challenge)), NOT_THE_KEY);
    assert_eq!(prove_by(|_, challenge| sealed(&challenge[48..80])), NOT_THE_KEY, "reflected");
    let as_rank_0 = |_: &[u8], challenge: &[u8; 84]| proof(&KEY, &hello(0, 2, 0xa5), challenge);
    assert_eq!(prove_by(as_rank_0), NOT_THE_KEY, "the proof of another greeting");
}

#[test]
fn a_recorded_connection_opens_no_other() {
    let record = |address: SocketAddr, recorded: Option<Vec<u8>>| {
        let stream = TcpStream::connect(address).unwrap();
        let hello = hello(1, 2, 0xa5);
        let challenge = greet(&stream, &hello);
        let proof = recorded.unwrap_or_else(|| proof(&KEY, &hello, &challenge));
        (verdict(&ask::<20>(&stream, &proof)), proof)
    };
    let (welcome, recorded) = with_rank_0_waiting(|address| record(address, None));
    assert_eq!(welcome, WELCOME);
    let (again, _) = with_rank_0_waiting(|address| record(address, Some(recorded.clone())));
    assert_eq!(again, NOT_THE_KEY);

    // All at once, as it would be sent by who does not wait for answers.
    let all = [hello(1, 2, 0xa5), recorded].concat();
    let answers = with_rank_0_waiting(|address| ask::<104>(&TcpStream::connect(address).unwrap(), &all));
    assert_eq!((verdict(&answers), verdict(&answers[84..])), (WELCOME, NOT_THE_KEY));
}

#[test]
fn a_greeting_that_has_no_place_is_told_why() {
    #[track_caller]
    fn check(change: impl Fn(&mut [u8]), expected: u32) {
        let mut hello = hello(1, 2, 0xa5);
        change(&mut hello[12..68]);
        let hello = sealed(&hello[12..68]);
        let answer: [u8; 84] =
            with_rank_0_waiting(|address| ask(&TcpStream::connect(address).unwrap(), &hello));
        assert_eq!(verdict(&answer), expected);
        assert_eq!(answer[16..80], [0; 64], "no nonce, no MAC");
    }
    check(|fields| fields[0] = 0, PLACE);
    check(|fields| fields[0] = 2, PLACE);
    // A connection that was led here from another rank's listener.
    check(|fields| fields[4] = 1, PLACE);
    check(|fields| fields[8] = 2, PLACE);
    check(|fields| fields[10] = 3, PLACE);
    check(|fields| fields[12] = 3, PLACE);
    check(|fields| fields[16] = 1, GENERATION);
    check(|fields| fields[16] = 3, GENERATION);
}

#[test]
fn the_first_that_proves_a_claim_has_the_place() {
    with_rank_0_waiting(|address| {
        let streams = [(); 2].map(|()| TcpStream::connect(address).unwrap());
        let hello = hello(1, 2, 0xa5);
        let [early, late] = [&streams[0], &streams[1]].map(|stream| greet(stream, &hello));
        assert_eq!(verdict(&ask::<20>(&streams[1], &proof(&KEY, &hello, &late))), WELCOME);
        assert_eq!(verdict(&ask::<20>(&streams[0], &proof(&KEY, &hello, &early))), PLACE);
        let third: [u8; 84] = ask(&TcpStream::connect(address).unwrap(), &hello);
        assert_eq!(verdict(&third), PLACE);
    });
}

#[test]
fn claims_that_are_never_proved_do_not_keep_the_peer_out() {
    let listeners = [Listener::bind(HOST).unwrap(), Listener::bind(HOST).unwrap()];
    let address = listeners[0].address();
    let peers: Vec<String> = listeners.iter().map(|listener| listener.address().to_string()).collect();
    let meet = |rank: usize, listener: Listener| {
        let group = Membership { key: KEY, generation: 2, rank, peers: peers.clone() };
        let mut formed = form(listener, group, 1, LONG, &AbortHandle::new().unwrap()).unwrap();
        let mut values = [1u32, 2];
        formed[0].all_reduce_sum(&mut values).unwrap();
        assert_eq!(values, [2, 4]);
    };
    let [first, second] = listeners;
    thread::scope(|scope| {
        scope.spawn(|| meet(0, first));
        // More than are kept at once, each challenged before the next comes.
        let claims = [(); 300].map(|()| {
            let stream = TcpStream::connect(address).unwrap();
            greet(&stream, &hello(1, 1, 0));
            stream
        });
        meet(1, second);
        drop(claims);
    });
}

#[test]
fn silent_strangers_do_not_displace_a_peer_before_its_proof() {
    with_rank_0_waiting(|address| {
        let stream = TcpStream::connect(address).unwrap();
        let hello = hello(1, 2, 0xa5);
        let challenge = greet(&stream, &hello);
        // More than are kept and than wait to be accepted.
        let strangers = [(); 500].map(|()| TcpStream::connect(address).unwrap());
        assert_eq!(verdict(&ask::<20>(&stream, &proof(&KEY, &hello, &challenge))), WELCOME);
        drop(strangers);
    });
}

#[test]
fn a_greeting_of_version_1_is_told_the_version() {
    let answer: [u8; 84] = with_rank_0_waiting(|address| {
        let mut hello = b"himpun\xf0\x0a\x01\0\0\0".to_vec();
        hello.resize(72, 0);
        ask(&TcpStream::connect(address).unwrap(), &hello)
    });
    assert_eq!(answer[..16], *b"himpun\xf0\x0a\x02\0\0\0\x01\0\0\0");
    assert_eq!(verdict(&answer), VERSION);
}

/// How rank 1 of two ends when what it takes for rank 0 reads its greeting and then does `talk`; and what it sends
/// after that.
fn dial_impostor(talk: impl FnOnce(&TcpStream, &[u8; 72]) + Send) -> (Error, Vec<u8>) {
    let impostor = TcpListener::bind((HOST, 0)).unwrap();
    let listener = Listener::bind(HOST).unwrap();
    let peers = vec![impostor.local_addr().unwrap().to_string(), listener.address().to_string()];
    let group = Membership { key: KEY, generation: 2, rank: 1, peers };
    thread::scope(|scope| {
        let talking = scope.spawn(move || {
            let (mut stream, _) = impostor.accept().unwrap();
            let mut hello = [0; 72];
            stream.read_exact(&mut hello).unwrap();
            talk(&stream, &hello);
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).unwrap();
            rest
        });
        let error = form(listener, group, 1, LONG, &AbortHandle::new().unwrap()).unwrap_err();
        (error, talking.join().unwrap())
    })
}

/// The challenge of a listener that has `key`.
fn challenge(key: &[u8; 32], hello: &[u8]) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    let verdict_and_nonce = [[0; 4].as_slice(), &[0x5a; 32]].concat();
    let mac = hmac::sign(&key, &[b"listener", hello, &verdict_and_nonce].concat());
    sealed(&[&verdict_and_nonce, mac.as_ref()].concat())
}

#[test]
fn a_listener_that_does_not_prove_the_key_is_named_and_gets_no_proof() {
    #[track_caller]
    fn check(expected: Refusal, answer: impl FnOnce(&[u8; 72]) -> Vec<u8> + Send) {
        match dial_impostor(|mut stream, hello| stream.write_all(&answer(hello)).unwrap()) {
            (Error::BadHandshake { rank: 0, refusal }, rest) => {
                assert_eq!((refusal, rest), (expected, Vec::new()));
            }
            other => panic!("{other:?}"),
        }
    }
    check(Refusal::Key, |hello| challenge(&OTHER_KEY, hello));
    // Recorded on another connection.
    check(Refusal::Key, |_| challenge(&KEY, &hello(1, 1, 0xa5)));
    check(Refusal::NotAWorker, |hello| [hello.as_slice(), &[0; 12]].concat());
    check(Refusal::NotAWorker, |_| b"SSH-2.0-OpenSSH_9.2\r\n".to_vec());
    // As a listener of version 1 answers.
    check(Refusal::Version, |_| b"himpun\xf0\x0a\x01\0\0\0\x01\0\0\0\x12\x34\x56\x78".to_vec());
}

#[test]
fn a_listener_that_proves_the_key_gets_the_proof_and_has_the_last_word() {
    let (error, rest) = dial_impostor(|mut stream, hello| {
        let challenge = challenge(&KEY, hello);
        assert_eq!(ask::<48>(stream, &challenge), *proof(&KEY, hello, &challenge));
        stream.write_all(&sealed(&PLACE.to_le_bytes())).unwrap();
    });
    assert_eq!(error.to_string(), "no connection to rank 0: it does not expect this rank there");
    assert_eq!(rest, []);
}

#[test]
fn every_dial_draws_a_nonce() {
    let nonces = [(); 2].map(|()| {
        let mut nonce = [0; 32];
        let (error, _) = dial_impostor(|stream, hello| {
            nonce.copy_from_slice(&hello[36..68]);
            stream.shutdown(Shutdown::Write).unwrap();
        });
        assert_eq!(error.to_string(), "rank 0 is gone");
        nonce
    });
    assert_ne!(nonces[0], nonces[1]);
}
