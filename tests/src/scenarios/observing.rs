//! What shows the datapath at work: flows, metrics, captures, and why frames are dropped.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::thread;
use std::time::Duration;

use lichen_netstack::wire::headers::{ChecksumState, Headers};

use super::virtual_machines::{lease, received};
use crate::lab::address::UPSTREAM;
use crate::lab::{Background, Lab, Role, eventually, run};
use crate::runner::scenarios;
use crate::vm::Guest;

scenarios![
    a_flow_is_shown_while_it_lives_with_what_it_has_carried,
    metrics_tell_what_was_carried_and_dropped_and_are_served_on_request,
    rates_are_shown_once_to_a_program_and_every_second_to_a_person,
    a_capture_holds_what_passes_between_workloads_and_outside,
    a_capture_of_a_flow_shows_it_alone_as_a_wire_would_also_of_who_joins_later,
    a_capture_goes_on_when_a_virtual_machine_comes_and_goes,
    a_capture_costs_nobody_anything_when_its_reader_is_slow_or_gone,
];

fn a_flow_is_shown_while_it_lives_with_what_it_has_carried(lab: &Lab) {
    lab.web_server("web", &["-p", "8090:80"]);
    let far = format!("iperf3 -c {UPSTREAM} -t 5 -i 0");
    let words = ["run", "--name", "busy", "--", "sh", "-c", &far];
    let _busy = Background::start(&mut lab.lichen_with(&words), &lab.path("logs"));
    let mut shown = String::new();
    eventually("its flow is shown", || {
        shown = run(&mut lab.lichen(["flows", "busy"])).out;
        shown.contains(&format!("{UPSTREAM}:5201")) && shown.contains("MiB")
    });
    assert!(shown.starts_with("WORKLOAD") && shown.contains("established"), "{shown}");
    assert!(!shown.contains("web"), "{shown}");
    let json = run(&mut lab.lichen(["flows", "-o", "json"])).success();
    assert!(json.contains("\"bytes_from_guest\"") && json.contains("\"left_out\": 0"), "{json}");
    let unknown = run(&mut lab.lichen(["flows", "nobody"])).exits(1);
    assert!(unknown.err.contains("no workload `nobody`"), "{}", unknown.err);
}

fn metrics_tell_what_was_carried_and_dropped_and_are_served_on_request(lab: &Lab) {
    lab.web_server("web", &[]);
    lab.in_workload("curl -sS http://web/");
    // Refused, and counted with its reason.
    let words = "curl -sS -m 5 http://169.254.169.254/; sleep 2";
    let _asks = Background::start(
        &mut lab.lichen_with(&["run", "--name", "asks", "--", "sh", "-c", words]),
        &lab.path("logs"),
    );
    eventually("the refusal is counted", || {
        let text = run(&mut lab.lichen(["metrics"])).success();
        text.lines().any(|line| {
            line.starts_with("lichen_port_drops_total{")
                && line.contains("workload=\"asks\"")
                && line.contains("network=\"bridge\",reason=\"metadata\"}")
        })
    });
    let explained = run(&mut lab.lichen(["explain", "drop", "metadata"])).success();
    assert!(explained.contains("metadata address"), "{explained}");
    let list = run(&mut lab.lichen(["explain", "drop"])).success();
    assert!(list.contains("mac_spoof") && list.lines().count() > 40, "{list}");
    let unknown = run(&mut lab.lichen(["explain", "drop", "nonsense"])).exits(1);
    assert!(unknown.err.contains("lichen explain drop"), "{}", unknown.err);

    let _served = Background::start(
        &mut lab.lichen_with(&["metrics", "--listen", "127.0.0.1:9464"]),
        &lab.path("logs"),
    );
    let fetch = |words: &[&str]| {
        let all = [&["curl", "-sS", "-m", "5", "-w", "%{http_code}"], words];
        run(&mut lab.person(&all.concat())).out
    };
    eventually("they are served", || fetch(&["http://127.0.0.1:9464/metrics"]).ends_with("200"));
    let text = fetch(&["http://127.0.0.1:9464/metrics"]);
    assert!(text.contains("workload=\"web\"") && text.contains("# TYPE lichen_info"), "{text}");
    let rebound = ["-H", "Host: evil.example", "http://127.0.0.1:9464/metrics"];
    assert!(fetch(&rebound).ends_with("421"));
    assert!(fetch(&["http://127.0.0.1:9464/v1/workloads"]).ends_with("404"));
    // Half a request costs its sender a while, and nobody else more than that.
    let half = "(printf 'GET /met'; sleep 7) | timeout 8 nc 127.0.0.1 9464 >/dev/null &";
    run(&mut lab.person(&["sh", "-c", half])).success();
    eventually("they are served again", || {
        fetch(&["http://127.0.0.1:9464/metrics"]).ends_with("200")
    });
}

fn rates_are_shown_once_to_a_program_and_every_second_to_a_person(lab: &Lab) {
    let far = format!("iperf3 -c {UPSTREAM} -t 8 -i 0");
    let words = ["run", "--name", "busy", "--", "sh", "-c", &far];
    let _busy = Background::start(&mut lab.lichen_with(&words), &lab.path("logs"));
    eventually("it sends", || {
        let shown = run(&mut lab.lichen(["top"])).success();
        shown.starts_with("WORKLOAD")
            && shown.contains("busy")
            && shown.contains("bit/s")
            && (shown.contains("Mbit/s") || shown.contains("Gbit/s"))
    });
    let json = run(&mut lab.lichen(["top", "-o", "json"])).success();
    assert!(json.contains("\"bits_from_guest\""), "{json}");
    // On a terminal it goes on until q, and the terminal is as it was before.
    let program = lab.path("bin/lichen").display().to_string();
    let script = format!(
        "(sleep 2.5; printf q) | script -qec 'stty -a >before; {program} top; stty -a >after; cmp before after' shown"
    );
    let watched = run(&mut lab.person(&["sh", "-c", &script]));
    assert_eq!(watched.code, Some(0), "{}{}", watched.out, watched.err);
    let redrawn = watched.out.matches("\u{1b}[H\u{1b}[J").count();
    assert!((2..=3).contains(&redrawn), "{redrawn}: {}", watched.out);
}

/// One block of a pcapng file.
struct Block<'a> {
    kind: u32,
    body: &'a [u8],
}

/// The blocks of a file, which must be whole.
#[track_caller]
fn blocks(mut file: &[u8]) -> Vec<Block<'_>> {
    let mut found = Vec::new();
    while !file.is_empty() {
        let len = word(file, 4) as usize;
        assert!(len >= 12 && len.is_multiple_of(4) && len <= file.len(), "a block of {len} bytes");
        assert_eq!(word(file, len - 4) as usize, len, "both lengths agree");
        found.push(Block { kind: word(file, 0), body: &file[8..len - 4] });
        file = &file[len..];
    }
    found
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// A packet of a capture: its interface, when, and its bytes.
struct Packet<'a> {
    interface: u32,
    at: u64,
    len: u32,
    bytes: &'a [u8],
}

fn packets<'a>(blocks: &'a [Block<'a>]) -> Vec<Packet<'a>> {
    let of = |block: &'a Block<'a>| {
        let kept = word(block.body, 12) as usize;
        Packet {
            interface: word(block.body, 0),
            at: u64::from(word(block.body, 4)) << 32 | u64::from(word(block.body, 8)),
            len: word(block.body, 16),
            bytes: &block.body[20..20 + kept],
        }
    };
    blocks.iter().filter(|block| block.kind == 6).map(of).collect()
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

fn a_capture_holds_what_passes_between_workloads_and_outside(lab: &Lab) {
    lab.web_server("web", &[]);
    let asks = "sleep 2; curl -sS http://web/; curl -sS http://outside.example/; sleep 1";
    let words = ["run", "--name", "asks", "--", "sh", "-c", asks];
    let client = Background::start(&mut lab.lichen_with(&words), &lab.path("logs"));
    eventually("both are there", || {
        let list = run(&mut lab.lichen(["ps"])).success();
        list.matches("running").count() == 2
    });
    let path = lab.path("home/all.pcapng");
    let file = path.display().to_string();
    let mut all =
        Background::start(&mut lab.lichen_with(&["capture", "-w", &file]), &lab.path("logs"));
    let few = run(&mut lab.lichen([
        "capture",
        "--workload",
        "web",
        "-c",
        "5",
        "--snaplen",
        "60",
        "-w",
        "-",
    ]));
    assert_eq!(few.code, Some(0), "{}", few.err);
    assert!(few.err.contains("5 frames captured, 0 lost"), "{}", few.err);
    eventually("the client has what it asked for", || client.printed().contains("outside"));
    eventually("the capture has it too", || {
        let file = fs::read(&path).unwrap_or_default();
        contains(&file, b"hello from a workload") && contains(&file, b"hello from outside")
    });
    all.interrupt();
    eventually("it ends", || all.ended() == Some(0));
    assert!(all.printed().contains("frames captured, 0 lost"), "{}", all.printed());
    assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o600);

    let file = fs::read(&path).expect("a file");
    let blocks = blocks(&file);
    assert_eq!((blocks[0].kind, word(blocks[0].body, 0)), (0x0a0d_0d0a, 0x1a2b_3c4d));
    let interfaces: Vec<&Block<'_>> = blocks.iter().filter(|block| block.kind == 1).collect();
    assert_eq!(interfaces.len(), 2, "one for each workload");
    assert!(contains(interfaces[0].body, b"web") && contains(interfaces[1].body, b"asks"));
    let packets = packets(&blocks);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock");
    for packet in &packets {
        assert_eq!(packet.len as usize, packet.bytes.len(), "nothing is cut");
        assert!(now.as_nanos() as u64 - packet.at < 60_000_000_000, "nanoseconds since 1970");
    }
    // What goes from one workload to the other passes both ports.
    let seen_at = |interface| {
        packets
            .iter()
            .any(|it| it.interface == interface && contains(it.bytes, b"hello from a workload"))
    };
    assert!(seen_at(0) && seen_at(1));
}

fn a_capture_of_a_flow_shows_it_alone_as_a_wire_would_also_of_who_joins_later(lab: &Lab) {
    lab.web_server("web", &[]);
    let path = lab.path("home/flow.pcapng");
    let (guest, port) = ("10.88.0.50", 40_000);
    let _counter = lab
        .upstream()
        .start_in_background(&["busybox", "nc", "-l", "-p", "7001", "-e", "wc", "-c"]);
    lab.upstream().sh("until busybox netstat -ltn | grep -q :7001; do sleep 0.05; done");
    let flow = format!("tcp:{guest}:{port}-{UPSTREAM}:7001");
    let words = ["capture", "--network", "bridge", "--segment", "--flow", &flow, "-w"];
    let file = path.display().to_string();
    let words = [&words[..], &[file.as_str()]].concat();
    let mut capture = Background::start(&mut lab.lichen_with(&words), &lab.path("logs"));
    let interfaces = || {
        let file = fs::read(&path).unwrap_or_default();
        blocks(&file).iter().filter(|block| block.kind == 1).count()
    };
    eventually("it runs, with who is there", || interfaces() == 1);
    // The workload joins only now; of its two connections and what it asks of its neighbour one is wanted.
    let send = format!("head -c {} /dev/zero | nc -N -p {port} {UPSTREAM} 7001", 2 << 20);
    let talk = format!("curl -sS http://web/ >/dev/null && {send}");
    let talk = run(&mut lab.lichen(["run", "--ip", guest, "--", "sh", "-c", &talk])).success();
    assert_eq!(talk, format!("{}\n", 2 << 20));
    eventually("all is recorded", || fs::metadata(&path).expect("a file").len() > 2 << 20);
    capture.interrupt();
    eventually("it ends", || capture.ended() == Some(0));
    assert!(capture.printed().contains(" 0 lost"), "{}", capture.printed());

    let file = fs::read(&path).expect("a file");
    let blocks = blocks(&file);
    assert!(contains(blocks[0].body, b"Large segments are cut"), "the file says so");
    assert_eq!(interfaces(), 2);
    let packets = packets(&blocks);
    assert!(packets.iter().all(|packet| packet.interface == 1), "who joined is the second");
    let ports = |packet: &Packet<'_>| {
        let at = |at: usize| u16::from_be_bytes([packet.bytes[at], packet.bytes[at + 1]]);
        (at(34), at(36))
    };
    for packet in &packets {
        assert!(packet.len <= 1514, "a frame of {} bytes", packet.len);
        assert!(matches!(ports(packet), (40_000, 7001) | (7001, 40_000)), "{:?}", ports(packet));
        let headers = Headers::parse(packet.bytes, ChecksumState::Full);
        headers.expect("a frame with whole checksums");
    }
    let answers = packets.iter().filter(|packet| ports(packet) == (7001, port)).count();
    assert!(answers > 0 && packets.len() - answers > (2 << 20) / 1460, "both directions");
    println!("   {} frames, {answers} of them answers", packets.len());
}

fn a_capture_goes_on_when_a_virtual_machine_comes_and_goes(lab: &Lab) {
    run(&mut lab.lichen(["vm", "add", "db"])).success();
    let path = lab.path("home/db.pcapng");
    let words = ["capture", "--workload", "db", "-w", &path.display().to_string()];
    let mut capture = Background::start(&mut lab.lichen(words), &lab.path("logs"));
    // What an offer of our own says, and what a client asks for.
    let leases = || {
        let file = fs::read(&path).unwrap_or_default();
        file.windows(7).filter(|it| *it == [0x63, 0x82, 0x53, 0x63, 53, 1, 5]).count()
    };
    eventually("the capture runs", || path.exists() && !fs::read(&path).unwrap().is_empty());
    for times in 1..=2 {
        let mut db = Guest::start(lab, "db", &[]);
        lease(&mut db);
        eventually("its lease is recorded", || leases() == times);
    }
    capture.interrupt();
    eventually("it ends", || capture.ended() == Some(0));
    let file = fs::read(&path).expect("a file");
    assert!(!packets(&blocks(&file)).is_empty());
}

fn a_capture_costs_nobody_anything_when_its_reader_is_slow_or_gone(lab: &Lab) {
    run(&mut lab.lichen(["run", "-d", "--name", "far", "--", "iperf3", "-s"])).success();
    let datapath = lab.process(Role::Datapath).expect("a datapath");
    let threads = || datapath.status("Threads").parse::<u32>().expect("a number");
    let before = threads();
    let program = lab.path("bin/lichen").display().to_string();
    let (file, said) = (lab.path("home/slow.pcapng"), lab.path("home/slow.log"));

    // A reader that reads nothing for a while: frames are lost to it and to nobody else.
    let slow = format!(
        "timeout -s INT 8 {program} capture --workload far -w - 2>{} | (sleep 4; cat >{})",
        said.display(),
        file.display()
    );
    let mut slow = Background::start(&mut lab.person(&["sh", "-c", &slow]), &lab.path("logs"));
    eventually("the capture runs", || threads() > before);
    let printed = lab.in_workload("iperf3 -c far -t 2 -i 0");
    println!("   while nobody reads: {:.2} Gbit/s", received(&printed));
    assert!(received(&printed) > 0.0, "{printed}");
    let patience = std::time::Instant::now();
    while slow.ended().is_none() && patience.elapsed() < Duration::from_secs(20) {
        thread::sleep(Duration::from_millis(100));
    }
    let said = fs::read_to_string(said).expect("what it said");
    let file = fs::read(file).expect("a file");
    let blocks = blocks(&file);
    let packets = packets(&blocks);
    assert!(said.contains(&format!("{} frames captured", packets.len())), "{said}");
    // Of the statistics: interface, time, then the count of what was lost.
    let told = blocks.iter().rev().find(|block| block.kind == 5).expect("losses are told");
    let lost = u64::from_le_bytes(told.body[16..24].try_into().expect("eight bytes"));
    assert!(lost > 0 && said.contains(&format!(" {lost} lost")), "{said}");
    assert!(packets.iter().any(|packet| packet.len > 1514), "large segments are whole");
    eventually("its thread has ended", || threads() == before);

    // A reader that goes ends it.
    let gone = format!("{program} capture -w - | head -c 100 >/dev/null");
    let mut gone = Background::start(&mut lab.person(&["sh", "-c", &gone]), &lab.path("logs"));
    eventually("it runs", || threads() > before);
    eventually("and ends", || {
        lab.in_workload("nc -z far 5201");
        gone.ended() == Some(0)
    });
    eventually("its thread too", || threads() == before);

    // Control dies: its captures end, and say so.
    let words = ["capture", "-w", "/dev/null"];
    let mut left = Background::start(&mut lab.lichen(words), &lab.path("logs"));
    eventually("it runs", || threads() > before);
    lab.process(Role::Control).expect("control").kill();
    eventually("it ends", || left.ended().is_some());
    assert_eq!(left.ended(), Some(1), "{}", left.printed());
    eventually("the thread too", || threads() == before);
    lab.in_workload("nc -z far 5201");
}
