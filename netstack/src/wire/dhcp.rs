//! DHCPv4 messages (RFC 2131, 2132): what a client says, parsed once, and the options of an answer.
//!
//! Only what a server of fixed bindings needs is kept. Option overload (52) is followed exactly once, from
//! the options field into `file` and `sname`, never from there; so no message can make the parser loop.
//! Client options that may come once only and come twice are refused: RFC 3396 would join them, and the
//! joined length would be wrong for all of them.

use std::net::Ipv4Addr;

use super::{be16, be32};
use crate::ids::MacAddr;

/// A server's port.
pub const SERVER_PORT: u16 = 67;
/// A client's port.
pub const CLIENT_PORT: u16 = 68;
/// The op field of what clients send.
pub const BOOTREQUEST: u8 = 1;
/// The op field of what servers send.
pub const BOOTREPLY: u8 = 2;
/// Bytes in front of the magic cookie.
const FIXED_LEN: usize = 236;
/// RFC 2131 3: what makes the rest of a BOOTP message options.
const COOKIE: [u8; 4] = [99, 130, 83, 99];
const SNAME: std::ops::Range<usize> = 44..108;
const FILE: std::ops::Range<usize> = 108..236;
/// Fewest bytes of a message that every BOOTP relay and client takes (RFC 1542 2.1).
const MIN_LEN: usize = 300;
/// IP and UDP header, which option 57 counts in.
const PACKET_OVERHEAD: usize = 28;
/// Largest packet of a client that says nothing (RFC 2131 2), and least that it may ask for.
const MIN_PACKET: u16 = 576;

/// Option codes (RFC 2132 unless said).
pub mod option {
    #![allow(missing_docs, reason = "the names are those of the registry")]
    pub const SUBNET_MASK: u8 = 1;
    pub const ROUTER: u8 = 3;
    pub const NAME_SERVER: u8 = 6;
    pub const HOST_NAME: u8 = 12;
    pub const DOMAIN_NAME: u8 = 15;
    pub const MTU: u8 = 26;
    pub const BROADCAST: u8 = 28;
    pub const REQUESTED_ADDRESS: u8 = 50;
    pub const LEASE_TIME: u8 = 51;
    pub const OVERLOAD: u8 = 52;
    pub const MESSAGE_TYPE: u8 = 53;
    pub const SERVER_ID: u8 = 54;
    pub const PARAMETERS: u8 = 55;
    pub const MAX_SIZE: u8 = 57;
    pub const RENEWAL_TIME: u8 = 58;
    pub const REBINDING_TIME: u8 = 59;
    pub const CLIENT_ID: u8 = 61;
    /// RFC 3397.
    pub const SEARCH_LIST: u8 = 119;
    /// RFC 3442.
    pub const CLASSLESS_ROUTES: u8 = 121;
    pub const PAD: u8 = 0;
    pub const END: u8 = 255;
}

/// What a message is for (option 53).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageType {
    /// Who is there?
    Discover,
    /// A server's proposal.
    Offer,
    /// I take this address, or keep it.
    Request,
    /// Somebody else has that address.
    Decline,
    /// A server's agreement.
    Ack,
    /// A server's refusal.
    Nak,
    /// I need the address no more.
    Release,
    /// I have an address, tell me the rest.
    Inform,
    /// FORCERENEW, LEASEQUERY and what came after.
    Other(u8),
}

impl MessageType {
    fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => return None,
            1 => Self::Discover,
            2 => Self::Offer,
            3 => Self::Request,
            4 => Self::Decline,
            5 => Self::Ack,
            6 => Self::Nak,
            7 => Self::Release,
            8 => Self::Inform,
            other => Self::Other(other),
        })
    }

    fn code(self) -> u8 {
        match self {
            Self::Discover => 1,
            Self::Offer => 2,
            Self::Request => 3,
            Self::Decline => 4,
            Self::Ack => 5,
            Self::Nak => 6,
            Self::Release => 7,
            Self::Inform => 8,
            Self::Other(code) => code,
        }
    }
}

/// A message with an option 53, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DhcpMessage<'a> {
    /// [`BOOTREQUEST`] or [`BOOTREPLY`].
    pub op: u8,
    /// The transaction's number.
    pub transaction: u32,
    /// Whether answers must be broadcast.
    pub broadcast: bool,
    /// The address that the client says it has; unspecified when none.
    pub client_address: Ipv4Addr,
    /// A relay's address; unspecified when none.
    pub relay: Ipv4Addr,
    /// The client's Ethernet address.
    pub hardware: MacAddr,
    /// What it is for.
    pub kind: MessageType,
    /// Option 50.
    pub requested: Option<Ipv4Addr>,
    /// Option 54.
    pub server: Option<Ipv4Addr>,
    /// Option 61, which an answer repeats (RFC 6842).
    pub client_id: Option<&'a [u8]>,
    /// Options 55, joined.
    pub wanted: Parameters,
    /// Option 57.
    max_packet: Option<u16>,
}

/// A set of option codes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parameters([u64; 4]);

impl Parameters {
    /// Whether an option is among them.
    pub fn has(self, code: u8) -> bool {
        self.0[usize::from(code >> 6)] & (1 << (code & 63)) != 0
    }

    fn add(&mut self, code: u8) {
        self.0[usize::from(code >> 6)] |= 1 << (code & 63);
    }
}

/// Options as they are found, before it is known whether they make a message.
#[derive(Default)]
struct Found<'a> {
    kind: Option<MessageType>,
    requested: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
    client_id: Option<&'a [u8]>,
    max_packet: Option<u16>,
    overload: Option<u8>,
    wanted: Parameters,
}

impl<'a> DhcpMessage<'a> {
    /// Parses a UDP payload. `None` for what is malformed, and for BOOTP without DHCP.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let options = bytes.get(FIXED_LEN..)?.strip_prefix(&COOKIE)?;
        // Ethernet addresses only.
        if bytes[1] != 1 || bytes[2] != 6 {
            return None;
        }
        let mut found = Found::default();
        found.read(options)?;
        if let Some(overload) = found.overload {
            if overload & 1 != 0 {
                found.read(&bytes[FILE])?;
            }
            if overload & 2 != 0 {
                found.read(&bytes[SNAME])?;
            }
            // One that stood in `file` or `sname` was a second one, and refused as such.
        }
        Some(Self {
            op: bytes[0],
            transaction: be32(bytes, 4),
            broadcast: be16(bytes, 10) & 0x8000 != 0,
            client_address: Ipv4Addr::from_bits(be32(bytes, 12)),
            relay: Ipv4Addr::from_bits(be32(bytes, 24)),
            hardware: MacAddr(bytes[28..34].try_into().expect("six bytes")),
            kind: found.kind?,
            requested: found.requested,
            server: found.server,
            client_id: found.client_id,
            wanted: found.wanted,
            max_packet: found.max_packet,
        })
    }

    /// Most bytes of a message that the client takes.
    fn room(&self) -> usize {
        let packet = self.max_packet.unwrap_or(MIN_PACKET).clamp(MIN_PACKET, 1500);
        usize::from(packet) - PACKET_OVERHEAD
    }
}

impl<'a> Found<'a> {
    /// Reads one field of options up to its end; `None` when an option runs over it or has a wrong length.
    fn read(&mut self, field: &'a [u8]) -> Option<()> {
        let mut rest = field;
        while let [code, tail @ ..] = rest {
            match *code {
                option::PAD => rest = tail,
                option::END => break,
                code => {
                    let (len, tail) = tail.split_first()?;
                    let (value, tail) = tail.split_at_checked(usize::from(*len))?;
                    self.take(code, value)?;
                    rest = tail;
                }
            }
        }
        Some(())
    }

    fn take(&mut self, code: u8, value: &'a [u8]) -> Option<()> {
        match code {
            option::MESSAGE_TYPE => {
                let [code] = *value else { return None };
                once(&mut self.kind, MessageType::from_code(code)?)
            }
            option::REQUESTED_ADDRESS => once(&mut self.requested, address(value)?),
            option::SERVER_ID => once(&mut self.server, address(value)?),
            // RFC 2132 9.14 asks for two bytes at least; one-byte ones are seen and do no harm.
            option::CLIENT_ID if value.is_empty() => None,
            option::CLIENT_ID => once(&mut self.client_id, value),
            option::MAX_SIZE => {
                once(&mut self.max_packet, u16::from_be_bytes(value.try_into().ok()?))
            }
            option::OVERLOAD => match *value {
                [overload @ 1..=3] => once(&mut self.overload, overload),
                _ => None,
            },
            option::PARAMETERS if value.is_empty() => None,
            option::PARAMETERS => {
                value.iter().for_each(|code| self.wanted.add(*code));
                Some(())
            }
            _ => Some(()),
        }
    }
}

fn once<T>(place: &mut Option<T>, value: T) -> Option<()> {
    place.replace(value).is_none().then_some(())
}

fn address(value: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from_octets)
}

/// An answer while it is written.
#[derive(Debug)]
pub struct Reply {
    bytes: Vec<u8>,
    room: usize,
}

impl Reply {
    /// Begins the answer to `request`: the fixed fields, the message type, our identity, and the client's
    /// identifier, all of which fit into any message.
    pub fn new(
        request: &DhcpMessage<'_>,
        kind: MessageType,
        server: Ipv4Addr,
        yours: Ipv4Addr,
    ) -> Self {
        let mut bytes = vec![0; FIXED_LEN];
        bytes[..3].copy_from_slice(&[BOOTREPLY, 1, 6]);
        bytes[4..8].copy_from_slice(&request.transaction.to_be_bytes());
        if request.broadcast {
            bytes[10] = 0x80;
        }
        // RFC 2131 table 3: a NAK names no address at all.
        if kind == MessageType::Ack {
            bytes[12..16].copy_from_slice(&request.client_address.octets());
        }
        bytes[16..20].copy_from_slice(&yours.octets());
        bytes[28..34].copy_from_slice(&request.hardware.0);
        bytes.extend_from_slice(&COOKIE);
        let mut reply = Self { bytes, room: request.room() };
        reply.add(option::MESSAGE_TYPE, &[kind.code()]);
        reply.add(option::SERVER_ID, &server.octets());
        if let Some(id) = request.client_id {
            reply.add(option::CLIENT_ID, id);
        }
        reply
    }

    /// Adds an option where it still fits; an empty value or one over 255 bytes is left out.
    pub fn add(&mut self, code: u8, value: &[u8]) {
        let Ok(len @ 1..) = u8::try_from(value.len()) else { return };
        // One byte is kept for the end.
        if self.bytes.len() + 2 + value.len() < self.room {
            self.bytes.extend_from_slice(&[code, len]);
            self.bytes.extend_from_slice(value);
        }
    }

    /// The message.
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.push(option::END);
        let len = self.bytes.len().max(MIN_LEN);
        self.bytes.resize(len, option::PAD);
        self.bytes
    }
}

/// A domain name as labels (RFC 1035 3.1, as RFC 3397 has it); `None` when it cannot be one.
pub fn search_list(domain: &str) -> Option<Vec<u8>> {
    let mut labels = Vec::with_capacity(domain.len() + 2);
    for label in domain.split('.') {
        let len = u8::try_from(label.len()).ok().filter(|len| (1..=63).contains(len))?;
        labels.push(len);
        labels.extend_from_slice(label.as_bytes());
    }
    labels.push(0);
    Some(labels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::chance::Chance;
    use crate::testing::dhcp::Request;

    fn parsed(bytes: &[u8]) -> bool {
        DhcpMessage::parse(bytes).is_some()
    }

    fn discover() -> Request {
        Request::new(MessageType::Discover, MacAddr([2, 0, 0, 0, 0, 2]))
    }

    #[test]
    fn a_message_is_parsed_whole() {
        let bytes = discover()
            .with(50, &[10, 88, 0, 2])
            .with(54, &[10, 88, 0, 1])
            .with(61, &[1, 2, 3])
            .with(55, &[1, 121])
            .with(55, &[3])
            .emit();
        let message = DhcpMessage::parse(&bytes).unwrap();
        assert_eq!(message.kind, MessageType::Discover);
        assert_eq!(message.requested, Some([10, 88, 0, 2].into()));
        assert_eq!(message.server, Some([10, 88, 0, 1].into()));
        assert_eq!(message.client_id, Some(&[1, 2, 3][..]));
        assert!(message.wanted.has(1) && message.wanted.has(121) && message.wanted.has(3));
        assert!(!message.wanted.has(6));
    }

    #[test]
    fn what_is_malformed_is_no_message() {
        let with = |code, value: &[u8]| discover().with(code, value).emit();
        for (what, bytes) in [
            ("nothing", vec![]),
            ("no cookie", discover().emit()[..236].to_vec()),
            ("a wrong cookie", discover().changed(|bytes| bytes[236] = 0)),
            ("no Ethernet", discover().changed(|bytes| bytes[1] = 6)),
            ("a long hardware address", discover().changed(|bytes| bytes[2] = 16)),
            ("BOOTP", Request::bootp(MacAddr([2; 6])).emit()),
            ("type 0", Request::bootp(MacAddr([2; 6])).with(53, &[0]).emit()),
            ("an empty type", Request::bootp(MacAddr([2; 6])).with(53, &[]).emit()),
            ("two types", with(53, &[1])),
            ("a short address", with(50, &[1, 2, 3])),
            ("a long address", with(54, &[1, 2, 3, 4, 5])),
            ("an empty identifier", with(61, &[])),
            ("an empty list", with(55, &[])),
            ("a size of one byte", with(57, &[2])),
            ("overload 0", with(52, &[0])),
            ("overload 4", with(52, &[4])),
            ("an option over the end", discover().raw(&[50, 200, 1])),
            ("a code without a length", discover().raw(&[50])),
        ] {
            assert!(!parsed(&bytes), "{what}");
        }
        assert!(parsed(&with(82, &[7; 255])), "a relay's option means nothing to us");
    }

    #[test]
    fn overload_is_followed_once_and_never_from_where_it_leads() {
        let overloaded = |file: &[u8], sname: &[u8]| {
            Request::bootp(MacAddr([2; 6])).with(52, &[3]).changed(|bytes| {
                bytes[108..108 + file.len()].copy_from_slice(file);
                bytes[44..44 + sname.len()].copy_from_slice(sname);
            })
        };
        let bytes = overloaded(&[53, 1, 1, 255], &[50, 4, 10, 88, 0, 2, 255]);
        let message = DhcpMessage::parse(&bytes).unwrap();
        assert_eq!(message.requested, Some([10, 88, 0, 2].into()));
        assert!(!parsed(&overloaded(&[53, 1, 1, 52, 1, 3, 255], &[])), "nested");
        assert!(!parsed(&overloaded(&[53, 1, 1, 255], &[50, 63])), "over the end of sname");
    }

    #[test]
    fn an_answer_stays_within_what_the_client_takes() {
        let bytes = discover().with(61, &[9; 255]).emit();
        let message = DhcpMessage::parse(&bytes).unwrap();
        let ours = Ipv4Addr::new(10, 88, 0, 1);
        let mut reply = Reply::new(&message, MessageType::Offer, ours, ours);
        for code in 1..50 {
            reply.add(code, &[7; 60]);
        }
        let bytes = reply.finish();
        assert!(bytes.len() <= 548, "{}", bytes.len());
        assert_eq!(DhcpMessage::parse(&bytes).unwrap().client_id, Some(&[9; 255][..]));
    }

    #[test]
    fn no_mutation_of_a_message_makes_the_parser_panic() {
        let mut chance = Chance::seeded();
        let whole = discover().with(52, &[3]).with(61, &[1, 2]).with(55, &[1, 3]).emit();
        for _ in 0..200_000 {
            let bytes = chance.mutate(&whole);
            if let Some(message) = DhcpMessage::parse(&bytes) {
                let ours = Ipv4Addr::new(10, 88, 0, 1);
                let reply = Reply::new(&message, MessageType::Ack, ours, ours).finish();
                assert!(parsed(&reply), "{bytes:?}");
            }
        }
    }
}
