//! Groups form among strangers, or say why they do not.

#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use collective::{AbortHandle, Error, Listener, Membership, Refusal, form, loopback};

const HOST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
const KEY: [u8; 32] = [7; 32];
const LONG: Duration = Duration::from_secs(30);

fn group(rank: usize, peers: &[String]) -> Membership {
    Membership { key: KEY, generation: 2, rank, peers: peers.to_vec() }
}

#[test]
fn a_group_forms_several_communicators() {
    thread::scope(|scope| {
        for (rank, communicators) in loopback(4, 2).unwrap().into_iter().enumerate() {
            scope.spawn(move || {
                assert_eq!(communicators.len(), 2);
                for mut communicator in communicators {
                    assert_eq!((communicator.rank(), communicator.world_size()), (rank, 4));
                    communicator.barrier().unwrap();
                }
            });
        }
    });
}

/// Runs `dialling` against a rank 0 of two, which must still be waiting for its peer afterwards.
fn with_rank_0_waiting<R>(dialling: impl FnOnce(&[String]) -> R) -> R {
    let listener = Listener::bind(HOST).unwrap();
    let peers = [listener.address().to_string(), "127.0.0.1:1".to_owned()];
    let group = group(0, &peers);
    let abort = AbortHandle::new().unwrap();
    let handle = abort.clone();
    let waiting = thread::spawn(move || form(listener, group, 2, LONG, &abort).unwrap_err());
    let result = dialling(&peers);
    handle.abort("the test is over");
    assert_eq!(waiting.join().unwrap().to_string(), "aborted: the test is over");
    result
}

#[test]
fn ranks_that_do_not_belong_together_refuse_each_other() {
    #[track_caller]
    fn check(change: impl Fn(&mut Membership), n_communicators: usize, expected: Refusal) {
        let outcome = with_rank_0_waiting(|peers| {
            let mut group = group(1, peers);
            change(&mut group);
            form(Listener::bind(HOST).unwrap(), group, n_communicators, LONG, &AbortHandle::new().unwrap())
        });
        match outcome {
            Err(Error::BadHandshake { rank: 0, refusal }) => assert_eq!(refusal, expected),
            other => panic!("{other:?}"),
        }
    }
    check(|group| group.key[31] ^= 1, 2, Refusal::Key);
    check(|group| group.generation += 1, 2, Refusal::Generation);
    check(|group| group.generation -= 1, 2, Refusal::Generation);
    check(|group| group.peers.push("127.0.0.1:1".to_owned()), 2, Refusal::Place);
    check(|_| {}, 3, Refusal::Place);
}

#[test]
fn a_deadline_names_the_ranks_that_did_not_come() {
    let listener = Listener::bind(HOST).unwrap();
    let peers = [listener.address().to_string(), "127.0.0.1:1".to_owned(), "127.0.0.1:1".to_owned()];
    let deadline = Duration::from_millis(20);
    let error = form(listener, group(0, &peers), 1, deadline, &AbortHandle::new().unwrap()).unwrap_err();
    assert_eq!(error.to_string(), "still waiting for ranks [1, 2] after 20ms");
}

#[test]
fn strangers_at_the_listener_change_nothing() {
    let listeners = [Listener::bind(HOST).unwrap(), Listener::bind(HOST).unwrap()];
    let addresses = [listeners[0].address(), listeners[1].address()];
    let peers: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let meet = |rank: usize, listener: Listener| {
        let mut formed = form(listener, group(rank, &peers), 1, LONG, &AbortHandle::new().unwrap()).unwrap();
        let mut values = [1u32, 2];
        formed[0].all_reduce_sum(&mut values).unwrap();
        assert_eq!(values, [2, 4]);
    };
    let [first, second] = listeners;
    thread::scope(|scope| {
        scope.spawn(|| meet(0, first));
        // More than are kept at once: some say nothing, some garbage, some half a greeting; all stay open.
        let strangers: Vec<TcpStream> = (0..400).map(|index| knock(addresses[0], index)).collect();
        meet(1, second);
        drop(strangers);
    });
}

fn knock(address: SocketAddr, index: usize) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    let said: &[u8] = match index % 4 {
        0 => b"",
        1 => b"GET / HTTP/1.1\r\nHost: somewhere\r\n\r\n",
        2 => &[0; 4096],
        _ => b"himpun\xf0\x0a\x02\0\0\0",
    };
    // The listener may already have dropped it.
    stream.write_all(said).ok();
    stream
}

#[test]
fn a_dialled_port_that_is_no_worker_is_named() {
    let web = TcpListener::bind((HOST, 0)).unwrap();
    let address = web.local_addr().unwrap();
    let answering = thread::spawn(move || {
        let (mut stream, _) = web.accept().unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        stream
    });
    let listener = Listener::bind(HOST).unwrap();
    let peers = vec![address.to_string(), listener.address().to_string()];
    let error = form(listener, group(1, &peers), 1, LONG, &AbortHandle::new().unwrap()).unwrap_err();
    assert_eq!(error.to_string(), "no connection to rank 0: what listens there is no worker");
    drop(answering.join().unwrap());
}

#[test]
fn a_peer_that_is_gone_or_silent_and_an_abort_end_the_forming() {
    // A port that was just closed.
    let gone = Listener::bind(HOST).unwrap().address();
    let listener = Listener::bind(HOST).unwrap();
    let peers = vec![gone.to_string(), listener.address().to_string()];
    let error = form(listener, group(1, &peers), 1, LONG, &AbortHandle::new().unwrap()).unwrap_err();
    assert!(matches!(error, Error::PeerLost { rank: 0, .. }), "{error:?}");

    let silent = TcpListener::bind((HOST, 0)).unwrap();
    let listener = Listener::bind(HOST).unwrap();
    let peers = vec![silent.local_addr().unwrap().to_string(), listener.address().to_string(), String::new()];
    let group = group(1, &peers);
    let abort = AbortHandle::new().unwrap();
    let handle = abort.clone();
    let forming = thread::spawn(move || form(listener, group, 1, LONG, &abort).unwrap_err());
    handle.abort("the run was stopped");
    assert_eq!(forming.join().unwrap().to_string(), "aborted: the run was stopped");
}
