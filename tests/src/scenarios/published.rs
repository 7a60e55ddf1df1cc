//! Published ports.

use crate::lab::address::{GATEWAY, HOST, UPSTREAM};
use crate::lab::{Lab, eventually, run};
use crate::runner::scenarios;

scenarios![
    a_published_port_answers_on_the_host,
    a_port_published_on_the_loopback_is_not_reachable_from_outside,
    a_port_published_everywhere_shows_the_clients_address,
    with_snat_a_workload_sees_the_gateway_instead_of_the_client,
    a_half_close_goes_through_a_published_port,
    an_urgent_byte_stays_where_it_was_and_holds_nothing_up,
    a_port_that_is_taken_or_privileged_is_explained,
    a_port_can_be_published_before_its_workload_is_there,
    a_free_port_is_chosen_where_none_is_named,
];

fn a_published_port_answers_on_the_host(lab: &Lab) {
    lab.web_server("web", &["-p", "8080:80"]);
    let page = run(&mut lab.person(&["curl", "-sS", "http://127.0.0.1:8080/"])).success();
    assert_eq!(page, "hello from a workload\n");
}

fn a_port_published_on_the_loopback_is_not_reachable_from_outside(lab: &Lab) {
    lab.web_server("web", &["-p", "8080:80", "-p", "127.0.0.1:8081:80"]);
    for port in [8080, 8081] {
        let url = format!("http://{HOST}:{port}/");
        run(&mut lab.upstream().command(&["curl", "-sS", "-m", "5", &url])).exits(7);
        // Nor by a packet for 127.0.0.1 that comes in by the wire.
        let loopback = format!("http://127.0.0.1:{port}/");
        run(&mut lab.upstream().command(&["curl", "-sS", "-m", "5", &loopback])).exits(7);
    }
    let ports = run(&mut lab.lichen(["port", "ls", "-o", "json"])).success();
    assert!(ports.contains("127.0.0.1"), "the answer says where it is bound: {ports}");
}

fn a_port_published_everywhere_shows_the_clients_address(lab: &Lab) {
    let server = ["run", "-d", "--name", "who", "-p", "0.0.0.0:8082:80", "--"];
    let script = "busybox nc -ll -p 80 -e sh -c 'busybox netstat -tn | grep :80'";
    run(&mut lab.lichen_with(&[&server[..], &["sh", "-c", script]].concat())).success();
    eventually("the client's address is seen", || {
        let asked = lab.upstream().command(&["nc", "-d", "-w3", HOST, "8082"]);
        run(&mut { asked }).out.contains(&format!("{UPSTREAM}:"))
    });
}

fn with_snat_a_workload_sees_the_gateway_instead_of_the_client(lab: &Lab) {
    let server = ["run", "-d", "--name", "who", "--snat", "-p", "0.0.0.0:8085:80", "--"];
    let script = "busybox nc -ll -p 80 -e sh -c 'busybox netstat -tn | grep :80'";
    run(&mut lab.lichen_with(&[&server[..], &["sh", "-c", script]].concat())).success();
    let add = "port add --snat --host-ip 0.0.0.0 --host-port 8086 --target who --target-port 80";
    run(&mut lab.lichen_with(&add.split(' ').collect::<Vec<_>>())).success();
    for port in ["8085", "8086"] {
        let mut seen = String::new();
        eventually("the server says who asks", || {
            let asked = lab.upstream().command(&["nc", "-d", "-w3", HOST, port]);
            seen = run(&mut { asked }).out;
            seen.contains(":80 ")
        });
        assert!(seen.contains(&format!("{GATEWAY}:")), "{seen}");
        assert!(!seen.contains(UPSTREAM), "{seen}");
    }
}

fn a_half_close_goes_through_a_published_port(lab: &Lab) {
    let server = ["run", "-d", "--name", "count", "-p", "8083:7000", "--"];
    let counter = ["busybox", "nc", "-ll", "-p", "7000", "-e", "wc", "-c"];
    run(&mut lab.lichen_with(&[&server[..], &counter].concat())).success();
    let client = "seq 1 100000 | nc -N -w10 127.0.0.1 8083";
    eventually("the bytes are counted", || {
        run(&mut lab.person(&["sh", "-c", client])).out.trim() == "588895"
    });
}

/// The client does not end before it has its answer, so that nothing else wakes who waits behind the urgent byte.
fn an_urgent_byte_stays_where_it_was_and_holds_nothing_up(lab: &Lab) {
    let server = ["run", "-d", "--name", "cat", "-p", "8087:7000", "--"];
    let echo = ["busybox", "nc", "-ll", "-p", "7000", "-e", "cat"];
    run(&mut lab.lichen_with(&[&server[..], &echo].concat())).success();
    let program = lab.path("bin/lichen-lab").display().to_string();
    eventually("all that was said comes back", || {
        let asked = run(&mut lab.person(&[&program, "peer", "urgent", "127.0.0.1:8087"]));
        asked.out.trim() == "before!after"
    });
}

fn a_port_that_is_taken_or_privileged_is_explained(lab: &Lab) {
    lab.web_server("web", &["-p", "8080:80"]);
    let taken = run(&mut lab.lichen(["run", "-p", "8080:80", "--", "true"])).exits(125);
    assert!(taken.err.contains("8080"), "{}", taken.err);
    let privileged = run(&mut lab.lichen(["run", "-p", "80:80", "--", "true"])).exits(125);
    assert!(privileged.err.contains("net.ipv4.ip_unprivileged_port_start"), "{}", privileged.err);
    let foreign = run(&mut lab.lichen(["run", "-p", "8099:80", "--", "true"])).exits(125);
    assert!(foreign.err.contains("8099"), "the host's canary has it: {}", foreign.err);
}

fn a_port_can_be_published_before_its_workload_is_there(lab: &Lab) {
    let add = ["port", "add", "--host-port", "8084", "--target", "web", "--target-port", "80"];
    run(&mut lab.lichen(add)).success();
    let pending = run(&mut lab.lichen(["port", "ls"])).success();
    assert!(pending.contains("pending"), "{pending}");
    lab.web_server("web", &[]);
    let page = run(&mut lab.person(&["curl", "-sS", "http://127.0.0.1:8084/"])).success();
    assert_eq!(page, "hello from a workload\n");
    let active = run(&mut lab.lichen(["port", "ls"])).success();
    let row = active.lines().find(|line| line.contains("8084")).expect("its row");
    let columns: Vec<&str> = row.split_whitespace().collect();
    assert!(columns.ends_with(&["web", "80", "tcp", "active"]), "{active}");
    run(&mut lab.lichen(["port", "rm", "8084"])).success();
    run(&mut lab.person(&["curl", "-sS", "http://127.0.0.1:8084/"])).exits(7);
}

fn a_free_port_is_chosen_where_none_is_named(lab: &Lab) {
    lab.web_server("web", &["-p", "80", "-p", "127.0.0.1::80"]);
    let ports = run(&mut lab.lichen(["port", "ls"])).success();
    let rows: Vec<&str> = ports.lines().skip(1).collect();
    assert_eq!(rows.len(), 2, "{ports}");
    for row in rows {
        let port = row.split_whitespace().next().expect("its port");
        let page = run(&mut lab.person(&["curl", "-sS", &format!("http://127.0.0.1:{port}/")]));
        assert_eq!(page.success(), "hello from a workload\n");
    }
}
