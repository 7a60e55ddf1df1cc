//! `launch`, `release`, `wait`.

use std::os::unix::net::UnixListener;
use std::{fs, thread, time::Duration};

use lichen_workload::{LaunchSpec, UserMapping, launch};
use rustix::process::{Pid, Signal, kill_process};

use crate::fixture::{
    Folder, around, caller, command, eventually, is_alive, printed_by, run, shell, text, written,
};

crate::scenarios![
    a_workload_reads_our_resolver_hosts_and_nsswitch,
    a_resolv_conf_in_a_hidden_directory_is_made_anew_there,
    a_workload_has_its_own_host_name_and_processes,
    the_caller_is_root_inside_or_keeps_its_id,
    only_the_loopback_is_there_and_it_is_up,
    small_ports_and_ping_need_no_capability,
    a_hidden_directory_is_empty_and_its_root_cannot_unmount_it,
    a_caller_in_a_hidden_directory_leaves_it,
    only_three_descriptors_are_inherited,
    resource_limits_are_the_callers,
    the_exit_code_is_the_commands,
    a_missing_program_is_127_and_an_unexecutable_one_126,
    an_empty_command_is_refused,
    signals_to_the_caller_reach_the_command,
    orphans_are_reaped_and_end_with_the_command,
    a_caller_that_is_killed_hangs_up_on_its_command,
    a_detached_workload_outlives_its_caller_and_appends_to_its_log,
    a_detached_command_that_cannot_start_is_an_error,
    a_workload_that_is_never_released_vanishes,
    a_machine_without_user_namespaces_is_told_the_remedy,
];

fn a_workload_reads_our_resolver_hosts_and_nsswitch() {
    let printed = printed_by("cat /etc/resolv.conf /etc/hosts; grep hosts: /etc/nsswitch.conf");
    assert_eq!(
        printed,
        "nameserver 10.88.0.1\nsearch bridge.internal\n\
         127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n\
         10.88.0.2 web.bridge.internal web\nhosts: files dns\n"
    );
}

/// As systemd-resolved leaves it: the file that /etc/resolv.conf links to lies in what is hidden.
fn a_resolv_conf_in_a_hidden_directory_is_made_anew_there() {
    let host = "set -e
        mount -t tmpfs tmpfs /run; mkdir -p /run/systemd/resolve
        echo nameserver 127.0.0.53 >/run/systemd/resolve/stub-resolv.conf
        : >/run/systemd/resolve/io.systemd.Resolve
        mount -t tmpfs tmpfs /etc; echo '127.0.0.1 localhost' >/etc/hosts
        ln -s ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf
        exec \"$0\" run \"$1\"";
    let spec = shell("cat /etc/resolv.conf; ls /run/systemd/resolve");

    let output = around(&["unshare", "-Urm"], host, &spec);

    assert_eq!(text(&output.stderr), "");
    assert_eq!(
        text(&output.stdout),
        "nameserver 10.88.0.1\nsearch bridge.internal\nstub-resolv.conf\n"
    );
}

fn a_workload_has_its_own_host_name_and_processes() {
    assert_eq!(printed_by("uname -n; cat /proc/1/comm"), "web\nlichen-init\n");
}

fn the_caller_is_root_inside_or_keeps_its_id() {
    assert_eq!(printed_by("id -u; id -g"), "0\n0\n");
    let kept = run(&LaunchSpec { user: UserMapping::Keep, ..shell("id -u; id -g") });
    assert_eq!(text(&kept.stdout), "1000\n1000\n");
}

fn only_the_loopback_is_there_and_it_is_up() {
    assert_eq!(printed_by("ls /sys/class/net; ip -o -4 addr show up | cut -d' ' -f2"), "lo\nlo\n");
}

fn small_ports_and_ping_need_no_capability() {
    let script = "cd /proc/sys/net/ipv4; cat ip_unprivileged_port_start ping_group_range
        ping -c1 -W2 127.0.0.1 >/dev/null && echo answered";
    assert_eq!(printed_by(script), "0\n0\t0\nanswered\n");
    let kept = run(&LaunchSpec { user: UserMapping::Keep, ..shell(script) });
    assert_eq!(text(&kept.stdout), "0\n1000\t1000\nanswered\n");
}

fn a_hidden_directory_is_empty_and_its_root_cannot_unmount_it() {
    let folder = Folder::new();
    let runtime = folder.path("runtime");
    fs::create_dir(&runtime).unwrap();
    let _socket = UnixListener::bind(runtime.join("control.sock")).unwrap();
    let script = format!(
        "ls -A {0}; umount {0} 2>/dev/null || echo locked; umount -l {0} 2>/dev/null || echo locked
         umount /etc/resolv.conf 2>/dev/null || echo locked; ls -A {0}",
        runtime.display()
    );

    let output = run(&LaunchSpec { hide: vec![runtime.clone()], ..shell(&script) });

    assert_eq!(text(&output.stdout), "locked\nlocked\nlocked\n");
    assert!(runtime.join("control.sock").exists(), "hidden inside only");
}

fn a_caller_in_a_hidden_directory_leaves_it() {
    let folder = Folder::new();
    let runtime = folder.path("runtime");
    fs::create_dir(&runtime).unwrap();
    fs::write(runtime.join("control.sock"), "").unwrap();
    let spec = LaunchSpec { hide: vec![runtime.clone()], ..shell("ls -A . ; pwd") };

    let output = caller(&spec).current_dir(&runtime).output().unwrap();

    assert_eq!(text(&output.stdout), format!("{}\n", runtime.display()));
}

fn only_three_descriptors_are_inherited() {
    let script = "exec 7</etc/passwd 9</etc/group; exec \"$0\" run \"$1\"";
    // The shell's own list: `ls` would show the descriptor that it reads the directory with.
    let spec = shell(
        "for fd in 0 1 2 3 4 5 6 7 8 9 10 11; do test -e /proc/$$/fd/$fd && echo $fd; done; true",
    );
    let output = around(&["env"], script, &spec);
    assert_eq!(text(&output.stdout), "0\n1\n2\n");
}

fn resource_limits_are_the_callers() {
    let script = "ulimit -Sn 77; ulimit -Hn 99; exec \"$0\" run \"$1\"";
    let output = around(&["env"], script, &shell("ulimit -Sn; ulimit -Hn"));
    assert_eq!(text(&output.stdout), "77\n99\n");
}

fn the_exit_code_is_the_commands() {
    assert_eq!(run(&shell("exit 7")).status.code(), Some(7));
    assert_eq!(run(&shell("kill -KILL $$")).status.code(), Some(128 + 9));
    assert_eq!(run(&shell("true")).status.code(), Some(0));
}

fn a_missing_program_is_127_and_an_unexecutable_one_126() {
    let missing = run(&command(&["no-such-program"]));
    assert_eq!(missing.status.code(), Some(127));
    assert!(text(&missing.stderr).contains("lichen: no-such-program: No such file"));
    let unexecutable = run(&command(&["/etc/passwd"]));
    assert_eq!(unexecutable.status.code(), Some(126));
    assert!(text(&unexecutable.stderr).contains("/etc/passwd: Permission denied"));
}

fn an_empty_command_is_refused() {
    let output = run(&command(&[]));
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("write it after --"));
}

fn signals_to_the_caller_reach_the_command() {
    for (signal, number) in [(Signal::TERM, 15), (Signal::HUP, 1), (Signal::INT, 2)] {
        let folder = Folder::new();
        let ready = folder.path("ready");
        let script = format!(
            "trap 'exit {}' TERM HUP INT; echo > {}; while :; do sleep 0.01; done",
            40 + number,
            ready.display()
        );
        let mut caller = caller(&shell(&script)).spawn().unwrap();
        written(&ready);

        kill_process(Pid::from_child(&caller), signal).unwrap();

        assert_eq!(caller.wait().unwrap().code(), Some(40 + number), "{signal:?}");
    }
}

fn orphans_are_reaped_and_end_with_the_command() {
    let folder = Folder::new();
    let survivor = folder.path("survivor");
    let printed = printed_by(&format!(
        "(sh -c 'sleep 0.1' &); sleep 0.4; cat /proc/[0-9]*/stat | grep -c ') Z'
         (sh -c 'sleep 0.3; echo > {}' &); true",
        survivor.display()
    ));
    assert_eq!(printed, "0\n", "no zombies");
    thread::sleep(Duration::from_millis(600));
    assert!(!survivor.exists(), "nothing outlives COMMAND");
}

fn a_caller_that_is_killed_hangs_up_on_its_command() {
    let folder = Folder::new();
    let (ready, hung_up) = (folder.path("ready"), folder.path("hung-up"));
    let script = format!(
        "trap 'echo > {}; exit' HUP; echo > {}; while :; do sleep 0.01; done",
        hung_up.display(),
        ready.display()
    );
    let mut caller = caller(&shell(&script)).spawn().unwrap();
    written(&ready);

    caller.kill().unwrap();
    caller.wait().unwrap();

    written(&hung_up);
}

fn a_detached_workload_outlives_its_caller_and_appends_to_its_log() {
    let folder = Folder::new();
    let (log, pid_file) = (folder.path("logs/web.log"), folder.path("pid"));
    fs::create_dir(folder.path("logs")).unwrap();
    fs::write(&log, "earlier\n").unwrap();
    let script = "sleep 0.2; cat; echo out; echo error >&2; cut -d' ' -f6 /proc/$$/stat; sleep 60";
    let spec = LaunchSpec { log: Some(log.clone()), ..shell(script) };

    let status = caller(&spec).env("PID_FILE", &pid_file).status().unwrap();

    assert_eq!(status.code(), Some(0), "it does not wait");
    let pid: i32 = fs::read_to_string(pid_file).unwrap().parse().unwrap();
    eventually(|| fs::read_to_string(&log).unwrap().lines().count() == 4);
    // Its session is one of its own, led by its PID 1.
    assert_eq!(fs::read_to_string(&log).unwrap(), "earlier\nout\nerror\n1\n");
    assert!(is_alive(pid));
    kill_process(Pid::from_raw(pid).unwrap(), Signal::TERM).unwrap();
    eventually(|| !is_alive(pid));
}

fn a_detached_command_that_cannot_start_is_an_error() {
    let folder = Folder::new();
    let spec = LaunchSpec { log: Some(folder.path("log")), ..command(&["no-such-program"]) };
    let output = run(&spec);
    assert_eq!(output.status.code(), Some(127));
    assert!(text(&output.stderr).contains("no-such-program: No such file"));
}

fn a_workload_that_is_never_released_vanishes() {
    let folder = Folder::new();
    let started = folder.path("started");
    let launched = launch(&shell(&format!("echo > {}", started.display()))).unwrap();
    let pid = launched.pid();
    assert!(is_alive(pid));

    drop(launched);

    assert!(!is_alive(pid));
    assert!(!started.exists(), "the gate was closed");
}

fn a_machine_without_user_namespaces_is_told_the_remedy() {
    // The limit also exists per user namespace, where its root may set it.
    let script = "echo 0 > /proc/sys/user/max_user_namespaces; exec \"$0\" run \"$1\"";
    let output = around(&["unshare", "-Ur"], script, &shell("true"));
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("sysctl -w user.max_user_namespaces=15000"));
}
