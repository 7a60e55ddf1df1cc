//! A namespace that exists: a container of rootless podman without a network.

use std::process::Command;

use crate::lab::{Background, Lab, eventually, run};
use crate::runner::scenarios;

scenarios![
    a_podman_container_is_attached_and_resolves_names,
    a_failed_attachment_leaves_nothing_and_says_what_to_do,
];

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

/// Its /etc cannot be written.
fn a_failed_attachment_leaves_nothing_and_says_what_to_do(lab: &Lab) {
    let script = "mount -t tmpfs -o ro tmpfs /etc && echo $$ && exec sleep 600";
    let words = ["unshare", "--user", "--map-root-user", "--net", "--mount", "sh", "-c", script];
    let target = Background::start(&mut lab.person(&words), &lab.path("logs"));
    eventually("the target is there", || target.printed().ends_with('\n'));
    let pid = target.printed().trim().to_owned();
    let links = || lab.host().sh(&format!("nsenter --net --target {pid} ip -o link"));

    let refused = run(&mut lab.lichen(["attach", "--pid", &pid, "--name", "db"])).exits(1);
    assert!(refused.err.contains("--no-resolv-conf"), "{}", refused.err);
    assert!(!links().contains("eth0"), "{}", links());
    assert_eq!(run(&mut lab.lichen(["ps"])).success().lines().count(), 1, "only the header");

    let words = ["attach", "--pid", &pid, "--name", "db", "--no-resolv-conf"];
    run(&mut lab.lichen(words)).success();
    assert!(links().contains("eth0"), "{}", links());
    assert!(lab.in_workload("ping -c1 -W2 db").contains("1 received"));
}
