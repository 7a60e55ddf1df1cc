//! A namespace that exists: a container of rootless podman without a network.

use std::process::Command;

use crate::lab::{Lab, eventually, run};
use crate::runner::scenarios;

scenarios![a_podman_container_is_attached_and_resolves_names];

/// An image from nothing but busybox.
fn image(lab: &Lab) -> String {
    let root = lab.path("image");
    let make = format!(
        "mkdir -p {0}/bin {0}/etc {0}/proc {0}/sys {0}/dev {0}/tmp && cp /bin/busybox {0}/bin/
         for applet in sh sleep ping nslookup wget cat; do ln -s busybox {0}/bin/$applet; done
         tar --owner=0 --group=0 -C {0} -cf {0}.tar . && chmod 644 {0}.tar",
        root.display()
    );
    run(Command::new("sh").args(["-c", &make])).success();
    format!("{}.tar", root.display())
}

fn podman(lab: &Lab, words: &[&str]) -> Command {
    let options = ["podman", "--storage-driver=vfs", "--runtime=crun", "--cgroup-manager=cgroupfs"];
    lab.person(&[&options[..], words].concat())
}

fn a_podman_container_is_attached_and_resolves_names(lab: &Lab) {
    lab.web_server("web", &[]);
    let image = image(lab);
    run(&mut podman(lab, &["import", &image, "box"])).success();
    let start = ["run", "-d", "--name", "db", "--network", "none", "box", "sleep", "600"];
    run(&mut podman(lab, &start)).success();
    let pid = run(&mut podman(lab, &["inspect", "-f", "{{.State.Pid}}", "db"])).success();

    run(&mut lab.lichen(["attach", "--pid", pid.trim(), "--name", "db"])).success();

    let in_container = |script: &str| run(&mut podman(lab, &["exec", "db", "sh", "-c", script]));
    let page = in_container("wget -qO- http://web.bridge.internal/").success();
    assert_eq!(page, "hello from a workload\n");
    let resolver = in_container("cat /etc/resolv.conf").success();
    assert!(resolver.starts_with("nameserver 10.88.0.1\n"), "{resolver}");
    let pinged = lab.in_workload("ping -c1 -W2 db");
    assert!(pinged.contains("1 received"), "{pinged}");

    run(&mut podman(lab, &["kill", "db"])).success();
    eventually("the attachment is gone", || {
        !run(&mut lab.lichen(["ps"])).success().lines().any(|line| line.contains(" db "))
    });
}
