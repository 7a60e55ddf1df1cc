//! How many workers carry the frames.

use std::ffi::OsString;

/// Where that is said.
const VARIABLE: &str = "LICHEN_WORKERS";
/// More than anybody needs; between each two there are queues.
const MOST: u16 = 16;

/// What was said is no such number.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{VARIABLE} is {0:?}; set it to how many workers carry frames, 1 to {MOST}, or not at all")]
pub struct Invalid(OsString);

/// How many are wanted of a datapath that starts now.
pub fn wanted() -> Result<u16, Invalid> {
    parse(std::env::var_os(VARIABLE))
}

fn parse(said: Option<OsString>) -> Result<u16, Invalid> {
    let Some(said) = said.filter(|said| !said.is_empty()) else { return Ok(1) };
    let number = said.to_str().and_then(|said| said.parse().ok());
    number.filter(|number| (1..=MOST).contains(number)).ok_or(Invalid(said))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_of_workers_is_taken_and_anything_else_refused() {
        let parse = |said: &str| parse(Some(said.into()));
        assert_eq!(super::parse(None), Ok(1));
        assert_eq!(parse(""), Ok(1));
        assert_eq!([parse("1"), parse("16")], [Ok(1), Ok(16)]);
        for said in ["0", "17", "-1", "two", "2 ", "65537"] {
            let error = parse(said).unwrap_err().to_string();
            assert!(error.contains("LICHEN_WORKERS") && error.contains("1 to 16"), "{error}");
        }
    }
}
