//! `lichen run`: reserve, make namespaces, attach, let the command start, and end as it ends.

use std::error::Error;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use lichen_api::{AttachWorkload, Client, CreateWorkload, Directories, Force, Lease, WorkloadKind};
use lichen_workload::{LaunchError, LaunchSpec, UserMapping};
use tokio::runtime::Runtime;

use crate::args::{Output, Run, User};
use crate::{Outcome, daemon, output};

/// Runs a command on a network.
pub(crate) fn run(arguments: &Run, format: Output, runtime: &Runtime) -> Outcome {
    let request = CreateWorkload {
        queues: arguments.queues.map(|queues| queues.0),
        ..arguments.place.request(WorkloadKind::Run, arguments.name.clone())
    };
    let (client, lease) = runtime.block_on(daemon::create_workload(&request))?;
    // Whatever goes wrong from here on, the name is free again at once.
    started(arguments, &lease, &client, runtime, format).inspect_err(|_| {
        let _ = runtime.block_on(give_back(&client, &lease.name));
    })
}

/// Lets go of a workload that did not come to run. When its daemon died, the next one does it; that one may
/// know the workload as ended and the name as another's by now, who is left alone.
async fn give_back(client: &Client, name: &str) -> Result<(), Box<dyn Error>> {
    if client.remove_workload(name, Force::Yes).await.is_err() {
        daemon::connect().await?.remove_workload(name, Force::No).await?;
    }
    Ok(())
}

fn started(
    arguments: &Run,
    lease: &Lease,
    client: &Client,
    runtime: &Runtime,
    format: Output,
) -> Outcome {
    let mut launched = lichen_workload::launch(&launch_spec(arguments, lease)?)?;
    for warning in launched.warnings() {
        eprintln!("lichen: {warning}");
    }
    let process = AttachWorkload { pid: launched.pid(), start_time: Some(launched.start_time()) };
    runtime.block_on(client.attach_workload(&lease.name, &process))?;
    match launched.release() {
        // As with a command that is waited for, its code tells.
        Err(LaunchError::NotStarted { code, reason }) => {
            eprintln!("lichen: {reason}");
            return Ok(ExitCode::from(code));
        }
        released => released?,
    }
    if !arguments.detach {
        return Ok(ExitCode::from(launched.wait()?));
    }
    match format {
        Output::Json => output::json(lease)?,
        Output::Table => output::line(&lease.name)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn launch_spec(arguments: &Run, lease: &Lease) -> Result<LaunchSpec, Box<dyn Error>> {
    Ok(LaunchSpec {
        name: lease.name.clone(),
        search: lease.search.clone(),
        address: lease.address,
        address6: lease.address6,
        resolver: lease.gateway,
        user: match arguments.user {
            User::Root => UserMapping::Root,
            User::Keep => UserMapping::Keep,
        },
        command: arguments.command.clone(),
        hide: lease.hide.iter().map(PathBuf::from).collect(),
        log: if arguments.detach { Some(fresh_log(&lease.name)?) } else { None },
    })
}

/// A log tells of one life, so that of an earlier workload of this name goes.
fn fresh_log(name: &str) -> Result<PathBuf, Box<dyn Error>> {
    let log = Directories::prepare()?.state.workload_log(name);
    match fs::remove_file(&log) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(log),
    }
}
