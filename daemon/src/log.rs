//! What is logged, and where to.

use std::env;
use std::io;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::{ParseError, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

const VARIABLE: &str = "LICHEN_LOG";

/// What `LICHEN_LOG` says cannot be read.
#[derive(Debug, thiserror::Error)]
#[error(
    "{VARIABLE}={said} does not say what to log; give a level (error, warn, info, debug, trace or off), or \
     one for each module, as in info,lichen_netstack=debug"
)]
pub struct InvalidFilter {
    said: String,
    source: ParseError,
}

/// For a reader.
pub fn start_as_text() -> Result<(), InvalidFilter> {
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    tracing_subscriber::registry().with(wanted()?).with(lines).init();
    Ok(())
}

/// For programs, a line each.
pub fn start_as_json<W>(writer: W) -> Result<(), InvalidFilter>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer().json().with_ansi(false).with_writer(writer);
    tracing_subscriber::registry().with(wanted()?).with(lines).init();
    Ok(())
}

fn wanted() -> Result<Targets, InvalidFilter> {
    let said = env::var_os(VARIABLE).unwrap_or_default();
    parse(&said.to_string_lossy())
}

fn parse(said: &str) -> Result<Targets, InvalidFilter> {
    if said.is_empty() {
        return Ok(Targets::new().with_default(LevelFilter::INFO));
    }
    said.parse().map_err(|source| InvalidFilter { said: said.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn a_level_is_for_all_and_one_with_a_module_for_that() {
        let targets = parse("warn,lichen_netstack=debug").unwrap();
        assert!(targets.would_enable("lichen_daemon", &Level::WARN));
        assert!(!targets.would_enable("lichen_daemon", &Level::INFO));
        assert!(targets.would_enable("lichen_netstack::worker", &Level::DEBUG));
        let unsaid = parse("").unwrap();
        assert!(unsaid.would_enable("anything", &Level::INFO));
        assert!(!unsaid.would_enable("anything", &Level::DEBUG));
    }

    #[test]
    fn what_is_no_filter_is_refused_with_what_would_be_one() {
        let error = parse("lichen=loud").unwrap_err().to_string();
        assert!(error.starts_with("LICHEN_LOG=lichen=loud does not say"), "{error}");
        assert!(error.contains("lichen_netstack=debug"), "{error}");
    }
}
