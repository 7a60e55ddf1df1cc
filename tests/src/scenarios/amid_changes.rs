//! Control and datapath killed while the state changes (security row A07): what was asked for is there
//! afterwards, once, and nothing else is.

mod wanted;

use std::thread;
use std::time::Duration;

use crate::lab::{Dice, Lab, Outcome, Role, eventually, run, run_within};
use crate::runner::scenarios;
use wanted::{Change, Wanted};

scenarios![two_hundred_kills_amid_changes_leave_exactly_what_was_asked_for];

const KILLS: u32 = 200;

/// Kills between two comparisons of everything.
const BETWEEN_CHECKS: u32 = 20;

/// The longest pause before a kill: a call that starts both processes takes about as long.
const PAUSE: Duration = Duration::from_millis(60);

/// What a call may take whose datapath is killed again and again.
const PATIENCE: Duration = Duration::from_secs(100);

fn two_hundred_kills_amid_changes_leave_exactly_what_was_asked_for(lab: &Lab) {
    let mut dice = Dice::new();
    let mut wanted = Wanted::default();
    let (mut kills, mut changes) = ([0, 0], 0);
    let mut checked = 0;
    while kills[0] + kills[1] < KILLS {
        let change = wanted.propose(&mut dice);
        let words = change.words();
        for _ in 0..=dice.below(2) {
            disturbed(lab, &mut dice, &words, &mut kills);
        }
        settle(lab, &change);
        wanted.apply(change);
        changes += 1;
        if kills[0] + kills[1] >= checked + BETWEEN_CHECKS {
            checked = kills[0] + kills[1];
            wanted.check(lab);
        }
    }
    wanted.check(lab);
    let [control, datapath] = kills;
    println!("   {control} kills of control and {datapath} of the datapath in {changes} changes");
    assert!(control > KILLS / 4 && datapath > KILLS / 8, "both were killed often");
}

/// Makes a call while processes are killed. It may fail, but says why.
fn disturbed(lab: &Lab, dice: &mut Dice, words: &[String], kills: &mut [u32; 2]) {
    let mut command = call(lab, words);
    let outcome = thread::scope(|scope| {
        let call = scope.spawn(move || run_within(PATIENCE, &mut command));
        for _ in 0..=dice.below(3) {
            thread::sleep(dice.pause(PAUSE));
            let (role, at) =
                dice.pick(&[(Role::Control, 0), (Role::Control, 0), (Role::Datapath, 1)]);
            kills[at] += u32::from(lab.kill_if_there(role));
        }
        call.join().expect("it ends in time")
    });
    let said = outcome.code == Some(0) || outcome.err.starts_with("lichen: ");
    assert!(said && !outcome.err.contains("panicked"), "{words:?}: {outcome:?}");
}

/// Makes the same call undisturbed; whatever the others came to, the change is made now, and saying it again
/// changes nothing.
fn settle(lab: &Lab, change: &Change) {
    let words = change.words();
    let again = || run(&mut call(lab, &words));
    match change {
        Change::Run { name, .. } => {
            if settle_run(lab, name) == Standing::Absent {
                again().success();
            }
            let refused = again().exits(125);
            assert!(refused.err.contains("exists already"), "{refused:?}");
        }
        Change::Publish { .. } => {
            // Its status may say that a datapath is only just being started.
            let row = |outcome: Outcome| {
                let said = outcome.success();
                let row = said.lines().nth(1).unwrap_or_default();
                row.split_whitespace().take(4).map(str::to_owned).collect::<Vec<_>>()
            };
            let first = row(again());
            assert_eq!(first.len(), 4, "{words:?}: {first:?}");
            assert_eq!(row(again()), first, "{words:?}");
        }
        // The command line answers as Docker's: that it is made, or gone, already.
        Change::MakeNetwork(_) => made_once(again(), again(), "already exists"),
        Change::Remove { .. } | Change::RemoveNetwork(_) => {
            made_once(again(), again(), "there is no");
        }
        Change::Withdraw(_) => made_once(again(), again(), "is not published"),
    }
}

/// The first of two equal calls may come too late, the second must.
#[track_caller]
fn made_once(first: Outcome, second: Outcome, too_late: &str) {
    let is_late = |outcome: &Outcome| outcome.code == Some(1) && outcome.err.contains(too_late);
    assert!(first.code == Some(0) || is_late(&first), "{first:?}");
    assert!(is_late(&second), "{second:?}");
}

#[derive(PartialEq)]
enum Standing {
    Absent,
    Running,
}

/// A `run` whose daemon was killed has left a workload, or none, or a name: that one is said to be there, and
/// how to take it away.
fn settle_run(lab: &Lab, name: &str) -> Standing {
    let mut standing = None;
    eventually("the workload is there or not", || {
        let list = run(&mut lab.lichen(["ps", "-o", "json"])).success();
        let list: serde_json::Value = serde_json::from_str(&list).expect("JSON");
        let row = list.as_array().and_then(|list| list.iter().find(|row| row["name"] == name));
        standing = row.map(|row| row["state"]["state"].as_str().unwrap_or_default().to_owned());
        standing.as_deref() != Some("error")
    });
    match standing.as_deref() {
        None => Standing::Absent,
        Some("running") => Standing::Running,
        Some("starting") => {
            println!("   the name of {name} was left behind");
            run(&mut lab.lichen(["rm", "-f", name])).success();
            Standing::Absent
        }
        other => panic!("{name} is {other:?}"),
    }
}

fn call(lab: &Lab, words: &[String]) -> std::process::Command {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    lab.lichen_with(&words)
}
