//! From a dealt rank to a group that agrees on what it is.

use collective::{AbortHandle, Communicator, Group, Listener, Membership};
use config::RunConfig;
use proto::v1::{Assign, Fence};
use std::net::{IpAddr, ToSocketAddrs, UdpSocket};
use std::time::Duration;

use crate::Error;

/// How long ranks wait for each other: workers of one run start within seconds.
const FORMING: Duration = Duration::from_secs(60);

/// Digests that all ranks must share, by name.
const AGREED: [&str; 2] = ["configuration", "binary"];

/// A digest of what this rank was started with, in the order of [`AGREED`].
pub type Credentials = [[u8; 32]; AGREED.len()];

/// Digests the configuration and this program. Where the data lies may differ between nodes, and what lies there is
/// compared by itself ([`trainer::same_data`]).
///
/// # Errors
/// If the program cannot be read.
pub fn credentials(config: &RunConfig) -> Result<Credentials, Error> {
    let mut config = config.clone();
    config.data.source.clear();
    config.eval.data = config.eval.data.map(|_| String::new());

    let mut binary = blake3::Hasher::new();
    std::fs::File::open("/proc/self/exe")
        .and_then(|program| binary.update_reader(program).map(drop))
        .map_err(|source| trainer::Error::System { what: "read this program", source })?;
    Ok([checkpoint::digest(config.to_toml().as_bytes()), *binary.finalize().as_bytes()])
}

/// Listens on the interface that reaches the coordinator: peers are found there as well.
///
/// # Errors
/// If there is no route to the coordinator, or no port.
pub fn listen(coordinator: &str) -> Result<Listener, Error> {
    let host = local_address(coordinator).map_err(|source| trainer::Error::System {
        what: "find the interface that reaches the coordinator",
        source,
    })?;
    Ok(Listener::bind(host)?)
}

/// Connects the ranks and compares what they were started with.
///
/// # Errors
/// If the coordinator gave no key, a peer does not come, or has another configuration or binary.
pub fn form(
    listener: Listener,
    fence: &Fence,
    assign: &Assign,
    credentials: Credentials,
    abort: &AbortHandle,
) -> Result<Group, Error> {
    let membership = Membership {
        key: key(assign)?,
        generation: fence.generation,
        rank: assign.rank as usize,
        peers: assign.peers.clone(),
    };
    let mut group = Group::form(listener, membership, FORMING, abort)?;
    verify(&mut group.control, credentials)?;
    Ok(group)
}

/// Keeps strangers out of the group; what its members are is compared by [`verify`], which can name it.
fn key(assign: &Assign) -> Result<[u8; 32], Error> {
    let key = assign.group_key.as_slice();
    key.try_into().map_err(|_| Error::GroupKey { got: key.len() })
}

fn verify(communicator: &mut Communicator, own: Credentials) -> Result<(), Error> {
    let mut all = vec![0u8; own.as_flattened().len() * communicator.world_size()];
    communicator.all_gather(own.as_flattened(), &mut all)?;
    for (rank, theirs) in all.chunks_exact(own.as_flattened().len()).enumerate() {
        for ((what, theirs), ours) in AGREED.iter().zip(theirs.chunks_exact(32)).zip(&own) {
            if theirs != ours {
                return Err(Error::Disagreement { rank, what, theirs: short(theirs), ours: short(ours) });
            }
        }
    }
    Ok(())
}

fn short(digest: &[u8]) -> String {
    digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

/// The address that this machine uses towards `coordinator`. Nothing is sent.
fn local_address(coordinator: &str) -> std::io::Result<IpAddr> {
    let mut last = std::io::Error::other(format!("`{coordinator}` has no address"));
    for address in coordinator.to_socket_addrs()? {
        let any: IpAddr = match address {
            std::net::SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
            std::net::SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
        };
        match UdpSocket::bind((any, 0)).and_then(|socket| {
            socket.connect(address)?;
            socket.local_addr()
        }) {
            Ok(local) => return Ok(local.ip()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_reached_from_loopback() {
        assert_eq!(local_address("127.0.0.1:9").unwrap(), IpAddr::from([127, 0, 0, 1]));
        assert!(local_address("no port").is_err());
    }

    #[test]
    fn a_rank_with_another_binary_is_named_by_every_other() {
        let outcomes: Vec<Result<(), Error>> = std::thread::scope(|scope| {
            let ranks: Vec<_> = collective::loopback(3, 1)
                .unwrap()
                .into_iter()
                .map(|mut rank| {
                    scope.spawn(move || {
                        let binary = if rank[0].rank() == 2 { [0xab; 32] } else { [1; 32] };
                        verify(&mut rank[0], [[7; 32], binary])
                    })
                })
                .collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        let texts: Vec<String> =
            outcomes.into_iter().map(|outcome| outcome.unwrap_err().to_string()).collect();
        let expected = "rank 2 has another binary than this rank: abababababab instead of 010101010101";
        assert_eq!(texts[..2], [expected, expected]);
        assert!(texts[2].starts_with("rank 0 has another binary"), "{}", texts[2]);
    }

    #[test]
    fn the_same_start_agrees() {
        assert!(verify(&mut Communicator::alone(), [[1; 32], [2; 32]]).is_ok());
        let of = |text: &str| credentials(&RunConfig::from_toml(text).unwrap()).unwrap();
        assert_eq!(of("[run]\nseed = 1\n")[1], of("[run]\nseed = 2\n")[1]);
        assert_ne!(of("[run]\nseed = 1\n")[0], of("[run]\nseed = 2\n")[0]);
        let data =
            |source: &str| of(&format!("[data]\nsource = \"{source}\"\n[eval]\ndata = \"{source}\"\n"));
        assert_eq!(data("/a")[0], data("/b")[0], "nodes have the same images in different places");
    }

    #[test]
    fn a_group_key_has_32_bytes() {
        let of = |len: usize| key(&Assign { group_key: vec![9; len], ..Assign::default() });
        assert_eq!(of(32).unwrap(), [9; 32]);
        for len in [0, 31, 33, 64] {
            let error = of(len).unwrap_err();
            assert_eq!(error.to_string(), format!("the coordinator sent a group key of {len} bytes, not 32"));
            assert_eq!((error.exit_code(), error.is_peer()), (1, false));
        }
    }
}
