//! Router advertisements as a host reads them.

use crate::wire::be16;
use crate::wire::ndp::ROUTER_ADVERTISEMENT;

/// The options of a router advertisement, kind and body of each.
pub fn advertised_options(message: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut options = Vec::new();
    let mut rest = message.get(16..).unwrap_or_default();
    while let [kind, words, ..] = rest
        && *words > 0
    {
        let len = (usize::from(*words) * 8).min(rest.len());
        options.push((*kind, rest[2..len].to_vec()));
        rest = &rest[len..];
    }
    options
}

/// The router lifetime of a router advertisement in seconds.
pub fn advertised_lifetime(message: &[u8]) -> Option<u16> {
    (message.len() >= 16 && message[0] == ROUTER_ADVERTISEMENT).then(|| be16(message, 6))
}
