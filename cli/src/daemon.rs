//! Finding the daemon, starting it when there is none, and ending it.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use lichen_api::{
    Client, ClientError, CreateWorkload, DirectoryError, Lease, RuntimeDirectory, StopDaemon,
    StopScope, Version,
};
use lichen_workload::only_standard_descriptors;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use crate::args::Output;
use crate::output;

/// How the daemon is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DaemonRole {
    /// By a person: log to the terminal.
    Foreground,
    /// By the CLI: session of its own, log to a file, standard error closed when ready.
    OnDemand,
    /// By a service manager: log to standard error, exit code 75 asks for a restart.
    Service,
}

/// How often a request is said that a dying daemon leaves without an answer.
const MAX_ATTEMPTS: usize = 5;

/// Longest wait until a daemon that was started is ready.
const START_PATIENCE: Duration = Duration::from_secs(15);

/// Longest wait for a daemon to end.
const END_PATIENCE: Timespec = Timespec { tv_sec: 15, tv_nsec: 0 };

/// Why there is no daemon to speak to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DaemonError {
    /// Its directory.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// It could not be executed, or its lock not be taken.
    #[error("cannot start the daemon")]
    Start(#[from] io::Error),
    /// It ended, and said why.
    #[error("the daemon cannot start: {0}")]
    Refused(String),
    /// It is neither ready nor ended.
    #[error(
        "the daemon was started but is not ready after {} s; see daemon.log in the state directory, \
         or run it by hand: lichen daemon",
        START_PATIENCE.as_secs()
    )]
    NotReady,
    /// It does not end.
    #[error("the daemon (process {0}) was told to end but has not; end it with: kill -9 {0}")]
    Endures(u32),
    /// It refused.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// The daemon; started when there is none.
pub(crate) async fn connect() -> Result<Client, DaemonError> {
    let directory = RuntimeDirectory::prepare()?;
    let socket = directory.control_socket();
    if UnixStream::connect(&socket).is_err() {
        start(&directory).await?;
    }
    Ok(Client::new(socket))
}

/// Makes a workload. A daemon that ends before it has answered may have made it; the next one knows.
pub(crate) async fn create_workload(
    request: &CreateWorkload,
) -> Result<(Client, Lease), DaemonError> {
    let request = CreateWorkload { uid: Some(made_up_uid()?), ..request.clone() };
    let mut attempts = 1;
    loop {
        let client = connect().await?;
        match client.create_workload(&request).await {
            Err(ClientError::Connection(_) | ClientError::Unreachable { .. })
                if attempts < MAX_ATTEMPTS =>
            {
                attempts += 1;
            }
            answer => return Ok((client, answer?)),
        }
    }
}

fn made_up_uid() -> io::Result<String> {
    let mut bytes = [0; 32];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Of twenty callers at once, one starts the daemon and the others wait for it at the lock.
async fn start(directory: &RuntimeDirectory) -> Result<(), DaemonError> {
    let socket = directory.control_socket();
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(directory.start_lock())?;
    lock.lock()?;
    if UnixStream::connect(&socket).is_ok() {
        return Ok(());
    }
    // By /proc/self/exe, so that it is this very program, wherever it lies.
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("lichen")
        .args(["daemon", "--on-demand"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = only_standard_descriptors(&mut command).spawn()?;
    let stderr = OwnedFd::from(child.stderr.take().expect("it was asked for"));
    let mut said = Vec::new();
    let mut stderr = pipe::Receiver::from_owned_fd(stderr)?;
    // It closes its standard error when it is ready, or by ending.
    match tokio::time::timeout(START_PATIENCE, stderr.read_to_end(&mut said)).await {
        Ok(read) => read?,
        Err(_) => return Err(DaemonError::NotReady),
    };
    if UnixStream::connect(&socket).is_ok() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&said);
    let said = said.trim().trim_start_matches("lichen daemon: ");
    if said.is_empty() {
        return Err(DaemonError::Refused(format!("it ended at once ({})", child.wait()?)));
    }
    Err(DaemonError::Refused(said.to_owned()))
}

/// `lichen daemon stop`.
pub(crate) async fn stop(format: Output) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let directory = RuntimeDirectory::prepare().map_err(DaemonError::from)?;
    let client = match running(&directory).await? {
        Some((client, version)) => Some((client, version)),
        // A datapath whose control was killed is ended by a control.
        None if UnixStream::connect(directory.datapath_socket()).is_ok() => {
            let client = connect().await?;
            let version = client.version().await?;
            Some((client, version))
        }
        None => None,
    };
    let Some((client, version)) = client else {
        match format {
            Output::Json => output::json(&serde_json::json!({ "stopped": [] }))?,
            Output::Table => output::line("No daemon is running.")?,
        }
        return Ok(ExitCode::SUCCESS);
    };
    let workloads = client.workloads().await.map_or(0, |workloads| workloads.len());
    end(&client, &version, StopDaemon { scope: StopScope::Everything, restart: false }).await?;
    match format {
        Output::Json => output::json(
            &serde_json::json!({ "stopped": ["control", "datapath"], "workloads": workloads }),
        )?,
        Output::Table if workloads > 0 => output::line(&format!(
            "Stopped. Workloads still running, now without a network: {workloads}. \
             They have it back when the daemon starts again; end them with: lichen rm -f NAME"
        ))?,
        Output::Table => output::line("Stopped.")?,
    }
    Ok(ExitCode::SUCCESS)
}

/// `lichen daemon restart`.
pub(crate) async fn restart(
    datapath: bool,
    format: Output,
) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let directory = RuntimeDirectory::prepare().map_err(DaemonError::from)?;
    let before = running(&directory).await?;
    let scope = if datapath { StopScope::Everything } else { StopScope::Control };
    let before = match before {
        // Without control there may still be a datapath to replace, which takes a control.
        None if datapath => {
            let client = connect().await?;
            let version = client.version().await?;
            Some((client, version))
        }
        before => before,
    };
    if let Some((client, version)) = before {
        end(&client, &version, StopDaemon { scope, restart: version.service }).await?;
        if version.service {
            await_service(&directory).await;
        }
    }
    let version = connect().await?.version().await?;
    match format {
        Output::Json => output::json(&version)?,
        Output::Table => {
            output::line(&format!("Daemon {} runs as process {}.", version.version, version.pid))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Ends control alone, if it runs, so that another can take its place.
pub(crate) async fn make_way() -> Result<(), DaemonError> {
    let directory = RuntimeDirectory::prepare()?;
    match running(&directory).await? {
        Some((client, version)) => {
            end(&client, &version, StopDaemon { scope: StopScope::Control, restart: false }).await
        }
        None => Ok(()),
    }
}

/// The daemon that runs now, of whatever version; never starts one.
async fn running(directory: &RuntimeDirectory) -> Result<Option<(Client, Version)>, DaemonError> {
    let client = Client::new(directory.control_socket());
    match client.version().await {
        Ok(version) => Ok(Some((client, version))),
        Err(ClientError::Unreachable { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn end(client: &Client, version: &Version, request: StopDaemon) -> Result<(), DaemonError> {
    // Held before it is told to go, so that its number cannot become another's.
    let pidfd = i32::try_from(version.pid)
        .ok()
        .and_then(Pid::from_raw)
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    match client.stop(&request).await {
        // It may be gone before it answers.
        Ok(()) | Err(ClientError::Connection(_) | ClientError::Unreachable { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let Some(pidfd) = pidfd else { return Ok(()) };
    let ready = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&END_PATIENCE));
    if ready.is_ok_and(|count| count > 0) { Ok(()) } else { Err(DaemonError::Endures(version.pid)) }
}

/// The service manager starts it again; should it not, the caller does.
async fn await_service(directory: &RuntimeDirectory) {
    let socket: PathBuf = directory.control_socket();
    for _ in 0..100 {
        if UnixStream::connect(&socket).is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
