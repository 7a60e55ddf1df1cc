//! The grammar of `-p`, which is Docker's: `[[HOST_IP:]HOST[-END]:]PORT[-END][/tcp|/udp]`, and of ports alone.
//!
//! A host port of 0, or none, is a free one that the daemon chooses: `0:80`, `127.0.0.1::80`, `80`.

use std::net::IpAddr;

use lichen_api::{PortRange, Publish, Transport};

/// Why a text does not say which ports to publish.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PublishError {
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
    /// Unheard of.
    #[error("`{0}` is not a protocol that can be published; use tcp or udp")]
    Protocol(String),
}

/// A free port of the host, for each that it leads to.
const CHOSEN: PortRange = PortRange { start: 0, end: 0 };

/// Reads one `-p`.
pub(super) fn parse(text: &str) -> Result<Publish, PublishError> {
    let (ports, protocol) = split_protocol(text)?;
    let (host_ip, host, target) = match ports.rsplit_once(':') {
        None => (None, CHOSEN, ports),
        // An IPv6 address has colons of its own, so it stands in brackets.
        Some((rest, target)) => match rest.rsplit_once(':') {
            Some((address, "")) => (Some(parse_address(address)?), CHOSEN, target),
            Some((address, host)) => {
                (Some(parse_address(address)?), parse_host_range(host)?, target)
            }
            None => (None, parse_host_range(rest)?, target),
        },
    };
    let target_ports = parse_range(target)?;
    if host != CHOSEN && host.count() != target_ports.count() {
        return Err(PublishError::Lengths(host.count(), target_ports.count()));
    }
    Ok(Publish { host_ip, host, target_ports, protocol })
}

/// Reads `80`, `80-89`, or `0` for one that is free.
pub(super) fn parse_host_range(text: &str) -> Result<PortRange, PublishError> {
    if text == "0" { Ok(CHOSEN) } else { parse_range(text) }
}

/// Reads `80` or `80-89`.
pub(super) fn parse_range(text: &str) -> Result<PortRange, PublishError> {
    let (start, end) = match text.split_once('-') {
        Some((start, end)) => (parse_port(start)?, parse_port(end)?),
        None => (parse_port(text)?, parse_port(text)?),
    };
    if end < start { Err(PublishError::Reversed(start, end)) } else { Ok(PortRange { start, end }) }
}

/// Ports of the host and their transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HostPorts {
    /// Which ports.
    pub(crate) range: PortRange,
    /// Which transport; TCP where nobody said.
    pub(crate) protocol: Transport,
}

/// Reads `80`, `80-89` or `53/udp`.
pub(super) fn parse_host_ports(text: &str) -> Result<HostPorts, PublishError> {
    let (range, protocol) = split_protocol(text)?;
    Ok(HostPorts { range: parse_range(range)?, protocol })
}

fn split_protocol(text: &str) -> Result<(&str, Transport), PublishError> {
    match text.split_once('/') {
        Some((ports, protocol)) => Ok((ports, parse_protocol(protocol)?)),
        None => Ok((text, Transport::Tcp)),
    }
}

/// Reads `tcp` or `udp`.
pub(super) fn parse_protocol(text: &str) -> Result<Transport, PublishError> {
    match text.to_ascii_lowercase().as_str() {
        "tcp" => Ok(Transport::Tcp),
        "udp" => Ok(Transport::Udp),
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
    fn a_host_port_that_is_left_out_or_zero_is_chosen() {
        assert_eq!(read("80"), (None, 0, 0, 80, 80));
        assert_eq!(read("0:80-82/udp"), (None, 0, 0, 80, 82));
        assert_eq!(read("0.0.0.0::80"), (Some("0.0.0.0".into()), 0, 0, 80, 80));
        assert_eq!(read("[::1]:0:80"), (Some("::1".into()), 0, 0, 80, 80));
    }

    #[test]
    fn the_transport_stands_at_the_end() {
        assert_eq!(parse("53:53/udp").unwrap().protocol, Transport::Udp);
        assert_eq!(parse("53:53/TCP").unwrap().protocol, Transport::Tcp);
        let ports = parse_host_ports("53-54/udp").unwrap();
        assert_eq!((ports.range.count(), ports.protocol), (2, Transport::Udp));
        assert_eq!(parse_host_ports("53").unwrap().protocol, Transport::Tcp);
        assert!(parse_host_ports("53/").is_err());
    }

    #[test]
    fn what_is_not_ports_is_refused() {
        for text in [
            "",
            ":",
            "80:",
            ":80",
            "0",
            "0-1:80-81",
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
