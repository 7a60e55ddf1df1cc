//! `lichen`: one program in a few roles.
//!
//! The first argument decides: the datapath, a workload's supervisor and the netns helper are started by
//! this program itself through /proc/self/exe; everything else is the command line, of which
//! `lichen daemon` is control.

use std::io;
use std::process::ExitCode;

use lichen_daemon::wiring::datapath_role;
use lichen_daemon::{control, log};

fn main() -> ExitCode {
    // The roles that enter namespaces come first: they need a process with one thread.
    match std::env::args_os().nth(1).as_deref().and_then(|role| role.to_str()) {
        Some("supervise") => lichen_workload::supervise_main(),
        Some("netns-helper") => lichen_workload::netns_helper_main(),
        Some("datapath") => {
            // Executed as /proc/self/exe, it would be called `exe` in `ps` and `top`.
            let _ = rustix::thread::set_name(c"lichen-datapath");
            if let Err(error) = log::start_as_json(io::stderr) {
                eprintln!("lichen datapath: {error}");
                return ExitCode::FAILURE;
            }
            datapath_role::main()
        }
        _ => lichen_cli::main(control::main),
    }
}
