//! Who is measured, and how each of them runs a program and publishes a port.

use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};

use serde::Serialize;

use crate::lab::address::{GATEWAY, HOST, UPSTREAM, UPSTREAM6};
use crate::lab::{Background, Lab, comes_true, eventually, run};

/// iperf3's own port, on the host's loopback and in a workload.
pub(super) const IPERF: &str = "5201";
/// Where one byte is answered by one byte.
pub(super) const ECHO: &str = "5202";
/// Where a connection is for one byte each way, on the host's loopback and in a workload.
pub(super) const GREET: &str = "5203";
/// Where connections are kept open.
pub(super) const KEEP: &str = "5204";
/// Where datagrams are counted, or sent from.
pub(super) const HEAR: &str = "5205";
/// iperf3's port on the host's loopback of IPv6, where nobody listens on that of IPv4.
pub(super) const IPERF6: &str = "5206";
/// Seconds after which a program that does not end is ended.
pub(super) const PATIENCE: u64 = 30;

const RENO: &str = "echo reno >/proc/sys/net/ipv4/tcp_congestion_control";

/// A way between a program and the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Contender {
    Loopback,
    Lichen,
    Pasta1500,
    Pasta65520,
    Slirp65520,
}

/// Of which family the addresses are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

/// What lives as long as the measuring: servers on the host.
pub(super) fn prepare(lab: &Lab) -> Vec<Background> {
    for machine in [lab.host(), lab.upstream()] {
        machine.sh("echo reno >/proc/sys/net/ipv4/tcp_congestion_control");
    }
    let program = lab.path("bin/lichen-lab").display().to_string();
    let start = |words: &[&str]| Background::start(&mut lab.person(words), &lab.path("logs"));
    let servers = vec![
        start(&["iperf3", "-s", "-B", "127.0.0.1"]),
        start(&["iperf3", "-s", "-B", "::1", "-p", IPERF6]),
        start(&[&program, "peer", "answer", ECHO]),
        start(&[&program, "peer", "greet", &format!("127.0.0.1:{GREET}")]),
        start(&[&program, "peer", "keep", &format!("127.0.0.1:{KEEP}")]),
        start(&[&program, "peer", "hear", &format!("127.0.0.1:{HEAR}")]),
    ];
    eventually("datagrams are heard", || {
        servers.last().is_some_and(|server| server.printed().contains("listening"))
    });
    let of_ipv4 = [IPERF, ECHO, GREET, KEEP].map(|port| ("127.0.0.1", port));
    for (address, port) in of_ipv4.into_iter().chain([("::1", IPERF6)]) {
        eventually("the host's servers listen", || {
            run(&mut lab.person(&["nc", "-z", address, port])).code == Some(0)
        });
    }
    // The daemon is up before the first measurement.
    run(&mut lab.lichen(["run", "--", "true"])).success();
    servers
}

impl Contender {
    const ALL: [Self; 5] =
        [Self::Loopback, Self::Lichen, Self::Pasta1500, Self::Pasta65520, Self::Slirp65520];

    /// All of them, each in another place than in the round before.
    pub(super) fn rotated(round: usize) -> Vec<Self> {
        let mut all = Self::ALL;
        all.rotate_left(round % Self::ALL.len());
        all.to_vec()
    }

    /// Whether it is another program that does what lichen does.
    pub(super) fn is_peer(self) -> bool {
        match self {
            Self::Loopback | Self::Lichen => false,
            Self::Pasta1500 | Self::Pasta65520 | Self::Slirp65520 => true,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Loopback => "plain loopback",
            Self::Lichen => "lichen, MTU 1500",
            Self::Pasta1500 => "pasta, MTU 1500",
            Self::Pasta65520 => "pasta, MTU 65520",
            Self::Slirp65520 => "slirp4netns, MTU 65520",
        }
    }

    /// The host's loopback as seen from inside.
    pub(super) fn host_address(self) -> &'static str {
        match self {
            Self::Loopback => "127.0.0.1",
            Self::Lichen => GATEWAY,
            // The default gateway's address stands for the host.
            Self::Pasta1500 | Self::Pasta65520 => UPSTREAM,
            Self::Slirp65520 => "10.0.2.2",
        }
    }

    /// The same by IPv6.
    pub(super) fn host_address6(self) -> &'static str {
        match self {
            Self::Loopback => "::1",
            // A network's prefix is drawn, so its gateway has no address that is known before.
            Self::Lichen => "host.lichen.internal",
            Self::Pasta1500 | Self::Pasta65520 => UPSTREAM6,
            Self::Slirp65520 => "fd00::2",
        }
    }

    /// A program inside, with reno there too, which is ended when it takes too long.
    pub(super) fn command(self, lab: &Lab, program: &[&str]) -> Command {
        self.command_with(lab, Family::V4, program)
    }

    /// The same, where addresses are of that family.
    pub(super) fn command_with(self, lab: &Lab, family: Family, program: &[&str]) -> Command {
        let limited = format!("exec timeout -k 2 {PATIENCE} {}", program.join(" "));
        let program = format!("{RENO}; {limited}");
        let inside = ["sh", "-c", &program];
        match self {
            Self::Loopback => lab.person(&["sh", "-c", &limited]),
            Self::Lichen => {
                let [iperf, hear] = [IPERF, HEAR].map(|port| format!("{port}/udp"));
                let open = [IPERF, &iperf, IPERF6, ECHO, GREET, KEEP, &hear];
                let options = open.into_iter().flat_map(|port| ["--allow-host", port]);
                let words: Vec<&str> =
                    ["run"].into_iter().chain(options).chain(["--"]).chain(inside).collect();
                lab.lichen_with(&words)
            }
            Self::Pasta1500 => lab.person(&[&pasta(family, "1500", "none")[..], &inside].concat()),
            Self::Pasta65520 => {
                lab.person(&[&pasta(family, "65520", "none")[..], &inside].concat())
            }
            Self::Slirp65520 => lab.person(&["sh", "-c", &slirp(family, &program)]),
        }
    }

    /// A server inside whose port is published, and where the host's client finds it. An error for who
    /// publishes nothing, or only by a way of its own (slirp4netns: a request on a socket).
    pub(super) fn publish(self, lab: &Lab, server: Server) -> Result<Published, String> {
        if matches!(self, Self::Loopback | Self::Slirp65520) {
            return Err("no published port".to_owned());
        }
        // A fresh one each time: pasta does not take one with connections in TIME-WAIT.
        static NEXT: AtomicU16 = AtomicU16::new(5301);
        let port = NEXT.fetch_add(1, Ordering::Relaxed).to_string();
        let greeter =
            format!("{} peer greet 0.0.0.0:{GREET}", lab.path("bin/lichen-lab").display());
        let (target, program, ready) = match server {
            Server::Iperf => (IPERF, "iperf3 -s -1 --forceflush", "Server listening"),
            Server::Greeter => (GREET, greeter.as_str(), "listening"),
        };
        let program = format!("{RENO}; exec {program}");
        let inside = ["sh", "-c", &program];
        let mapping = format!("{port}:{target}");
        let (mut command, address) = match self {
            Self::Lichen => {
                let options = ["run", "-p", &mapping, "--"];
                (lab.lichen_with(&[&options[..], &inside].concat()), "127.0.0.1")
            }
            // Not by 127.0.0.1, where pasta goes past its network and splices two sockets.
            Self::Pasta1500 => {
                (lab.person(&[&pasta(Family::V4, "1500", &mapping)[..], &inside].concat()), HOST)
            }
            _ => (lab.person(&[&pasta(Family::V4, "65520", &mapping)[..], &inside].concat()), HOST),
        };
        let server = Background::start(&mut command, &lab.path("logs"));
        if comes_true(|| server.printed().contains(ready)) {
            Ok(Published { address, port, _server: server })
        } else {
            let printed = server.printed();
            Err(printed.lines().last().unwrap_or("its server does not start").to_owned())
        }
    }
}

/// What is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Server {
    Iperf,
    Greeter,
}

/// A published port with the server behind it.
pub(super) struct Published {
    pub(super) address: &'static str,
    pub(super) port: String,
    _server: Background,
}

fn pasta<'a>(family: Family, mtu: &'a str, tcp_ports: &'a str) -> [&'a str; 15] {
    [
        "pasta",
        if family == Family::V4 { "-4" } else { "-6" },
        "-q",
        "--config-net",
        "-m",
        mtu,
        "-t",
        tcp_ports,
        "-u",
        "none",
        "-T",
        "none",
        "-U",
        "none",
        "--",
    ]
}

/// slirp4netns serves a namespace that exists, so one is made first; it ends with its program.
fn slirp(family: Family, program: &str) -> String {
    // By IPv6 the namespace makes its own address, once it has heard the router and that nobody else has that address.
    let (more, up) = match family {
        Family::V4 => ("", "ip link show tap0 up 2>/dev/null | grep -q UP"),
        Family::V6 => (
            "--enable-ipv6",
            "ip -6 addr show tap0 scope global -tentative 2>/dev/null | grep -q inet6",
        ),
    };
    format!(
        "unshare --user --map-root-user --net sh -c \
           'until {up}; do sleep 0.02; done; sleep 0.2; {program}' &
         inside=$!
         until test \"$(readlink /proc/$inside/ns/net)\" != \"$(readlink /proc/$$/ns/net)\"; do sleep 0.02; done
         slirp4netns --configure --mtu=65520 --disable-dns {more} $inside tap0 >/dev/null 2>&1 &
         network=$!
         wait $inside; code=$?
         kill $network; wait $network
         exit $code"
    )
}
