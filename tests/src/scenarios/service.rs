//! The systemd user unit, with a systemctl that only writes down what it is told.

use std::os::unix::fs::PermissionsExt as _;

use crate::lab::{Background, Lab, Role, eventually, run};
use crate::runner::scenarios;

scenarios![
    a_service_is_installed_where_systemd_looks_and_its_unit_runs_the_daemon,
    without_systemd_the_service_says_that_it_is_not_needed,
];

/// A call of `lichen service` that finds the false systemctl.
fn service(lab: &Lab, environment: &[&str], word: &str) -> std::process::Command {
    let path = format!("PATH={}:/usr/bin:/bin", lab.path("home/bin").display());
    let program = lab.path("bin/lichen").display().to_string();
    lab.person(&[&["env", path.as_str()], environment, &[&program, "service", word]].concat())
}

fn a_service_is_installed_where_systemd_looks_and_its_unit_runs_the_daemon(lab: &Lab) {
    let script = "mkdir bin && printf '#!/bin/sh\\necho \"$*\" >>~/told\\n' >bin/systemctl && chmod 755 bin/systemctl";
    run(&mut lab.person(&["sh", "-c", script])).success();
    let elsewhere = format!("XDG_CONFIG_HOME={}", lab.path("home/elsewhere").display());
    for (environment, folder) in [(&[][..], "home/.config"), (&[&*elsewhere], "home/elsewhere")] {
        let unit = lab.path(folder).join("systemd/user/lichen.service");
        let said = run(&mut service(lab, environment, "install")).success();
        assert_eq!(said, format!("Installed {}.\n", unit.display()));
        let mode = unit.metadata().expect("the unit").permissions().mode();
        assert_eq!(mode & 0o777, 0o644, "systemd reads it, and nobody else writes it");

        let text = std::fs::read_to_string(&unit).expect("the unit");
        let program = lab.path("bin/lichen").display().to_string();
        for line in [
            &format!("ExecStart=\"{program}\" daemon --service"),
            "KillMode=process",
            "Restart=on-failure",
            "WantedBy=default.target",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in:\n{text}");
        }
        let told = std::fs::read_to_string(lab.path("home/told")).expect("systemctl was called");
        assert_eq!(told, "--user daemon-reload\n--user enable --now lichen.service\n");

        run_as_unit(lab, &text);
        run(&mut service(lab, environment, "uninstall")).success();
        assert!(!unit.exists());
        let told = std::fs::read_to_string(lab.path("home/told")).expect("systemctl was called");
        assert!(told.contains("--user disable --now lichen.service\n"), "{told}");
        std::fs::remove_file(lab.path("home/told")).expect("our file");
    }
}

/// Does what the unit says, as systemd would: starts it, and ends its main process alone.
fn run_as_unit(lab: &Lab, unit: &str) {
    let start = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).expect("a program");
    // A shell understands it as systemd does.
    let words = ["sh", "-c", &format!("exec {start}")];
    let mut daemon = Background::start(&mut lab.person(&words), &lab.path("logs"));
    eventually("the service answers", || {
        let version = run(&mut lab.lichen(["version", "-o", "json"])).success();
        let version: serde_json::Value = serde_json::from_str(&version).expect("JSON");
        version["daemon"]["service"] == true
    });
    let datapath = lab.process(Role::Datapath).expect("it runs");
    lab.process(Role::Control).expect("it runs").terminate();
    eventually("control ends", || daemon.ended().is_some());
    assert_eq!(daemon.ended(), Some(0), "{}", daemon.printed());
    assert_eq!(lab.process(Role::Datapath), Some(datapath), "it lives");
}

fn without_systemd_the_service_says_that_it_is_not_needed(lab: &Lab) {
    let program = lab.path("bin/lichen").display().to_string();
    let without = ["env", "PATH=/nowhere", &program, "service", "install"];
    let refused = run(&mut lab.person(&without));
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.err.contains("systemctl was not found"), "{}", refused.err);
}
