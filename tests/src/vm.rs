//! Virtual machines with a real kernel, in QEMU without acceleration, and the line to the agent in them.
//!
//! A guest runs commands that come over its serial line and answers with exit code and output, so a scenario speaks
//! with it as with any other machine.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lichen_guest::Image;

use crate::lab::{Background, Lab, eventually};

/// How long a guest may take to boot, and a command in it to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// The image that is kept beside this program; made when it is not there.
pub(crate) fn keep_image() -> Result<Image, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    // target/guest, beside target/release.
    let target = program.ancestors().nth(2).ok_or("this program lies in no target/release")?;
    Image::build(&target.join("guest"))
}

/// A guest that has booted. Dropping it ends its monitor.
pub(crate) struct Guest {
    monitor: Background,
    agent: BufReader<UnixStream>,
    sent: u32,
}

impl Guest {
    /// Starts a guest as a virtual machine of that name, and waits until it takes commands.
    #[track_caller]
    pub(crate) fn start(lab: &Lab, name: &str, options: &[&str]) -> Self {
        Self::start_with(lab, name, options, &[])
    }

    /// The same with these words for QEMU on top.
    #[track_caller]
    pub(crate) fn start_with(lab: &Lab, name: &str, options: &[&str], more: &[&str]) -> Self {
        let agent = lab.path(&format!("run/{name}.agent"));
        let words = lab.guest_image().boot(&agent);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let all = [&["vm", "run", name], options, &["--"], &words, more].concat();
        let monitor = Background::start(&mut lab.lichen_with(&all), &lab.path("logs"));
        Self::connect(monitor, &agent)
    }

    /// Starts one that goes on where a guest was that has been migrated to this file.
    #[track_caller]
    pub(crate) fn go_on(lab: &Lab, name: &str, migrated: &Path, more: &[&str]) -> Self {
        let agent = lab.path(&format!("run/{name}.agent"));
        let words = lab.guest_image().boot(&agent);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let incoming = format!("exec:cat {}", migrated.display());
        let all =
            [&["vm", "run", name, "--"], &words[..], &["-incoming", &incoming], more].concat();
        let monitor = Background::start(&mut lab.lichen_with(&all), &lab.path("logs"));
        Self::on_line(monitor, &agent)
    }

    /// Starts a guest with these words for QEMU on top, without the product's help.
    #[track_caller]
    pub(crate) fn start_by_hand(lab: &Lab, name: &str, words: &[&str]) -> Self {
        Self::start_by_runtime(lab, name, &[], words)
    }

    /// The same by a program that becomes QEMU.
    #[track_caller]
    pub(crate) fn start_by_runtime(
        lab: &Lab,
        name: &str,
        runtime: &[String],
        words: &[&str],
    ) -> Self {
        let agent = lab.path(&format!("run/{name}.agent"));
        let own = [runtime, &lab.guest_image().boot(&agent)].concat();
        let all: Vec<&str> = own.iter().map(String::as_str).chain(words.iter().copied()).collect();
        let monitor = Background::start(&mut lab.person(&all), &lab.path("logs"));
        Self::connect(monitor, &agent)
    }

    #[track_caller]
    fn connect(monitor: Background, agent: &Path) -> Self {
        let mut guest = Self::on_line(monitor, agent);
        guest.wait_until_ready();
        guest
    }

    #[track_caller]
    fn on_line(mut monitor: Background, agent: &Path) -> Self {
        let mut line = None;
        eventually("the guest's serial line", || {
            assert_eq!(monitor.ended(), None, "{}", monitor.printed());
            line = UnixStream::connect(agent).ok();
            line.is_some()
        });
        let line = line.expect("it was waited for");
        line.set_read_timeout(Some(PATIENCE)).expect("a time-out above zero");
        Self { monitor, agent: BufReader::new(line), sent: 0 }
    }

    /// Waits for the agent's greeting, as after a reboot.
    #[track_caller]
    pub(crate) fn wait_until_ready(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.line().trim_end() != "ready" {
            assert!(Instant::now() < deadline, "the guest does not boot");
        }
    }

    /// What a shell script prints in the guest; it must succeed.
    #[track_caller]
    pub(crate) fn sh(&mut self, script: &str) -> String {
        let (code, out) = self.run(script);
        assert_eq!(code, 0, "{script}\n{out}");
        out
    }

    /// Exit code and output of a shell script in the guest.
    #[track_caller]
    pub(crate) fn run(&mut self, script: &str) -> (i32, String) {
        self.begin(script);
        self.finish()
    }

    /// Starts a shell script in the guest.
    #[track_caller]
    pub(crate) fn begin(&mut self, script: &str) {
        self.sent += 1;
        let line = format!("{} {}\n", self.sent, base64(&["-w0"], script.as_bytes()));
        self.agent.get_mut().write_all(line.as_bytes()).expect("the guest runs");
    }

    /// Waits for the script that was started.
    #[track_caller]
    pub(crate) fn finish(&mut self) -> (i32, String) {
        let number = self.sent.to_string();
        loop {
            let line = self.line();
            let mut words = line.split_whitespace();
            if words.next() == Some(&number) {
                let code = words.next().and_then(|word| word.parse().ok()).expect("an exit code");
                let output = base64(&["-d"], words.next().unwrap_or_default().as_bytes());
                return (code, output);
            }
        }
    }

    /// Whether the monitor runs.
    pub(crate) fn runs(&mut self) -> bool {
        self.monitor.ended().is_none()
    }

    #[track_caller]
    fn line(&mut self) -> String {
        let mut line = String::new();
        if let Err(error) = self.agent.read_line(&mut line) {
            panic!("the guest is silent ({error}): {}", self.monitor.printed());
        }
        assert!(!line.is_empty(), "the guest is gone: {}", self.monitor.printed());
        line
    }
}

fn base64(options: &[&str], input: &[u8]) -> String {
    let mut child = Command::new("base64")
        .args(options)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("base64 of coreutils");
    let mut pipe = child.stdin.take().expect("it was asked for");
    let input = input.to_vec();
    let writer = std::thread::spawn(move || pipe.write_all(&input));
    let mut output = Vec::new();
    let mut result = child.stdout.take().expect("it was asked for");
    result.read_to_end(&mut output).expect("a readable pipe");
    writer.join().expect("it does not panic").expect("base64 reads");
    let _ = child.wait();
    String::from_utf8_lossy(&output).into_owned()
}
