//! Arguments of QEMU: what a caller's own say about the machine, and what is added to them.
//!
//! Shared memory, the socket and the network device are ours; a caller that gives them too is told so,
//! rather than left with a machine whose network is silent.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use lichen_api::VmAttachment;

use super::Nic;
use crate::args::Queues;

/// Name of our memory object.
const MEMORY: &str = "lichen-memory";
/// Name of our socket and network backend.
const NET: &str = "lichen0";
/// QEMU's own default.
const DEFAULT_MEMORY: &str = "128M";

/// A version of QEMU, major and minor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(pub(crate) u32, pub(crate) u32);

impl Version {
    /// Reads what `--version` prints.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let numbers = text.split("version ").nth(1)?;
        let mut numbers = numbers.split(|c: char| !c.is_ascii_digit());
        Some(Self(numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    }
}

/// How the machine's devices are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bus {
    /// Most machines.
    Pci,
    /// `microvm` without PCIe.
    Mmio,
    /// IBM Z.
    Ccw,
}

/// What runs the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accelerator {
    /// QEMU itself.
    Tcg,
    /// The host's processor.
    Hardware,
}

/// What the caller's arguments say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Machine {
    /// As `-m` has it, with a unit.
    pub(crate) memory: String,
    /// Where our device goes.
    pub(crate) bus: Bus,
    /// What runs it.
    pub(crate) accelerator: Accelerator,
    /// How many processors it can have.
    pub(crate) processors: Processors,
}

/// How many processors a machine can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Processors {
    /// One, because nothing was said.
    Unsaid,
    /// As the caller says.
    Said,
}

impl Machine {
    /// A machine with that much memory, for who has not started one yet.
    pub(crate) fn of_memory(memory: &str) -> Self {
        Self {
            memory: memory.to_owned(),
            bus: Bus::Pci,
            accelerator: Accelerator::Tcg,
            processors: Processors::Unsaid,
        }
    }
}

/// Why a command cannot be given a network.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Clash {
    /// Another program.
    #[error(
        "`{0}` is not QEMU, the only monitor that `vm run` can start; for another one give it the \
         arguments that `lichen vm add NAME` prints"
    )]
    NotQemu(String),
    /// An argument that is ours.
    #[error(
        "`{argument}` clashes with {ours}, which `vm run` gives to QEMU itself; leave it out, or give all \
         of it yourself with the arguments that `lichen vm add NAME` prints"
    )]
    Ours {
        /// The caller's argument.
        argument: String,
        /// What it clashes with.
        ours: &'static str,
    },
    /// A QEMU that would outlive the command that was waited for.
    #[error(
        "`-daemonize` would end the workload at once; leave it out and put `&` behind the command instead"
    )]
    Daemonize,
}

/// Whose business the guest's memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    /// Ours: it is shared with the datapath.
    Ours,
    /// The caller's.
    Theirs,
}

/// Reads what a caller's command, the program included, says about the machine.
pub(crate) fn read(command: &[OsString], whose: Memory) -> Result<Machine, Clash> {
    let program = command.first().map(OsString::as_os_str).unwrap_or_default();
    if !is_qemu(program) {
        return Err(Clash::NotQemu(program.to_string_lossy().into_owned()));
    }
    let words: Vec<String> =
        command[1..].iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let (mut kind, mut memory) = (String::new(), DEFAULT_MEMORY.to_owned());
    let mut accelerator = Accelerator::Tcg;
    let mut processors = Processors::Unsaid;
    for (at, word) in words.iter().enumerate() {
        let Some(option) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
            continue;
        };
        let value = words.get(at + 1).map_or("", String::as_str);
        check(word, option, value, whose)?;
        match option {
            "m" => memory = with_unit(value),
            "M" | "machine" => {
                let (name, accel) = machine(value);
                kind = name.unwrap_or(kind);
                accelerator = accel.map_or(accelerator, accelerator_of);
            }
            "accel" => accelerator = accelerator_of(value.split(',').next().unwrap_or_default()),
            "enable-kvm" => accelerator = Accelerator::Hardware,
            "smp" => processors = Processors::Said,
            _ => {}
        }
    }
    let is_microvm = kind.split(',').next() == Some("microvm") && !kind.contains("pcie=on");
    let bus = if is_microvm {
        Bus::Mmio
    } else if program.to_string_lossy().ends_with("s390x") {
        Bus::Ccw
    } else {
        Bus::Pci
    };
    Ok(Machine { memory, bus, accelerator, processors })
}

fn is_qemu(program: &OsStr) -> bool {
    let name = Path::new(program).file_name().unwrap_or_default().to_string_lossy();
    name.starts_with("qemu-system-") || name == "qemu-kvm" || name == "kvm"
}

fn check(word: &str, option: &str, value: &str, whose: Memory) -> Result<(), Clash> {
    let ours =
        |ours| Err(Clash::Ours { argument: format!("{word} {value}").trim().to_owned(), ours });
    let is_memory = match option {
        "object" => value.starts_with("memory-backend-"),
        "M" | "machine" => value.contains("memory-backend="),
        "numa" => value.contains("memdev="),
        other => other == "mem-path",
    };
    match option {
        "daemonize" => Err(Clash::Daemonize),
        _ if is_memory && whose == Memory::Ours => ours("the shared memory"),
        "chardev" | "netdev" if value.split(',').any(|it| it == format!("id={NET}")) => {
            ours("the network device")
        }
        "netdev" if value.starts_with("vhost-user") => ours("the network device"),
        _ => Ok(()),
    }
}

/// The machine's name with its options, if named, and its accelerator.
fn machine(value: &str) -> (Option<String>, Option<&str>) {
    let first = value.split(',').next().unwrap_or_default();
    let name = first.strip_prefix("type=").unwrap_or(first);
    let name = (!name.contains('=')).then(|| value.replacen(first, name, 1));
    (name, value.split(',').find_map(|option| option.strip_prefix("accel=")))
}

/// The first of several is tried first.
fn accelerator_of(value: &str) -> Accelerator {
    match value.split(':').next() {
        Some("tcg") => Accelerator::Tcg,
        _ => Accelerator::Hardware,
    }
}

/// `-m` counts in MiB, other sizes in bytes.
fn with_unit(value: &str) -> String {
    let first = value.split(',').next().unwrap_or_default();
    let size = value
        .split(',')
        .find_map(|option| option.strip_prefix("size="))
        .unwrap_or(if first.contains('=') { DEFAULT_MEMORY } else { first });
    match size.chars().last() {
        Some(last) if last.is_ascii_digit() => format!("{size}M"),
        _ => size.to_owned(),
    }
}

/// What is added to a caller's arguments. Without a version, the newest is meant.
pub(crate) fn arguments(nic: &Nic, machine: &Machine, version: Option<Version>) -> Vec<String> {
    let mut arguments = match nic.attachment {
        VmAttachment::VhostUser => shared_memory(machine),
        VmAttachment::Stream | VmAttachment::Dgram => Vec::new(),
    };
    arguments.extend(backend(nic, version));
    arguments.extend(["-device".to_owned(), device(nic, machine, version)]);
    let is_vhost = nic.attachment == VmAttachment::VhostUser;
    let is_single = machine.processors == Processors::Unsaid;
    if is_vhost && is_single && is_old_emulation(machine, version) {
        // For a machine that can have one processor only, the guest's memory barriers are left out, and its ring and
        // ours may each wait for the other. It still begins with one.
        arguments.extend(["-smp", "1,maxcpus=2"].map(str::to_owned));
    }
    if machine.bus == Bus::Mmio && is_vhost {
        // Our device speaks virtio 1 only.
        arguments.extend(["-global", "virtio-mmio.force-legacy=false"].map(str::to_owned));
    }
    arguments
}

/// Whether a QEMU of that version connects to a stream again when it was closed.
pub(crate) fn reconnects_streams(version: Option<Version>) -> bool {
    version.is_none_or(|version| version >= Version(8, 0))
}

fn shared_memory(machine: &Machine) -> Vec<String> {
    let size = &machine.memory;
    [
        "-object",
        &format!("memory-backend-memfd,id={MEMORY},size={size},share=on"),
        "-machine",
        &format!("memory-backend={MEMORY}"),
    ]
    .map(str::to_owned)
    .to_vec()
}

/// Where the frames go.
fn backend(nic: &Nic, version: Option<Version>) -> Vec<String> {
    // A comma in a value is written twice.
    let (socket, peer) = (nic.socket.replace(',', ",,"), nic.peer.replace(',', ",,"));
    let reconnect = match version {
        Some(version) if version < Version(9, 2) => "reconnect=1",
        _ => "reconnect-ms=1000",
    };
    match nic.attachment {
        VmAttachment::VhostUser => vec![
            "-chardev".to_owned(),
            format!("socket,id={NET},path={socket},{reconnect}"),
            "-netdev".to_owned(),
            format!("vhost-user,id={NET},chardev={NET}{}", several(nic, "queues", nic.queues.0)),
        ],
        VmAttachment::Stream => {
            let mut stream =
                format!("stream,id={NET},server=off,addr.type=unix,addr.path={socket}");
            if reconnects_streams(version) {
                stream.push_str(&format!(",{reconnect}"));
            }
            vec!["-netdev".to_owned(), stream]
        }
        VmAttachment::Dgram => vec![
            "-netdev".to_owned(),
            format!(
                "dgram,id={NET},local.type=unix,local.path={peer},remote.type=unix,remote.path={socket}"
            ),
        ],
    }
}

/// An option that only a guest with several pairs of rings needs.
fn several(nic: &Nic, name: &str, value: u16) -> String {
    match nic.queues {
        Queues::ONE => String::new(),
        Queues(_) => format!(",{name}={value}"),
    }
}

/// Whether a QEMU before 8.0 runs the guest's instructions itself.
fn is_old_emulation(machine: &Machine, version: Option<Version>) -> bool {
    version.is_some_and(|version| version < Version(8, 0))
        && machine.accelerator == Accelerator::Tcg
}

fn device(nic: &Nic, machine: &Machine, version: Option<Version>) -> String {
    let Nic { mac, mtu, .. } = nic;
    let mut device = match machine.bus {
        Bus::Pci => "virtio-net-pci",
        Bus::Mmio => "virtio-net-device",
        Bus::Ccw => "virtio-net-ccw",
    }
    .to_owned();
    device.push_str(&format!(",netdev={NET},mac={mac}"));
    if *mtu != 1500 {
        device.push_str(&format!(",host_mtu={mtu}"));
    }
    if nic.queues != Queues::ONE {
        device.push_str(",mq=on");
    }
    // QEMU 7 crashes under TCG when a vhost-user device raises a message-signalled interrupt.
    let is_vhost = nic.attachment == VmAttachment::VhostUser;
    if is_old_emulation(machine, version) && is_vhost && machine.bus == Bus::Pci {
        device.push_str(",vectors=0");
    } else if machine.bus == Bus::Pci {
        // One for each ring, one for the control queue, one for changes of the configuration.
        device.push_str(&several(nic, "vectors", 2 * nic.queues.0 + 2));
    }
    device
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    fn nic() -> Nic {
        super::super::example(VmAttachment::VhostUser)
    }

    #[test]
    fn versions_are_read_as_distributions_print_them() {
        let debian = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright";
        assert_eq!(Version::parse(debian), Some(Version(7, 2)));
        assert_eq!(Version::parse("QEMU emulator version 10.0.50"), Some(Version(10, 0)));
        assert_eq!(Version::parse("busybox"), None);
        assert!(Version(9, 2) > Version(8, 10));
    }

    #[test]
    fn memory_is_read_in_every_form() {
        for (line, memory) in [
            ("", "128M"),
            ("-m 512", "512M"),
            ("-m 512M", "512M"),
            ("--m 2G", "2G"),
            ("-m 2G,slots=2,maxmem=4G", "2G"),
            ("-m slots=2,size=3G", "3G"),
            ("-m slots=2,maxmem=4G", "128M"),
        ] {
            let read = read(&command(&format!("qemu-system-x86_64 {line}")), Memory::Ours).unwrap();
            assert_eq!(read.memory, memory, "{line}");
        }
    }

    #[test]
    fn machine_and_accelerator_are_read_wherever_they_stand() {
        use {Accelerator as A, Bus as B};
        for (line, bus, accelerator) in [
            ("qemu-system-x86_64", B::Pci, A::Tcg),
            ("/usr/bin/qemu-system-x86_64 -M q35,accel=kvm:tcg", B::Pci, A::Hardware),
            ("qemu-system-x86_64 -machine accel=kvm -M type=microvm,rtc=on", B::Mmio, A::Hardware),
            ("qemu-system-x86_64 -M microvm,pcie=on -accel tcg,thread=single", B::Pci, A::Tcg),
            ("qemu-system-x86_64 -M microvm -machine rtc=on -enable-kvm", B::Mmio, A::Hardware),
            ("qemu-system-s390x", B::Ccw, A::Tcg),
            ("kvm -accel hvf", B::Pci, A::Hardware),
        ] {
            let read = read(&command(line), Memory::Ours).unwrap();
            assert_eq!((read.bus, read.accelerator), (bus, accelerator), "{line}");
        }
    }

    #[test]
    fn what_is_ours_is_refused_by_name() {
        for line in [
            "-object memory-backend-file,id=x,size=1G",
            "-M q35,memory-backend=x",
            "-mem-path /dev/shm",
            "-numa node,memdev=x",
            "-netdev vhost-user,id=n,chardev=c",
            "-chardev socket,id=lichen0,path=x",
        ] {
            let refused =
                read(&command(&format!("qemu-system-x86_64 {line}")), Memory::Ours).unwrap_err();
            assert!(refused.to_string().contains(line), "{refused}");
            assert!(refused.to_string().contains("lichen vm add"), "{refused}");
        }
        assert_eq!(
            read(&command("qemu-system-x86_64 -daemonize"), Memory::Theirs),
            Err(Clash::Daemonize)
        );
        let other = read(&command("cloud-hypervisor --kernel x"), Memory::Ours).unwrap_err();
        assert!(other.to_string().contains("is not QEMU"), "{other}");
        // Network cards of other kinds, and files on disks, are the caller's business.
        let line = "qemu-system-x86_64 -nic user -object rng-random,id=r -chardev null,id=c";
        read(&command(line), Memory::Ours).unwrap();
        let line = "qemu-system-x86_64 -mem-path /dev/shm -numa node,memdev=x";
        read(&command(line), Memory::Theirs).unwrap();
    }

    #[test]
    fn arguments_suit_the_machine_and_the_version() {
        let arguments = |machine: &Machine, version| arguments(&nic(), machine, version).join(" ");
        let pc = Machine::of_memory("1G");
        assert_eq!(
            arguments(&pc, Some(Version(7, 2))),
            "-object memory-backend-memfd,id=lichen-memory,size=1G,share=on \
             -machine memory-backend=lichen-memory \
             -chardev socket,id=lichen0,path=/run/db.sock,reconnect=1 \
             -netdev vhost-user,id=lichen0,chardev=lichen0 \
             -device virtio-net-pci,netdev=lichen0,mac=02:4c:0a:58:00:02,vectors=0 \
             -smp 1,maxcpus=2"
        );
        let said = read(&command("qemu-system-x86_64 -smp 1"), Memory::Ours).unwrap();
        assert!(!arguments(&said, Some(Version(7, 2))).contains("smp"));
        let new = arguments(&pc, Some(Version(10, 0)));
        assert!(
            new.contains("reconnect-ms=1000") && !new.contains("vectors") && !new.contains("smp"),
            "{new}"
        );
        let hardware = Machine { accelerator: Accelerator::Hardware, ..pc.clone() };
        assert!(!arguments(&hardware, Some(Version(7, 2))).contains("vectors"));
        let micro = arguments(&Machine { bus: Bus::Mmio, ..pc }, None);
        assert!(
            micro.contains("virtio-net-device") && micro.ends_with("force-legacy=false"),
            "{micro}"
        );
    }

    #[test]
    fn several_pairs_of_rings_are_asked_for_at_the_socket_and_at_the_device() {
        let nic = Nic { queues: Queues(2), ..nic() };
        let line = |machine: &Machine, version| arguments(&nic, machine, version).join(" ");
        let pc = Machine::of_memory("1G");
        let new = line(&pc, Some(Version(8, 2)));
        assert!(new.contains("-netdev vhost-user,id=lichen0,chardev=lichen0,queues=2 "), "{new}");
        assert!(new.ends_with(",mac=02:4c:0a:58:00:02,mq=on,vectors=6"), "{new}");
        let old = line(&pc, Some(Version(7, 2)));
        assert!(old.contains(",mq=on,vectors=0 "), "{old}");
        let micro = line(&Machine { bus: Bus::Mmio, ..pc }, None);
        assert!(micro.contains(",mq=on ") && !micro.contains("vectors"), "{micro}");
    }

    #[test]
    fn frames_over_a_stream_or_as_datagrams_need_no_shared_memory() {
        let pc = Machine::of_memory("1G");
        let arguments = |attachment, version| {
            arguments(&super::super::example(attachment), &pc, version).join(" ")
        };
        let stream = |version| arguments(VmAttachment::Stream, version);
        assert_eq!(
            stream(Some(Version(7, 2))),
            "-netdev stream,id=lichen0,server=off,addr.type=unix,addr.path=/run/db.sock \
             -device virtio-net-pci,netdev=lichen0,mac=02:4c:0a:58:00:02"
        );
        assert!(stream(Some(Version(8, 0))).contains("/run/db.sock,reconnect=1 "));
        assert!(stream(None).contains("/run/db.sock,reconnect-ms=1000 "));
        assert_eq!(
            arguments(VmAttachment::Dgram, Some(Version(7, 2))),
            "-netdev dgram,id=lichen0,local.type=unix,local.path=/run/db.peer,\
             remote.type=unix,remote.path=/run/db.sock \
             -device virtio-net-pci,netdev=lichen0,mac=02:4c:0a:58:00:02"
        );
    }

    #[test]
    fn a_large_mtu_and_a_comma_in_a_path_are_passed_on() {
        let nic = Nic { socket: "/run/a,b.sock".into(), mtu: 9000, ..nic() };
        let line = arguments(&nic, &Machine::of_memory("1G"), None).join(" ");
        assert!(line.contains("path=/run/a,,b.sock,") && line.contains(",host_mtu=9000"), "{line}");
    }
}
