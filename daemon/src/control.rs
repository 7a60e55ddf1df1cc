//! The role `lichen daemon`: control, from start to end.

use std::fs::OpenOptions;
use std::io::{self, IsTerminal};
use std::os::unix::fs::OpenOptionsExt;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use lichen_api::{Directories, DirectoryError, StopDaemon, StopScope};
use lichen_cli::DaemonRole;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::app::{self, App, Parts, StartError};
use crate::causes::chain;
use crate::http;
use crate::instance::{Instance, InstanceError};
use crate::log::{self, InvalidFilter};
use crate::state::{self, OpenError, Store};
use crate::wiring::datapath_process::DatapathProcess;
use crate::wiring::descriptors::{self, TooFew};
use crate::wiring::namespaces::KernelNamespaces;
use crate::wiring::resolv_conf::{self, Watching};
use crate::wiring::workers;

/// Tells a service manager that control asks to be started again (EX_TEMPFAIL of sysexits.h).
const RESTART: u8 = 75;

/// How long the first comparison with the datapath may hold up the API.
const FIRST_SYNC: Duration = Duration::from_secs(3);

/// Why control did not start, or ended.
#[derive(Debug, thiserror::Error)]
enum ControlError {
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error(transparent)]
    Descriptors(#[from] TooFew),
    #[error(transparent)]
    Workers(#[from] workers::Invalid),
    #[error(transparent)]
    Log(#[from] InvalidFilter),
    #[error(transparent)]
    Instance(#[from] InstanceError),
    #[error(transparent)]
    State(#[from] OpenError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("cannot start")]
    Io(#[from] io::Error),
}

/// Runs control until it is asked to end.
pub fn main(role: DaemonRole) -> ExitCode {
    // Executed as /proc/self/exe, it would be called `exe` in `ps` and `top`.
    let _ = rustix::thread::set_name(c"lichen-daemon");
    match run(role) {
        Ok(StopDaemon { restart: true, .. }) => ExitCode::from(RESTART),
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            let text = chain(&error);
            if role == DaemonRole::OnDemand {
                tracing::error!(error = text, "control ends");
            }
            eprintln!("lichen daemon: {text}");
            ExitCode::FAILURE
        }
    }
}

fn run(role: DaemonRole) -> Result<StopDaemon, ControlError> {
    if role == DaemonRole::OnDemand {
        // Out of the caller's session, so that its terminal's signals are not ours. Fails only for a
        // process that leads a session already, which is as good.
        let _ = rustix::process::setsid();
        rustix::process::chdir("/").map_err(io::Error::from)?;
    }
    let directories = Directories::prepare()?;
    start_log(role, &directories)?;
    descriptors::raise()?;
    // What the datapath would refuse is refused where somebody reads it.
    workers::wanted()?;
    let instance = Instance::claim(&directories.runtime)?;
    let connection = state::open(&directories.state.database())?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let stopped = runtime.block_on(serve(role, &directories, &instance, connection))?;
    tracing::info!("control ended");
    // Requests that are still being answered are not waited for.
    runtime.shutdown_background();
    Ok(stopped)
}

async fn serve(
    role: DaemonRole,
    directories: &Directories,
    instance: &Instance,
    connection: rusqlite::Connection,
) -> Result<StopDaemon, ControlError> {
    let resolvers = resolv_conf::read(resolv_conf::host_path());
    let app = App::start(Parts {
        directories: directories.clone(),
        store: Store::start(connection)?,
        source: Box::new(DatapathProcess::new(directories.clone())),
        namespaces: Arc::new(KernelNamespaces),
        resolvers: resolvers.clone(),
        boot_id: app::boot_id()?,
        service: role == DaemonRole::Service,
    })
    .await?;
    let reconciler = app.reconciler().clone();
    resolv_conf::watch(resolv_conf::host_path().to_owned(), resolvers, move |changed| {
        if reconciler.set_resolvers(changed) { Watching::Continue } else { Watching::Stop }
    })?;
    // So that the first answer tells of workloads that are on their network again; a datapath that
    // cannot be had is told by `status` as well.
    let _ = tokio::time::timeout(FIRST_SYNC, app.reconciler().sync()).await;
    let listener = UnixListener::from_std(instance.listen()?)?;
    tracing::info!(
        version = lichen_api::VERSION,
        pid = std::process::id(),
        socket = %directories.runtime.control_socket().display(),
        "control started"
    );
    if role == DaemonRole::OnDemand {
        leave_stderr()?;
    }
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    // Only its own end: a service manager that stops or replaces control leaves the datapath be.
    let by_signal = StopDaemon { scope: StopScope::Control, restart: false };
    let asked = tokio::select! {
        () = http::serve(listener, Arc::clone(&app)) => by_signal,
        asked = app.stopped() => asked,
        _ = terminate.recv() => by_signal,
        _ = interrupt.recv() => by_signal,
    };
    // The answer to the request that asked is still on its way.
    tokio::time::sleep(Duration::from_millis(50)).await;
    Ok(asked)
}

/// Started on demand, control logs to a file; else to its standard error.
fn start_log(role: DaemonRole, directories: &Directories) -> Result<(), ControlError> {
    match role {
        DaemonRole::OnDemand => {
            let path = directories.state.daemon_log();
            let file = OpenOptions::new()
                .create(true)
                .append(true)
                .mode(0o600)
                .open(&path)
                .map_err(|source| DirectoryError::Io { path, source })?;
            log::start_as_json(file)?;
        }
        DaemonRole::Foreground if io::stderr().is_terminal() => log::start_as_text()?,
        DaemonRole::Foreground | DaemonRole::Service => log::start_as_json(io::stderr)?,
    }
    Ok(())
}

/// Closes the pipe on which the caller waits: an end without a word means that the daemon is ready.
fn leave_stderr() -> io::Result<()> {
    let null = OpenOptions::new().write(true).open("/dev/null")?;
    Ok(rustix::stdio::dup2_stderr(&null)?)
}
