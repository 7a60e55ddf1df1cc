//! DHCP messages as a client would write them, well or badly.

use std::net::Ipv4Addr;

use crate::ids::MacAddr;
use crate::wire::dhcp::{BOOTREQUEST, DhcpMessage, MessageType};

/// A message to build.
#[derive(Clone, Debug)]
pub struct Request {
    bytes: Vec<u8>,
}

impl Request {
    /// A message of that type, from a client with that Ethernet address.
    pub fn new(kind: MessageType, hardware: MacAddr) -> Self {
        let code = match kind {
            MessageType::Discover => 1,
            MessageType::Offer => 2,
            MessageType::Request => 3,
            MessageType::Decline => 4,
            MessageType::Ack => 5,
            MessageType::Nak => 6,
            MessageType::Release => 7,
            MessageType::Inform => 8,
            MessageType::Other(code) => code,
        };
        Self::bootp(hardware).with(53, &[code])
    }

    /// A message without a type.
    pub fn bootp(hardware: MacAddr) -> Self {
        let mut bytes = vec![0; 236];
        bytes[..3].copy_from_slice(&[BOOTREQUEST, 1, 6]);
        bytes[4..8].copy_from_slice(&[0xde, 0xad, 0xbe, 0xef]);
        bytes[28..34].copy_from_slice(&hardware.0);
        bytes.extend_from_slice(&[99, 130, 83, 99]);
        Self { bytes }
    }

    /// The same with an option.
    pub fn with(mut self, code: u8, value: &[u8]) -> Self {
        let len = u8::try_from(value.len()).expect("an option is below 256 bytes");
        self.bytes.extend_from_slice(&[code, len]);
        self.bytes.extend_from_slice(value);
        self
    }

    /// The same from a client that says it has an address.
    pub fn having(mut self, address: Ipv4Addr) -> Self {
        self.bytes[12..16].copy_from_slice(&address.octets());
        self
    }

    /// The same with the broadcast flag.
    pub fn broadcast(mut self) -> Self {
        self.bytes[10] = 0x80;
        self
    }

    /// The message.
    pub fn emit(&self) -> Vec<u8> {
        [&self.bytes[..], &[255]].concat()
    }

    /// The message with something changed.
    pub fn changed(&self, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
        let mut bytes = self.emit();
        change(&mut bytes);
        bytes
    }

    /// The message with bytes at its end that need not be options.
    pub fn raw(&self, end: &[u8]) -> Vec<u8> {
        [&self.bytes[..], end].concat()
    }
}

/// What a guest reads of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its type.
    pub kind: MessageType,
    /// The address that it gives.
    pub yours: Ipv4Addr,
    bytes: Vec<u8>,
}

impl Answer {
    /// Reads an answer; what we send must be one.
    pub fn read(bytes: &[u8]) -> Self {
        let message = DhcpMessage::parse(bytes).expect("an answer of ours parses");
        Self {
            kind: message.kind,
            yours: Ipv4Addr::from_octets(bytes[16..20].try_into().expect("four bytes")),
            bytes: bytes.to_vec(),
        }
    }

    /// The value of an option.
    pub fn option(&self, code: u8) -> Option<&[u8]> {
        let mut rest = &self.bytes[240..];
        while let [found, len, tail @ ..] = rest
            && *found != 255
        {
            let (value, tail) = tail.split_at(usize::from(*len));
            if *found == code {
                return Some(value);
            }
            rest = tail;
        }
        None
    }
}
