//! Set-up that scenarios share: a folder, a specification, the caller's process, waiting.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{fs, thread};

use lichen_workload::{LaunchSpec, NetnsTarget, TapRequest, UserMapping};

/// A folder of one scenario, removed at its end.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("lichen-scenario-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir(&folder).unwrap();
        Self(folder)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The workload `web` running a shell script.
pub(crate) fn shell(script: &str) -> LaunchSpec {
    command(&["sh", "-c", script])
}

pub(crate) fn command(words: &[&str]) -> LaunchSpec {
    LaunchSpec {
        name: "web".to_owned(),
        search: "bridge.internal".to_owned(),
        address: Ipv4Addr::new(10, 88, 0, 2),
        address6: None,
        resolver: Ipv4Addr::new(10, 88, 0, 1),
        user: UserMapping::Root,
        command: words.iter().map(Into::into).collect(),
        hide: Vec::new(),
        log: None,
    }
}

/// A tap `eth0` in the namespaces of a process.
pub(crate) fn tap_request(pid: i32) -> TapRequest {
    TapRequest {
        target: NetnsTarget::Process { pid, start_time: None },
        interface: "eth0".to_owned(),
        mac: [2, 0, 0, 0, 0, 2],
        address: Ipv4Addr::new(10, 88, 0, 2),
        prefix_len: 16,
        gateway: Some(Ipv4Addr::new(10, 88, 0, 1)),
        address6: None,
        mtu: 1500,
        queues: 1,
        resolv_conf: None,
    }
}

pub(crate) fn this_program() -> PathBuf {
    std::env::current_exe().unwrap()
}

/// The command of a caller that runs the specification, to whom no signal is ignored: whoever started the
/// tests may have ignored some (nohup(1)), and that is passed on.
pub(crate) fn caller(spec: &LaunchSpec) -> Command {
    let mut command = Command::new("env");
    command.arg("--default-signal").arg(this_program()).arg("run").arg(json(spec));
    command
}

/// Runs a specification to its end.
pub(crate) fn run(spec: &LaunchSpec) -> Output {
    caller(spec).output().unwrap()
}

/// Runs a shell script to its end and answers what it printed.
pub(crate) fn printed_by(script: &str) -> String {
    let output = run(&shell(script));
    assert_eq!(text(&output.stderr), "", "a quiet workload");
    text(&output.stdout)
}

/// Runs a script of a caller's shell in which `$0` is this program, `$1` the specification.
pub(crate) fn around(prefix: &[&str], script: &str, spec: &impl serde::Serialize) -> Output {
    let words = [prefix, &["sh", "-c", script]].concat();
    Command::new(words[0]).args(&words[1..]).arg(this_program()).arg(json(spec)).output().unwrap()
}

pub(crate) fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The file's content once it is there and ends with a line end.
pub(crate) fn written(file: &Path) -> String {
    let mut content = String::new();
    eventually(|| {
        content = fs::read_to_string(file).unwrap_or_default();
        content.ends_with('\n')
    });
    content
}

/// Waits for a condition, at most five seconds.
#[track_caller]
pub(crate) fn eventually(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !condition() {
        assert!(Instant::now() < deadline, "this did not come true in five seconds");
        thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn is_alive(pid: i32) -> bool {
    // Reparented to a process that never reaps, as in a bare container, it stays as a zombie.
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z')))
}
