//! The grammar of `--allow-host`: `PORT[/tcp|/udp]`.

use lichen_api::{AllowedPort, Transport};

use super::publish::parse_port;

/// Reads one `--allow-host`.
pub(super) fn parse(text: &str) -> Result<AllowedPort, String> {
    let (port, protocol) = match text.split_once('/') {
        Some((port, "tcp")) => (port, Transport::Tcp),
        Some((port, "udp")) => (port, Transport::Udp),
        Some((_, other)) => return Err(format!("`{other}` is not a protocol; use tcp or udp")),
        None => (text, Transport::Tcp),
    };
    let port = parse_port(port).map_err(|error| error.to_string())?;
    Ok(AllowedPort { port, protocol })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_tcp_unless_it_says_otherwise() {
        let udp = AllowedPort { port: 53, protocol: Transport::Udp };
        let tcp = AllowedPort { port: 53, protocol: Transport::Tcp };
        assert_eq!((parse("53"), parse("53/tcp"), parse("53/udp")), (Ok(tcp), Ok(tcp), Ok(udp)));
        for text in ["", "0", "53/", "53/sctp", "x", "53-54"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
