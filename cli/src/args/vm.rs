//! The grammar of `lichen vm`.

use std::ffi::OsString;

use clap::{Args, Subcommand, ValueEnum};
use lichen_api::{CreateWorkload, VmAttachment, WorkloadKind};

use super::Place;

#[derive(Debug, Subcommand)]
pub(crate) enum VmCommand {
    /// Give a virtual machine a place on a network, and show how to start it
    Add(AddVm),
    /// Start QEMU with a place on a network
    Run(RunVm),
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

Examples:
  lichen vm add db
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
}

impl VmPlace {
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
#[command(after_help = "Examples:\n  lichen vm rm db\n  lichen vm rm -f db cache")]
pub(crate) struct RmVm {
    /// Remove also those that are connected; QEMU ends if `vm run` started it
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Names of virtual machines
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
}
