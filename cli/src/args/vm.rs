//! The grammar of `lichen vm`.

use std::ffi::OsString;

use clap::{Args, Subcommand, ValueEnum};
use lichen_api::{CreateWorkload, VmAttachment, WorkloadKind};

use super::{Place, Queues, queues};

#[derive(Debug, Subcommand)]
pub(crate) enum VmCommand {
    /// Give a virtual machine a place on a network, and show how to start it
    Add(AddVm),
    /// Start QEMU with a place on a network
    Run(RunVm),
    /// Connect a virtual machine by a descriptor that is passed to this command
    Plug(PlugVm),
    /// List virtual machines
    #[command(alias = "list", after_help = "Examples:\n  lichen vm ls\n  lichen vm ls -o json")]
    Ls,
    /// Take away places of virtual machines
    #[command(alias = "delete")]
    Rm(RmVm),
    /// Show virtual machines in full, as JSON, with the arguments to start them
    #[command(after_help = "Examples:\n  lichen vm inspect db")]
    Inspect {
        /// Names of virtual machines
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

#[derive(Debug, Args)]
#[command(
    after_help = "The place stays until `lichen vm rm`, across reboots; the virtual machine may come \
and go. Its address comes by DHCP.

Its monitor connects to a socket, and speaks there what --attach says:
  vhost-user  the guest's rings in shared memory, the fastest; QEMU, cloud-hypervisor
  stream      each frame with its length before it; QEMU 7.2 and later, libkrun
  dgram       each frame as a datagram; QEMU 7.2 and later, vfkit, krunkit
At a place of stream or dgram it may also come by a descriptor: lichen vm plug.

Examples:
  lichen vm add db
  lichen vm add db --queues 4
  lichen vm add db --attach dgram
  lichen vm add db --network backend --ip 10.89.0.10 -p 5432:5432
  lichen vm add db -o json"
)]
pub(crate) struct AddVm {
    #[command(flatten)]
    pub(crate) place: VmPlace,
    /// Name of the virtual machine, also its host name on the network
    pub(crate) name: String,
}

/// A place on a network, and how it is reached.
#[derive(Debug, Args)]
pub(crate) struct VmPlace {
    #[command(flatten)]
    pub(crate) place: Place,
    /// How frames come from the virtual machine [default: vhost-user]
    #[arg(long, value_enum, value_name = "HOW")]
    pub(crate) attach: Option<Attach>,
    /// Pairs of rings that the guest may use, 1 to 4; over vhost-user [default: 1]
    #[arg(long, value_name = "N", value_parser = queues::pairs_of_rings)]
    pub(crate) queues: Option<Queues>,
}

/// Rings, where there are none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "--queues is for --attach vhost-user, whose guests have rings; over {0} every frame takes the one socket, \
     so leave it out"
)]
pub(crate) struct NoQueues(&'static str);

impl VmPlace {
    /// How many pairs of rings the guest is started with, at a place whose frames come like that, or at one that is
    /// made by these words.
    pub(crate) fn queues(&self, there: Option<VmAttachment>) -> Result<Queues, NoQueues> {
        let attachment = there.or(self.attach.map(Attach::meant)).unwrap_or_default();
        match (attachment, self.queues) {
            (_, None) => Ok(Queues::ONE),
            (VmAttachment::VhostUser, Some(queues)) => Ok(queues),
            (other, Some(_)) => Err(NoQueues(other.name())),
        }
    }

    /// The request for a virtual machine of that name.
    pub(crate) fn request(&self, name: String) -> CreateWorkload {
        CreateWorkload {
            attachment: self.attach.map(Attach::meant),
            ..self.place.request(WorkloadKind::Vm, Some(name))
        }
    }
}

/// What a monitor speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Attach {
    /// The guest's rings in shared memory.
    VhostUser,
    /// Each frame with its length before it.
    Stream,
    /// Each frame as a datagram.
    Dgram,
}

impl Attach {
    pub(crate) fn meant(self) -> VmAttachment {
        match self {
            Self::VhostUser => VmAttachment::VhostUser,
            Self::Stream => VmAttachment::Stream,
            Self::Dgram => VmAttachment::Dgram,
        }
    }
}

#[derive(Debug, Args)]
#[command(
    after_help = "QEMU is given the socket and the network device, and shared memory where --attach is \
vhost-user; everything else is yours. A place that `vm add` made is used and stays; else it is made, and ends with QEMU.

Examples:
  lichen vm run db -- qemu-system-x86_64 -m 1G -nographic -drive file=db.img,format=raw
  lichen vm run db -p 5432:5432 -- qemu-system-x86_64 -M q35 -m 2G -drive file=db.qcow2
  lichen vm run db --queues 2 -- qemu-system-x86_64 -smp 2 -m 2G -drive file=db.qcow2

Exit codes: QEMU's own; 125 when Lichen failed, 126 when QEMU cannot be executed, 127 when it was not found."
)]
pub(crate) struct RunVm {
    #[command(flatten)]
    pub(crate) place: VmPlace,
    /// Name of the virtual machine, also its host name on the network
    pub(crate) name: String,
    /// QEMU and its arguments
    #[arg(last = true, required = true, value_name = "QEMU")]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "For runtimes that start a virtual machine with one end of socketpair(AF_UNIX, …) and its network with the \
other, as libkrun with passt. The place was made by `vm add --attach stream` for SOCK_STREAM, each frame with four bytes \
of length before it, or by `--attach dgram` for SOCK_DGRAM.

The datapath has the descriptor when this command has ended; close yours then, or the virtual machine's monitor does \
not see when the datapath ends. The descriptor does not survive the datapath: when that is replaced, the place waits, \
and a new pair has to be plugged.

Examples:
  lichen vm add db --attach stream
  lichen vm plug db --fd 3
  qemu-system-x86_64 … -netdev stream,id=net0,addr.type=fd,addr.str=4"
)]
pub(crate) struct PlugVm {
    /// Name of the virtual machine
    pub(crate) name: String,
    /// Number of the descriptor, which this command has inherited
    #[arg(long, value_name = "N", value_parser = passed_descriptor)]
    pub(crate) fd: i32,
}

fn passed_descriptor(said: &str) -> Result<i32, String> {
    match said.parse() {
        Ok(0..=2) => {
            Err("0 to 2 are standard input, output and error; pass another one".to_owned())
        }
        Ok(number @ 3..) => Ok(number),
        _ => Err("a descriptor is a number from 3 on".to_owned()),
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  lichen vm rm db\n  lichen vm rm -f db cache")]
pub(crate) struct RmVm {
    /// Remove also those that are connected; QEMU ends if `vm run` started it
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Names of virtual machines
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_is_a_number_and_none_of_the_standard_ones() {
        assert_eq!((passed_descriptor("3"), passed_descriptor("1023")), (Ok(3), Ok(1023)));
        for said in ["0", "1", "2"] {
            assert!(passed_descriptor(said).unwrap_err().contains("standard"), "{said}");
        }
        for said in ["-1", "", "three", "3.0", "2147483648"] {
            assert!(passed_descriptor(said).unwrap_err().contains("from 3 on"), "{said}");
        }
    }
}
