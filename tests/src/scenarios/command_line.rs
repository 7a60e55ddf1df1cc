//! The command line.

use crate::lab::{Lab, run};
use crate::runner::scenarios;

scenarios![
    exit_codes_are_those_of_docker,
    a_detached_workload_logs_and_is_removed_by_force,
    networks_are_made_listed_inspected_and_removed,
    every_column_of_ps_says_what_it_is_for,
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
    let create = "network create --subnet 10.99.7.0/24 --subnet fd12:3456:789a:7::/64 --label tier=back mynet";
    let id = run(&mut lab.lichen_with(&create.split(' ').collect::<Vec<_>>())).success();
    let list = run(&mut lab.lichen(["network", "ls"])).success();
    let rows = cells(&list);
    assert_eq!(rows[0], ["NETWORK ID", "NAME", "DRIVER", "SCOPE"]);
    assert_eq!(rows[1][1..], ["bridge", "bridge", "local"]);
    assert_eq!(rows[2], [&id[..12], "mynet", "bridge", "local"]);
    let of = |words: &[&str]| run(&mut lab.lichen_with(words)).success();
    assert_eq!(of(&["network", "list"]), list, "under its other name too");

    of(&["run", "-d", "--name", "web", "--network", "mynet", "--", "sleep", "60"]);
    let inspected = of(&["network", "inspect", "mynet"]);
    let json: serde_json::Value = serde_json::from_str(&inspected).expect("JSON");
    let workloads: serde_json::Value =
        serde_json::from_str(&of(&["ps", "-o", "json"])).expect("JSON");
    let endpoint = workloads[0]["id"].as_str().expect("an id");
    let mut expected = serde_json::json!([{
        "Name": "mynet",
        "Id": id.trim(),
        "Scope": "local",
        "Driver": "bridge",
        "EnableIPv6": true,
        "IPAM": { "Driver": "default", "Config": [
            {
                "Subnet": "10.99.7.0/24",
                "Gateway": "10.99.7.1",
                "LichenAddresses": { "Total": 253, "Used": 1, "Reserved": 0, "Free": 252 },
            },
            { "Subnet": "fd12:3456:789a:7::/64", "Gateway": "fd12:3456:789a:7::1" },
        ] },
        "Internal": false,
        "LichenNAT64": false,
        "Attachable": true,
        "Ingress": false,
        "ConfigFrom": { "Network": "" },
        "ConfigOnly": false,
        "Containers": { endpoint: {
            "Name": "web",
            "EndpointID": endpoint,
            "MacAddress": "02:4c:0a:63:07:02",
            "IPv4Address": "10.99.7.2/24",
            "IPv6Address": "fd12:3456:789a:7::2/64",
        } },
        "Options": {
            "com.docker.network.bridge.name": "lichen2",
            "com.docker.network.driver.mtu": "1500",
        },
        "Labels": { "tier": "back" },
    }]);
    let created = json[0]["Created"].as_str().expect("a time");
    let digits = |byte: u8| if byte.is_ascii_digit() { b'0' } else { byte };
    let shape: Vec<u8> = created.bytes().map(digits).collect();
    assert_eq!(String::from_utf8_lossy(&shape), "0000-00-00T00:00:00Z", "RFC 3339: {created}");
    expected[0]["Created"] = created.into();
    assert_eq!(json, expected);

    of(&["rm", "-f", "web"]);
    let inspected = of(&["network", "inspect", "mynet"]);
    let json: serde_json::Value = serde_json::from_str(&inspected).expect("JSON");
    let counted = &json[0]["IPAM"]["Config"][0]["LichenAddresses"];
    let reserved = serde_json::json!({ "Total": 253, "Used": 0, "Reserved": 1, "Free": 252 });
    assert_eq!(*counted, reserved, "it stays with its name for a while");
    of(&["network", "rm", "mynet"]);
    assert!(!of(&["network", "ls"]).contains("mynet"));
}

/// What a table holds, header included.
fn cells(table: &str) -> Vec<Vec<&str>> {
    let of_line = |line| str::split(line, "   ").map(str::trim).filter(|cell| !cell.is_empty());
    table.lines().map(|line| of_line(line).collect()).collect()
}

fn every_column_of_ps_says_what_it_is_for(lab: &Lab) {
    lab.web_server("web", &["-p", "8080:80", "-p", "[::1]:8081:80"]);
    run(&mut lab.lichen(["vm", "add", "--ip", "10.88.0.9", "db"])).success();
    let network = run(&mut lab.lichen(["network", "inspect", "bridge"])).success();
    let network: serde_json::Value = serde_json::from_str(&network).expect("JSON");
    let prefix = network[0]["IPAM"]["Config"][1]["Subnet"].as_str().expect("a prefix");
    let of_host = |host: u8| prefix.replace("::/64", &format!("::{host}"));
    let listed = run(&mut lab.lichen(["ps"])).success();
    let rows = cells(&listed);
    assert_eq!(rows[0], ["NAME", "KIND", "NETWORK", "IP", "IPV6", "MAC", "PORTS", "STATE"]);
    let web = ["web", "run", "bridge", "10.88.0.2", &of_host(2), "02:4c:0a:58:00:02"];
    let ports = "127.0.0.1:8080->80/tcp, [::1]:8081->80/tcp";
    assert_eq!(rows[1], [&web[..], &[ports, "running"]].concat());
    let db = ["db", "vm", "bridge", "10.88.0.9", &of_host(9), "02:4c:0a:58:00:09", "waiting"];
    assert_eq!(rows[2], db, "it has no ports");
    let ports = run(&mut lab.lichen(["port", "ls"])).success();
    assert_eq!(run(&mut lab.lichen(["port", "list"])).success(), ports);
    assert_eq!(cells(&ports)[1], ["8080", "web", "80", "tcp", "active"]);
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
