//! `lichen`: one program in a few roles.

pub mod wiring;

fn main() -> std::process::ExitCode {
    tracing_subscriber::fmt().json().with_writer(std::io::stderr).init();
    wiring::datapath_role::main()
}
