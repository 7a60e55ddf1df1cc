//! Workloads on a terminal: a pseudo-terminal with `setsid --ctty` in front of the caller.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::fs::{Mode, OFlags};
use rustix::pty::OpenptFlags;

use crate::fixture::{json, shell, this_program};

crate::scenarios![
    a_command_on_a_terminal_reads_what_is_typed,
    ctrl_c_ends_the_command_and_the_caller_says_130,
    ctrl_z_stops_the_job_and_fg_goes_on,
    a_pipeline_shares_the_terminal,
    a_job_in_the_background_is_stopped_when_it_reads,
];

/// A terminal, a session on it, and everything that it has shown.
struct Terminal {
    keyboard: File,
    shown: Arc<Mutex<String>>,
    session: Child,
}

impl Terminal {
    fn start(words: &[String]) -> Self {
        let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        rustix::pty::grantpt(&master).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let name = rustix::pty::ptsname(&master, Vec::new()).unwrap();
        let slave = || {
            let flags = OFlags::RDWR | OFlags::NOCTTY;
            File::from(rustix::fs::open(&name, flags, Mode::empty()).unwrap())
        };
        // To whom no signal is ignored, whatever whoever started the tests ignores.
        let session = Command::new("env")
            .args(["--default-signal", "setsid", "--ctty", "--wait"])
            .args(words)
            // A dumb one, so that the shell decorates nothing.
            .env("TERM", "dumb")
            .env("PS1", "$ ")
            .stdin(slave())
            .stdout(slave())
            .stderr(slave())
            .spawn()
            .unwrap();
        let keyboard = File::from(master);
        let shown = Arc::new(Mutex::new(String::new()));
        let (mut screen, text) = (keyboard.try_clone().unwrap(), Arc::clone(&shown));
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            // EIO once the last process has closed the terminal.
            while let Ok(length) = screen.read(&mut bytes) {
                text.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..length]));
            }
        });
        Self { keyboard, shown, session }
    }

    /// A shell with job control, in which `$RUN` runs the specification in `$SPEC`.
    fn shell(script: &str) -> Self {
        let words = ["bash", "--norc", "--noprofile", "-i"].map(str::to_owned);
        let mut terminal = Self::start(&words);
        terminal.press(&format!(
            "RUN={}; SPEC='{}'\n",
            this_program().display(),
            json(&shell(script)).replace('\'', "'\\''")
        ));
        terminal
    }

    fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    #[track_caller]
    fn shows(&self, words: &str) {
        let seen = || self.shown.lock().unwrap().contains(words);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while !seen() {
            assert!(
                std::time::Instant::now() < deadline,
                "{words:?} was not shown, but:\n{}",
                self.shown.lock().unwrap()
            );
            thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Closing the keyboard hangs up; what ignores that is killed.
        let _ = self.session.kill();
        let _ = self.session.wait();
    }
}

fn run(script: &str) -> Terminal {
    let program = this_program().to_str().unwrap().to_owned();
    Terminal::start(&[program, "run".to_owned(), json(&shell(script))])
}

fn a_command_on_a_terminal_reads_what_is_typed() {
    let mut terminal = run("echo ready; read line; echo \"got <$line>\"; tty");
    terminal.shows("ready");
    terminal.press("hello\n");
    terminal.shows("got <hello>");
    terminal.shows("/dev/pts/");
}

fn ctrl_c_ends_the_command_and_the_caller_says_130() {
    let mut terminal = run("echo ready; exec sleep 60");
    terminal.shows("ready");
    terminal.press("\x03");
    assert_eq!(terminal.session.wait().unwrap().code(), Some(130));
}

fn ctrl_z_stops_the_job_and_fg_goes_on() {
    let mut terminal = Terminal::shell("echo begun; read line; echo \"got <$line>\"");
    terminal.press("$RUN run \"$SPEC\"; echo code $?.\n");
    terminal.shows("\nbegun");
    terminal.press("\x1a");
    terminal.shows("Stopped");
    terminal.press("echo the-shell-has-the-$((6 * 7))\n");
    terminal.shows("the-shell-has-the-42");
    terminal.press("fg\n");
    thread::sleep(std::time::Duration::from_millis(200));
    terminal.press("after\n");
    terminal.shows("got <after>");
    terminal.press("echo again-$((6 * 7))\n");
    terminal.shows("again-42");
}

fn a_pipeline_shares_the_terminal() {
    let mut terminal = Terminal::shell("echo piped; sleep 60");
    terminal.press("$RUN run \"$SPEC\" | cat; echo codes ${PIPESTATUS[*]}.\n");
    terminal.shows("\npiped");
    terminal.press("\x03");
    // The terminal gives INT to everybody in the pipeline: COMMAND once, and not again through us.
    terminal.press("echo over-$((6 * 7))\n");
    terminal.shows("over-42");
}

fn a_job_in_the_background_is_stopped_when_it_reads() {
    let mut terminal = Terminal::shell("read line; echo \"got <$line>\"");
    terminal.press("$RUN run \"$SPEC\" &\n");
    thread::sleep(std::time::Duration::from_millis(500));
    terminal.press("\n");
    terminal.shows("Stopped");
    terminal.press("fg\n");
    thread::sleep(std::time::Duration::from_millis(200));
    terminal.press("typed\n");
    terminal.shows("got <typed>");
}
