//! Ends of conversations that no common tool holds; a scenario starts them inside of the lab.

mod attack;
mod crowd;
mod datagrams;
mod echo;
mod flood;
mod greet;
mod lease;
mod meddle;
mod offload;
mod pair;
mod raw;
mod shape;
mod slow_names;
mod urgent;

use std::process::ExitCode;

pub(crate) use shape::text as direction;

pub(crate) fn run(words: &[&str]) -> ExitCode {
    let done = match words {
        ["urgent", address] => urgent::speak(address),
        ["answer", port] => echo::answer(port),
        ["ask", address, port, seconds] => echo::ask(address, port, seconds),
        ["greet", address] => greet::greet(address),
        ["connections", address, at_once, most, seconds] => {
            greet::connections(address, at_once, most, seconds)
        }
        ["keep", address] => crowd::keep(address),
        ["gather", port, count] => crowd::gather(port, count),
        ["crowd", address, count] => crowd::crowd(address, count),
        ["hold", address, count] => crowd::hold(address, count),
        ["attack", kind, target] => attack::attack(kind, target),
        ["meddle"] => meddle::meddle(),
        ["hear", address] => flood::hear(address),
        ["flood", direction, address, size, seconds] => {
            flood::flood(direction, address, size, seconds)
        }
        ["tell", port] => datagrams::tell(port),
        ["say", address, text] => datagrams::say(address, text),
        ["number", address, count] => datagrams::number(address, count),
        ["numbers", port] => datagrams::numbers(port),
        ["pester", port] => datagrams::pester(port),
        ["lease", steps] => lease::lease(steps),
        ["slow-names", server] => slow_names::converse(server),
        ["shape", near, near_name, far, far_name, forth, back] => {
            shape::shape([(near, near_name), (far, far_name)], forth, back)
        }
        ["offload"] => offload::compare(),
        ["pair", kind, rest @ ..] => pair::pair(kind, rest),
        _ => return ExitCode::FAILURE,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{words:?}: {error}");
            ExitCode::FAILURE
        }
    }
}
