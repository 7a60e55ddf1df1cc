//! Nothing of the product has a privilege.

use crate::lab::{Lab, Role, run};
use crate::runner::scenarios;

scenarios![
    no_process_of_the_product_has_a_capability,
    a_workload_inherits_three_descriptors,
    another_user_cannot_reach_the_control_socket,
];

const NONE: &str = "0000000000000000";

fn no_process_of_the_product_has_a_capability(lab: &Lab) {
    lab.web_server("web", &[]);
    for role in [Role::Control, Role::Datapath] {
        let process = lab.process(role).expect("it runs");
        for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
            assert_eq!(process.status(set), NONE, "{set} of {role:?}");
        }
    }
}

fn a_workload_inherits_three_descriptors(lab: &Lab) {
    let script = "for fd in 0 1 2 3 4 5 6 7 8 9 10 11 12; do
        test -e /proc/$$/fd/$fd && echo $fd; done; true";
    assert_eq!(lab.in_workload(script), "0\n1\n2\n");
}

fn another_user_cannot_reach_the_control_socket(lab: &Lab) {
    run(&mut lab.lichen(["ps"])).success();
    let mode = |path: &str| {
        let path = lab.path(path).display().to_string();
        run(&mut lab.person(&["stat", "-c", "%a %u", &path])).success()
    };
    assert_eq!(mode("run/lichen"), "700 1000\n");
    assert_eq!(mode("run/lichen/control.sock"), "600 1000\n");
    assert_eq!(mode("home/state/lichen"), "700 1000\n");
}
