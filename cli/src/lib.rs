//! The command line of Lichen: what was typed, the calls it means, and the tables that are shown.
//!
//! `args` is the grammar, `commands` has one file for each command, `daemon` finds or starts the daemon.
//! Everything is asked of the daemon through [`lichen_api::Client`]; only `run` does something itself: it
//! makes the workload's namespaces, since they must be children of the caller.

mod args;
mod commands;
mod daemon;
mod exit;
mod output;
mod template;
mod vmm;

use std::process::ExitCode;

use clap::Parser;

use args::{Arguments, Command, DaemonCommand, Output};
pub use daemon::DaemonRole;

/// Parses the arguments and does what they say. `control` is what `lichen daemon` runs.
pub fn main(control: fn(DaemonRole) -> ExitCode) -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return exit::misused(&error),
    };
    let output = arguments.output;
    if output == Output::Json && arguments.command.has_no_json() {
        return exit::misused(&Arguments::no_json());
    }
    if let Command::Daemon(daemon) = &arguments.command
        && daemon.command.is_none()
    {
        return control(daemon.role());
    }
    let passed = match commands::plug::passed(&arguments.command) {
        Ok(passed) => passed,
        Err(error) => return exit::failed(&arguments.command, &error),
    };
    // One thread: `run` makes namespaces, which a process with several threads may not.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return exit::failed(&arguments.command, &error),
    };
    let result = match (&arguments.command, passed) {
        (_, Some(passed)) => runtime.block_on(commands::plug::plug(passed, output)),
        (Command::Run(run), _) => commands::run::run(run, output, &runtime),
        (Command::Vm(args::VmCommand::Run(run)), _) => commands::vm::run(run, &runtime),
        (command, _) => runtime.block_on(dispatch(command, output)),
    };
    result.unwrap_or_else(|error| exit::failed(&arguments.command, error.as_ref()))
}

/// A command's own exit code, or what went wrong.
type Outcome = Result<ExitCode, Box<dyn std::error::Error>>;

async fn dispatch(command: &Command, output: Output) -> Outcome {
    use commands::{
        attach, capture, completions, explain, flows, metrics, network, port, ps, service, status,
        top,
    };
    match command {
        Command::Run(_) => unreachable!("run is not asynchronous; main takes it"),
        Command::Vm(command) => commands::vm::vm(command, output).await,
        Command::Attach(attach) => attach::attach(attach, output).await,
        Command::Ps => ps::ps(output).await,
        Command::Rm(rm) => ps::rm(rm, output).await,
        Command::Logs(logs) => commands::logs::logs(logs).await,
        Command::Network(command) => network::network(command, output).await,
        Command::Port(command) => port::port(command, output).await,
        Command::Top => top::top(output).await,
        Command::Flows(flows) => flows::flows(flows, output).await,
        Command::Capture(capture) => capture::capture(capture).await,
        Command::Metrics(metrics) => metrics::metrics(metrics).await,
        Command::Explain(command) => explain::explain(command, output),
        Command::Status => status::status(output).await,
        Command::Version => status::version(output).await,
        Command::Daemon(daemon) => match &daemon.command {
            Some(DaemonCommand::Stop) => daemon::stop(output).await,
            Some(DaemonCommand::Restart(restart)) => {
                daemon::restart(restart.datapath, output).await
            }
            None => unreachable!("main takes it"),
        },
        Command::Service(command) => service::service(command, output).await,
        Command::Completions(completions) => Ok(completions::completions(completions.shell)),
    }
}
