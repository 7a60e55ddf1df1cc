//! What a command of the lab came to.

use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// A command that has ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// `None` after a signal.
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
    pub(crate) took: Duration,
    words: String,
}

/// Runs a command to its end; one that takes a minute has failed.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> Outcome {
    run_within(Duration::from_secs(60), command)
}

#[track_caller]
pub(crate) fn run_within(limit: Duration, command: &mut Command) -> Outcome {
    try_within(limit, command).unwrap_or_else(|error| panic!("{error}"))
}

/// The same for whom a command that does not end is no failure; the error says so.
pub(crate) fn try_within(limit: Duration, command: &mut Command) -> Result<Outcome, String> {
    let words = format!("{command:?}");
    let started = Instant::now();
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{words}: {error}"))?;
    // Whatever holds the output open past the limit lives in a machine and ends with the lab.
    let (sender, receiver) = std::sync::mpsc::channel();
    thread::spawn(move || sender.send(child.wait_with_output()));
    let output = receiver
        .recv_timeout(limit)
        .map_err(|_| format!("{words}: not over after {limit:?}"))?
        .map_err(|error| format!("{words}: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Outcome {
        code: output.status.code(),
        out: text(&output.stdout),
        err: text(&output.stderr),
        took: started.elapsed(),
        words,
    })
}

impl Outcome {
    /// What it printed; it must have succeeded.
    #[track_caller]
    pub(crate) fn success(self) -> String {
        self.exits(0).out
    }

    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Self {
        let Self { out, err, words, .. } = &self;
        assert_eq!(self.code, Some(code), "{words}\nstdout: {out}\nstderr: {err}");
        self
    }
}

/// Waits for something to come true, at most ten seconds.
#[track_caller]
pub(crate) fn eventually(what: &str, condition: impl FnMut() -> bool) {
    assert!(comes_true(condition), "not within ten seconds: {what}");
}

/// Whether something comes true within ten seconds.
pub(crate) fn comes_true(condition: impl FnMut() -> bool) -> bool {
    within(10, condition)
}

/// Whether something comes true within so many seconds.
pub(crate) fn within(seconds: u64, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while !condition() {
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(20));
    }
    true
}
