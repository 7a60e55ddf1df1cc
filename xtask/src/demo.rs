//! The product within a screen: two workloads, their names, a published port, a closed host.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::{fs, thread, time::Duration};

use lichen_guest::Image;

use crate::packages::{self, is_root};
use crate::step::{self, Failed, cargo};
use crate::test::PRODUCT;

pub(crate) fn run() -> Result<(), Failed> {
    // Who may install anything gets what the tests need as well, so that a plain user can run them next.
    if is_root() {
        packages::ensure(&[packages::DEMO, packages::LINTS, packages::TESTS].concat())?;
    } else {
        packages::ensure(packages::DEMO)?;
    }
    step::run(&mut cargo(&["build", "--quiet", "--package", "lichen"]))?;
    let stage = Stage::set()?;
    stage.page("web", "hello from web\n")?;
    stage.page("host", "a secret of the host\n")?;
    let (published, hosts_own) = (free_port()?, free_port()?);

    stage
        .say("A web server and a client, each in a network namespace of its own, as a plain user:");
    let web = stage.folder.join("web").display().to_string();
    let publish = format!("{published}:80");
    stage.succeeds(&[
        "lichen", "run", "-d", "--name", "web", "-p", &publish, "--", "busybox", "httpd", "-f",
        "-p", "80", "-h", &web,
    ])?;
    stage.answers(
        &["lichen", "run", "--name", "client", "--", "curl", "-sS", "http://web/"],
        "hello from web",
    )?;

    stage.say("Its published port, from the host:");
    stage.answers(&["curl", "-sS", &format!("http://127.0.0.1:{published}/")], "hello from web")?;

    stage
        .say("A server on the host's own loopback, which no workload reaches unless you allow it:");
    let folder = stage.folder.join("host").display().to_string();
    let server = stage
        .command(&[
            "busybox",
            "httpd",
            "-f",
            "-p",
            &format!("127.0.0.1:{hosts_own}"),
            "-h",
            &folder,
        ])
        .spawn()
        .map(Running)
        .map_err(|error| Failed::new(format!("busybox: {error}")))?;
    thread::sleep(Duration::from_millis(200));
    let url = format!("http://host.lichen.internal:{hosts_own}/");
    let closed = stage.refused(&["lichen", "run", "--", "curl", "-sS", "-m", "5", &url]);
    let allow = hosts_own.to_string();
    let opened = stage
        .answers(&["lichen", "run", "--allow-host", &allow, "--", "curl", "-sS", &url], "a secret");
    drop(server);
    closed.and(opened)?;

    let machine = stage.virtual_machine("http://web/")?;
    stage.say("What is there:");
    stage.succeeds(&["lichen", "ps"])?;
    drop(machine);
    stage.succeeds(&["lichen", "rm", "-f", "web"])
}

/// A program that is ended when it goes out of sight.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Directories of its own and the product in them, so that the demo leaves nothing behind.
struct Stage {
    folder: PathBuf,
}

impl Stage {
    fn set() -> Result<Self, Failed> {
        let folder = std::env::temp_dir().join(format!("lichen-demo-{}", std::process::id()));
        let stage = Self { folder };
        stage
            .furnish()
            .map_err(|error| Failed::new(format!("{}: {error}", stage.folder.display())))?;
        Ok(stage)
    }

    fn furnish(&self) -> std::io::Result<()> {
        for name in ["", "bin", "home", "run", "web", "host", "guest"] {
            let directory = self.folder.join(name);
            fs::create_dir(&directory)?;
            let mode = if name == "run" { 0o700 } else { 0o755 };
            fs::set_permissions(&directory, fs::Permissions::from_mode(mode))?;
            if is_root() {
                std::os::unix::fs::chown(&directory, Some(1000), Some(1000))?;
            }
        }
        fs::copy(PRODUCT, self.folder.join("bin/lichen"))?;
        let tun = Path::new("/dev/net/tun");
        if is_root() && tun.exists() {
            // The mode that udev gives it.
            fs::set_permissions(tun, fs::Permissions::from_mode(0o666))?;
        }
        Ok(())
    }

    fn page(&self, site: &str, text: &str) -> Result<(), Failed> {
        fs::write(self.folder.join(site).join("index.html"), text)
            .map_err(|error| Failed::new(format!("{site}: {error}")))
    }

    fn say(&self, text: &str) {
        println!("\n# {text}");
    }

    /// A virtual machine with a Debian kernel that fetches a page by name and serves what came of it.
    fn virtual_machine(&self, page: &str) -> Result<Running, Failed> {
        self.say("A virtual machine on the same network, without /dev/kvm; it and a container find each other:");
        let folder = self.folder.join("guest");
        let image = Image::build(&folder).map_err(Failed::new)?;
        if is_root() {
            // It was made by root; the plain user's QEMU opens a socket in there.
            let _ = std::os::unix::fs::chown(&folder, Some(1000), Some(1000));
        }
        let words = image.boot_and_greet(&folder.join("agent"), page);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        println!("$ lichen vm run db -- {} -m 192 -kernel vmlinuz … &", words[0]);
        let all = [&["lichen", "vm", "run", "db", "--"], &words[..]].concat();
        let started = self.command(&all).stdin(Stdio::null()).spawn();
        let machine =
            started.map(Running).map_err(|error| Failed::new(format!("qemu: {error}")))?;
        self.wait_for_answer("http://db/")?;
        self.answers(
            &["lichen", "run", "--", "curl", "-sS", "http://db/"],
            "hello from a virtual machine, which got from http://web/: hello from web",
        )?;
        Ok(machine)
    }

    /// A guest takes some seconds to boot.
    fn wait_for_answer(&self, url: &str) -> Result<(), Failed> {
        for _ in 0..60 {
            let mut asked = self.command(&["lichen", "run", "--", "curl", "-sS", "-m", "1", url]);
            let asked = asked.stdout(Stdio::null()).stderr(Stdio::null()).status();
            if asked.is_ok_and(|status| status.success()) {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(500));
        }
        Err(Failed::new(format!("{url} did not answer within a minute")))
    }

    /// The words as a plain user's command, started in the demo's directories.
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(if is_root() { "setpriv" } else { "env" });
        if is_root() {
            command.args([
                "--reuid=1000",
                "--regid=1000",
                "--clear-groups",
                "--inh-caps=-all",
                "env",
            ]);
        }
        let at = |name: &str| self.folder.join(name).display().to_string();
        command
            .arg("-i")
            .arg(format!("PATH={}:/usr/sbin:/usr/bin:/sbin:/bin", at("bin")))
            .arg(format!("HOME={}", at("home")))
            .arg(format!("XDG_RUNTIME_DIR={}", at("run")))
            .arg(format!("XDG_STATE_HOME={}", at("home/state")))
            .args(words)
            .current_dir(&self.folder);
        command
    }

    fn run(&self, words: &[&str]) -> Result<Output, Failed> {
        println!("$ {}", words.join(" "));
        let output = self
            .command(words)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| Failed::new(format!("{}: {error}", words[0])))?;
        print!("{}", String::from_utf8_lossy(&output.stdout));
        print!("{}", String::from_utf8_lossy(&output.stderr));
        Ok(output)
    }

    fn succeeds(&self, words: &[&str]) -> Result<(), Failed> {
        let output = self.run(words)?;
        if output.status.success() { Ok(()) } else { Err(unexpected(words, "success")) }
    }

    fn answers(&self, words: &[&str], expected: &str) -> Result<(), Failed> {
        let output = self.run(words)?;
        let answered = String::from_utf8_lossy(&output.stdout).contains(expected);
        if answered { Ok(()) } else { Err(unexpected(words, expected)) }
    }

    /// Curl's exit code 7: connection refused, and not a time-out.
    fn refused(&self, words: &[&str]) -> Result<(), Failed> {
        let output = self.run(words)?;
        if output.status.code() == Some(7) { Ok(()) } else { Err(unexpected(words, "a refusal")) }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let mut stop = self.command(&["lichen", "daemon", "stop"]);
        let _ = stop.stdout(Stdio::null()).stderr(Stdio::null()).status();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn unexpected(words: &[&str], expected: &str) -> Failed {
    Failed::new(format!("the demo expected {expected:?} of: {}", words.join(" ")))
}

fn free_port() -> Result<u16, Failed> {
    TcpListener::bind(("127.0.0.1", 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(|error| Failed::new(format!("no free port: {error}")))
}
