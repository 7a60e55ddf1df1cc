//! What we do for a receiver without offload is what Linux does.

use crate::lab::Lab;
use crate::runner::scenarios;

scenarios![our_segments_and_checksums_are_those_of_linux];

fn our_segments_and_checksums_are_those_of_linux(lab: &Lab) {
    let program = lab.path("bin/lichen-lab").display().to_string();
    let compared = lab.host().sh(&format!("unshare --net timeout 20 {program} peer offload"));
    assert!(compared.ends_with("pieces are equal\n"), "{compared}");
}
