//! Names: answering from a network's own catalog, and forwarding the rest to the host's resolvers.
//!
//! Without I/O, clock or randomness of its own: [`Resolver`] takes questions and replies with the time,
//! and says through [`Action`]s what is to be sent. A question is answered exactly once, if only by
//! silence.
//!
//! On a network with NAT64 a name of others that has only addresses of IPv4 is answered with such as a guest reaches over
//! IPv6 (DNS64).
//!
//! Invariants: names of the asker's own network are never forwarded and always answered with authority, NODATA and
//! NXDOMAIN with their SOA (RFC 2308); an answer from outside never points a guest at the host, at
//! ourselves or at a metadata service.
//!
//! Sources: RFC 1035, 2308, 6147, 6761, 6891, 7050, 7766, 8020, 8482, 8880, 8914, and draft-vixie-dnsext-dns0x20.

mod answer;
mod catalog;
mod dns64;
mod forward;
mod question;
mod rebinding;
mod resolver;
mod reverse;
mod secrets;

pub use catalog::Catalog;
pub use resolver::{Action, Reply, Resolver, Via};
