//! `lichen vm`: places for virtual machines, and QEMU started on one.

use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use lichen_api::{
    AttachWorkload, Client, ClientError, CreateWorkload, ErrorCode, Force, VmAttachment, Workload,
    WorkloadKind, WorkloadState,
};
use serde::Serialize;
use tokio::runtime::Runtime;

use super::each::{each, told};
use crate::args::{AddVm, Output, Place, Queues, RmVm, RunVm, VmAttach, VmCommand, VmPlace};
use crate::daemon::DaemonError;
use crate::vmm::qemu::{self, Memory, Version};
use crate::vmm::{Nic, Start};
use crate::{Outcome, daemon, exit, output};

/// The command was found and cannot be executed, as with Docker.
const CANNOT_EXECUTE: u8 = 126;
/// The command was not found.
const NOT_FOUND: u8 = 127;
/// What a virtual machine is shown with that has not been started yet.
const EXAMPLE_MEMORY: &str = "1G";

/// A virtual machine with how it is started.
#[derive(Serialize)]
struct Described {
    #[serde(flatten)]
    workload: Workload,
    /// Arguments for a guest of 1 GiB.
    start: Start,
}

impl Described {
    fn new(workload: Workload, queues: Queues) -> Result<Self, NotAVm> {
        let nic = Nic::of(&workload, queues).ok_or_else(|| NotAVm(workload.name.clone()))?;
        let version = version_of(OsStr::new(&system_emulator())).ok().flatten();
        let start = Start::of(&nic, EXAMPLE_MEMORY, version);
        Ok(Self { workload, start })
    }
}

/// A workload of another kind.
#[derive(Debug, thiserror::Error)]
#[error("workload `{0}` is not a virtual machine; see: lichen ps")]
struct NotAVm(String);

/// Does what a `vm` command says, other than `run`.
pub(crate) async fn vm(command: &VmCommand, format: Output) -> Outcome {
    let client = daemon::connect().await?;
    match command {
        VmCommand::Run(_) => unreachable!("run replaces this process; main takes it"),
        VmCommand::Plug(_) => unreachable!("main takes it, with its descriptor"),
        VmCommand::Add(add) => show_added(add, format).await,
        VmCommand::Ls => {
            let mut vms = client.workloads().await?;
            vms.retain(|workload| workload.kind == WorkloadKind::Vm);
            match format {
                Output::Json => output::json(&vms)?,
                Output::Table => output::table(
                    &["NAME", "NETWORK", "IP", "MAC", "ATTACH", "SOCKET", "STATE"],
                    &vms.iter().map(row).collect::<Vec<_>>(),
                )?,
            }
            Ok(ExitCode::SUCCESS)
        }
        VmCommand::Inspect { names } => {
            let (found, mut code) = each(names, async |name| client.workload(name).await).await;
            let mut described = Vec::new();
            for workload in found {
                match Described::new(workload, Queues::ONE) {
                    Ok(vm) => described.push(vm),
                    Err(error) => {
                        eprintln!("lichen: {error}");
                        code = ExitCode::FAILURE;
                    }
                }
            }
            output::json(&described)?;
            Ok(code)
        }
        VmCommand::Rm(rm) => remove(rm, &client, format).await,
    }
}

fn row(vm: &Workload) -> Vec<String> {
    vec![
        vm.name.clone(),
        vm.network.clone(),
        vm.address.to_string(),
        vm.mac.clone(),
        vm.attachment.map_or("", VmAttachment::name).to_owned(),
        vm.socket.clone().unwrap_or_default(),
        vm.state.to_string(),
    ]
}

async fn show_added(add: &AddVm, format: Output) -> Outcome {
    let queues = add.place.queues(None)?;
    let (client, lease) = daemon::create_workload(&add.place.request(add.name.clone())).await?;
    let name = lease.name;
    let described = Described::new(client.workload(&name).await?, queues)?;
    if format == Output::Json {
        output::json(&described)?;
        return Ok(ExitCode::SUCCESS);
    }
    show_start(&described)?;
    Ok(ExitCode::SUCCESS)
}

/// Prints how a virtual machine is started, by hand and by us.
fn show_start(Described { workload, start }: &Described) -> std::io::Result<()> {
    let (name, emulator) = (&workload.name, system_emulator());
    let attachment = workload.attachment.unwrap_or_default();
    let memory = match attachment {
        VmAttachment::VhostUser => ", with memory of your choice",
        VmAttachment::Stream | VmAttachment::Dgram => "",
    };
    output::line(&format!(
        "{name} is on network {} as {}. Start it with one of these{memory}:\n",
        workload.network, workload.address
    ))?;
    let quoted = |arguments: &[String]| {
        let pairs: Vec<String> = arguments
            .chunks(2)
            .map(|pair| pair.iter().map(|it| quote(it)).collect::<Vec<_>>().join(" "))
            .collect();
        pairs.join(" \\\n    ")
    };
    let qemu = quoted(&start.qemu);
    output::line(&format!("  {emulator} -m {EXAMPLE_MEMORY} … \\\n    {qemu}\n"))?;
    if let Some(arguments) = &start.cloud_hypervisor {
        output::line(&format!("  cloud-hypervisor … \\\n    {}\n", quoted(arguments)))?;
    }
    if let Some(arguments) = &start.vfkit {
        let quoted = quoted(arguments);
        output::line(&format!("  vfkit … \\\n    {quoted}      # untried; krunkit likewise\n"))?;
    }
    let version = version_of(OsStr::new(&emulator)).ok().flatten();
    if attachment == VmAttachment::Stream && !qemu::reconnects_streams(version) {
        output::line(
            "QEMU before 8.0 does not connect to a stream again: when the datapath is replaced, start the \
             virtual machine again.\n",
        )?;
    }
    output::line(&format!("Or let Lichen do it: lichen vm run {name} -- {emulator} …"))
}

/// As a shell reads it back.
fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./,:@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

async fn remove(rm: &RmVm, client: &Client, format: Output) -> Outcome {
    let force = if rm.force { Force::Yes } else { Force::No };
    let mut vms = Vec::new();
    let mut code = ExitCode::SUCCESS;
    for name in &rm.names {
        match client.workload(name).await {
            Ok(workload) if workload.kind == WorkloadKind::Vm => vms.push(workload.name),
            Ok(workload) => {
                eprintln!("lichen: {}", NotAVm(workload.name));
                code = ExitCode::FAILURE;
            }
            Err(error) => {
                eprintln!("lichen: {}", exit::chain(&error));
                code = ExitCode::FAILURE;
            }
        }
    }
    let (removed, removing) =
        each(&vms, async |name| client.remove_workload(name, force).await).await;
    told((removed, if removing == ExitCode::SUCCESS { code } else { removing }), format)
}

/// Replaces this process by QEMU with a place on a network.
pub(crate) fn run(arguments: &RunVm, runtime: &Runtime) -> Outcome {
    let whose = match arguments.place.attach {
        None | Some(VmAttach::VhostUser) => Memory::Ours,
        Some(VmAttach::Stream | VmAttach::Dgram) => Memory::Theirs,
    };
    // Before a place is made for it; one that is there may still speak something else.
    arguments.place.queues(None)?;
    let machine = qemu::read(&arguments.command, whose)?;
    let program = &arguments.command[0];
    let version = match version_of(program) {
        Ok(version) => version,
        Err(error) => return Ok(not_started(program, &error)),
    };
    let client = runtime.block_on(daemon::connect())?;
    let (vm, made) = runtime.block_on(place(arguments, &client))?;
    let queues = arguments.place.queues(vm.attachment)?;
    let nic = Nic::of(&vm, queues).ok_or_else(|| NotAVm(vm.name.clone()))?;
    // Only comes back when it failed.
    let error = Command::new(program)
        .args(&arguments.command[1..])
        .args(qemu::arguments(&nic, &machine, version))
        .exec();
    if made == Made::Now {
        let _ = runtime.block_on(client.remove_workload(&vm.name, Force::No));
    }
    Ok(not_started(program, &error))
}

/// Whether a place was there before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Made {
    /// It ends with this process.
    Now,
    /// By `vm add`; it stays.
    Before,
}

/// A place for this process, which becomes QEMU.
async fn place(arguments: &RunVm, client: &Client) -> Result<(Workload, Made), Box<dyn Error>> {
    let pid = i32::try_from(std::process::id())?;
    let request = CreateWorkload {
        process: Some(AttachWorkload { pid, start_time: None }),
        ..arguments.place.request(arguments.name.clone())
    };
    let error = match daemon::create_workload(&request).await {
        Ok((client, lease)) => return Ok((client.workload(&lease.name).await?, Made::Now)),
        Err(DaemonError::Client(
            error @ ClientError::Refused { code: ErrorCode::Conflict, .. },
        )) => error,
        Err(error) => return Err(error.into()),
    };
    let there = match client.workload(&arguments.name).await {
        Ok(there) if there.kind == WorkloadKind::Vm => there,
        _ => return Err(error.into()),
    };
    if there.pid.is_some() || there.state == WorkloadState::Running {
        return Err(
            format!("virtual machine `{}` runs already; see: lichen vm ls", there.name).into()
        );
    }
    if !describes_nothing_else(&arguments.place, &there) {
        return Err(format!(
            "`{0}` has its place already, made by vm add; leave out the options that describe one, or remove \
             it first: lichen vm rm {0}",
            there.name
        )
        .into());
    }
    Ok((there, Made::Before))
}

/// Whether the options leave a place as it is.
///
/// How many rings there are is the monitor's affair, as the memory's size is: the place offers all that it has.
fn describes_nothing_else(
    VmPlace { place, attach, queues: _ }: &VmPlace,
    there: &Workload,
) -> bool {
    let Place { network, ip, mac, publish, allow_host, snat } = place;
    attach.is_none_or(|attach| there.attachment == Some(attach.meant()))
        && network.is_none()
        && ip.is_none()
        && mac.is_none()
        && publish.is_empty()
        && allow_host.is_empty()
        && !snat
}

/// The version that a QEMU says it is; `None` when what it says cannot be read.
fn version_of(program: &OsStr) -> std::io::Result<Option<Version>> {
    let said = Command::new(program).arg("--version").output()?;
    Ok(Version::parse(&String::from_utf8_lossy(&said.stdout)))
}

/// QEMU's program for guests of this machine's kind.
fn system_emulator() -> String {
    format!("qemu-system-{}", std::env::consts::ARCH)
}

fn not_started(program: &OsString, error: &std::io::Error) -> ExitCode {
    eprintln!("lichen: {}: {error}", program.to_string_lossy());
    ExitCode::from(match error.kind() {
        std::io::ErrorKind::NotFound => NOT_FOUND,
        _ => CANNOT_EXECUTE,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_can_be_pasted_into_a_shell() {
        assert_eq!(quote("size=1G,share=on"), "size=1G,share=on");
        assert_eq!(quote("/run/my vm's.sock"), r"'/run/my vm'\''s.sock'");
    }
}
