//! What can be typed.

mod allow_host;
mod network;
mod observe;
mod place;
mod publish;
mod queues;
mod vm;

pub(crate) use network::{ListNetworks, NetworkCommand, network_filters};
pub(crate) use observe::{Capture, ExplainCommand, Flows, Metrics};
pub(crate) use place::Place;
pub(crate) use queues::Queues;
pub(crate) use vm::{AddVm, Attach as VmAttach, PlugVm, RmVm, RunVm, VmCommand, VmPlace};

use std::ffi::OsString;
use std::net::IpAddr;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use lichen_api::PortRange;

use crate::daemon::DaemonRole;

/// A rootless network for containers and virtual machines.
#[derive(Debug, Parser)]
#[command(name = "lichen", version, max_term_width = 100, propagate_version = true)]
#[command(after_help = "Examples:
  lichen run --name web -p 8080:80 -- python3 -m http.server 80
  lichen run -- curl http://web/
  lichen vm run db -- qemu-system-x86_64 -m 1G -drive file=db.img
  lichen ps
  lichen port add --host-port 9090 --target web --target-port 80")]
pub(crate) struct Arguments {
    /// How answers are shown.
    #[arg(short = 'o', long = "output", value_enum, default_value_t, global = true)]
    pub(crate) output: Output,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How answers are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// Tables, for people.
    #[default]
    Table,
    /// JSON, for programs; its shapes are stable.
    Json,
}

impl Arguments {
    /// What is said of `-o json` in front of a command whose output is not ours to shape.
    pub(crate) fn no_json() -> clap::Error {
        Self::command().error(
            clap::error::ErrorKind::ArgumentConflict,
            "the command, said like this, has no JSON to show; leave out -o json",
        )
    }
}

impl Command {
    /// Whether its output is somebody else's, or text in a shape of its own.
    pub(crate) fn has_no_json(&self) -> bool {
        match self {
            Self::Run(run) => !run.detach,
            Self::Vm(VmCommand::Run(_)) => true,
            Self::Daemon(daemon) => daemon.command.is_none(),
            Self::Network(NetworkCommand::Ls(ls)) => ls.quiet || ls.format.is_some(),
            Self::Logs(_) | Self::Completions(_) | Self::Metrics(_) | Self::Capture(_) => true,
            _ => false,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a command on a network
    Run(Run),
    /// Attach the network namespace of a process that exists
    Attach(Attach),
    /// List workloads
    #[command(after_help = "Examples:\n  lichen ps\n  lichen ps -o json")]
    Ps,
    /// Remove workloads
    Rm(Rm),
    /// Manage virtual machines
    #[command(subcommand)]
    Vm(VmCommand),
    /// Show the output of a detached workload
    Logs(Logs),
    /// Manage networks
    #[command(subcommand)]
    Network(NetworkCommand),
    /// Manage published ports
    #[command(subcommand)]
    Port(PortCommand),
    /// Show how daemon and datapath are
    #[command(after_help = "Examples:\n  lichen status\n  lichen status -o json")]
    Status,
    /// Show what each workload carries and drops, every second
    #[command(
        after_help = "It ends with q or Ctrl-C. Led into a file or a program it shows one second and ends.

Examples:
  lichen top
  lichen top -o json"
    )]
    Top,
    /// List flows: who speaks with whom outside, now
    Flows(Flows),
    /// Record frames as they pass, as pcapng
    Capture(Capture),
    /// Print counters and gauges in the text form of Prometheus
    Metrics(Metrics),
    /// Explain what is counted
    #[command(subcommand)]
    Explain(ExplainCommand),
    /// Run the daemon in the foreground, or stop or restart it
    Daemon(Daemon),
    /// Manage the systemd user service
    #[command(subcommand)]
    Service(ServiceCommand),
    /// Show the versions of this program and of the daemon
    #[command(after_help = "Examples:\n  lichen version\n  lichen version -o json")]
    Version,
    /// Print completions for a shell
    Completions(Completions),
}

#[derive(Debug, Args)]
#[command(
    after_help = "The command has a network namespace of its own, an address on the network, and the \
network's names; it is a network for a command, not a sandbox. Its root is you.

Examples:
  lichen run -- ip address
  lichen run --name web -p 8080:80 -- python3 -m http.server 80
  lichen run --allow-host 5432 -- psql -h host.lichen.internal
  lichen run -d --name worker -- ./worker.sh

Exit codes: the command's own; 125 when Lichen failed, 126 when the command cannot be executed, 127 when it \
was not found."
)]
pub(crate) struct Run {
    /// Name of the workload, also its host name [default: made up]
    #[arg(long)]
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) place: Place,
    /// Queues of its network interface, 1 to 4, for a command that sends from several processors [default: 1]
    #[arg(long, value_name = "N", value_parser = queues::of_interface)]
    pub(crate) queues: Option<Queues>,
    /// Who you are inside
    #[arg(long, value_enum, default_value_t)]
    pub(crate) user: User,
    /// Leave the command running; its output is in `lichen logs NAME`
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

/// Who the caller is inside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum User {
    /// Root (uid 0).
    #[default]
    Root,
    /// The same uid and gid as outside.
    Keep,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  podman run -d --network none --name db postgres
  lichen attach --pid $(podman inspect -f '{{.State.Pid}}' db) --name db")]
pub(crate) struct Attach {
    /// A process in the network namespace
    #[arg(long)]
    pub(crate) pid: i32,
    /// Name of the workload
    #[arg(long)]
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) place: Place,
    /// Queues of its network interface, 1 to 4, for a workload that sends from several processors [default: 1]
    #[arg(long, value_name = "N", value_parser = queues::of_interface)]
    pub(crate) queues: Option<Queues>,
    /// Leave the target's /etc/resolv.conf alone
    #[arg(long)]
    pub(crate) no_resolv_conf: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "A workload of `run` is ended (with -f if it runs); one of `attach` goes on without its network.

Examples:
  lichen rm -f web
  lichen rm db cache"
)]
pub(crate) struct Rm {
    /// End workloads that run
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Names of workloads
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  lichen logs worker\n  lichen logs -f worker")]
pub(crate) struct Logs {
    /// Go on until the workload ends
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Name of the workload
    pub(crate) name: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PortCommand {
    /// Publish a port of a workload, which need not be there yet
    Add(AddPort),
    /// List published ports
    #[command(alias = "list", after_help = "Examples:\n  lichen port ls\n  lichen port ls -o json")]
    Ls,
    /// Take back published ports
    #[command(alias = "delete")]
    Rm(RmPort),
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lichen port add --host-port 8080 --target web --target-port 80
  lichen port add --host-port 9000-9009 --target web --target-port 9000-9009
  lichen port add --host-ip 0.0.0.0 --host-port 8443 --target web --target-port 443")]
pub(crate) struct AddPort {
    /// Port or range on the host; 0 is one that is free
    #[arg(long, value_name = "PORT[-END]", value_parser = publish::parse_host_range)]
    pub(crate) host_port: PortRange,
    /// Name of the workload
    #[arg(long, value_name = "NAME")]
    pub(crate) target: String,
    /// Port or range in the workload
    #[arg(long, value_name = "PORT[-END]", value_parser = publish::parse_range)]
    pub(crate) target_port: PortRange,
    /// Transport protocol
    #[arg(long, default_value = "tcp", value_parser = publish::parse_protocol)]
    pub(crate) proto: lichen_api::Transport,
    /// Address of the host to listen on
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub(crate) host_ip: IpAddr,
    /// Show the gateway's address to the workload instead of each client's own
    #[arg(long)]
    pub(crate) snat: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lichen port rm --host-port 8080
  lichen port rm 8080 5353/udp")]
pub(crate) struct RmPort {
    /// Port or range on the host
    #[arg(long, value_name = "PORT[-END][/udp]", value_parser = publish::parse_host_ports)]
    pub(crate) host_port: Option<publish::HostPorts>,
    /// Only on this address of the host
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) host_ip: Option<IpAddr>,
    /// Ports or ranges on the host
    #[arg(value_name = "PORT[-END][/udp]", value_parser = publish::parse_host_ports, required_unless_present = "host_port")]
    pub(crate) ports: Vec<publish::HostPorts>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Any command starts the daemon when none runs; there is no need to do it by hand.
Whatever starts it may say LICHEN_LOG (what is logged), LICHEN_WORKERS (threads that carry
frames; half of the cores, 1 to 4) and LICHEN_BUSY_POLL_US (for how long each looks for more before
it sleeps; 0).

Examples:
  lichen daemon
  LICHEN_WORKERS=2 lichen daemon restart --datapath
  lichen daemon restart --datapath
  lichen daemon stop"
)]
pub(crate) struct Daemon {
    /// Started by the CLI: own session, log to a file
    #[arg(long, hide = true, conflicts_with = "service")]
    pub(crate) on_demand: bool,
    /// Started by a service manager: log to standard error, exit code 75 asks for a restart
    #[arg(long, hide = true)]
    pub(crate) service: bool,
    #[command(subcommand)]
    pub(crate) command: Option<DaemonCommand>,
}

impl Daemon {
    pub(crate) fn role(&self) -> DaemonRole {
        match (self.on_demand, self.service) {
            (true, _) => DaemonRole::OnDemand,
            (_, true) => DaemonRole::Service,
            _ => DaemonRole::Foreground,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum DaemonCommand {
    /// Stop control and datapath; workloads run on, without a network
    #[command(after_help = "Examples:\n  lichen daemon stop")]
    Stop,
    /// Replace control; no frame and no connection is lost
    Restart(Restart),
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  lichen daemon restart\n  lichen daemon restart --datapath")]
pub(crate) struct Restart {
    /// Replace the datapath too; connections are reset
    #[arg(long)]
    pub(crate) datapath: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ServiceCommand {
    /// Install and start a systemd user unit
    #[command(after_help = "Examples:\n  lichen service install")]
    Install,
    /// Stop and remove the systemd user unit
    #[command(after_help = "Examples:\n  lichen service uninstall")]
    Uninstall,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lichen completions bash > ~/.local/share/bash-completion/completions/lichen
  lichen completions zsh > ~/.zfunc/_lichen")]
pub(crate) struct Completions {
    /// Which shell
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_is_consistent_and_every_leaf_has_an_example() {
        let mut root = Arguments::command();
        root.build();
        root.clone().debug_assert();
        fn leaves(command: &clap::Command) {
            let subcommands: Vec<_> =
                command.get_subcommands().filter(|sub| sub.get_name() != "help").collect();
            if subcommands.is_empty() {
                let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains("Examples:\n  "), "{}", command.get_name());
            }
            for sub in subcommands {
                leaves(sub);
            }
        }
        leaves(&root);
    }

    #[test]
    fn a_command_after_two_hyphens_keeps_its_own_flags() {
        let parsed = Arguments::try_parse_from([
            "lichen", "run", "--name", "web", "-p", "8080:80", "-d", "--", "ls", "-o", "--name",
        ])
        .unwrap();
        let Command::Run(run) = parsed.command else { panic!("not run") };
        assert_eq!(run.command, ["ls", "-o", "--name"]);
        assert!(run.detach);
    }

    #[test]
    fn aliases_are_known() {
        for words in [
            vec!["network", "list"],
            vec!["network", "delete", "x"],
            vec!["port", "list"],
            vec!["vm", "list"],
            vec!["port", "delete", "80"],
            vec!["port", "rm", "--host-port", "80"],
        ] {
            Arguments::try_parse_from(std::iter::once("lichen").chain(words)).unwrap();
        }
    }
}
