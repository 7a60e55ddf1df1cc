//! What the two machines have: a wire, files, servers.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use super::address::{FAR, FAR6, HOST, HOST6, UPSTREAM, UPSTREAM6};
use super::folder::Folder;
use super::machine::{Background, Machine};
use super::outcome::{eventually, run};

/// A veth between the machines, and on the host a default route into it.
pub(super) fn join(host: &Machine, upstream: &Machine) {
    // Outside of the machines' PID namespaces, where the peer's pid means something.
    let (near, far) = (host.init().to_string(), upstream.init().to_string());
    run(Command::new("nsenter")
        .args(["--net", "--target", &near, "ip", "link", "add", "uplink", "type", "veth"])
        .args(["peer", "name", "downlink", "netns", &far]))
    .success();
    give_addresses(host, upstream);
}

/// What the machines' ends of the link, `uplink` and `downlink`, need once they are there.
pub(super) fn give_addresses(host: &Machine, upstream: &Machine) {
    host.sh(&format!(
        "ip link set lo up
         ip address add {HOST}/24 dev uplink
         ip address add {HOST6}/64 dev uplink nodad
         ip link set uplink up
         ip route add default via {UPSTREAM}
         ip route add default via {UPSTREAM6}"
    ));
    upstream.sh(&format!(
        "ip link set lo up
         ip address replace {FAR}/32 dev lo
         ip address replace {FAR6}/128 dev lo
         ip address add {UPSTREAM}/24 dev downlink
         ip address add {UPSTREAM6}/64 dev downlink nodad
         ip link set downlink up"
    ));
}

/// An /etc of the host's own. An overlay, since a resolv.conf that is bound over cannot be replaced by
/// renaming (EBUSY), and resolvers do that. On a machine with both kinds of control groups podman takes
/// the wrong one; where the lab's root is not the machine's, the mount is locked and is hidden instead.
pub(super) fn own_etc(host: &Machine, folder: &Folder) {
    let overlay = folder.path("etc").display().to_string();
    host.sh(&format!(
        "mkdir {overlay} && mount -t tmpfs tmpfs {overlay} && mkdir {overlay}/upper {overlay}/work
         mount -t overlay overlay -o lowerdir=/etc,upperdir={overlay}/upper,workdir={overlay}/work /etc
         rm -f /etc/resolv.conf && echo nameserver {UPSTREAM} >/etc/resolv.conf
         rm -f /etc/subuid /etc/subgid; : >/etc/subuid; : >/etc/subgid
         unified=/sys/fs/cgroup/unified
         ! [ -d $unified ] || umount $unified 2>/dev/null || mount -t tmpfs tmpfs $unified"
    ));
}

/// As systemd sets it on every machine; without it no program may send ICMP echo unprivileged.
pub(super) fn let_ping(host: &Machine, group: u32) {
    host.sh(&format!("echo {group} {group} >/proc/sys/net/ipv4/ping_group_range"));
}

pub(super) fn start(host: &Machine, upstream: &Machine, folder: &Folder) -> Vec<Background> {
    for (name, page) in [("canary", "the host's canary\n"), ("outside", "hello from outside\n")] {
        let site = folder.path(name);
        fs::create_dir(&site).expect("a fresh folder");
        fs::write(site.join("index.html"), page).expect("our folder");
        fs::set_permissions(&site, fs::Permissions::from_mode(0o755)).expect("our own folder");
    }
    let web = |machine: &Machine, listen: &str, site: &str| {
        let site = folder.path(site).display().to_string();
        machine.start_in_background(&["busybox", "httpd", "-f", "-p", listen, "-h", &site])
    };
    let long_text = format!("--txt-record=long.example,{}", vec!["x".repeat(250); 5].join(","));
    let names = [
        "dnsmasq",
        // In the foreground and as the lab's root: there may be no other user to change to.
        "--no-daemon",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--bind-interfaces",
        "--listen-address=192.0.2.1",
        "--local=/example/",
        "--host-record=outside.example,192.0.2.1",
        "--host-record=six.example,2001:db8::1",
        // An answer of more than 1232 bytes comes truncated by UDP and whole by TCP.
        &long_text,
    ];
    let services = vec![
        web(host, "127.0.0.1:8099", "canary"),
        web(host, &format!("{HOST}:8098"), "canary"),
        web(upstream, "80", "outside"),
        upstream.start_in_background(&names),
        upstream.start_in_background(&["iperf3", "--server"]),
    ];
    for (machine, probe) in [
        (host, "nc -z 127.0.0.1 8099 && nc -z 192.0.2.2 8098"),
        (upstream, "nc -z 192.0.2.1 80 && nc -z 192.0.2.1 53 && nc -z 192.0.2.1 5201"),
    ] {
        eventually("the lab's servers listen", || {
            run(&mut machine.command(&["sh", "-c", probe])).code == Some(0)
        });
    }
    services
}
