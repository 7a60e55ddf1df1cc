//! Names that people give: a workload's and a network's, each one DNS label (RFC 1035 §2.3.1, RFC 1123 §2.1).
//!
//! A name becomes part of a zone, of a file name and of a path in the API, so what is allowed is what is
//! harmless in all three. Case is folded, as in DNS.

use std::fmt;

/// Longest label, in bytes (RFC 1035 §2.3.4).
const MAX_LABEL: usize = 63;

/// Names that mean something else already: in DNS, in Docker, on the host, or as file names elsewhere.
const RESERVED: &[&str] = &[
    "all",
    "aux",
    "con",
    "default",
    "dns",
    "gateway",
    "host",
    "hypr",
    "internal",
    "lichen",
    "local",
    "localhost",
    "none",
    "nul",
    "nyxd",
    "prn",
    "resolver",
];

/// Why a text is not a name.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing there.
    #[error("the {0} is empty; use letters, digits and hyphens, such as web-1")]
    Empty(&'static str),
    /// Over 63 bytes.
    #[error("the {what} is {len} bytes long; at most {MAX_LABEL} are allowed")]
    TooLong {
        /// Which name.
        what: &'static str,
        /// Its length.
        len: usize,
    },
    /// A character that no host name has.
    #[error(
        "`{shown}` is not a {what}: use letters, digits and hyphens, with a letter or digit at both ends"
    )]
    Characters {
        /// Which name.
        what: &'static str,
        /// What was given, made printable.
        shown: String,
    },
    /// Taken by a meaning of its own.
    #[error("`{name}` is reserved; choose another {what}")]
    Reserved {
        /// Which name.
        what: &'static str,
        /// The name.
        name: String,
    },
}

/// A workload's name, for example `web-1`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkloadName(String);

impl WorkloadName {
    /// Reads a name as a person wrote it.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        label("workload name", text).map(Self)
    }

    /// A name for a workload that was given none; `random` is hexadecimal.
    pub fn made_up(random: &str) -> Self {
        Self(format!("run-{random}"))
    }

    /// The name, in lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for WorkloadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A network's name, for example `bridge`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkName(String);

impl NetworkName {
    /// Reads a name as a person wrote it.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        label("network name", text).map(Self)
    }

    /// The network that workloads get when they ask for none.
    pub fn default_network() -> Self {
        Self("bridge".to_owned())
    }

    /// The name, in lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NetworkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn label(what: &'static str, text: &str) -> Result<String, NameError> {
    if text.is_empty() {
        return Err(NameError::Empty(what));
    }
    if text.len() > MAX_LABEL {
        return Err(NameError::TooLong { what, len: text.len() });
    }
    let fits = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if !fits || text.starts_with('-') || text.ends_with('-') {
        return Err(NameError::Characters { what, shown: text.escape_default().to_string() });
    }
    let name = text.to_ascii_lowercase();
    // `xn--` labels claim to be Unicode (RFC 5890 §2.3.1); we never look inside, so we never promise it.
    if RESERVED.contains(&name.as_str()) || name.starts_with("xn--") {
        return Err(NameError::Reserved { what, name });
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_a_name_and_case_is_folded() {
        assert_eq!(WorkloadName::parse("Web-1").unwrap().as_str(), "web-1");
        assert_eq!(WorkloadName::parse("7").unwrap().as_str(), "7");
        assert!(WorkloadName::parse(&"a".repeat(63)).is_ok());
    }

    #[test]
    fn what_is_no_label_is_refused() {
        let long = "a".repeat(64);
        let longer = "a".repeat(4096);
        for text in [
            "",
            "../../x",
            "a/b",
            "a\0b",
            "\u{1f980}",
            "-web",
            "web-",
            "a.b",
            "a b",
            "a_b",
            ".",
            &long,
            &longer,
            "con",
            "host",
            "GATEWAY",
            "localhost",
            "xn--bcher-kva",
        ] {
            assert!(WorkloadName::parse(text).is_err(), "{text:?}");
            assert!(NetworkName::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_refused_name_is_shown_printable() {
        let error = WorkloadName::parse("a\u{1b}[2Jb").unwrap_err();
        assert!(!error.to_string().contains('\u{1b}'), "{error}");
    }
}
