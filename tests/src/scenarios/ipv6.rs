//! IPv6: between workloads, to the outside, by names, by published ports, and in a virtual machine.

use std::time::Duration;

use super::outward::bytes_arrive_whole;
use crate::lab::address::{FAR6, HOST6, UPSTREAM6};
use crate::lab::{Lab, eventually, run};
use crate::runner::scenarios;
use crate::vm::Guest;

scenarios![
    two_workloads_talk_over_ipv6_by_name,
    a_workload_reaches_the_outside_over_ipv6,
    a_host_without_ipv6_is_told_at_once_and_ipv4_goes_on,
    an_internal_network_has_no_way_out_over_ipv6_either,
    a_narrow_way_outside_is_told_and_then_kept_to,
    what_is_the_hosts_own_is_closed_over_ipv6,
    a_port_published_on_an_ipv6_address_reaches_the_workload_over_ipv6,
    a_network_has_the_ipv6_subnet_that_was_asked_for_or_none,
    bytes_arrive_whole_over_ipv6_in_both_directions,
    a_virtual_machine_makes_its_own_address_and_is_found_by_it,
];

fn two_workloads_talk_over_ipv6_by_name(lab: &Lab) {
    lab.web_server("web", &[]);
    let said = lab.in_workload(
        "ping -6 -c3 -i0.2 -W2 web && curl -6 -sS http://web/ && ip -6 address show dev eth0
         ip -6 route show default && ping -6 -c1 -W2 gateway.bridge.internal",
    );
    assert!(said.contains("3 received") && said.contains("1 received"), "{said}");
    assert!(said.contains("hello from a workload"), "{said}");
    assert!(said.contains("inet6 fd") && said.contains("inet6 fe80::"), "{said}");
    assert!(!said.contains("tentative"), "{said}");
    assert!(said.contains("default via fe80::1 dev eth0"), "{said}");
    let address = lab.in_workload("dig +short web AAAA");
    assert!(address.starts_with("fd") && address.trim().ends_with("::2"), "{address}");
    let backwards = lab.in_workload(&format!("dig +short -x {}", address.trim()));
    assert_eq!(backwards, "web.bridge.internal.\n");
    let listed = run(&mut lab.lichen(["ps"])).success();
    assert!(listed.contains(address.trim()), "{listed}");
}

fn a_workload_reaches_the_outside_over_ipv6(lab: &Lab) {
    for address in [UPSTREAM6, FAR6] {
        let page = lab.in_workload(&format!("curl -gsS http://[{address}]/"));
        assert_eq!(page, "hello from outside\n");
    }
    assert_eq!(lab.in_workload("curl -6 -sS http://six.example/"), "hello from outside\n");
    let pinged = lab.in_workload(&format!("ping -6 -c2 -i0.2 -W2 {UPSTREAM6}"));
    assert!(pinged.contains("2 received"), "{pinged}");
    let large = lab.in_workload(&format!("ping -6 -c1 -W2 -s 4000 {UPSTREAM6}"));
    assert!(large.contains("1 received"), "in fragments: {large}");
    let url = format!("http://[{UPSTREAM6}]:81/");
    let refused = run(&mut lab.lichen(["run", "--", "curl", "-gsS", "-m", "10", &url])).exits(7);
    assert!(refused.took < Duration::from_secs(5), "{refused:?}");
}

fn a_host_without_ipv6_is_told_at_once_and_ipv4_goes_on(lab: &Lab) {
    lab.host().sh("ip -6 route del default");
    let url = format!("http://[{FAR6}]/");
    let refused = run(&mut lab.lichen(["run", "--", "curl", "-gsS", "-m", "20", &url])).exits(7);
    assert!(refused.took < Duration::from_secs(5), "an answer, not silence: {refused:?}");
    let ping = ["run", "--", "ping", "-6", "-c1", "-W5", FAR6];
    let told = run(&mut lab.lichen(ping)).exits(1);
    assert!(told.out.contains("unreachable") || told.out.contains("No route"), "{told:?}");
    assert_eq!(lab.in_workload("curl -4 -sS http://outside.example/"), "hello from outside\n");
}

fn an_internal_network_has_no_way_out_over_ipv6_either(lab: &Lab) {
    run(&mut lab.lichen(["network", "create", "--internal", "inner"])).success();
    let listen = format!("--listen-address={UPSTREAM6}");
    let names = ["dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts"];
    let record = ["--bind-interfaces", &listen, "--host-record=outside.example,192.0.2.1"];
    let _names = lab.upstream().start_in_background(&[&names[..], &record].concat());
    lab.upstream().sh(&format!("until nc -z {UPSTREAM6} 53; do sleep 0.05; done"));
    let on = |network: &str, script: &str| {
        run(&mut lab.lichen(["run", "--network", network, "--", "sh", "-c", script]))
    };
    for (script, code) in [
        (format!("curl -gsS -m 20 http://[{UPSTREAM6}]/"), 7),
        (format!("curl -gsS -m 20 http://[{FAR6}]/"), 7),
        (format!("ping -6 -c1 -W5 {UPSTREAM6}"), 1),
        (format!("ping -6 -c1 -W5 {FAR6}"), 1),
        (format!("dig +short +time=3 +tries=1 @{UPSTREAM6} outside.example"), 9),
        ("curl -6 -sS -m 20 http://six.example/".to_owned(), 6),
    ] {
        let refused = on("inner", &script).exits(code);
        assert!(refused.took < Duration::from_secs(10), "an answer, not silence: {refused:?}");
        on("bridge", &script).exits(0);
    }
    let told = on("inner", &format!("ping -6 -c1 -W5 {UPSTREAM6}"));
    assert!(told.out.contains("prohibited"), "{told:?}");
    let closed = on("inner", "curl -6 -sS -m 20 http://host.lichen.internal:8099/");
    closed.exits(7);
    let server = ["run", "-d", "--name", "web", "--network", "inner", "--", "sh", "-c"];
    let script =
        "mkdir /tmp/w; echo within >/tmp/w/index.html; busybox httpd -f -p '[::]:80' -h /tmp/w";
    run(&mut lab.lichen_with(&[&server[..], &[script]].concat())).success();
    eventually("members reach each other over IPv6", || {
        on("inner", "curl -6 -sS -m 5 http://web/").out == "within\n"
    });
}

fn a_narrow_way_outside_is_told_and_then_kept_to(lab: &Lab) {
    lab.host().sh("ip link set uplink mtu 1400");
    lab.upstream().sh("ip link set downlink mtu 1400");
    let said = lab.in_workload(&format!("ping -6 -c4 -i0.3 -W2 -s 1430 {UPSTREAM6}"));
    assert!(said.contains("Packet too big: mtu=1400"), "{said}");
    assert!(said.contains("3 received"), "from then on in fragments: {said}");
    let page = lab.in_workload(&format!("curl -gsS http://[{UPSTREAM6}]/"));
    assert_eq!(page, "hello from outside\n");
}

fn what_is_the_hosts_own_is_closed_over_ipv6(lab: &Lab) {
    lab.host().sh(&format!(
        "busybox httpd -p '[{HOST6}]:8097' -h / && busybox httpd -p '[::1]:8096' -h /"
    ));
    lab.host().sh(&format!("nc -z {HOST6} 8097 && nc -z ::1 8096"));
    for url in [
        format!("http://[{HOST6}]:8097/"),
        "http://[::1]:8096/".to_owned(),
        "http://[::ffff:127.0.0.1]:8099/".to_owned(),
        "http://[fd00:ec2::254]/".to_owned(),
    ] {
        let outcome =
            run(&mut lab.lichen(["run", "--", "curl", "-gsS", "-m", "20", &url])).exits(7);
        assert!(outcome.took < Duration::from_secs(10), "{url}: {outcome:?}");
    }
    // Where the loopback of IPv4 refuses, that of IPv6 is asked.
    let url = "http://host.lichen.internal:8096/etc/hostname";
    let asked = ["run", "--allow-host", "8096", "--", "curl", "-fsS", "-o", "/dev/null", url];
    run(&mut lab.lichen_with(&asked)).success();
    let gateway = lab.in_workload("curl -6 -sS -m 20 http://host.lichen.internal:8099/ || echo $?");
    assert_eq!(gateway, "7\n");
    let opened = ["run", "--allow-host", "8099", "--", "curl", "-6", "-sS"];
    let url = ["http://host.lichen.internal:8099/"];
    let page = run(&mut lab.lichen_with(&[&opened[..], &url].concat())).success();
    assert_eq!(page, "the host's canary\n");
}

fn a_port_published_on_an_ipv6_address_reaches_the_workload_over_ipv6(lab: &Lab) {
    lab.web_server("web", &["-p", "[::1]:8080:80", "-p", "[::]:8081:80"]);
    let page = run(&mut lab.person(&["curl", "-gsS", "http://[::1]:8080/"])).success();
    assert_eq!(page, "hello from a workload\n");
    let url = format!("http://[{HOST6}]:8081/");
    let page = run(&mut lab.upstream().command(&["curl", "-gsS", "-m", "5", &url])).success();
    assert_eq!(page, "hello from a workload\n");
    let closed = format!("http://[{HOST6}]:8080/");
    run(&mut lab.upstream().command(&["curl", "-gsS", "-m", "5", &closed])).exits(7);
    let server = ["run", "-d", "--name", "who", "-p", "[::]:8082:80", "--"];
    let script = "busybox nc -ll -p 80 -e sh -c 'busybox netstat -tn | grep :80'";
    run(&mut lab.lichen_with(&[&server[..], &["sh", "-c", script]].concat())).success();
    eventually("the client's address is seen", || {
        let asked = lab.upstream().command(&["nc", "-d", "-w3", HOST6, "8082"]);
        run(&mut { asked }).out.contains(&format!("{UPSTREAM6}:"))
    });
}

fn a_network_has_the_ipv6_subnet_that_was_asked_for_or_none(lab: &Lab) {
    let create = "network create --subnet 10.99.0.0/24 --subnet fd12:3456:789a:7::/64 seven";
    run(&mut lab.lichen_with(&create.split(' ').collect::<Vec<_>>())).success();
    let shown = run(&mut lab.lichen(["network", "inspect", "seven"])).success();
    for part in ["\"EnableIPv6\": true", "fd12:3456:789a:7::/64", "fd12:3456:789a:7::1"] {
        assert!(shown.contains(part), "{shown}");
    }
    let on = |network: &str, script: &str| {
        run(&mut lab.lichen(["run", "--network", network, "--", "sh", "-c", script])).success()
    };
    let addresses = on("seven", "ip -6 address show dev eth0");
    assert!(addresses.contains("inet6 fd12:3456:789a:7::2/64"), "{addresses}");
    run(&mut lab.lichen(["network", "create", "--ipv6=false", "old"])).success();
    let shown = run(&mut lab.lichen(["network", "inspect", "old"])).success();
    assert!(shown.contains("\"EnableIPv6\": false"), "{shown}");
    assert_eq!(on("old", "ip -6 address show dev eth0; ip -6 route show default"), "");
    for bad in ["fe80::/64", "fd12::/48", "fd12:3456:789a:7::/64"] {
        let refused = run(&mut lab.lichen(["network", "create", "--subnet", bad, "bad"]));
        assert!(refused.code != Some(0) && refused.err.contains(bad), "{refused:?}");
    }
}

fn bytes_arrive_whole_over_ipv6_in_both_directions(lab: &Lab) {
    bytes_arrive_whole(lab, "seq 20000000", UPSTREAM6, |script| lab.in_workload(script));
}

fn a_virtual_machine_makes_its_own_address_and_is_found_by_it(lab: &Lab) {
    lab.web_server("web", &[]);
    let mut db = Guest::start(lab, "db", &["-p", "[::1]:8090:80"]);
    let nothing = lab.in_workload("dig +short db AAAA");
    assert_eq!(nothing, "", "it has not shown an address yet");
    // With privacy extensions, whose addresses nobody could know before.
    db.sh("echo 2 >/proc/sys/net/ipv6/conf/eth0/use_tempaddr
         ip link set eth0 up && udhcpc -i eth0 -n -q -t 10 -T 1 -s /bin/lease 2>&1");
    let shown = db.sh("for i in 1 2 3 4 5 6 7 8 9 10; do
             ip -6 address show dev eth0 | grep -q 'inet6 fd.*dynamic' && break; sleep 1
         done; sleep 2; ip -6 address show dev eth0; ip -6 route");
    assert!(shown.contains("inet6 fd") && shown.contains("default via fe80::1"), "{shown}");
    assert!(shown.matches("inet6 fd").count() >= 2, "one of its own choice: {shown}");
    let said = db.sh("ping6 -c 3 -W 2 web");
    assert!(said.contains("3 packets received"), "{said}");
    assert!(db.sh(&format!("ping6 -c 1 -W 2 {UPSTREAM6}")).contains("1 packets received"));
    let address = lab.in_workload("dig +short db AAAA");
    assert!(shown.contains(address.trim()) && !address.trim().is_empty(), "{address}: {shown}");
    let pinged = lab.in_workload("ping -6 -c3 -i0.2 -W2 db");
    assert!(pinged.contains("3 received"), "{pinged}");
    db.sh("echo hello from a guest >/www/index.html && httpd -p '[::]:80' -h /www");
    assert_eq!(lab.in_workload("curl -6 -sS http://db/"), "hello from a guest\n");
    let page = run(&mut lab.person(&["curl", "-gsS", "http://[::1]:8090/"])).success();
    assert_eq!(page, "hello from a guest\n");
}
