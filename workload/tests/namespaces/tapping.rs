//! `open_tap`.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use lichen_workload::{
    LaunchSpec, Launched, NetnsTarget, TapError, TapRequest, launch, netns_of, open_tap,
    start_time_of,
};
use rustix::process::{Pid, Signal, kill_process};

use crate::as_user::ROOTS_NETNS;
use crate::fixture::{Folder, around, eventually, shell, tap_request, text, written};

crate::scenarios![
    a_tap_is_made_and_configured_without_privilege,
    a_tap_has_an_ipv6_address_at_once_and_asks_nobody,
    a_tap_can_be_opened_once_and_again_after_it_was_closed,
    a_tap_of_several_queues_has_each_of_them_and_can_be_opened_once,
    a_tap_is_made_anew_where_it_had_another_kind_of_queues,
    a_number_of_queues_that_is_none_is_refused_and_leaves_nothing,
    opening_again_repairs_what_the_workload_took_away,
    frames_carry_a_virtio_net_header,
    a_path_names_a_namespace_too,
    a_pid_that_is_gone_recycled_or_foreign_is_told_apart,
    what_is_no_namespace_or_not_ours_is_refused,
    an_interface_of_another_kind_is_left_alone,
    a_machine_without_tun_is_told_the_remedy,
    a_tun_without_permission_is_told_the_remedy,
    a_containers_resolv_conf_is_written_in_the_container_only,
];

/// A released workload, killed at the end.
struct Workload {
    launched: Launched,
    _folder: Folder,
}

impl Workload {
    fn start() -> Self {
        let folder = Folder::new();
        let spec = LaunchSpec { log: Some(folder.path("log")), ..shell("sleep 60") };
        let mut launched = launch(&spec).unwrap();
        launched.release().unwrap();
        Self { launched, _folder: folder }
    }

    fn request(&self) -> TapRequest {
        tap_request(self.launched.pid())
    }

    /// Runs a program of the host in the workload's user and network namespace.
    fn printed_by(&self, script: &str) -> String {
        let pid = self.launched.pid().to_string();
        let output = Command::new("nsenter")
            .args(["-t", &pid, "-U", "-n", "--preserve-credentials", "sh", "-c", script])
            .output()
            .unwrap();
        assert_eq!(text(&output.stderr), "");
        text(&output.stdout)
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.launched.pid()).unwrap();
        let _ = kill_process(pid, Signal::KILL);
        let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
    }
}

fn a_tap_is_made_and_configured_without_privilege() {
    let workload = Workload::start();
    let _tap = open_tap(&workload.request()).unwrap();

    let link = workload.printed_by("ip -o link show eth0");
    assert!(link.contains("UP,LOWER_UP") && link.contains("mtu 1500"), "{link}");
    assert!(link.contains("link/ether 02:00:00:00:00:02"), "{link}");
    let addresses = workload.printed_by("ip -o addr show eth0");
    assert!(addresses.contains("inet 10.88.0.2/16 brd 10.88.255.255"), "{addresses}");
    assert!(!addresses.contains("inet6"), "no IPv6 noise: {addresses}");
    assert_eq!(
        workload.printed_by("ip route show default").trim(),
        "default via 10.88.0.1 dev eth0"
    );
}

fn a_tap_has_an_ipv6_address_at_once_and_asks_nobody() {
    let workload = Workload::start();
    let address6 = Some("fd12:3456:789a:1::2".parse().unwrap());
    let tap = open_tap(&TapRequest { address6, ..workload.request() }).unwrap();
    let addresses = workload.printed_by("ip -o -6 addr show eth0");
    assert!(addresses.contains("inet6 fd12:3456:789a:1::2/64 scope global"), "{addresses}");
    assert!(addresses.contains("inet6 fe80::ff:fe00:2/64 scope link"), "{addresses}");
    assert!(!addresses.contains("tentative") && !addresses.contains("dynamic"), "{addresses}");
    assert_eq!(addresses.lines().count(), 2, "{addresses}");
    let route = workload.printed_by("ip -6 route show default");
    assert!(route.contains("default via fe80::1 dev eth0"), "{route}");

    // Opened again with another address, it has that one alone.
    drop(tap);
    let address6 = Some("fd12:3456:789a:1::9".parse().unwrap());
    let _tap = open_tap(&TapRequest { address6, ..workload.request() }).unwrap();
    let addresses = workload.printed_by("ip -o -6 addr show eth0 scope global");
    assert!(addresses.contains("fd12:3456:789a:1::9/64"), "{addresses}");
    assert_eq!(addresses.lines().count(), 1, "{addresses}");
    assert_eq!(workload.printed_by("ip -6 route show default").lines().count(), 1);
}

fn a_tap_can_be_opened_once_and_again_after_it_was_closed() {
    let workload = Workload::start();
    let tap = open_tap(&workload.request()).unwrap();
    let busy = open_tap(&workload.request()).unwrap_err();
    assert_eq!(busy, TapError::InterfaceBusy { name: "eth0".to_owned() });
    drop(tap);
    eventually(|| workload.printed_by("ip -o link show eth0").contains("NO-CARRIER"));

    let _again = open_tap(&workload.request()).unwrap();

    let addresses = workload.printed_by("ip -o -4 addr show eth0");
    assert_eq!(addresses.lines().count(), 1, "one address, not two: {addresses}");
    assert!(workload.printed_by("ip -o link show eth0").contains("LOWER_UP"));
}

/// The names in /sys/class/net/eth0/queues, as the workload sees them.
const QUEUES: &str =
    "unshare -m sh -c 'mount -t sysfs sysfs /sys && ls /sys/class/net/eth0/queues' | xargs echo";

/// Frames that wait in a queue, virtio-net headers included.
fn waiting_in(queue: &OwnedFd) -> Vec<Vec<u8>> {
    let mut frame = [0; 2048];
    let read = || {
        let length = rustix::io::read(queue, &mut frame).ok()?;
        Some(frame[..length].to_vec())
    };
    std::iter::from_fn(read).collect()
}

fn a_tap_of_several_queues_has_each_of_them_and_can_be_opened_once() {
    let workload = Workload::start();
    let request = TapRequest { queues: 3, ..workload.request() };
    let queues = open_tap(&request).unwrap();
    assert_eq!(queues.len(), 3);
    let names = "rx-0 rx-1 rx-2 tx-0 tx-1 tx-2";
    assert_eq!(workload.printed_by(QUEUES).trim(), names);
    assert!(workload.printed_by("ip -o link show eth0").contains("LOWER_UP"));

    // Every queue gives frames with twelve bytes before them, and none blocks.
    workload.printed_by(
        "ip neigh add 10.88.0.1 lladdr 02:00:00:00:00:01 dev eth0
         for port in $(seq 2000 2063); do echo x | nc -u -q0 -p $port 10.88.0.1 9; done",
    );
    let count = |queue| {
        let datagrams =
            |frame: &Vec<u8>| frame.len() == 12 + 14 + 28 + 2 && frame[24..26] == [8, 0];
        waiting_in(queue).iter().filter(|frame| datagrams(frame)).count()
    };
    let counts: Vec<usize> = queues.iter().map(count).collect();
    assert_eq!(counts.iter().sum::<usize>(), 64, "{counts:?}");
    assert!(counts.iter().all(|count| *count > 5), "spread by flow: {counts:?}");

    // Whoever holds one queue holds the tap.
    let busy = TapError::InterfaceBusy { name: "eth0".to_owned() };
    for queues in [1, 2, 3] {
        let again = TapRequest { queues, ..request.clone() };
        assert_eq!(open_tap(&again).unwrap_err(), busy, "{queues}");
    }
    let last = queues.into_iter().next_back().unwrap();
    assert_eq!(open_tap(&request).unwrap_err(), busy);
    drop(last);

    let again = open_tap(&request).unwrap();
    assert_eq!(again.len(), 3);
    assert_eq!(workload.printed_by(QUEUES).trim(), names);
}

fn a_tap_is_made_anew_where_it_had_another_kind_of_queues() {
    let workload = Workload::start();
    for (queues, names) in [
        (1, "rx-0 tx-0"),
        (2, "rx-0 rx-1 tx-0 tx-1"),
        (4, "rx-0 rx-1 rx-2 rx-3 tx-0 tx-1 tx-2 tx-3"),
        (1, "rx-0 tx-0"),
    ] {
        let tap = open_tap(&TapRequest { queues, ..workload.request() }).unwrap();
        assert_eq!(tap.len(), usize::from(queues));
        assert_eq!(workload.printed_by(QUEUES).trim(), names);
        let addresses = workload.printed_by("ip -o -4 addr show eth0");
        assert!(addresses.contains("inet 10.88.0.2/16"), "{addresses}");
    }
}

fn a_number_of_queues_that_is_none_is_refused_and_leaves_nothing() {
    let workload = Workload::start();
    for asked in [0, 5, u16::MAX] {
        let refused = open_tap(&TapRequest { queues: asked, ..workload.request() }).unwrap_err();
        assert_eq!(refused, TapError::QueueCount { asked });
        assert!(refused.to_string().contains("1 to 4 queues"), "{refused}");
    }
    assert!(!workload.printed_by("ip -o link").contains("eth0"));
}

fn opening_again_repairs_what_the_workload_took_away() {
    let workload = Workload::start();
    drop(open_tap(&workload.request()).unwrap());
    workload.printed_by(
        "ip addr flush dev eth0; ip link set eth0 down mtu 900; ip link set eth0 address 02:00:00:00:00:77",
    );

    let again = open_tap(&workload.request()).unwrap();

    let link = workload.printed_by("ip -o link show eth0");
    assert!(link.contains("mtu 1500") && link.contains("02:00:00:00:00:02"), "{link}");
    assert!(workload.printed_by("ip -o addr show eth0").contains("10.88.0.2/16"));
    assert_eq!(workload.printed_by("ip route show default").lines().count(), 1);
    drop(again);

    // Attached once more as another workload, it has that one's address alone.
    let other = TapRequest { address: [10, 88, 0, 9].into(), ..workload.request() };
    let _other = open_tap(&other).unwrap();
    let addresses = workload.printed_by("ip -4 -o addr show eth0");
    assert!(addresses.contains("10.88.0.9/16") && addresses.lines().count() == 1, "{addresses}");
    assert_eq!(workload.printed_by("ip route show default").lines().count(), 1);
}

fn frames_carry_a_virtio_net_header() {
    let workload = Workload::start();
    let tap = open_tap(&workload.request()).unwrap();
    // Makes the kernel ask for the gateway by ARP.
    workload.printed_by("ping -c1 -W1 10.88.0.1 >/dev/null; true");

    let mut frame = [0; 2048];
    let length = rustix::io::read(&tap[0], &mut frame).unwrap();

    assert_eq!(length, 12 + 42, "header and an ARP request");
    assert_eq!(frame[..12], [0; 12], "nothing to complete in it, one buffer or none");
    assert_eq!(frame[12..18], [0xff; 6]);
    assert_eq!(frame[24..26], [0x08, 0x06]);
    let empty = loop {
        if let Err(error) = rustix::io::read(&tap[0], &mut frame) {
            break error;
        }
    };
    assert_eq!(empty, rustix::io::Errno::AGAIN, "it does not block");
}

fn a_path_names_a_namespace_too() {
    let workload = Workload::start();
    let path = PathBuf::from(format!("/proc/{}/ns/net", workload.launched.pid()));
    let _tap =
        open_tap(&TapRequest { target: NetnsTarget::Path(path), ..workload.request() }).unwrap();
    assert!(workload.printed_by("ip -o addr show eth0").contains("10.88.0.2/16"));
}

fn a_pid_that_is_gone_recycled_or_foreign_is_told_apart() {
    let workload = Workload::start();
    let (pid, start) = (workload.launched.pid(), workload.launched.start_time());
    assert_eq!(start, start_time_of(pid).unwrap());
    let refused = |pid, start_time| {
        let target = NetnsTarget::Process { pid, start_time };
        open_tap(&TapRequest { target, ..workload.request() }).unwrap_err()
    };

    let recycled = TapError::Recycled { pid, expected: start + 1, found: start };
    assert_eq!(refused(pid, Some(start + 1)), recycled);
    // In a PID namespace of a user's own, PID 1 is that user's as well.
    let first = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/1").unwrap());
    let expected = match first {
        0 => TapError::ForeignOwner { pid: 1, owner: 0 },
        _ => TapError::HostNamespace { pid: 1 },
    };
    assert_eq!(refused(1, None), expected);
    let us = std::process::id().cast_signed();
    assert_eq!(refused(us, None), TapError::HostNamespace { pid: us });
    assert_ne!(netns_of(us).unwrap(), netns_of(pid).unwrap());
    drop(workload);
    let target = NetnsTarget::Process { pid, start_time: Some(start) };
    let gone = open_tap(&TapRequest { target, ..tap_request(pid) }).unwrap_err();
    assert_eq!(gone, TapError::NoSuchProcess { pid });
}

fn what_is_no_namespace_or_not_ours_is_refused() {
    let refused = |path: PathBuf| {
        let target = NetnsTarget::Path(path);
        open_tap(&TapRequest { target, ..tap_request(1) }).unwrap_err()
    };
    let file = PathBuf::from("/etc/passwd");
    assert_eq!(refused(file.clone()), TapError::NotANamespace { path: file });
    assert!(matches!(refused(PathBuf::from("/nowhere")), TapError::NamespaceFile { .. }));
    if let Some(netns) = std::env::var_os(ROOTS_NETNS) {
        assert!(matches!(refused(netns.into()), TapError::ForeignNamespace(_)));
    }
}

fn an_interface_of_another_kind_is_left_alone() {
    let workload = Workload::start();
    workload.printed_by("ip link add eth0 type veth peer name other");
    let refused = open_tap(&workload.request()).unwrap_err();
    assert_eq!(refused, TapError::InterfaceForeign { name: "eth0".to_owned() });
    assert_eq!(workload.printed_by("ip -o -4 addr show eth0"), "");
}

/// The text of the refusal on a host where /dev/net/tun is another thing. The workload is made below that
/// host's user namespace, as only such a one can be entered from there.
fn refusal_where(host: &str) -> String {
    let stand_in = 77_777_777;
    let script = format!(
        "set -e; {host}; unshare -Urn sleep 5 & pid=$!
         until grep -q ^sleep /proc/$pid/comm; do sleep 0.01; done
         exec \"$0\" tap \"$(echo \"$1\" | sed s/{stand_in}/$pid/)\""
    );
    let output = around(&["unshare", "-Urm"], &script, &tap_request(stand_in));
    assert!(!output.status.success());
    text(&output.stderr)
}

fn a_machine_without_tun_is_told_the_remedy() {
    let error = refusal_where("mount -t tmpfs tmpfs /dev/net");
    assert!(error.contains("modprobe tun"), "{error}");
}

fn a_tun_without_permission_is_told_the_remedy() {
    let error = refusal_where("mount --bind /etc/shadow /dev/net/tun");
    assert!(error.contains("chmod 0666 /dev/net/tun"), "{error}");
}

fn a_containers_resolv_conf_is_written_in_the_container_only() {
    let folder = Folder::new();
    let (root, hosts_file) = (folder.path("root"), folder.path("hosts-file"));
    for directory in ["bin", "etc"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    fs::write(&hosts_file, "the host's\n").unwrap();
    let inside = root.join(hosts_file.strip_prefix("/").unwrap());
    fs::create_dir_all(inside.parent().unwrap()).unwrap();
    symlink(&hosts_file, root.join("etc/resolv.conf")).unwrap();
    let mut container = Command::new("unshare")
        .args(["-Urnm", "chroot"])
        .arg(&root)
        .args(["/bin/busybox", "sh", "-c", "echo > /ready; exec /bin/busybox sleep 60"])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    written(&root.join("ready"));

    let content = Some("nameserver 10.88.0.1\n".to_owned());
    let request = tap_request(container.id().cast_signed());
    let tap = open_tap(&TapRequest { resolv_conf: content, ..request });

    container.kill().unwrap();
    container.wait().unwrap();
    tap.unwrap();
    assert_eq!(fs::read_to_string(&hosts_file).unwrap(), "the host's\n");
    assert_eq!(fs::read_to_string(inside).unwrap(), "nameserver 10.88.0.1\n");
}
