//! End to end: the product as a plain user on a host of its own, with real tools.
//!
//! ```text
//! lichen-lab test [NAME...]   scenarios whose name contains one of the words, or all
//! lichen-lab bench [ROUNDS]   the speed tables
//! lichen-lab instructions     what steps of the datapath cost, held against what they did
//! lichen-lab init             PID 1 of a machine of the lab
//! lichen-lab peer ...         one end of a conversation
//! ```
//! The product is the program `lichen` beside this one. As root the lab's namespaces are root's; else they are made below a
//! user namespace. Either way the product runs as uid 1000 without a capability.

mod bench;
mod instructions;
mod lab;
mod peer;
mod runner;
mod scenarios;
mod vm;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["init"] => lab::init(),
        ["peer", rest @ ..] => peer::run(rest),
        ["test", ..] if !lab::may_make_namespaces() => {
            // Below a user namespace nothing can be downloaded. A scenario that misses it says why.
            let _ = vm::keep_image();
            lab::go_on_in_user_namespace()
        }
        ["bench", ..] if !lab::may_make_namespaces() => lab::go_on_in_user_namespace(),
        ["test", names @ ..] => runner::run(names),
        ["bench", rest @ ..] => bench::run(rest),
        ["instructions", rest @ ..] => instructions::run(rest),
        _ => {
            eprintln!("usage: lichen-lab test [NAME...] | bench [ROUNDS] | instructions [keep]");
            ExitCode::FAILURE
        }
    }
}
