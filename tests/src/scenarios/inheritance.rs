//! What the product's processes hold open, and what they pass on (security row H08).

use std::os::unix::fs::PermissionsExt as _;

use crate::lab::{Background, Lab, Process, Role, run};
use crate::runner::scenarios;

scenarios![
    no_process_holds_a_file_of_the_caller_or_of_another_role,
    the_netns_helper_holds_its_channel_and_the_namespaces_it_enters,
    a_monitor_is_given_the_callers_descriptors_and_none_of_ours,
];

/// Makes a call that leaves a file of its own open.
fn holding_a_file(lab: &Lab, words: &[&str]) -> std::process::Command {
    let program = lab.path("bin/lichen").display().to_string();
    let caller = ["sh", "-c", "exec 9>held; exec \"$@\"", "sh", &program];
    lab.person(&[&caller[..], words].concat())
}

/// Every open file must be one of the named; a name that ends in `*` stands for all that begin so.
#[track_caller]
fn holds_only(lab: &Lab, process: Process, named: &[&str]) {
    let state = lab.path("home/state/lichen").display().to_string();
    let runtime = lab.path("run/lichen").display().to_string();
    let files = process.files();
    for (number, file) in &files {
        let file = file.replace(&state, "STATE").replace(&runtime, "RUNTIME");
        let is_named = named.iter().any(|name| match name.strip_suffix('*') {
            Some(beginning) => file.starts_with(beginning),
            None => file == *name,
        });
        assert!(is_named, "{number} is {file}, of {files:#?}");
    }
}

fn no_process_holds_a_file_of_the_caller_or_of_another_role(lab: &Lab) {
    let words = ["run", "-d", "--name", "web", "-p", "8080:80", "--", "sleep", "600"];
    run(&mut holding_a_file(lab, &words)).success();
    run(&mut holding_a_file(lab, &["vm", "add", "db"])).success();

    let own = ["/dev/null", "anon_inode:[eventpoll]", "anon_inode:[eventfd]", "socket:*"];
    let datapath = lab.process(Role::Datapath).expect("it runs");
    let of_datapath = ["STATE/datapath.log", "/dev/net/tun", "anon_inode:[timerfd]"];
    holds_only(lab, datapath, &[&own[..], &of_datapath].concat());
    let control = lab.process(Role::Control).expect("it runs");
    let of_control = ["STATE/daemon.log", "STATE/lichen.db*", "RUNTIME/control.lock"];
    let watching = ["anon_inode:[pidfd]", "anon_inode:inotify", "pidfd:*"];
    holds_only(lab, control, &[&own[..], &of_control, &watching].concat());

    let init = lab.named("lichen-init");
    assert_eq!(init.len(), 1, "one workload runs");
    holds_only(lab, init[0], &["/dev/null", "STATE/logs/web.log", "pipe:*"]);
    let command = init[0].only_child().expect("the command runs");
    holds_only(lab, command, &["/dev/null", "STATE/logs/web.log"]);
    let numbers: Vec<u32> = command.files().into_iter().map(|(number, _)| number).collect();
    assert_eq!(numbers, [0, 1, 2]);

    // In the foreground too.
    let list = "for fd in 0 1 2 3 4 5 6 7 8 9 10 11 12; do test -e /proc/$$/fd/$fd && echo $fd; done; true";
    let words = ["run", "--", "sh", "-c", list];
    assert_eq!(run(&mut holding_a_file(lab, &words)).success(), "0\n1\n2\n");
}

/// It lives for some milliseconds, so it is looked for again and again while workloads come and go.
fn the_netns_helper_holds_its_channel_and_the_namespaces_it_enters(lab: &Lab) {
    let mut seen = 0;
    for _ in 0..200 {
        let words = ["run", "--", "true"];
        let mut call = Background::start(&mut holding_a_file(lab, &words), &lab.path("logs"));
        while call.ended().is_none() {
            for helper in lab.in_role("netns-helper") {
                let files = helper.files_while_it_lives();
                seen += u32::from(!files.is_empty());
                for (number, file) in files {
                    let named = ["/", "/dev/null", "/dev/net/tun"].contains(&file.as_str());
                    let of_kernel = ["socket:", "anon_inode:", "net:", "user:", "mnt:", "/proc/"];
                    // The loader, before the program itself runs.
                    let of_loader = ["/lib", "/usr/lib", "/etc/ld.so."];
                    let is_named = named
                        || of_kernel.iter().chain(&of_loader).any(|name| file.starts_with(name));
                    assert!(is_named || file.ends_with("/daemon.log"), "{number} is {file}");
                }
            }
        }
        assert_eq!(call.ended(), Some(0), "{}", call.printed());
        if seen >= 3 {
            return;
        }
    }
    panic!("seen {seen} times only");
}

/// QEMU takes this process' place, and a caller may pass descriptors to it.
fn a_monitor_is_given_the_callers_descriptors_and_none_of_ours(lab: &Lab) {
    let monitor = lab.path("bin/qemu-system-x86_64");
    let script = "#!/bin/sh\nif [ \"$1\" = --version ]; then echo QEMU emulator version 9.0.0; exit; fi\n\
                  exec ls -l /proc/self/fd\n";
    std::fs::write(&monitor, script).expect("the lab's folder");
    std::fs::set_permissions(&monitor, std::fs::Permissions::from_mode(0o755)).expect("our file");
    let monitor = monitor.display().to_string();
    let numbers = |said: String| -> Vec<String> {
        let before_arrow =
            |line: &str| Some(line.split_once(" -> ")?.0.rsplit(' ').next()?.to_owned());
        said.lines().filter_map(before_arrow).collect()
    };
    let by_itself = lab.person(&["sh", "-c", "exec 9>held; exec \"$@\"", "sh", &monitor]);
    let by_itself = numbers(run(&mut { by_itself }).success());
    assert!(by_itself.contains(&"9".to_owned()), "{by_itself:?}");

    let words = ["vm", "run", "db", "--", &monitor, "-m", "64"];
    assert_eq!(numbers(run(&mut holding_a_file(lab, &words)).success()), by_itself);
}
