//! NAT64: who speaks only IPv6 reaches IPv4, on a network that was made for it.

use std::fs;
use std::time::Duration;

use super::datagrams::put_a_machine_behind;
use super::outward::bytes_arrive_whole;
use crate::lab::address::{FAR, HOST, UPSTREAM};
use crate::lab::{Background, Lab, Outcome, eventually, run};
use crate::runner::scenarios;
use crate::vm::Guest;

scenarios![
    a_workload_reaches_ipv4_over_ipv6_by_address_and_by_name,
    what_is_closed_over_ipv4_is_closed_by_nat64_and_what_fails_is_told,
    each_router_on_the_way_is_shown_under_the_prefix,
    a_network_keeps_its_nat64_and_the_others_have_none,
    a_virtual_machine_with_ipv6_alone_is_told_the_prefix_and_reaches_ipv4,
];

fn create(lab: &Lab) {
    run(&mut lab.lichen(["network", "create", "--nat64", "six"])).success();
}

/// What a shell script comes to in a new workload on the network with NAT64.
fn attempt(lab: &Lab, script: &str) -> Outcome {
    run(&mut lab.lichen(["run", "--network", "six", "--", "sh", "-c", script]))
}

/// What it prints; it must succeed.
#[track_caller]
fn on_six(lab: &Lab, script: &str) -> String {
    attempt(lab, script).success()
}

fn a_workload_reaches_ipv4_over_ipv6_by_address_and_by_name(lab: &Lab) {
    create(lab);
    for server in [UPSTREAM, FAR] {
        let page = on_six(lab, &format!("curl -gsS 'http://[64:ff9b::{server}]/'"));
        assert_eq!(page, "hello from outside\n");
    }
    let server = format!("64:ff9b::{UPSTREAM}");
    let pinged = on_six(lab, &format!("ping -6 -c2 -i0.2 -W2 {server}"));
    assert!(pinged.contains("2 received"), "{pinged}");
    let large = on_six(lab, &format!("ping -6 -c1 -W2 -s 4000 {server}"));
    assert!(large.contains("1 received"), "in fragments: {large}");
    let datagram = on_six(lab, &format!("dig +short @{server} outside.example"));
    assert_eq!(datagram, format!("{UPSTREAM}\n"));
    // The name has A alone, and the other one AAAA.
    let dig = |question: &str| on_six(lab, &format!("dig {question}"));
    assert_eq!(dig("+short outside.example AAAA"), "64:ff9b::c000:201\n");
    assert_eq!(dig("+short +tcp outside.example AAAA"), "64:ff9b::c000:201\n");
    assert_eq!(dig("+short outside.example A"), format!("{UPSTREAM}\n"));
    assert_eq!(dig("+short six.example AAAA"), "2001:db8::1\n");
    assert_eq!(dig("+short +cdflag +dnssec outside.example AAAA"), "");
    assert!(dig("missing.example AAAA").contains("status: NXDOMAIN"));
    assert_eq!(dig("+short ipv4only.arpa AAAA"), "64:ff9b::c000:aa\n64:ff9b::c000:ab\n");
    let backwards = dig(&format!("+short -x {server}"));
    assert_eq!(backwards, "1.2.0.192.in-addr.arpa.\noutside.example.\n");
    let page = on_six(lab, "curl -6 -sS http://outside.example/");
    assert_eq!(page, "hello from outside\n");
    // Who has both families goes on over IPv4, as RFC 6724 has it for a source that is a ULA.
    let over = on_six(lab, "curl -sS -o /dev/null -w '%{remote_ip}' http://outside.example/");
    assert_eq!(over, UPSTREAM);

    bytes_arrive_whole(lab, "seq 2000000", &server, |script| on_six(lab, script));

    let talk = format!("iperf3 -c {server} -t 5 -i 0");
    let words = ["run", "--name", "busy", "--network", "six", "--", "sh", "-c", &talk];
    let _busy = Background::start(&mut lab.lichen_with(&words), &lab.path("logs"));
    eventually("its flow is shown with both addresses in one", || {
        run(&mut lab.lichen(["flows", "busy"])).out.contains(&format!("[{server}]:5201"))
    });
    let json = run(&mut lab.lichen(["flows", "busy", "-o", "json"])).success();
    assert!(json.contains(&format!("\"nat64\": \"{UPSTREAM}:5201\"")), "{json}");
}

fn what_is_closed_over_ipv4_is_closed_by_nat64_and_what_fails_is_told(lab: &Lab) {
    create(lab);
    // Bound to every address, so that nothing but our rules keeps a workload from it.
    lab.host().sh("busybox httpd -p 0.0.0.0:8097 -h / && nc -z 127.0.0.1 8097");
    for (to, code) in [
        ("127.0.0.1:8099", 7),
        ("127.0.0.1:8097", 7),
        ("0.0.0.0:8097", 7),
        ("169.254.169.254:80", 7),
    ] {
        let (ip, port) = to.split_once(':').expect("a port");
        let refused = attempt(lab, &format!("curl -gsS -m 20 'http://[64:ff9b::{ip}]:{port}/'"));
        let refused = refused.exits(code);
        assert!(refused.took < Duration::from_secs(10), "{to}: {refused:?}");
    }
    for port in [8098, 8097] {
        let url = format!("http://[64:ff9b::{HOST}]:{port}/");
        attempt(lab, &format!("curl -gsS -m 20 '{url}'")).exits(7);
    }
    let pinged = attempt(lab, "ping -6 -c1 -W5 64:ff9b::127.0.0.1").exits(1);
    assert!(pinged.out.contains("prohibited"), "{pinged:?}");
    // A workload of another network.
    lab.web_server("web", &[]);
    let other = lab.in_workload("dig +short web").trim().to_owned();
    attempt(lab, &format!("curl -gsS -m 20 'http://[64:ff9b::{other}]/'")).exits(7);
    // Nobody listens; a narrow way; no way.
    attempt(lab, &format!("curl -gsS -m 20 'http://[64:ff9b::{UPSTREAM}]:81/'")).exits(7);
    let program = lab.path("bin/lichen-lab").display().to_string();
    let said = on_six(lab, &format!("{program} peer say '[64:ff9b::{UPSTREAM}]:5399' hello"));
    assert_eq!(said, "refused\n");
    lab.host().sh("ip link set uplink mtu 1400");
    lab.upstream().sh("ip link set downlink mtu 1400");
    let said = on_six(lab, &format!("ping -6 -c4 -i0.3 -W2 -s 1430 64:ff9b::{UPSTREAM}"));
    assert!(said.contains("Packet too big: mtu=1420"), "{said}");
    assert!(said.contains("3 received"), "from then on in fragments: {said}");
    lab.host().sh("ip route del default");
    let refused = attempt(lab, &format!("curl -gsS -m 20 'http://[64:ff9b::{FAR}]/'")).exits(7);
    assert!(refused.took < Duration::from_secs(10), "an answer, not silence: {refused:?}");
    let told = attempt(lab, &format!("ping -6 -c1 -W5 64:ff9b::{FAR}")).exits(1);
    assert!(told.out.contains("unreachable") || told.out.contains("No route"), "{told:?}");
}

/// What traceroute sees, by ping: Busybox's reads more of its datagrams than an error of ours quotes.
fn each_router_on_the_way_is_shown_under_the_prefix(lab: &Lab) {
    create(lab);
    let behind = put_a_machine_behind(lab);
    let ping = |hops: u8| attempt(lab, &format!("ping -6 -n -c1 -W3 -t{hops} 64:ff9b::{behind}"));
    let gateway = ping(1).exits(1).out;
    assert!(gateway.contains("From fd") && gateway.contains("::1 icmp_seq=1 Time"), "{gateway}");
    let router = ping(2).exits(1).out;
    assert!(router.contains("From 64:ff9b::c000:201 icmp_seq=1 Time exceeded"), "{router}");
    let there = ping(3).success();
    assert!(there.contains("from 64:ff9b::cb00:7102: icmp_seq=1"), "{there}");
}

fn a_network_keeps_its_nat64_and_the_others_have_none(lab: &Lab) {
    create(lab);
    let inspect = |network: &str| run(&mut lab.lichen(["network", "inspect", network])).success();
    let works = || {
        let ask = "dig +short outside.example AAAA; curl -6 -sS http://outside.example/";
        assert_eq!(on_six(lab, ask), "64:ff9b::c000:201\nhello from outside\n");
        assert!(inspect("six").contains("\"LichenNAT64\": true"));
    };
    works();
    run(&mut lab.lichen(["daemon", "restart"])).success();
    works();
    run(&mut lab.lichen(["daemon", "stop"])).success();
    works();
    assert!(inspect("bridge").contains("\"LichenNAT64\": false"));
    assert_eq!(lab.in_workload("dig +short outside.example AAAA"), "");
    // There the prefix is as good as any, and the host has a route to it that leads to nobody.
    let url = format!("http://[64:ff9b::{UPSTREAM}]/");
    let outcome = run(&mut lab.lichen(["run", "--", "curl", "-gsS", "-m", "3", &url]));
    assert!(matches!(outcome.code, Some(7 | 28)), "{outcome:?}");
    for (words, code, told) in [
        (["--internal", "--nat64"], 2, "--internal"),
        (["--ipv6=false", "--nat64"], 1, "leave out --ipv6=false"),
    ] {
        let words = [&["network", "create"], &words[..], &["bad"]].concat();
        let refused = run(&mut lab.lichen_with(&words)).exits(code);
        assert!(refused.err.contains(told), "{refused:?}");
    }
}

fn a_virtual_machine_with_ipv6_alone_is_told_the_prefix_and_reaches_ipv4(lab: &Lab) {
    create(lab);
    let mut guest = Guest::start(lab, "db", &["--network", "six"]);
    let path = lab.path("home/db.pcapng");
    let words = ["capture", "--workload", "db", "-w", &path.display().to_string()];
    let _capture = Background::start(&mut lab.lichen(words), &lab.path("logs"));
    eventually("the capture runs", || fs::metadata(&path).is_ok_and(|file| file.len() > 0));
    let shown = guest.sh("ip link set eth0 up
         for i in 1 2 3 4 5 6 7 8 9 10 11 12; do
             ip -6 address show dev eth0 | grep -q 'inet6 fd.*dynamic' && break; sleep 1
         done; sleep 2; ip address show dev eth0; ip -6 route");
    assert!(shown.contains("inet6 fd") && !shown.contains("inet 10."), "{shown}");
    assert!(shown.contains("default via fe80::1"), "the advertisement is understood: {shown}");
    // The resolver that the advertisement names is the first address of the prefix. (Busybox's wget crashes on IPv6.)
    guest.sh("prefix=$(ip -6 route | sed -n 's,^\\(fd.*::\\)/64.*,\\1,p')
         echo nameserver ${prefix}1 >/etc/resolv.conf");
    for server in [&format!("64:ff9b::{UPSTREAM}"), "outside.example"] {
        let ask = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 10 {server} 80");
        let page = guest.sh(&ask);
        assert!(page.ends_with("hello from outside\n"), "{server}: {page}");
    }
    let said = guest.sh(&format!("ping6 -c 2 -W 2 64:ff9b::{UPSTREAM}"));
    assert!(said.contains("2 packets received"), "{said}");
    // The option of RFC 8781: 225 times eight seconds, 96 bits.
    let option = [38, 2, 7, 8, 0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0];
    eventually("the advertisement was captured", || {
        fs::read(&path).expect("a file").windows(option.len()).any(|part| part == option)
    });
}
