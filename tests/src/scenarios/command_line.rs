//! The command line.

use crate::lab::{Lab, run};
use crate::runner::scenarios;

scenarios![
    exit_codes_are_those_of_docker,
    a_detached_workload_logs_and_is_removed_by_force,
    networks_are_made_listed_inspected_and_removed,
    workloads_of_two_networks_do_not_reach_each_other,
    json_is_printed_everywhere,
    who_keeps_their_uid_is_themselves_inside_and_has_a_network,
];

fn exit_codes_are_those_of_docker(lab: &Lab) {
    for (words, code) in [
        (&["sh", "-c", "exit 7"][..], 7),
        (&["no-such-program"], 127),
        (&["/etc/passwd"], 126),
        (&["sh", "-c", "kill -TERM $$"], 143),
    ] {
        run(&mut lab.lichen_with(&[&["run", "--"], words].concat())).exits(code);
    }
    run(&mut lab.lichen(["run", "--network", "nowhere", "--", "true"])).exits(125);
}

fn a_detached_workload_logs_and_is_removed_by_force(lab: &Lab) {
    let script = "echo to-the-log; sleep 60";
    let name =
        run(&mut lab.lichen(["run", "-d", "--name", "w", "--", "sh", "-c", script])).success();
    assert_eq!(name, "w\n");
    crate::lab::eventually("the log has it", || {
        run(&mut lab.lichen(["logs", "w"])).success().contains("to-the-log")
    });
    assert_ne!(run(&mut lab.lichen(["rm", "w"])).code, Some(0), "it runs");
    run(&mut lab.lichen(["rm", "-f", "w"])).success();
    let list = run(&mut lab.lichen(["ps"])).success();
    assert_eq!(list.lines().count(), 1, "only the header: {list}");
}

fn networks_are_made_listed_inspected_and_removed(lab: &Lab) {
    run(&mut lab.lichen(["network", "create", "--subnet", "10.99.7.0/24", "mynet"])).success();
    let list = run(&mut lab.lichen(["network", "ls"])).success();
    let header: Vec<&str> = list.lines().next().unwrap_or_default().split("  ").collect();
    let header: Vec<&str> = header.into_iter().map(str::trim).filter(|c| !c.is_empty()).collect();
    assert_eq!(header, ["NETWORK ID", "NAME", "DRIVER", "SCOPE"]);
    assert!(list.contains("mynet") && list.contains("bridge"), "{list}");
    let inspected = run(&mut lab.lichen(["network", "inspect", "mynet"])).success();
    let json: serde_json::Value = serde_json::from_str(&inspected).expect("JSON");
    assert_eq!(json[0]["Name"], "mynet");
    assert_eq!(json[0]["IPAM"]["Config"][0]["Subnet"], "10.99.7.0/24");
    assert_eq!(json[0]["IPAM"]["Config"][0]["Gateway"], "10.99.7.1");
    run(&mut lab.lichen(["network", "rm", "mynet"])).success();
    assert!(!run(&mut lab.lichen(["network", "ls"])).success().contains("mynet"));
}

fn workloads_of_two_networks_do_not_reach_each_other(lab: &Lab) {
    lab.web_server("web", &[]);
    let address = lab.in_workload("dig +short web");
    run(&mut lab.lichen(["network", "create", "other"])).success();
    let url = format!("http://{}/", address.trim());
    let words = ["run", "--network", "other", "--", "curl", "-sS", "-m", "5", &url];
    assert_ne!(run(&mut lab.lichen(words)).code, Some(0));
    let name = run(&mut lab.lichen(["run", "--network", "other", "--", "dig", "+short", "web"]));
    assert_eq!(name.success(), "", "nor see their names");
}

fn json_is_printed_everywhere(lab: &Lab) {
    lab.web_server("web", &["-p", "8080:80"]);
    for words in [&["ps"][..], &["network", "ls"], &["port", "ls"], &["status"], &["version"]] {
        let text = run(&mut lab.lichen_with(&[words, &["-o", "json"]].concat())).success();
        serde_json::from_str::<serde_json::Value>(&text)
            .unwrap_or_else(|error| panic!("{words:?}: {error}: {text}"));
    }
}

fn who_keeps_their_uid_is_themselves_inside_and_has_a_network(lab: &Lab) {
    let script = "id -u; id -g; grep CapEff /proc/self/status; touch $HOME/mine && stat -c %u $HOME/mine; \
                  curl -sS http://outside.example/; ping -c1 -W2 10.88.0.1 | grep -o '1 received'";
    let said = run(&mut lab.lichen(["run", "--user", "keep", "--", "sh", "-c", script])).success();
    let lines: Vec<&str> = said.lines().collect();
    let expected =
        ["1000", "1000", "CapEff:\t0000000000000000", "1000", "hello from outside", "1 received"];
    assert_eq!(lines, expected);
    let inside = run(&mut lab.lichen(["run", "--user", "root", "--", "id", "-u"])).success();
    assert_eq!(inside, "0\n", "which is what it is without the option");
}
