//! The lab is what the other scenarios take it for.

use crate::lab::address::{FAR, HOST, UPSTREAM};
use crate::lab::{Lab, run};
use crate::runner::scenarios;

scenarios![
    the_host_reaches_its_upstream_and_nothing_else,
    the_host_resolves_names_by_its_upstream,
    the_person_has_no_capability,
    the_hosts_loopback_is_its_own,
    a_resolv_conf_of_the_host_can_be_replaced_by_renaming,
];

fn the_host_reaches_its_upstream_and_nothing_else(lab: &Lab) {
    let page = run(&mut lab.person(&["curl", "-sS", &format!("http://{UPSTREAM}/")])).success();
    assert_eq!(page, "hello from outside\n");
    let page = run(&mut lab.person(&["curl", "-sS", &format!("http://{FAR}/")])).success();
    assert_eq!(page, "hello from outside\n");
    // Not 0: no host beyond U answers, whatever the machine under the lab can reach.
    let beyond = run(&mut lab.person(&["curl", "-sS", "-m", "2", "http://1.1.1.1/"]));
    assert_ne!(beyond.code, Some(0));
    let routes = lab.upstream().sh("ip route show default");
    assert_eq!(routes, "", "the upstream has no way out");
}

fn the_host_resolves_names_by_its_upstream(lab: &Lab) {
    let answer = run(&mut lab.person(&["dig", "+short", "outside.example"])).success();
    assert_eq!(answer, format!("{UPSTREAM}\n"));
    let long = run(&mut lab.person(&["dig", "+short", "long.example", "TXT"])).success();
    assert!(long.len() > 1250, "{long}");
}

fn the_person_has_no_capability(lab: &Lab) {
    let status = run(&mut lab.person(&["cat", "/proc/self/status"])).success();
    for line in ["CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "Uid:\t1000"] {
        assert!(status.contains(line), "{line} in:\n{status}");
    }
    assert_eq!(run(&mut lab.person(&["pwd"])).success().trim(), lab.path("home").to_str().unwrap());
}

fn the_hosts_loopback_is_its_own(lab: &Lab) {
    let canary = run(&mut lab.person(&["curl", "-sS", "http://127.0.0.1:8099/"])).success();
    assert_eq!(canary, "the host's canary\n");
    let from_outside = format!("http://{HOST}:8099/");
    run(&mut lab.upstream().command(&["curl", "-sS", &from_outside])).exits(7);
}

fn a_resolv_conf_of_the_host_can_be_replaced_by_renaming(lab: &Lab) {
    lab.host().sh("echo nameserver 192.0.2.99 >/etc/new && mv /etc/new /etc/resolv.conf");
    let seen = run(&mut lab.person(&["cat", "/etc/resolv.conf"])).success();
    assert_eq!(seen, "nameserver 192.0.2.99\n");
    assert_ne!(
        std::fs::read_to_string("/etc/resolv.conf").unwrap(),
        seen,
        "only inside of the lab"
    );
}
