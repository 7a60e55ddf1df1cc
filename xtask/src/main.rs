//! The repository's commands, the same here and in CI. `./x COMMAND` starts them.
//!
//! ```text
//! test [--quick] [NAME...]  everything that must pass; with names, those end-to-end scenarios only
//! check                     format, lints, documentation
//! demo                      the product within a screen
//! bench [--no-peers] [ROUNDS] [PART...]
//!                           the speed tables of docs/performance.md, which names the parts
//! bench instructions        keeps what steps of the datapath cost now, for `test` to compare with
//! deny                      licenses and sources of the dependencies
//! ```
//!
//! Deliberately without dependencies: it is what a newcomer compiles first.

mod bench;
mod check;
mod demo;
mod deny;
mod documents;
mod packages;
mod step;
mod test;

use std::env;
use std::path::Path;
use std::process::ExitCode;

use step::Failed;

const USAGE: &str = "usage: ./x test [--quick] [NAME...] | check | demo | bench [--peers | --no-peers] [ROUNDS] [PART...] | deny";

fn main() -> ExitCode {
    let root =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the repository");
    if let Err(error) = env::set_current_dir(root) {
        eprintln!("cannot enter {}: {error}", root.display());
        return ExitCode::FAILURE;
    }
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["test", "--quick"] => test::quick(),
        ["test"] => test::everything(),
        ["test", names @ ..] => test::scenarios(names),
        ["check"] => check::all(),
        ["demo"] => demo::run(),
        ["bench", "instructions"] => bench::keep_instructions(),
        ["bench", words @ ..] => bench::run(words),
        ["deny"] => deny::run(),
        _ => Err(Failed::new(USAGE)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            eprintln!("{failed}");
            ExitCode::FAILURE
        }
    }
}
