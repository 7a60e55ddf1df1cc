//! Which IPv6 addresses a port's guest has: those that control and its MAC give it, and a few of its own choice,
//! as its privacy extensions make them (RFC 8981, RFC 7217).
//!
//! One of its own choice is the guest's once it has probed it (duplicate address detection) and nobody has it,
//! first come, first served, as RFC 6620 has it. At most [`MAX_CHOSEN`] at once; the oldest goes. What is used
//! at all is remembered too: a neighbour is only sent to an address that somebody answers at.

use std::net::Ipv6Addr;
use std::time::Duration;

use crate::budget::TokenBucket;
use crate::command::PortSpec;
use crate::ids::{Ipv6Prefix, MacAddr};
use crate::time::Instant;

/// Addresses of its own choice that a guest has at once.
pub const MAX_CHOSEN: usize = 8;
/// New addresses in a second, sustained: all workers hear of each.
const RATE: u32 = 2;
const BURST: u32 = 16;
/// How long a guest makes sure that an address is free before it answers at it (RFC 4862 5.1: a second, and some
/// time for the guest).
const PROBING: Duration = Duration::from_millis(1500);

/// The IPv6 addresses that one port's guest uses.
#[derive(Debug)]
pub struct OwnAddresses {
    /// Oldest first.
    used: Vec<Ipv6Addr>,
    /// Addresses given to the guest that it probes, until when. Names lead to these: not before it answers.
    probed: Vec<(Ipv6Addr, Instant)>,
    rate: TokenBucket,
    changed: bool,
}

/// What became of an address that a guest wants to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It is the guest's.
    Granted,
    /// It is not of this network, or it has chosen too many lately.
    Refused,
    /// It is control's to give, or follows from another's MAC, whether or not there is one now.
    Reserved,
}

impl Default for OwnAddresses {
    fn default() -> Self {
        Self {
            used: Vec::new(),
            probed: Vec::new(),
            rate: TokenBucket::new(RATE, BURST),
            changed: false,
        }
    }
}

impl OwnAddresses {
    /// Whether a guest may send from an address.
    pub fn has(&self, port: &PortSpec, address: Ipv6Addr) -> bool {
        is_given(port, address) || self.used.contains(&address)
    }

    /// Whether the guest is known to use one of its addresses. A tap's guest has been given two of them.
    pub fn is_known(&self, port: &PortSpec, address: Ipv6Addr) -> bool {
        self.used.contains(&address) || is_configured(port, address)
    }

    /// The guest has sent from one of its addresses.
    pub fn note_use(&mut self, now: Instant, port: &PortSpec, address: Ipv6Addr) {
        if !self.is_known(port, address) && self.rate.take(now) {
            self.probed.retain(|(probed, _)| *probed != address);
            self.used.push(address);
            self.changed = true;
        }
    }

    /// When [`OwnAddresses::handle_timeout`] is to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.probed.iter().map(|(_, until)| *until).min()
    }

    /// What was probed long enough is used.
    pub fn handle_timeout(&mut self, now: Instant) {
        let due = self.probed.extract_if(.., |(_, until)| *until <= now);
        let before = self.used.len();
        self.used.extend(due.map(|(address, _)| address));
        self.changed |= self.used.len() > before;
    }

    /// The guest probes an address that nobody else has, and means to use it.
    pub fn claim(&mut self, now: Instant, port: &PortSpec, address: Ipv6Addr) -> Claim {
        if self.is_known(port, address) {
            return Claim::Granted;
        }
        let given = is_given(port, address);
        let prefix = port.address6.and_then(|own| Ipv6Prefix::containing(own, 64));
        let is_here = address.is_unicast_link_local()
            || prefix.is_some_and(|prefix| prefix.contains(address));
        if is_here && !given && is_reserved(address) {
            return Claim::Reserved;
        }
        if !is_here || !self.rate.take(now) {
            return Claim::Refused;
        }
        if given {
            self.probed.retain(|(probed, _)| *probed != address);
            self.probed.push((address, now + PROBING));
        } else {
            let chosen = |address: &Ipv6Addr| !is_given(port, *address);
            if self.used.iter().filter(|address| chosen(address)).count() >= MAX_CHOSEN
                && let Some(oldest) = self.used.iter().position(chosen)
            {
                self.used.remove(oldest);
            }
            self.used.push(address);
            self.changed = true;
        }
        Claim::Granted
    }

    /// Another guest may come: nothing is used.
    pub fn forget(&mut self) {
        self.changed |= !self.used.is_empty();
        self.used.clear();
        self.probed.clear();
    }

    /// What is used, when that has changed since the last call.
    pub fn poll_changed(&mut self) -> Option<Vec<Ipv6Addr>> {
        std::mem::take(&mut self.changed).then(|| self.used.clone())
    }
}

/// Whether an address is a port's without its guest's doing: the fixed one, and those that follow from its MAC.
fn is_given(port: &PortSpec, address: Ipv6Addr) -> bool {
    port.address6 == Some(address)
        || port.slaac_address() == Some(address)
        || port.address6.is_some() && port.mac.link_local() == address
}

/// Whether we have given the interface that address ourselves, when it was made.
fn is_configured(port: &PortSpec, address: Ipv6Addr) -> bool {
    port.attachment.is_tap()
        && (port.address6 == Some(address)
            || port.address6.is_some() && port.mac.link_local() == address)
}

/// Whether an address is of a form that nobody has by choice: the host numbers of IPv4, which control gives, and
/// what follows from a MAC. By chance a guest's own choice looks so once in 65,536 times, and then it chooses again.
fn is_reserved(address: Ipv6Addr) -> bool {
    let id = (address.to_bits() & u128::from(u64::MAX)) as u64;
    id >> 32 == 0 || MacAddr::from_interface_id(id).is_some()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::command::Attachment;
    use crate::testing::specs;

    fn port() -> PortSpec {
        PortSpec {
            mac: MacAddr([2, 0, 0, 0, 0, 2]),
            address6: Some("fd00:0:0:1::2".parse().unwrap()),
            ..specs::port(1, "a", Ipv4Addr::new(10, 88, 0, 2), Attachment::VhostUser)
        }
    }

    fn chosen(n: u16) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0, 0, 1, 1, 1, 1, n)
    }

    #[test]
    fn a_guest_has_what_follows_from_its_place_and_its_mac() {
        let own = OwnAddresses::default();
        for address in ["fd00:0:0:1::2", "fd00:0:0:1::ff:fe00:2", "fe80::ff:fe00:2"] {
            assert!(own.has(&port(), address.parse().unwrap()), "{address}");
        }
        for address in ["fd00:0:0:1::3", "fd00:0:0:2::2", "fe80::1", "fe80::2", "2001:db8::2"] {
            assert!(!own.has(&port(), address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn at_most_eight_addresses_are_of_its_own_choice_and_the_oldest_goes() {
        let mut own = OwnAddresses::default();
        let mut now = Instant::START;
        for n in 0..20 {
            now = now + std::time::Duration::from_secs(1);
            assert_eq!(own.claim(now, &port(), chosen(n)), Claim::Granted, "{n}");
        }
        let kept = (0..20).filter(|n| own.has(&port(), chosen(*n))).collect::<Vec<_>>();
        assert_eq!(kept, (12..20).collect::<Vec<_>>());
        assert_eq!(own.poll_changed().map(|used| used.len()), Some(MAX_CHOSEN));
        assert_eq!(own.poll_changed(), None);
        own.forget();
        assert_eq!(own.poll_changed(), Some(vec![]));
    }

    #[test]
    fn a_given_address_is_told_to_others_when_its_guest_has_made_sure_of_it() {
        let given = port().address6.unwrap();
        let mut own = OwnAddresses::default();
        assert_eq!(own.claim(Instant::START, &port(), given), Claim::Granted);
        assert_eq!(own.poll_changed(), None);
        let due = own.poll_timeout().expect("it is waited for");
        own.handle_timeout(due);
        assert_eq!((own.poll_changed(), own.poll_timeout()), (Some(vec![given]), None));

        let mut own = OwnAddresses::default();
        own.claim(Instant::START, &port(), given);
        own.note_use(Instant::START, &port(), given);
        assert_eq!((own.poll_changed(), own.poll_timeout()), (Some(vec![given]), None));
    }

    #[test]
    fn what_is_anothers_to_have_is_reserved_for_it() {
        let mut own = OwnAddresses::default();
        let mut claim = |text: &str| own.claim(Instant::START, &port(), text.parse().unwrap());
        for reserved in
            ["fd00:0:0:1::3", "fd00:0:0:1::ffff:1", "fd00:0:0:1::ff:fe00:3", "fe80::ff:fe00:3"]
        {
            assert_eq!(claim(reserved), Claim::Reserved, "{reserved}");
        }
        for given in ["fd00:0:0:1::2", "fd00:0:0:1::ff:fe00:2", "fe80::ff:fe00:2"] {
            assert_eq!(claim(given), Claim::Granted, "{given}");
        }
    }

    #[test]
    fn another_networks_address_and_a_flood_are_refused() {
        let mut own = OwnAddresses::default();
        let elsewhere = "fd00:0:0:2:5:5:5:5".parse().unwrap();
        assert_eq!(own.claim(Instant::START, &port(), elsewhere), Claim::Refused);
        let granted = (0..1000)
            .filter(|n| own.claim(Instant::START, &port(), chosen(*n)) == Claim::Granted)
            .count();
        assert!(granted <= BURST as usize, "{granted}");
    }
}
