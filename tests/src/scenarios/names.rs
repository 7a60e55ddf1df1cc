//! Names: one's own with authority, foreign ones by the host's resolver.

use crate::lab::address::{GATEWAY, UPSTREAM};
use crate::lab::{Background, Lab, Role, eventually, run};
use crate::runner::scenarios;

scenarios![
    two_workloads_ping_each_other_by_name,
    a_name_answers_in_each_of_its_zones_and_backwards,
    what_a_name_does_not_have_is_nodata_and_what_is_no_name_is_nxdomain,
    foreign_names_are_asked_of_the_hosts_resolver,
    a_resolver_that_appears_later_is_used,
    a_dead_resolver_is_an_answer_and_not_silence,
    slow_conversations_with_the_names_are_few_and_end_and_cost_nobody_else,
];

fn two_workloads_ping_each_other_by_name(lab: &Lab) {
    lab.web_server("web", &[]);
    let there = lab.in_workload("ping -c3 -i0.2 -W2 web");
    assert!(there.contains("3 received"), "{there}");
    run(&mut lab.lichen(["run", "-d", "--name", "other", "--", "sleep", "60"])).success();
    let pinged = lab.in_workload("ping -c1 -W2 other && ping -c1 -W2 web.bridge.internal");
    assert_eq!(pinged.matches("1 received").count(), 2, "{pinged}");
}

/// What `dig` prints in a workload.
fn dig(lab: &Lab, question: &str) -> String {
    lab.in_workload(&format!("dig {question}"))
}

fn a_name_answers_in_each_of_its_zones_and_backwards(lab: &Lab) {
    lab.web_server("web", &[]);
    let address = dig(lab, "+short web.bridge.internal");
    assert!(address.starts_with("10.88.0."), "{address}");
    for name in ["web", "web.hypr", "WEB.Bridge.Internal", "+tcp web.hypr"] {
        assert_eq!(dig(lab, &format!("+short {name}")), address, "{name}");
    }
    assert_eq!(dig(lab, &format!("+short -x {}", address.trim())), "web.bridge.internal.\n");
    assert!(dig(lab, "web.hypr").contains("flags: qr aa"), "with authority");
    assert_eq!(dig(lab, "+short host.lichen.internal"), format!("{GATEWAY}\n"));
}

fn what_a_name_does_not_have_is_nodata_and_what_is_no_name_is_nxdomain(lab: &Lab) {
    lab.web_server("web", &[]);
    let nodata = dig(lab, "web.bridge.internal TXT");
    assert!(nodata.contains("status: NOERROR") && nodata.contains("ANSWER: 0"), "{nodata}");
    assert!(nodata.contains("SOA"), "{nodata}");
    let nxdomain = dig(lab, "nobody.bridge.internal");
    assert!(nxdomain.contains("status: NXDOMAIN") && nxdomain.contains("SOA"), "{nxdomain}");
}

fn foreign_names_are_asked_of_the_hosts_resolver(lab: &Lab) {
    assert_eq!(dig(lab, "+short outside.example"), format!("{UPSTREAM}\n"));
    let missing = dig(lab, "missing.example");
    assert!(missing.contains("status: NXDOMAIN"), "{missing}");
    // Truncated by UDP, asked again by TCP: by dig of us, and by us of the resolver.
    let long = dig(lab, "+short long.example TXT");
    assert!(long.len() > 1250, "{long}");
    assert_eq!(lab.in_workload("curl -sS http://outside.example/"), "hello from outside\n");
}

fn a_resolver_that_appears_later_is_used(lab: &Lab) {
    lab.host().sh("echo nameserver 192.0.2.99 >/etc/new && mv /etc/new /etc/resolv.conf");
    run(&mut lab.lichen(["run", "--", "true"])).success();
    lab.host().sh("echo nameserver 192.0.2.1 >/etc/new && mv /etc/new /etc/resolv.conf");
    eventually("the new resolver answers", || {
        let asked = ["run", "--", "dig", "+short", "+time=1", "+tries=1", "outside.example"];
        run(&mut lab.lichen(asked)).out == format!("{UPSTREAM}\n")
    });
}

fn a_dead_resolver_is_an_answer_and_not_silence(lab: &Lab) {
    lab.host().sh("echo nameserver 192.0.2.99 >/etc/new && mv /etc/new /etc/resolv.conf");
    let asked =
        run(&mut lab.lichen(["run", "--", "dig", "+time=15", "+tries=1", "outside.example"]));
    assert!(asked.out.contains("status: SERVFAIL"), "{asked:?}");
}

/// Security row N09.
fn slow_conversations_with_the_names_are_few_and_end_and_cost_nobody_else(lab: &Lab) {
    lab.web_server("web", &[]);
    let (datapath, address) =
        (lab.process(Role::Datapath).expect("it runs"), dig(lab, "+short web"));
    let program = lab.path("bin/lichen-lab").display().to_string();
    let server = format!("{GATEWAY}:53");
    let words = ["run", "--name", "slow", "--", &program, "peer", "slow-names", &server];
    let mut slow = Background::start(&mut lab.lichen(words), &lab.path("logs"));

    eventually("it has asked by a datagram", || slow.printed().lines().count() >= 2);
    let (ticks, asked) = (datapath.ticks(), std::time::Instant::now());
    // Beside it, until all is over.
    let mut rounds = 0_u32;
    while slow.ended().is_none() && asked.elapsed().as_secs() < 200 {
        assert_eq!(dig(lab, "+short +time=2 +tries=1 web"), address);
        assert_eq!(dig(lab, "+short +tcp +time=2 +tries=1 web.hypr"), address);
        rounds += 1;
    }
    let (used, lasted) = (datapath.ticks() - ticks, asked.elapsed());
    let said = slow.printed();
    println!("   {rounds} rounds of the neighbour, {used} ticks in {lasted:?}");
    let lines: Vec<&str> = said.lines().collect();
    let [open, datagram, closed, "dripped", conversation] = lines[..] else { panic!("{said}") };
    let open: usize = open.split(' ').next().and_then(|n| n.parse().ok()).expect("a number");
    assert!((1..=16).contains(&open), "{said}");
    assert_eq!(datagram, "asked by a datagram: answered");
    let seconds: u64 = closed.split(' ').nth(2).and_then(|n| n.parse().ok()).expect("a number");
    assert!((5..=50).contains(&seconds), "idle for five seconds: {said}");
    assert_eq!(conversation, "asked by a conversation: answered");
    // A tick is 10 ms: half of the time, of which the neighbour's workloads take most.
    assert!(u128::from(used) * 10 < lasted.as_millis() / 2, "it spins: {used} ticks in {lasted:?}");
    assert_eq!(lab.process(Role::Datapath), Some(datapath), "it lives");
}
