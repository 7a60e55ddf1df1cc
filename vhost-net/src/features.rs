//! What is offered to a guest and to its monitor, and what an agreement means for rings and frames.

use lichen_netstack::port::Offloads;
use vhost::vhost_user::message::VhostUserProtocolFeatures;

use crate::queue::{HeaderLayout, Notices, RingFeatures, Tables};

// Feature bits of virtio 1.2, 5.1.3 and 6, and those of vhost and vhost-user.
const CSUM: u64 = 1 << 0;
const GUEST_CSUM: u64 = 1 << 1;
const MTU: u64 = 1 << 3;
const GUEST_TSO4: u64 = 1 << 7;
const GUEST_TSO6: u64 = 1 << 8;
const GUEST_ECN: u64 = 1 << 9;
const HOST_TSO4: u64 = 1 << 11;
const HOST_TSO6: u64 = 1 << 12;
const HOST_ECN: u64 = 1 << 13;
const MRG_RXBUF: u64 = 1 << 15;
const GUEST_ANNOUNCE: u64 = 1 << 21;
const MQ: u64 = 1 << 22;
/// Of vhost: what is written to the guest's memory is logged. No driver sees it; the monitor agrees to it while it
/// migrates its guest.
pub(crate) const LOG_ALL: u64 = 1 << 26;
const INDIRECT_DESC: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;
/// Of vhost-user: rings are enabled by a message of their own.
pub(crate) const PROTOCOL_FEATURES: u64 = 1 << 30;
const VERSION_1: u64 = 1 << 32;
const IN_ORDER: u64 = 1 << 35;
const GUEST_USO4: u64 = 1 << 54;
const GUEST_USO6: u64 = 1 << 55;
const HOST_USO: u64 = 1 << 56;

/// Everything a guest may agree to. The control queue and the link's status stay with the monitor, and so does
/// asking a guest to announce itself, which goes over both: to offer it only lets the monitor do so.
pub(crate) const OFFERED: u64 = CSUM
    | GUEST_CSUM
    | MTU
    | GUEST_TSO4
    | GUEST_TSO6
    | GUEST_ECN
    | HOST_TSO4
    | HOST_TSO6
    | HOST_ECN
    | MRG_RXBUF
    | GUEST_ANNOUNCE
    | MQ
    | LOG_ALL
    | INDIRECT_DESC
    | EVENT_IDX
    | PROTOCOL_FEATURES
    | VERSION_1
    | IN_ORDER
    | GUEST_USO4
    | GUEST_USO6
    | HOST_USO;

/// Everything a monitor may agree to.
pub(crate) fn protocol_features() -> VhostUserProtocolFeatures {
    VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::LOG_SHMFD
        | VhostUserProtocolFeatures::RARP
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::MTU
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
        | VhostUserProtocolFeatures::RESET_DEVICE
}

/// What rings look like under an agreement.
pub(crate) fn ring_features(agreed: u64) -> RingFeatures {
    RingFeatures {
        header: match (agreed & MRG_RXBUF != 0, agreed & VERSION_1 != 0) {
            (true, _) => HeaderLayout::Mergeable,
            (false, true) => HeaderLayout::Single,
            (false, false) => HeaderLayout::Legacy,
        },
        notices: if agreed & EVENT_IDX == 0 { Notices::Flags } else { Notices::EventIndex },
        tables: if agreed & INDIRECT_DESC == 0 { Tables::Refused } else { Tables::Accepted },
    }
}

/// What the guest does itself with frames that it is sent. A bit without the one that it needs (virtio 1.2,
/// 5.1.3.1) means nothing: monitors pass on what a driver agreed to, also where they took the other from it.
pub(crate) fn offloads(agreed: u64) -> Offloads {
    let has = |bits: u64| agreed & bits == bits;
    // Who takes segments of one family only, which is rare, gets them cut of both; so does who takes
    // datagrams and no TCP.
    match (has(GUEST_CSUM), has(GUEST_TSO4 | GUEST_TSO6), has(GUEST_USO4 | GUEST_USO6)) {
        (false, _, _) => Offloads::None,
        (true, false, _) => Offloads::Checksum,
        (true, true, false) => Offloads::ChecksumAndTcp,
        (true, true, true) => Offloads::ChecksumTcpAndUdp,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agreement_means_what_the_specification_says() {
        assert_eq!(ring_features(0).header, HeaderLayout::Legacy);
        assert_eq!(ring_features(VERSION_1).header, HeaderLayout::Single);
        assert_eq!(ring_features(MRG_RXBUF).header, HeaderLayout::Mergeable);
        assert_eq!(ring_features(OFFERED).notices, Notices::EventIndex);
        assert_eq!(offloads(OFFERED), Offloads::ChecksumTcpAndUdp);
        for family in [GUEST_USO4, GUEST_USO6] {
            assert_eq!(offloads(OFFERED & !family), Offloads::ChecksumAndTcp);
        }
        assert_eq!(offloads(OFFERED & !GUEST_TSO6), Offloads::Checksum);
        assert_eq!(offloads(OFFERED & !GUEST_CSUM), Offloads::None, "segments need checksums");
    }

    #[test]
    fn everything_that_is_offered_has_what_it_needs_offered_beside_it() {
        let needs = [
            (GUEST_TSO4 | GUEST_TSO6 | GUEST_USO4 | GUEST_USO6, GUEST_CSUM),
            (HOST_TSO4 | HOST_TSO6 | HOST_USO, CSUM),
            (GUEST_ECN, GUEST_TSO4 | GUEST_TSO6),
            (HOST_ECN, HOST_TSO4 | HOST_TSO6),
        ];
        for (bits, needed) in needs {
            assert_eq!((OFFERED & bits, OFFERED & needed), (bits, needed));
        }
    }
}
