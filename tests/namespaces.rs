//! Two agents on two hosts: network namespaces that the test makes itself, joined by a virtual cable.

use crate::support::{Process, assert_quiet, himpun, metrics, require_or_skip, succeed, tiny_run};
use std::path::Path;
use std::process::Command;

/// Two namespaces and the cable between them; gone when dropped.
struct Hosts {
    names: [String; 2],
    addresses: [&'static str; 2],
}

impl Hosts {
    /// `None` where the machine does not let us make namespaces.
    fn create() -> Option<Hosts> {
        let id = std::process::id();
        let hosts = Hosts {
            names: [format!("himpun-{id}-a"), format!("himpun-{id}-b")],
            addresses: ["10.213.77.1", "10.213.77.2"],
        };
        let [a, b] = &hosts.names;
        let made = ip(&["netns", "add", a])
            && ip(&["netns", "add", b])
            && ip(&["-n", a, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", b])
            && hosts.names.iter().zip(hosts.addresses).all(|(name, address)| {
                ip(&["-n", name, "addr", "add", &format!("{address}/24"), "dev", "eth0"])
                    && ip(&["-n", name, "link", "set", "eth0", "up"])
                    && ip(&["-n", name, "link", "set", "lo", "up"])
            });
        made.then_some(hosts)
    }

    /// The binary under test, inside one of the hosts.
    fn himpun(&self, host: usize) -> Command {
        let inner = himpun();
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.names[host]]).arg(inner.get_program());
        command.env_remove("RUST_LOG").env_remove("HIMPUN_COORDINATOR").stdin(std::process::Stdio::null());
        command
    }

    fn start(&self, host: usize, arguments: &[&str], directory: &Path, name: &str) -> Process {
        Process::start(self.himpun(host).args(arguments), directory, name)
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for name in &self.names {
            ip(&["netns", "delete", name]);
        }
    }
}

fn ip(arguments: &[&str]) -> bool {
    Command::new("ip").args(arguments).output().is_ok_and(|output| output.status.success())
}

#[test]
fn agents_on_two_hosts_train_together() {
    let Some(hosts) = Hosts::create() else {
        return require_or_skip("NETNS", "network namespaces need root and iproute2");
    };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let dir = path.join("coordinator");
    let bind = format!("{}:0", hosts.addresses[0]);
    let arguments = ["coordinator", "--insecure", "--bind", &bind, "--dir", dir.to_str().unwrap()];
    let mut coordinator = hosts.start(0, &arguments, path, "coordinator");
    let address = coordinator.line().rsplit(' ').next().unwrap().to_owned();
    assert!(address.starts_with(hosts.addresses[0]), "{address}");
    let _agents: Vec<Process> = (0..2)
        .map(|host| {
            let id = format!("host-{host}");
            hosts.start(host, &["agent", "--coordinator", &address, "--id", &id, "--slots", "1"], path, &id)
        })
        .collect();

    let run = path.join("run");
    let mut submit = hosts.himpun(1);
    submit.args(["submit", "--wait", "--coordinator", &address, "--workers", "2", "--out"]).arg(&run);
    succeed(submit.args(tiny_run(5)));
    let rows = metrics(&run);
    assert_eq!(rows.len(), 5);
    assert_eq!(rows[4]["rows_encoded"], serde_json::json!([16, 16]));
    let status = succeed(hosts.himpun(1).args(["status", "--json", "--coordinator", &address]));
    let status: serde_json::Value = serde_json::from_str(status.trim()).unwrap();
    assert_eq!(status["state"], "finished", "{status}");
    assert_quiet(&run, &[]);
}
