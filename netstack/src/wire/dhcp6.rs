//! DHCPv6 messages (RFC 8415): what a client says, parsed once, and the options of an answer.
//!
//! Only what a server of fixed bindings needs is kept. Options are read one level deep, and one level more
//! inside an identity association; lengths are checked against what is left. An option that may come once
//! only and comes twice makes the message nothing. Relays are not read: a port is one client.

use std::net::Ipv6Addr;

use super::{be16, be32};

/// A server's port.
pub const SERVER_PORT: u16 = 547;
/// A client's port.
pub const CLIENT_PORT: u16 = 546;
/// The group of all servers and relays of a link.
pub const ALL_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
/// Bytes in front of the options.
const FIXED_LEN: usize = 4;
/// Longest identifier (RFC 8415 11.1).
const MAX_DUID: usize = 130;
/// Identity associations of one message that are answered.
const MAX_ASSOCIATIONS: usize = 4;
/// Addresses of one association that are looked at.
const MAX_ADDRESSES: usize = 4;
/// Options in one field.
const MAX_OPTIONS: usize = 64;

/// Option codes (RFC 8415 unless said).
pub mod option {
    #![allow(missing_docs, reason = "the names are those of the registry")]
    pub const CLIENT_ID: u16 = 1;
    pub const SERVER_ID: u16 = 2;
    pub const IA_NA: u16 = 3;
    pub const IA_ADDRESS: u16 = 5;
    pub const WANTED: u16 = 6;
    pub const PREFERENCE: u16 = 7;
    pub const STATUS: u16 = 13;
    pub const RAPID_COMMIT: u16 = 14;
    /// RFC 3646.
    pub const NAME_SERVERS: u16 = 23;
    /// RFC 3646.
    pub const SEARCH_LIST: u16 = 24;
    pub const REFRESH_TIME: u16 = 32;
}

/// Status codes (RFC 8415 21.13).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Status {
    /// All is well.
    Success = 0,
    /// There is no address for this association.
    NoAddress = 2,
    /// There is no such binding.
    NoBinding = 3,
    /// The addresses do not belong on this link.
    NotOnLink = 4,
}

/// What a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageType {
    /// Who is there?
    Solicit,
    /// A server's proposal.
    Advertise,
    /// I take these addresses.
    Request,
    /// Are my addresses right here?
    Confirm,
    /// I keep my addresses.
    Renew,
    /// I keep my addresses; whoever hears it may answer.
    Rebind,
    /// A server's answer.
    Reply,
    /// I need the addresses no more.
    Release,
    /// Somebody else has those addresses.
    Decline,
    /// I have addresses, tell me the rest.
    InformationRequest,
    /// What servers and relays say, and what came after.
    Other(u8),
}

impl MessageType {
    fn from_code(code: u8) -> Self {
        match code {
            1 => Self::Solicit,
            2 => Self::Advertise,
            3 => Self::Request,
            4 => Self::Confirm,
            5 => Self::Renew,
            6 => Self::Rebind,
            7 => Self::Reply,
            8 => Self::Release,
            9 => Self::Decline,
            11 => Self::InformationRequest,
            other => Self::Other(other),
        }
    }

    /// The number on the wire.
    pub fn code(self) -> u8 {
        match self {
            Self::Solicit => 1,
            Self::Advertise => 2,
            Self::Request => 3,
            Self::Confirm => 4,
            Self::Renew => 5,
            Self::Rebind => 6,
            Self::Reply => 7,
            Self::Release => 8,
            Self::Decline => 9,
            Self::InformationRequest => 11,
            Self::Other(code) => code,
        }
    }
}

/// A client's message, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dhcp6Message<'a> {
    /// What it is for.
    pub kind: MessageType,
    /// The transaction's number.
    pub transaction: [u8; 3],
    /// Who the client is, which an answer repeats.
    pub client_id: Option<&'a [u8]>,
    /// Which server is meant.
    pub server_id: Option<&'a [u8]>,
    /// Associations of addresses (IA_NA); further ones than four are left out.
    pub associations: Vec<Association>,
    /// Whether a solicitation may be answered at once (option 14).
    pub rapid_commit: bool,
    /// Option 6.
    wanted: Vec<u16>,
}

/// One association of a client's (IA_NA) with the addresses that it says it has or wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Association {
    /// The client's number for it.
    pub id: u32,
    /// The first few.
    pub addresses: Vec<Ipv6Addr>,
}

impl<'a> Dhcp6Message<'a> {
    /// Parses a UDP payload; `None` for what is malformed.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let fixed: &[u8; FIXED_LEN] = bytes.first_chunk()?;
        let mut message = Self {
            kind: MessageType::from_code(fixed[0]),
            transaction: [fixed[1], fixed[2], fixed[3]],
            client_id: None,
            server_id: None,
            associations: Vec::new(),
            rapid_commit: false,
            wanted: Vec::new(),
        };
        if matches!(message.kind, MessageType::Other(_)) {
            // A relay's message has no options here.
            return Some(message);
        }
        for_each_option(&bytes[FIXED_LEN..], |code, value| message.add(code, value))?;
        Some(message)
    }

    fn add(&mut self, code: u16, value: &'a [u8]) -> Option<()> {
        let duid = || (3..=MAX_DUID).contains(&value.len()).then_some(value);
        match code {
            option::CLIENT_ID if self.client_id.is_none() => self.client_id = Some(duid()?),
            option::SERVER_ID if self.server_id.is_none() => self.server_id = Some(duid()?),
            option::CLIENT_ID | option::SERVER_ID => return None,
            option::IA_NA => {
                let association = Association::parse(value)?;
                if self.associations.len() < MAX_ASSOCIATIONS {
                    self.associations.push(association);
                }
            }
            option::RAPID_COMMIT if value.is_empty() => self.rapid_commit = true,
            option::RAPID_COMMIT => return None,
            option::WANTED => {
                if !value.len().is_multiple_of(2) || value.len() > 2 * MAX_OPTIONS {
                    return None;
                }
                self.wanted.extend(value.chunks_exact(2).map(|code| be16(code, 0)));
            }
            _ => {}
        }
        Some(())
    }

    /// Whether the client asks for an option.
    pub fn wants(&self, code: u16) -> bool {
        self.wanted.contains(&code)
    }
}

impl Association {
    fn parse(value: &[u8]) -> Option<Self> {
        // Identifier and two times.
        let options = value.get(12..)?;
        let mut addresses = Vec::new();
        for_each_option(options, |code, value| {
            if code == option::IA_ADDRESS {
                let address: &[u8; 16] = value.get(..24)?.first_chunk()?;
                if addresses.len() < MAX_ADDRESSES {
                    addresses.push(Ipv6Addr::from_octets(*address));
                }
            }
            Some(())
        })?;
        Some(Self { id: be32(value, 0), addresses })
    }
}

fn for_each_option<'a>(
    field: &'a [u8],
    mut each: impl FnMut(u16, &'a [u8]) -> Option<()>,
) -> Option<()> {
    let mut rest = field;
    for _ in 0..MAX_OPTIONS {
        if rest.is_empty() {
            return Some(());
        }
        let header = rest.get(..4)?;
        let len = usize::from(be16(header, 2));
        each(be16(header, 0), rest.get(4..4 + len)?)?;
        rest = &rest[4 + len..];
    }
    None
}

/// An answer under construction.
#[derive(Debug)]
pub struct Reply(Vec<u8>);

impl Reply {
    /// An answer of that kind to `message`, from the server of that identifier.
    pub fn new(message: &Dhcp6Message<'_>, kind: MessageType, server_id: &[u8]) -> Self {
        let [a, b, c] = message.transaction;
        let mut reply = Self(vec![kind.code(), a, b, c]);
        if let Some(client_id) = message.client_id {
            reply.add(option::CLIENT_ID, client_id);
        }
        reply.add(option::SERVER_ID, server_id);
        reply
    }

    /// Adds an option.
    pub fn add(&mut self, code: u16, value: &[u8]) {
        let len = u16::try_from(value.len()).expect("our options are short");
        self.0.extend_from_slice(&code.to_be_bytes());
        self.0.extend_from_slice(&len.to_be_bytes());
        self.0.extend_from_slice(value);
    }

    /// Adds a status of the whole message.
    pub fn add_status(&mut self, status: Status) {
        self.add(option::STATUS, &(status as u16).to_be_bytes());
    }

    /// Adds an association with an address that is good for so many seconds, and to be renewed when half of
    /// them are over; zero seconds take it away.
    pub fn add_address(&mut self, association: u32, address: &[(Ipv6Addr, u32)]) {
        let valid = address.iter().map(|(_, seconds)| *seconds).max().unwrap_or(0);
        let mut value = Vec::with_capacity(12 + 28 * address.len());
        value.extend_from_slice(&association.to_be_bytes());
        value.extend_from_slice(&(valid / 2).to_be_bytes());
        value.extend_from_slice(&(valid / 5 * 4).to_be_bytes());
        for (address, seconds) in address {
            value.extend_from_slice(&[0, 5, 0, 24]);
            value.extend_from_slice(&address.octets());
            value.extend_from_slice(&seconds.to_be_bytes());
            value.extend_from_slice(&seconds.to_be_bytes());
        }
        self.add(option::IA_NA, &value);
    }

    /// Adds an association without an address, and why it has none.
    pub fn add_refusal(&mut self, association: u32, status: Status) {
        let mut value = association.to_be_bytes().to_vec();
        value.extend_from_slice(&[0; 8]);
        value.extend_from_slice(&[0, 13, 0, 2]);
        value.extend_from_slice(&(status as u16).to_be_bytes());
        self.add(option::IA_NA, &value);
    }

    /// The message.
    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::chance::Chance;

    fn option(code: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = code.to_be_bytes().to_vec();
        bytes.extend_from_slice(&u16::try_from(value.len()).unwrap().to_be_bytes());
        bytes.extend_from_slice(value);
        bytes
    }

    fn address() -> Ipv6Addr {
        "fd00::2".parse().unwrap()
    }

    fn request() -> Vec<u8> {
        let inner = option(5, &[&address().octets()[..], &[0; 8]].concat());
        [
            &[3, 1, 2, 3][..],
            &option(1, &[0, 3, 0, 1, 2, 2, 2, 2, 2, 2]),
            &option(2, &[0, 3, 0, 1, 1, 1, 1, 1, 1, 1]),
            &option(3, &[&[0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0][..], &inner].concat()),
            &option(6, &[0, 23, 0, 24]),
            &option(99, &[1, 2, 3]),
            &option(14, &[]),
        ]
        .concat()
    }

    #[test]
    fn a_request_is_read_whole() {
        let bytes = request();
        let message = Dhcp6Message::parse(&bytes).unwrap();
        assert_eq!((message.kind, message.transaction), (MessageType::Request, [1, 2, 3]));
        assert_eq!(message.client_id, Some(&[0, 3, 0, 1, 2, 2, 2, 2, 2, 2][..]));
        assert_eq!(message.associations, [Association { id: 9, addresses: vec![address()] }]);
        assert!(message.wants(23) && message.wants(24) && !message.wants(25));
        assert!(message.rapid_commit);
    }

    #[test]
    fn what_contradicts_itself_is_nothing() {
        let twice = [request(), option(1, &[0, 3, 0, 1])].concat();
        assert_eq!(Dhcp6Message::parse(&twice), None, "two clients");
        for (code, value) in [(1, &[][..]), (1, &[7; 131]), (3, &[0; 11]), (6, &[1]), (14, &[1])] {
            let bytes = [&[1, 0, 0, 0][..], &option(code, value)].concat();
            assert_eq!(Dhcp6Message::parse(&bytes), None, "option {code} of {}", value.len());
        }
        let short = option(3, &[&[0; 12][..], &option(5, &[0; 23])].concat());
        assert_eq!(Dhcp6Message::parse(&[&[1, 0, 0, 0][..], &short].concat()), None);
        let many = [&[1, 0, 0, 0][..], &option(99, &[]).repeat(65)].concat();
        assert_eq!(Dhcp6Message::parse(&many), None);
    }

    #[test]
    fn many_associations_and_addresses_are_bounded() {
        let inner = option(5, &[0; 24]).repeat(20);
        let association = option(3, &[&[0; 12][..], &inner].concat());
        let bytes = [&[1, 0, 0, 0][..], &association.repeat(20)].concat();
        let message = Dhcp6Message::parse(&bytes).unwrap();
        assert_eq!(message.associations.len(), MAX_ASSOCIATIONS);
        assert!(message.associations.iter().all(|ia| ia.addresses.len() == MAX_ADDRESSES));
    }

    #[test]
    fn an_answer_is_read_as_it_was_written() {
        let bytes = request();
        let message = Dhcp6Message::parse(&bytes).unwrap();
        let mut reply = Reply::new(&message, MessageType::Reply, &[0, 3, 0, 1, 9]);
        reply.add_address(9, &[(address(), 3600)]);
        reply.add_refusal(10, Status::NoAddress);
        reply.add_status(Status::Success);
        let bytes = reply.finish();
        let answer = Dhcp6Message::parse(&bytes).unwrap();
        assert_eq!((answer.kind, answer.transaction), (MessageType::Reply, [1, 2, 3]));
        assert_eq!(answer.client_id, message.client_id);
        let addresses: Vec<_> = answer.associations.iter().map(|ia| ia.addresses.len()).collect();
        assert_eq!(addresses, [1, 0]);
    }

    #[test]
    fn every_prefix_is_read_or_refused_without_a_panic() {
        let whole = request();
        for len in 0..whole.len() {
            let _ = Dhcp6Message::parse(&whole[..len]);
        }
        assert_eq!(Dhcp6Message::parse(&whole[..3]), None);
        assert_eq!(Dhcp6Message::parse(&whole[..10]), None);
    }

    #[test]
    fn no_mutation_of_a_message_makes_the_parser_panic() {
        let mut chance = Chance::seeded();
        let whole = request();
        for _ in 0..200_000 {
            let bytes = chance.mutate(&whole);
            if let Some(message) = Dhcp6Message::parse(&bytes) {
                let reply = Reply::new(&message, MessageType::Reply, &[0, 3, 0, 1]).finish();
                assert!(Dhcp6Message::parse(&reply).is_some(), "{bytes:?}");
            }
        }
    }
}
