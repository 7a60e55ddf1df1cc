//! Real DHCP clients in a workload's namespace; a workload's address is static otherwise.

use std::os::unix::fs::PermissionsExt as _;

use crate::lab::{Background, Lab, Role, eventually, run};
use crate::runner::scenarios;

scenarios![
    dhclient_is_given_the_address_that_the_workload_has,
    udhcpc_is_given_the_address_that_the_workload_has_while_control_is_dead,
    dhclient_is_given_the_ipv6_address_that_the_workload_has,
];

/// A script for a client that prints what it was given.
fn script(lab: &Lab, name: &str, line: &str) -> String {
    let path = lab.path(&format!("home/{name}"));
    std::fs::write(&path, format!("#!/bin/sh\necho \"{line}\"\n")).expect("the lab's folder");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("our file");
    path.display().to_string()
}

fn dhclient_is_given_the_address_that_the_workload_has(lab: &Lab) {
    let told = "$reason ip=$new_ip_address mask=$new_subnet_mask router=$new_routers \
                dns=$new_domain_name_servers mtu=$new_interface_mtu host=$new_host_name";
    let script = script(lab, "told", told);
    let said = lab.in_workload(&format!(
        "ip address flush dev eth0
         dhclient -4 -1 -d -sf {script} -lf /tmp/leases-$$ -pf /tmp/pid-$$ eth0 2>/dev/null & sleep 4; kill $!
         rm -f /tmp/leases-$$ /tmp/pid-$$"
    ));
    let bound = said.lines().find(|line| line.starts_with("BOUND ")).unwrap_or_default();
    assert!(bound.contains("ip=10.88.0.2 mask=255.255.0.0 router=10.88.0.1"), "{said}");
    assert!(bound.contains("dns=10.88.0.1 mtu=1500"), "{said}");
}

fn dhclient_is_given_the_ipv6_address_that_the_workload_has(lab: &Lab) {
    let told = "$reason ip6=$new_ip6_address dns=$new_dhcp6_name_servers \
                search=$new_dhcp6_domain_search";
    let script = script(lab, "told", told);
    let said = lab.in_workload(&format!(
        "ip -6 address show dev eth0 scope global
         dhclient -6 -1 -d -sf {script} -lf /tmp/leases-$$ -pf /tmp/pid-$$ eth0 2>/dev/null & sleep 5; kill $!
         rm -f /tmp/leases-$$ /tmp/pid-$$"
    ));
    let own = said.split_whitespace().find(|word| word.starts_with("fd")).expect("an address");
    let own = own.split('/').next().expect("before its length");
    let bound = said.lines().find(|line| line.starts_with("BOUND6 ")).unwrap_or_default();
    let router = own.replace("::2", "::1");
    assert!(bound.contains(&format!("ip6={own} dns={router}")), "{said}");
    assert!(bound.contains("search=bridge.internal"), "{said}");
}

fn udhcpc_is_given_the_address_that_the_workload_has_while_control_is_dead(lab: &Lab) {
    let script = script(lab, "told", "$1 ip=$ip mask=$mask router=$router dns=$dns search=$search");
    let client = format!(
        "sleep 2; ip address flush dev eth0
         busybox udhcpc -i eth0 -n -q -t 5 -T 1 -O search -s {script} 2>&1"
    );
    let words = ["run", "--name", "client", "--", "sh", "-c", &client];
    let mut call = Background::start(&mut lab.lichen(words), &lab.path("logs"));
    eventually("the client is there", || {
        run(&mut lab.lichen(["ps"])).success().contains("running")
    });
    lab.process(Role::Control).expect("control").kill();
    eventually("the client is done", || call.ended().is_some());
    let said = call.printed();
    assert!(said.contains("bound ip=10.88.0.2 mask=16 router=10.88.0.1"), "{said}");
    assert!(said.contains("search=bridge.internal"), "{said}");
}
