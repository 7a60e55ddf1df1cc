//! Virtual machines on the network that containers are on.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use crate::lab::address::{GATEWAY, UPSTREAM};
use crate::lab::{Background, Lab, Role, eventually, run};
use crate::runner::scenarios;
use crate::vm::Guest;

scenarios![
    a_virtual_machine_has_its_lease_and_talks_with_a_container_by_name_both_ways,
    a_virtual_machine_reaches_the_outside_and_is_reached_through_a_published_port,
    two_virtual_machines_talk_and_one_may_reboot,
    bytes_between_a_virtual_machine_and_a_container_flow_both_ways,
    control_killed_under_load_is_not_noticed_by_a_virtual_machine,
    a_virtual_machine_comes_back_after_the_datapath_was_killed,
    a_place_outlives_its_virtual_machine_and_is_shown,
    a_wrong_mac_is_told_with_the_right_one,
    memory_that_is_not_shared_is_told,
    a_monitor_without_memory_to_share_is_told_how_to,
    a_virtual_machine_with_two_processors_uses_two_pairs_of_rings,
    a_virtual_machine_that_is_announced_announces_itself_or_is_known_by_its_address,
    a_virtual_machine_that_is_migrated_has_every_byte_that_came_meanwhile,
];

/// What a guest does to have its address, as a distribution's own scripts do.
const LEASE: &str =
    "udhcpc -i eth0 -n -q -t 10 -T 1 -s /bin/lease -O mtu -O search -O hostname 2>&1";

/// A guest with its lease.
#[track_caller]
pub(super) fn guest(lab: &Lab, name: &str, options: &[&str]) -> Guest {
    let mut guest = Guest::start(lab, name, options);
    lease(&mut guest);
    guest
}

#[track_caller]
pub(super) fn lease(guest: &mut Guest) -> String {
    let said = guest.sh(&format!("ip link set eth0 up && {LEASE}"));
    let lease = said.lines().find(|line| line.starts_with("lease ")).unwrap_or_default().to_owned();
    assert!(lease.contains("/16 router=10.88.0.1 dns=10.88.0.1"), "{said}");
    lease
}

pub(super) fn state_of(lab: &Lab, name: &str) -> String {
    let list = run(&mut lab.lichen(["ps"])).success();
    let row = list.lines().find(|line| line.split_whitespace().next() == Some(name));
    row.unwrap_or_default().to_owned()
}

fn a_virtual_machine_has_its_lease_and_talks_with_a_container_by_name_both_ways(lab: &Lab) {
    lab.web_server("web", &[]);
    let mut db = Guest::start(lab, "db", &["--ip", "10.88.0.20"]);
    let lease = lease(&mut db);
    assert!(lease.contains("10.88.0.20/16"), "{lease}");
    assert!(lease.contains("mtu=1500") && lease.contains("hostname=db"), "{lease}");
    assert!(lease.contains("search=bridge.internal"), "{lease}");
    assert_eq!(db.sh("wget -qO- http://web/"), "hello from a workload\n");
    let pinged = db.sh("ping -c 3 -W 2 web.hypr");
    assert!(pinged.contains("3 packets received"), "{pinged}");

    db.sh("echo hello from a guest >/www/index.html && httpd -h /www");
    assert_eq!(lab.in_workload("curl -sS http://db/"), "hello from a guest\n");
    let pinged = lab.in_workload("ping -c3 -i0.2 -W2 db.bridge.internal");
    assert!(pinged.contains("3 received"), "{pinged}");
    assert!(state_of(lab, "db").contains("running"), "{}", state_of(lab, "db"));
}

fn a_virtual_machine_reaches_the_outside_and_is_reached_through_a_published_port(lab: &Lab) {
    let mut db = guest(lab, "db", &["-p", "8090:80"]);
    assert_eq!(db.sh("wget -qO- http://outside.example/"), "hello from outside\n");
    assert!(db.sh(&format!("ping -c 1 -W 2 {UPSTREAM}")).contains("1 packets received"));
    // What is the host's own is refused, as for a container.
    for forbidden in [&format!("{GATEWAY} 8099"), "192.0.2.2 8098", "169.254.169.254 80"] {
        let (code, said) = db.run(&format!("nc -w 5 {forbidden} </dev/null"));
        assert!(code != 0 && said.contains("refused"), "{forbidden}: {said}");
    }
    db.sh("echo hello from a guest >/www/index.html && httpd -h /www");
    let page = run(&mut lab.person(&["curl", "-sS", "http://127.0.0.1:8090/"])).success();
    assert_eq!(page, "hello from a guest\n");
}

fn two_virtual_machines_talk_and_one_may_reboot(lab: &Lab) {
    let (mut one, mut two) = (guest(lab, "one", &[]), guest(lab, "two", &[]));
    assert!(one.sh("ping -c 3 -W 2 two").contains("3 packets received"));
    two.begin("reboot -f");
    two.wait_until_ready();
    lease(&mut two);
    assert!(one.sh("ping -c 3 -W 2 two").contains("3 packets received"));
    assert!(two.sh("ping -c 3 -W 2 one").contains("3 packets received"));
}

/// Gigabits in a second as iperf3's receiver counted them.
pub(super) fn received(printed: &str) -> f64 {
    let line = printed.lines().find(|line| line.contains("receiver")).unwrap_or_default();
    let words: Vec<&str> = line.split_whitespace().collect();
    let at = words.iter().position(|word| word.ends_with("bits/sec")).expect("a rate");
    let scale = if words[at].starts_with('G') { 1.0 } else { 0.001 };
    words[at - 1].parse::<f64>().expect("a number") * scale
}

fn bytes_between_a_virtual_machine_and_a_container_flow_both_ways(lab: &Lab) {
    let mut db = guest(lab, "db", &[]);
    db.sh("iperf3 -s -D");
    for (way, reverse) in [("to the guest", ""), ("from the guest", "-R")] {
        let printed = lab.in_workload(&format!("iperf3 -c db -t 3 -i 0 {reverse}"));
        let rate = received(&printed);
        println!("   {way}: {rate:.2} Gbit/s");
        assert!(rate > 0.0, "{printed}");
    }
    every_byte_arrives(lab, &mut db);
}

/// From the guest to a container, also in frames of 64 KiB, as they were sent.
pub(super) fn every_byte_arrives(lab: &Lab, db: &mut Guest) {
    // No two of its parts are alike, and none is as long as a buffer.
    db.sh("seq 300000 >/tmp/part");
    let bytes = "for i in 1 2 3 4 5 6 7 8; do echo part $i; cat /tmp/part; done";
    let sent = db.sh(&format!("({bytes}) | md5sum"));
    db.sh(&format!("(({bytes}) | nc -l -p 7000 >/dev/null) >/dev/null 2>&1 &"));
    assert_eq!(lab.in_workload("sleep 0.5; nc -d db 7000 | md5sum"), sent);
}

fn control_killed_under_load_is_not_noticed_by_a_virtual_machine(lab: &Lab) {
    let mut db = guest(lab, "db", &[]);
    let datapath = lab.process(Role::Datapath).expect("a datapath");
    db.begin(&format!("iperf3 -c {UPSTREAM} -t 6 -i 0"));
    for _ in 0..3 {
        thread::sleep(Duration::from_millis(700));
        lab.process(Role::Control).expect("control").kill();
        assert!(state_of(lab, "db").contains("running"), "{}", state_of(lab, "db"));
        assert_eq!(lab.process(Role::Datapath), Some(datapath), "it is adopted");
    }
    let (code, printed) = db.finish();
    let status =
        if code == 0 { String::new() } else { run(&mut lab.lichen(["status", "-o", "json"])).out };
    assert_eq!(code, 0, "{printed}\n{status}");
    // A lease is given while control is not there.
    lab.process(Role::Control).expect("control").kill();
    lease(&mut db);
}

fn a_virtual_machine_comes_back_after_the_datapath_was_killed(lab: &Lab) {
    lab.web_server("web", &[]);
    let mut db = guest(lab, "db", &["-p", "8090:80"]);
    db.sh("echo hello from a guest >/www/index.html && httpd -h /www");
    db.begin(&format!("iperf3 -c {UPSTREAM} -t 20 -i 0"));
    thread::sleep(Duration::from_millis(1500));
    let killed = Instant::now();
    lab.process(Role::Datapath).expect("a datapath").kill();
    // The monitor connects again by itself; the guest notices nothing but its flows.
    eventually("the guest is connected", || state_of(lab, "db").contains("running"));
    eventually("its port answers", || {
        let fetch = ["curl", "-sS", "-m", "1", "http://127.0.0.1:8090/"];
        run(&mut lab.person(&fetch)).out == "hello from a guest\n"
    });
    println!("   back after {:?}", killed.elapsed());
    let (code, printed) = db.finish();
    assert_ne!(code, 0, "its flow was reset: {printed}");
    assert_eq!(db.sh("wget -qO- http://web/"), "hello from a workload\n");
    assert!(db.runs());
}

fn a_place_outlives_its_virtual_machine_and_is_shown(lab: &Lab) {
    let added = run(&mut lab.lichen(["vm", "add", "db", "--mac", "52:54:00:12:34:56"])).success();
    assert!(
        added.contains("memory-backend-memfd") && added.contains("52:54:00:12:34:56"),
        "{added}"
    );
    assert!(added.contains("vhost_user=true"), "{added}");
    assert!(state_of(lab, "db").contains("waiting"), "{}", state_of(lab, "db"));
    let described = run(&mut lab.lichen(["vm", "inspect", "db"])).success();
    assert!(described.contains("\"socket\"") && described.contains("\"qemu\""), "{described}");

    for _ in 0..2 {
        let mut db = guest(lab, "db", &[]);
        assert!(db.sh("ip link show eth0").contains("52:54:00:12:34:56"));
        let refused = run(&mut lab.lichen(["vm", "rm", "db"])).exits(1);
        assert!(refused.err.contains("lichen vm rm -f db"), "{}", refused.err);
        let twice =
            run(&mut lab.lichen(["vm", "run", "db", "--", "qemu-system-x86_64"])).exits(125);
        assert!(twice.err.contains("runs already"), "{}", twice.err);
        drop(db);
        eventually("it waits again", || state_of(lab, "db").contains("waiting"));
    }
    let list = run(&mut lab.lichen(["vm", "ls"])).success();
    assert!(list.starts_with("NAME") && list.contains("waiting"), "{list}");
    run(&mut lab.lichen(["vm", "rm", "db"])).success();
    assert_eq!(state_of(lab, "db"), "");
}

/// A guest at a place that was made before, with words of our own for QEMU.
#[track_caller]
fn by_hand(lab: &Lab, name: &str, memory: &[&str], mac: &str) -> Guest {
    run(&mut lab.lichen(["vm", "add", name])).success();
    let socket = lab.path(&format!("run/lichen/vm/{name}.sock")).display().to_string();
    let chardev = format!("socket,id=lichen0,path={socket},reconnect=1");
    let device = format!("virtio-net-device,netdev=lichen0,mac={mac}");
    let net = ["-chardev", &chardev, "-netdev", "vhost-user,id=lichen0,chardev=lichen0"];
    let words =
        [memory, &net, &["-device", &device, "-global", "virtio-mmio.force-legacy=false"]].concat();
    Guest::start_by_hand(lab, name, &words)
}

fn a_wrong_mac_is_told_with_the_right_one(lab: &Lab) {
    let memory =
        ["-object", "memory-backend-memfd,id=m,size=192M,share=on", "-machine", "memory-backend=m"];
    let mut db = by_hand(lab, "db", &memory, "52:54:00:00:00:01");
    db.run(&format!("ip link set eth0 up; timeout 3 {LEASE}"));
    eventually("the right address is told", || {
        state_of(lab, "db").contains("52:54:00:00:00:01; start it with mac=02:4c:")
    });
    // Once it uses the right one, all is well.
    let right = run(&mut lab.lichen(["vm", "ls"])).success();
    let mac = right.split_whitespace().find(|word| word.starts_with("02:4c:")).expect("its MAC");
    db.sh(&format!("ip link set eth0 down; ip link set eth0 address {mac}"));
    lease(&mut db);
    eventually("all is well", || state_of(lab, "db").contains("running"));
}

fn memory_that_is_not_shared_is_told(lab: &Lab) {
    let memory = [
        "-object",
        "memory-backend-memfd,id=m,size=192M,share=off",
        "-machine",
        "memory-backend=m",
    ];
    let mut db = by_hand(lab, "db", &memory, "02:4c:0a:58:00:02");
    db.run(&format!("ip link set eth0 up; timeout 3 {LEASE}"));
    eventually("the missing option is told", || state_of(lab, "db").contains("share=on"));
    // Nobody else is harmed.
    lab.web_server("web", &[]);
    assert_eq!(lab.in_workload("curl -sS http://web/"), "hello from a workload\n");
}

fn a_monitor_without_memory_to_share_is_told_how_to(lab: &Lab) {
    let mut db = by_hand(lab, "db", &[], "02:4c:0a:58:00:02");
    assert!(state_of(lab, "db").contains("waiting"), "{}", state_of(lab, "db"));
    db.sh("ip link set eth0 up");
    let words = "memory-backend-memfd,id=lichen-memory,size=SIZE,share=on";
    eventually("the missing words are told", || state_of(lab, "db").contains(words));
    let log = std::fs::read_to_string(lab.path("home/state/lichen/daemon.log")).unwrap_or_default();
    assert!(log.contains(words), "{log}");
    // With them all is well.
    drop(db);
    run(&mut lab.lichen(["vm", "rm", "-f", "db"])).success();
    let memory =
        ["-object", "memory-backend-memfd,id=m,size=192M,share=on", "-machine", "memory-backend=m"];
    let mut db = by_hand(lab, "db", &memory, "02:4c:0a:58:00:02");
    lease(&mut db);
    assert!(state_of(lab, "db").contains("running"), "{}", state_of(lab, "db"));
}

fn a_virtual_machine_with_two_processors_uses_two_pairs_of_rings(lab: &Lab) {
    for (wrong, said) in [
        (["--queues", "5"].as_slice(), "1 to 4"),
        (&["--queues", "2", "--attach", "dgram"], "--attach vhost-user"),
    ] {
        let words = [&["vm", "run", "db"], wrong, &["--", "qemu-system-x86_64"]].concat();
        let refused = run(&mut lab.lichen_with(&words));
        assert!(refused.code != Some(0) && refused.err.contains(said), "{}", refused.err);
    }
    lab.web_server("web", &[]);
    let mut db = Guest::start_with(lab, "db", &["--queues", "2"], &["-smp", "2"]);
    lease(&mut db);
    let queues = db.sh("ls /sys/class/net/eth0/queues");
    let queues: Vec<&str> = queues.split_whitespace().collect();
    assert_eq!(queues, ["rx-0", "rx-1", "tx-0", "tx-1"]);
    assert_eq!(db.sh("wget -qO- http://web/"), "hello from a workload\n");
    db.sh("iperf3 -s -D");
    for (way, reverse) in [("to the guest", ""), ("from the guest", "-R")] {
        let printed = lab.in_workload(&format!("iperf3 -c db -P 4 -t 3 -i 0 {reverse}"));
        let streams = printed.lines().filter(|line| line.contains("receiver")).count();
        println!("   {way}: {:.2} Gbit/s in the first stream", received(&printed));
        assert_eq!(streams, 5, "four and their sum: {printed}");
    }
    // Each processor sends on a ring of its own, and both are carried.
    for processor in ["1", "2"] {
        let page = db.sh(&format!("taskset {processor} wget -qO- http://web/"));
        assert_eq!(page, "hello from a workload\n", "processor mask {processor}");
    }
    let sent = db.sh("cat /sys/class/net/eth0/queues/tx-*/tx_timeout");
    assert_eq!(sent.split_whitespace().collect::<Vec<_>>(), ["0", "0"]);
}

/// Tells a guest's monitor something; answers what it says to that.
#[track_caller]
fn tell(lab: &Lab, name: &str, words: &str) -> String {
    let path = lab.path(&format!("run/{name}.monitor"));
    let mut monitor = UnixStream::connect(path).expect("the monitor's own socket");
    monitor.set_read_timeout(Some(Duration::from_secs(10))).expect("a time-out above zero");
    // Who hangs up before it has answered may not have been heard.
    let mut said = Vec::new();
    for words in [&format!("{words}\n"), ""] {
        said.clear();
        while !said.ends_with(b"(qemu) ") {
            let mut byte = [0];
            monitor.read_exact(&mut byte).expect("a prompt");
            said.extend(byte);
        }
        monitor.write_all(words.as_bytes()).expect("it reads");
    }
    String::from_utf8_lossy(&said).into_owned()
}

/// Words for QEMU that let it be told to.
fn monitor(lab: &Lab, name: &str) -> String {
    format!("unix:{},server=on,wait=off", lab.path(&format!("run/{name}.monitor")).display())
}

fn a_virtual_machine_that_is_announced_announces_itself_or_is_known_by_its_address(lab: &Lab) {
    let words = monitor(lab, "db");
    let mut db = Guest::start_with(lab, "db", &["--ip", "10.88.0.20"], &["-monitor", &words]);
    lease(&mut db);
    let file = lab.path("home/announced.pcapng").display().to_string();
    let capture = Background::start(
        &mut lab.lichen_with(&["capture", "--workload", "db", "-w", &file]),
        &lab.path("logs"),
    );
    eventually("the file is begun", || std::fs::metadata(&file).is_ok_and(|it| it.len() > 0));
    tell(lab, "db", "announce_self");
    // Gratuitous ARP: who has the guest's own address is asked by itself.
    let address = [10, 88, 0, 20];
    let mac = [&[2, 0x4c][..], &address].concat();
    let question = [&[0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1], &mac[..], &address, &[0; 6], &address];
    let question = question.concat();
    eventually("the guest announces itself", || {
        let written = std::fs::read(&file).unwrap_or_default();
        written.windows(question.len()).any(|bytes| bytes == question)
    });
    drop(capture);
    drop(db);

    // A driver without GUEST_ANNOUNCE leaves it to the monitor.
    let words = monitor(lab, "cache");
    let more = ["-monitor", &words, "-global", "virtio-net-device.guest_announce=off"];
    let mut cache = Guest::start_with(lab, "cache", &[], &more);
    lease(&mut cache);
    tell(lab, "cache", "announce_self");
    eventually("the monitor announces it", || {
        let log = std::fs::read_to_string(lab.path("home/state/lichen/datapath.log"));
        log.unwrap_or_default().contains("is announced by its monitor")
    });
    assert!(cache.sh("ping -c 1 -W 2 10.88.0.1").contains("1 packets received"));
}

fn a_virtual_machine_that_is_migrated_has_every_byte_that_came_meanwhile(lab: &Lab) {
    lab.web_server("web", &[]);
    run(&mut lab.lichen(["vm", "add", "db"])).success();
    let words = monitor(lab, "db");
    let mut db = Guest::start_with(lab, "db", &[], &["-monitor", &words]);
    lease(&mut db);
    // Each takes a connection and reads nothing: what comes stays where the datapath has written it.
    db.sh("for i in 0 1 2 3; do (nc -l -p 700$i >/tmp/got$i & p=$!; sleep 0.5; kill -STOP $p; echo $p >/tmp/pid$i); done");
    let sum = db.sh("seq 9000 | md5sum");
    let file = lab.path("home/migrated");
    tell(lab, "db", "migrate_set_parameter max-bandwidth 16M");
    tell(lab, "db", &format!("migrate -d \"exec:cat >{}\"", file.display()));
    let mut under_way = 0;
    for listener in 0..4 {
        let send = format!("seq 9000 | timeout 1 nc -N db 700{listener}; true");
        lab.in_workload(&send);
        under_way += u32::from(tell(lab, "db", "info migrate").contains("status: active"));
    }
    assert!(under_way > 0, "nothing came while it was migrated");
    tell(lab, "db", "migrate_set_parameter max-bandwidth 10G");
    eventually("its memory is there", || {
        tell(lab, "db", "info migrate").contains("status: completed")
    });
    drop(db);
    eventually("it waits", || state_of(lab, "db").contains("waiting"));

    let mut db = Guest::go_on(lab, "db", &file, &[]);
    // What is said on its line before it runs is lost.
    eventually("it goes on", || state_of(lab, "db").contains("running"));
    db.sh("for i in 0 1 2 3; do kill -CONT $(cat /tmp/pid$i); done; sleep 1");
    for listener in 0..4 {
        assert_eq!(db.sh(&format!("md5sum </tmp/got{listener}")), sum, "listener {listener}");
    }
    assert_eq!(db.sh("wget -qO- http://web/"), "hello from a workload\n");
    assert!(state_of(lab, "db").contains("running"), "{}", state_of(lab, "db"));
    println!("   {under_way} of 4 transfers came while it was migrated");
}
