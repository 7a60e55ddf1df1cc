//! `lichen attach`: a network namespace that exists joins a network.

use std::process::ExitCode;

use lichen_api::{AttachWorkload, CreateWorkload, Source, WorkloadKind};

use crate::args::{Attach, Output};
use crate::{Outcome, daemon, output};

/// Attaches the network namespace of a process.
pub(crate) async fn attach(arguments: &Attach, format: Output) -> Outcome {
    let request = CreateWorkload {
        name: Some(arguments.name.clone()),
        network: arguments.network.clone(),
        kind: WorkloadKind::Attach,
        ports: arguments.publish.clone(),
        allow_host: arguments.allow_host.clone(),
        source: if arguments.snat { Source::Gateway } else { Source::Client },
        process: Some(AttachWorkload { pid: arguments.pid, start_time: None }),
        resolv_conf: !arguments.no_resolv_conf,
    };
    let lease = daemon::connect().await?.create_workload(&request).await?;
    match format {
        Output::Json => output::json(&lease)?,
        Output::Table => output::line(&format!("{} {}", lease.name, lease.address))?,
    }
    Ok(ExitCode::SUCCESS)
}
