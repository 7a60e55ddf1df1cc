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
    let words = format!("{command:?}");
    let started = Instant::now();
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{words}: {error}"));
    // Whatever holds the output open past the limit lives in a machine and ends with the lab.
    let (sender, receiver) = std::sync::mpsc::channel();
    thread::spawn(move || sender.send(child.wait_with_output()));
    let output = receiver
        .recv_timeout(limit)
        .unwrap_or_else(|_| panic!("{words}: not over after {limit:?}"))
        .unwrap_or_else(|error| panic!("{words}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Outcome {
        code: output.status.code(),
        out: text(&output.stdout),
        err: text(&output.stderr),
        took: started.elapsed(),
        words,
    }
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
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "not within ten seconds: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}
