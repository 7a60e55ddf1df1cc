//! The grammar of `-p`: `[HOST_IP:]HOST[-END]:PORT[-END][/tcp]`.

use std::net::IpAddr;

use lichen_api::{PortRange, Protocol, Publish};

/// Why a text does not say which ports to publish.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PublishError {
    /// Not two ports joined by a colon.
    #[error("write HOST:PORT, for example 8080:80 or 127.0.0.1:8080:80")]
    Shape,
    /// Not a number from 1 to 65535.
    #[error("`{0}` is not a port; use one from 1 to 65535")]
    Port(String),
    /// The wrong way round.
    #[error("the range {0}-{1} ends before it begins")]
    Reversed(u16, u16),
    /// Ranges of two lengths.
    #[error(
        "{0} host ports cannot lead to {1} ports of the workload; make both ranges of one length"
    )]
    Lengths(usize, usize),
    /// Not an address.
    #[error("`{0}` is not an IP address of this host")]
    Address(String),
    /// Not there yet.
    #[error("UDP ports cannot be published yet; only /tcp can")]
    Udp,
    /// Unheard of.
    #[error("`{0}` is not a protocol that can be published; use tcp")]
    Protocol(String),
}

/// Reads one `-p`.
pub(super) fn parse(text: &str) -> Result<Publish, PublishError> {
    let (ports, protocol) = match text.split_once('/') {
        Some((ports, protocol)) => (ports, parse_protocol(protocol)?),
        None => (text, Protocol::Tcp),
    };
    let (rest, target) = ports.rsplit_once(':').ok_or(PublishError::Shape)?;
    // An IPv6 address has colons of its own, so it stands in brackets.
    let (host_ip, host) = match rest.rsplit_once(':') {
        Some((address, host)) => (Some(parse_address(address)?), host),
        None => (None, rest),
    };
    let (host, target_ports) = (parse_range(host)?, parse_range(target)?);
    if host.count() != target_ports.count() {
        return Err(PublishError::Lengths(host.count(), target_ports.count()));
    }
    Ok(Publish { host_ip, host, target_ports, protocol })
}

/// Reads `80` or `80-89`.
pub(super) fn parse_range(text: &str) -> Result<PortRange, PublishError> {
    let (start, end) = match text.split_once('-') {
        Some((start, end)) => (parse_port(start)?, parse_port(end)?),
        None => (parse_port(text)?, parse_port(text)?),
    };
    if end < start { Err(PublishError::Reversed(start, end)) } else { Ok(PortRange { start, end }) }
}

/// Reads `tcp`.
pub(super) fn parse_protocol(text: &str) -> Result<Protocol, PublishError> {
    match text.to_ascii_lowercase().as_str() {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Err(PublishError::Udp),
        _ => Err(PublishError::Protocol(text.to_owned())),
    }
}

pub(super) fn parse_port(text: &str) -> Result<u16, PublishError> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(port) if digits && port > 0 => Ok(port),
        _ => Err(PublishError::Port(text.to_owned())),
    }
}

fn parse_address(text: &str) -> Result<IpAddr, PublishError> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let address = bare.unwrap_or(text).parse::<IpAddr>();
    match address {
        Ok(address) if address.is_ipv6() == bare.is_some() => Ok(address),
        _ => Err(PublishError::Address(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Option<String>, u16, u16, u16, u16) {
        let publish = parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        let (host, target) = (publish.host, publish.target_ports);
        let ip = publish.host_ip.map(|ip| ip.to_string());
        (ip, host.start, host.end, target.start, target.end)
    }

    #[test]
    fn ports_ranges_and_addresses_are_read() {
        assert_eq!(read("8080:80"), (None, 8080, 8080, 80, 80));
        assert_eq!(read("8080:80/tcp"), (None, 8080, 8080, 80, 80));
        assert_eq!(read("0.0.0.0:8080:80"), (Some("0.0.0.0".into()), 8080, 8080, 80, 80));
        assert_eq!(read("[::1]:8080:80"), (Some("::1".into()), 8080, 8080, 80, 80));
        assert_eq!(read("8080-8082:80-82"), (None, 8080, 8082, 80, 82));
    }

    #[test]
    fn udp_is_refused_in_so_many_words() {
        assert_eq!(parse("53:53/udp"), Err(PublishError::Udp));
    }

    #[test]
    fn what_is_not_ports_is_refused() {
        for text in [
            "",
            "80",
            ":",
            "80:",
            ":80",
            "0:80",
            "80:0",
            "65536:80",
            "+80:80",
            "80-79:80-79",
            "80-81:80",
            "80:80/sctp",
            "localhost:80:80",
            "::1:80:80",
            "1.2.3:80:80",
            "80:80/",
            "-:80",
            "80-:80",
            "[127.0.0.1]:80:80",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
