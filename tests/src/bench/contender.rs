//! Who is measured, and how each of them runs a program and publishes a port.

use std::process::Command;

use serde::Serialize;

use crate::lab::address::{GATEWAY, HOST, UPSTREAM};
use crate::lab::{Background, Lab, comes_true, eventually, run};

/// iperf3's own port, on the host's loopback and in a workload.
pub(super) const IPERF: &str = "5201";
/// Where one byte is answered by one byte.
pub(super) const ECHO: &str = "5202";

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

/// What lives as long as the measuring: servers on the host.
pub(super) fn prepare(lab: &Lab) -> Vec<Background> {
    lab.host().sh("echo reno >/proc/sys/net/ipv4/tcp_congestion_control");
    let program = lab.path("bin/lichen-lab").display().to_string();
    let start = |words: &[&str]| Background::start(&mut lab.person(words), &lab.path("logs"));
    let servers = vec![
        start(&["iperf3", "-s", "-B", "127.0.0.1"]),
        start(&[&program, "peer", "answer", ECHO]),
    ];
    for port in [IPERF, ECHO] {
        eventually("the host's servers listen", || {
            run(&mut lab.person(&["nc", "-z", "127.0.0.1", port])).code == Some(0)
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

    /// A program inside, with reno there too.
    pub(super) fn command(self, lab: &Lab, program: &[&str]) -> Command {
        let program = format!(
            "echo reno >/proc/sys/net/ipv4/tcp_congestion_control; exec {}",
            program.join(" ")
        );
        let inside = ["sh", "-c", &program];
        match self {
            Self::Loopback => lab.person(&["sh", "-c", program.split_once("; ").expect("above").1]),
            Self::Lichen => {
                let udp = format!("{IPERF}/udp");
                let options = [
                    "run",
                    "--allow-host",
                    IPERF,
                    "--allow-host",
                    &udp,
                    "--allow-host",
                    ECHO,
                    "--",
                ];
                lab.lichen_with(&[&options[..], &inside].concat())
            }
            Self::Pasta1500 => lab.person(&[&pasta("1500", "none")[..], &inside].concat()),
            Self::Pasta65520 => lab.person(&[&pasta("65520", "none")[..], &inside].concat()),
            Self::Slirp65520 => lab.person(&["sh", "-c", &slirp(&program)]),
        }
    }

    /// An iperf3 inside whose port is published, and where the host's client finds it. `None` for who
    /// publishes nothing, or only by a way of its own (slirp4netns: a request on a socket).
    pub(super) fn publish(self, lab: &Lab) -> Option<(Background, &'static str, &'static str)> {
        // One each: the one before may not have let go of its own yet.
        let port = match self {
            Self::Lichen => "5301",
            Self::Pasta1500 => "5302",
            Self::Pasta65520 => "5303",
            Self::Loopback | Self::Slirp65520 => return None,
        };
        let program =
            "echo reno >/proc/sys/net/ipv4/tcp_congestion_control; exec iperf3 -s -1 --forceflush";
        let inside = ["sh", "-c", program];
        let mapping = format!("{port}:{IPERF}");
        let (mut command, address) = match self {
            Self::Loopback | Self::Slirp65520 => return None,
            Self::Lichen => {
                let options = ["run", "-p", &mapping, "--"];
                (lab.lichen_with(&[&options[..], &inside].concat()), "127.0.0.1")
            }
            // Not by 127.0.0.1, where pasta goes past its network and splices two sockets.
            Self::Pasta1500 => {
                (lab.person(&[&pasta("1500", &mapping)[..], &inside].concat()), HOST)
            }
            Self::Pasta65520 => {
                (lab.person(&[&pasta("65520", &mapping)[..], &inside].concat()), HOST)
            }
        };
        let server = Background::start(&mut command, &lab.path("logs"));
        let listens = comes_true(|| server.printed().contains("Server listening"));
        listens.then_some((server, address, port))
    }
}

fn pasta<'a>(mtu: &'a str, tcp_ports: &'a str) -> [&'a str; 15] {
    [
        "pasta",
        "-4",
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
fn slirp(program: &str) -> String {
    format!(
        "unshare --user --map-root-user --net sh -c \
           'until ip link show tap0 up 2>/dev/null | grep -q UP; do sleep 0.02; done; sleep 0.2; {program}' &
         inside=$!
         until test \"$(readlink /proc/$inside/ns/net)\" != \"$(readlink /proc/$$/ns/net)\"; do sleep 0.02; done
         slirp4netns --configure --mtu=65520 --disable-dns $inside tap0 >/dev/null 2>&1 &
         network=$!
         wait $inside; code=$?
         kill $network; wait $network
         exit $code"
    )
}
