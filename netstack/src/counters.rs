//! What is counted: frames, bytes, and for every frame that is dropped the reason.

use std::collections::BTreeMap;

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// Why a frame went no further. The text form is stable: it names metrics and appears in JSON.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum DropReason {
            $($(#[$doc])* $variant,)*
        }

        impl DropReason {
            /// Every reason, in declaration order.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The stable name, for example `mac_spoof`.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

drop_reasons! {
    /// Shorter than its headers need.
    L2Runt = "l2_runt",
    /// Larger than the network's MTU allows.
    L2Oversize = "l2_oversize",
    /// An 802.1Q or 802.1ad tag on an untagged port.
    Vlan = "vlan",
    /// An EtherType that is none of IPv4, IPv6 and ARP.
    Ethertype = "ethertype",
    /// An IPv6 frame: this network has no IPv6.
    Ipv6Off = "ipv6_off",
    /// The source MAC is not the port's.
    MacSpoof = "mac_spoof",
    /// An ARP message that claims an address which is not the port's, or is malformed.
    ArpSpoof = "arp_spoof",
    /// An ARP request for an address that nobody has.
    ArpUnknown = "arp_unknown",
    /// A message of IPv6's neighbour discovery that claims an address which is not the port's, comes from beyond
    /// the link, or is malformed.
    NdpSpoof = "ndp_spoof",
    /// A neighbour solicitation for an address that nobody has.
    NdpUnknown = "ndp_unknown",
    /// What only a router says: a router advertisement or a redirect, or neighbour discovery in fragments.
    RouterGuard = "router_guard",
    /// A report of which multicast groups a guest listens to: nothing is sent to groups here.
    MulticastListener = "multicast_listener",
    /// A guest gave itself more IPv6 addresses, or faster, than a port may have.
    AddressBudget = "address_budget",
    /// The source IP is not the port's.
    IpSpoof = "ip_spoof",
    /// A source address that never appears on a wire.
    Martian = "martian",
    /// Source and destination are the same.
    Land = "land",
    /// Broadcast or multicast that no one here answers.
    Broadcast = "broadcast",
    /// A destination MAC that no port of this network has.
    UnknownUnicast = "unknown_unicast",
    /// The port sent more broadcast than its bucket holds.
    StormLimit = "storm_limit",
    /// A descriptor chain of a virtual machine that is no frame, or no room for one.
    RingError = "ring_error",
    /// A frame on a ring that a virtual machine has started and then switched off.
    RingDisabled = "ring_disabled",
    /// A datagram of another sender than the port's virtual machine.
    Stranger = "stranger",
    /// A malformed IP header.
    IpHeader = "ip_header",
    /// IP source routing and its kind, an extension header too many, or an option that must not be skipped.
    IpOptions = "ip_options",
    /// Time to live was spent.
    TtlExpired = "ttl_expired",
    /// A wrong checksum.
    Checksum = "csum",
    /// A malformed TCP header.
    TcpHeader = "tcp_header",
    /// A malformed UDP header.
    UdpHeader = "udp_header",
    /// A malformed or unwanted ICMP message, or an error about nothing that we sent.
    Icmp = "icmp",
    /// An IP protocol that is not carried outward.
    Protocol = "proto",
    /// A virtio-net header that contradicts its frame.
    VnetHeader = "vnet_hdr",
    /// Fragments that overlap, or that end beyond 65,535 bytes.
    FragmentOverlap = "frag_overlap",
    /// The oldest incomplete datagram made room for a newer one.
    FragmentBudget = "frag_budget",
    /// Fragments whose rest never came.
    FragmentTimeout = "frag_timeout",
    /// A destination on the host itself.
    HostAddress = "host_address",
    /// A link-local or metadata address.
    Metadata = "metadata",
    /// Another network of ours.
    OtherNetwork = "other_network",
    /// An internal network has no way out.
    Internal = "internal",
    /// A gateway port that nothing answers.
    GatewayPort = "gateway_port",
    /// The host has no route there, or nobody on this network has the address.
    NoRoute = "no_route",
    /// All TCP flows of the port, or all its descriptors, are in use.
    TcpBudget = "tcp_budget",
    /// The oldest half-open connection made room for a newer one.
    HalfOpenBudget = "half_open_budget",
    /// The UDP flow that was idle longest made room for a newer one, or no descriptor was left for that.
    UdpBudget = "udp_budget",
    /// The client of published UDP ports that was silent longest made room for a newer one.
    ClientBudget = "client_budget",
    /// More new clients of published UDP ports from one network than are let in.
    ClientRate = "client_rate",
    /// The ICMP flow that was idle longest made room for a newer one, or no descriptor was left for that.
    IcmpBudget = "icmp_budget",
    /// The port's flows hold as many bytes as they may.
    FlowBudget = "flow_budget",
    /// Too many name queries are under way for the port.
    DnsBudget = "dns_budget",
    /// The host refused to open a socket.
    HostSocket = "host_socket",
    /// The host did not take a datagram.
    HostSend = "host_send",
    /// A TCP segment that RFC 5961 forbids to act on.
    TcpBlind = "tcp_blind",
    /// A TCP segment of no flow.
    TcpNoFlow = "tcp_no_flow",
    /// The receiver took no more.
    ToGuestFull = "to_guest_full",
    /// The receiver is gone.
    ToGuestGone = "to_guest_gone",
    /// More was on its way to the worker of the receiving port than may be.
    CrossingFull = "crossing_full",
    /// The receiving port was gone, or was another, when the frame came to its worker.
    CrossingLost = "crossing_lost",
    /// DHCP that a client of this port has no business to say: as a server or relay, or about another's
    /// addresses.
    DhcpGuard = "dhcp_guard",
    /// A malformed DHCP message, or BOOTP.
    DhcpMalformed = "dhcp_malformed",
    /// More DHCP messages, or more declined addresses, than a port may send.
    DhcpBudget = "dhcp_budget",
    /// A fragment that came twice, or a segment of a flow whose host still connects.
    Duplicate = "duplicate",
}

/// Counters of one port; nothing here ever goes down.
#[derive(Clone, Debug)]
pub struct Counters {
    /// Frames read from the guest.
    pub frames_from_guest: u64,
    /// Bytes of those frames, Ethernet header included.
    pub bytes_from_guest: u64,
    /// Frames handed to the guest.
    pub frames_to_guest: u64,
    /// Bytes of those frames.
    pub bytes_to_guest: u64,
    drops: [u64; DropReason::ALL.len()],
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            frames_from_guest: 0,
            bytes_from_guest: 0,
            frames_to_guest: 0,
            bytes_to_guest: 0,
            drops: [0; DropReason::ALL.len()],
        }
    }
}

impl Counters {
    /// Counts one dropped frame.
    pub fn drop(&mut self, reason: DropReason) {
        self.drops[reason as usize] += 1;
    }

    /// Counts frames that were handed over and have not arrived after all.
    pub fn lose(&mut self, frames: u64) {
        self.drops[DropReason::ToGuestFull as usize] += frames;
    }

    /// How many frames were dropped for `reason`.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }

    /// The reasons that occurred, by name.
    pub fn drops(&self) -> BTreeMap<String, u64> {
        DropReason::ALL
            .iter()
            .filter(|reason| self.dropped(**reason) > 0)
            .map(|reason| (reason.name().to_owned(), self.dropped(*reason)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_drop_reason_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<_> =
            DropReason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), DropReason::ALL.len());
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
        }
    }

    #[test]
    fn only_reasons_that_occurred_are_listed() {
        let mut counters = Counters::default();
        counters.drop(DropReason::MacSpoof);
        counters.drop(DropReason::MacSpoof);
        assert_eq!(counters.drops(), BTreeMap::from([("mac_spoof".to_owned(), 2)]));
    }
}
