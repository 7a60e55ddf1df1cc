//! `lichen attach`: a network namespace that exists joins a network.

use std::process::ExitCode;

use lichen_api::{AttachWorkload, CreateWorkload, WorkloadKind};

use crate::args::{Attach, Output};
use crate::{Outcome, daemon, output};

/// Attaches the network namespace of a process.
pub(crate) async fn attach(arguments: &Attach, format: Output) -> Outcome {
    let request = CreateWorkload {
        process: Some(AttachWorkload { pid: arguments.pid, start_time: None }),
        resolv_conf: !arguments.no_resolv_conf,
        queues: arguments.queues.map(|queues| queues.0),
        ..arguments.place.request(WorkloadKind::Attach, Some(arguments.name.clone()))
    };
    let (_, lease) = daemon::create_workload(&request).await?;
    match format {
        Output::Json => output::json(&lease)?,
        Output::Table => output::line(&format!("{} {}", lease.name, lease.address))?,
    }
    Ok(ExitCode::SUCCESS)
}
