//! Networks as the command line lists, prunes and makes them.

use crate::lab::{Lab, run};
use crate::runner::scenarios;

scenarios![
    networks_are_listed_by_filters_and_in_the_shape_that_is_asked_for,
    pruning_removes_the_unused_that_match_and_nothing_else,
    a_network_has_one_gateway_of_each_family_and_it_answers_where_it_was_put,
];

/// Makes a network, and answers the first digits of its id, which lists show.
fn create(lab: &Lab, words: &str) -> String {
    let words: Vec<&str> = ["network", "create"].into_iter().chain(words.split(' ')).collect();
    run(&mut lab.lichen_with(&words)).success()[..12].to_owned()
}

fn networks_are_listed_by_filters_and_in_the_shape_that_is_asked_for(lab: &Lab) {
    let front = create(lab, "--label managed-by=helyos --label tier=front frontend");
    let back = create(lab, "--internal --ipv6=false --label managed-by=helyos backend");
    let ls =
        |words: &[&str]| run(&mut lab.lichen_with(&[&["network", "ls"], words].concat())).success();
    let both = ls(&["--filter", "label=managed-by=helyos"]);
    let rows: Vec<Vec<&str>> = both.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NETWORK", "ID", "NAME", "DRIVER", "SCOPE"]);
    assert_eq!(rows[1], [&front, "frontend", "bridge", "local"]);
    assert_eq!(rows[2], [&back, "backend", "bridge", "local"]);
    assert_eq!(rows.len(), 3, "{both}");
    assert_eq!(ls(&["-q", "-f", "type=custom"]), format!("{front}\n{back}\n"));
    assert_eq!(ls(&["-q", "-f", "name=end", "-f", "label=tier=front"]), format!("{front}\n"));
    assert_eq!(ls(&["-f", "driver=overlay", "-q"]), "");
    assert_eq!(
        ls(&["-f", "type=builtin", "--format", "{{.Name}}\\t{{.Driver}}"]),
        "bridge\tbridge\n"
    );
    let table = ls(&["-f", "type=custom", "--format", "table {{.Name}}\\t{{.Labels}}"]);
    let expected = "NAME       LABELS\nfrontend   managed-by=helyos,tier=front\nbackend    managed-by=helyos\n";
    assert_eq!(table, expected);
    let lines = ls(&["-f", "name=back", "--format", "json"]);
    let object: serde_json::Value = serde_json::from_str(lines.trim()).expect("JSON");
    assert_eq!(lines.lines().count(), 1, "{lines}");
    for (key, value) in [
        ("ID", back.as_str()),
        ("Name", "backend"),
        ("Driver", "bridge"),
        ("Scope", "local"),
        ("IPv6", "false"),
        ("Internal", "true"),
        ("Labels", "managed-by=helyos"),
    ] {
        assert_eq!(object[key], value, "{lines}");
    }
    for (words, code, told) in [
        (["-f", "color=red"], 1, "there are: driver, id, label, name, scope, type"),
        (["-f", "type=odd"], 1, "it knows: builtin, custom"),
        (["-f", "name"], 2, "label=tier=back"),
        (["--format", "{{.Color}}"], 2, "{{.ID}}, {{.Name}}, {{.Driver}}"),
        (["--format", "{{json .}}"], 2, "nothing else is understood"),
    ] {
        let words = [&["network", "ls"][..], &words].concat();
        let refused = run(&mut lab.lichen_with(&words)).exits(code);
        assert!(refused.err.contains(told) && refused.out.is_empty(), "{refused:?}");
    }
}

fn pruning_removes_the_unused_that_match_and_nothing_else(lab: &Lab) {
    for words in ["used", "--label keep mine", "--label tier=back yours", "nobodys"] {
        create(lab, words);
    }
    run(&mut lab.lichen(["run", "-d", "--name", "w", "--network", "used", "--", "sleep", "60"]))
        .success();
    let prune = |words: &[&str]| {
        run(&mut lab.lichen_with(&[&["network", "prune"], words].concat())).success()
    };
    let left = || run(&mut lab.lichen(["network", "ls", "--format", "{{.Name}}"])).success();
    assert_eq!(prune(&["--filter", "until=1h"]), "No unused networks.\n", "all are younger");
    assert_eq!(prune(&["--filter", "label=tier=front"]), "No unused networks.\n");
    assert_eq!(left(), "bridge\nused\nmine\nyours\nnobodys\n");
    let labelled = prune(&["--filter", "label=tier"]);
    assert_eq!(labelled, "Deleted Networks:\nyours\n");
    assert_eq!(left(), "bridge\nused\nmine\nnobodys\n");
    assert_eq!(prune(&["--filter", "label!=keep"]), "Deleted Networks:\nnobodys\n");
    for (filter, told) in
        [("name=mine", "there are: label, label!, until"), ("until=soon", "such as 24h")]
    {
        let refused = run(&mut lab.lichen(["network", "prune", "--filter", filter])).exits(1);
        assert!(refused.err.contains(told), "{refused:?}");
    }
    assert_eq!(left(), "bridge\nused\nmine\n", "what was refused has removed nothing");
    assert_eq!(prune(&[]), "Deleted Networks:\nmine\n");
    assert_eq!(left(), "bridge\nused\n", "one is in use, the other is the default");
}

fn a_network_has_one_gateway_of_each_family_and_it_answers_where_it_was_put(lab: &Lab) {
    let subnets = "--subnet 10.99.0.0/24 --subnet fd12:3456:789a:7::/64";
    create(lab, &format!("{subnets} --gateway 10.99.0.254 --gateway fd12:3456:789a:7::1 mynet"));
    let shown = run(&mut lab.lichen(["network", "inspect", "mynet"])).success();
    let shown: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
    assert_eq!(shown[0]["IPAM"]["Config"][0]["Gateway"], "10.99.0.254");
    assert_eq!(shown[0]["IPAM"]["Config"][1]["Gateway"], "fd12:3456:789a:7::1");
    let script =
        "ping -c1 -W2 10.99.0.254 && ping -6 -c1 -W2 fd12:3456:789a:7::1 && ip route show default";
    let words = ["run", "--network", "mynet", "--", "sh", "-c", script];
    let said = run(&mut lab.lichen(words)).success();
    assert_eq!(said.matches("1 received").count(), 2, "{said}");
    assert!(said.contains("default via 10.99.0.254"), "{said}");
    for (gateways, told) in [
        ("--gateway 10.99.0.1 --gateway 10.99.0.2", "two IPv4 gateways"),
        ("--gateway fd12:3456:789a:8::1 --gateway fd12:3456:789a:8::2", "two IPv6 gateways"),
        ("--gateway 10.98.0.1", "not a usable address of 10.99.1.0/24"),
        ("--gateway fd12:3456:789a:9::1", "does not lie in IPv6 subnet fd12:3456:789a:8::/64"),
        ("--gateway fd12:3456:789a:8::2", "write fd12:3456:789a:8::1"),
    ] {
        let subnets = "--subnet 10.99.1.0/24 --subnet fd12:3456:789a:8::/64";
        let words = format!("network create {subnets} {gateways} bad");
        let refused = run(&mut lab.lichen_with(&words.split(' ').collect::<Vec<_>>())).exits(1);
        assert!(refused.err.contains(told), "{refused:?}");
    }
    let words = ["network", "create", "--subnet", "10.99.1.0/24", "--gateway", "fd12::1", "bad"];
    let refused = run(&mut lab.lichen(words)).exits(1);
    assert!(refused.err.contains("an IPv6 gateway needs its subnet"), "{refused:?}");
}
