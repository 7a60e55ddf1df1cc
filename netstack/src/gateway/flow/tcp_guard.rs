//! What stands in front of smoltcp: the checks of RFC 5961, which it does not make.
//!
//! The guard follows the connection by what we send (our acknowledgements say what we expect next, our
//! segments say what may be acknowledged) and judges what the guest sends. In its words: a reset counts
//! only when its sequence number is exactly the next one (or the end of what has come and is not
//! acknowledged yet); a SYN never resets; an acknowledgement of what
//! was never sent is answered, not believed.

use std::time::Duration;

use crate::time::Instant;
use crate::wire::tcp::{Flags, TcpHeader, before};

/// Shortest time between two challenge ACKs of one connection (RFC 5961, 7; Linux's default).
const CHALLENGE_INTERVAL: Duration = Duration::from_millis(500);

/// What one connection expects of its guest.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpGuard {
    /// RCV.NXT as of our last segment.
    receive_next: u32,
    /// RCV.WND as of our last segment, in bytes.
    receive_window: u32,
    /// End of the furthest data the guest has sent.
    receive_highest: u32,
    /// By how much our window field is shifted.
    window_shift: u8,
    /// Highest acknowledgement of the guest.
    send_unacknowledged: u32,
    /// SND.NXT.
    send_next: u32,
    /// Largest window the guest has offered, in bytes.
    largest_send_window: u32,
    /// By how much the guest's window field is shifted.
    guest_shift: u8,
    synchronized: bool,
    /// The guest has acknowledged our SYN.
    handshaken: bool,
    last_challenge: Option<Instant>,
}

/// What to do with a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// Give it to the connection.
    Accept,
    /// Give it to the connection, with the acknowledgement field raised to this value: its data is good,
    /// and an old acknowledgement says nothing (RFC 5961, 5.2 has the range).
    AcceptWithAcknowledgement(u32),
    /// The guest has reset the connection.
    Reset,
    /// Answer with an acknowledgement, and forget the segment.
    Challenge,
    /// Answer with a reset, and forget the segment: it acknowledges a handshake that is not this one.
    Refuse,
    /// Forget the segment.
    Ignore,
}

/// The state of one's own direction that an acknowledgement needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expectation {
    /// Sequence number of the next segment we send.
    pub sequence: u32,
    /// Acknowledgement number we would send.
    pub acknowledgement: u32,
    /// Window field we would send.
    pub window: u16,
}

impl TcpGuard {
    /// Follows a segment that we send.
    pub fn observe_to_guest(&mut self, header: &TcpHeader, window_scale: Option<u8>) {
        let end = header.sequence.wrapping_add(header.sequence_len());
        if header.flags.has(Flags::SYN) {
            self.send_unacknowledged = header.sequence;
            self.send_next = end;
            self.window_shift = window_scale.unwrap_or(0);
            self.receive_window = u32::from(header.window);
        } else {
            if before(self.send_next, end) {
                self.send_next = end;
            }
            self.receive_window = u32::from(header.window) << self.window_shift;
        }
        if header.flags.has(Flags::ACK) {
            if !self.synchronized {
                self.receive_highest = header.acknowledgement;
            }
            self.receive_next = header.acknowledgement;
            self.synchronized = true;
        }
    }

    /// Follows the guest's SYN, whose window scale tells how its window fields are to be read.
    pub fn observe_syn(&mut self, window_scale: Option<u8>) {
        // Only when both sides send the option does it count (RFC 7323, 2.2); ours always has it.
        self.guest_shift = window_scale.unwrap_or(0).min(14);
        if window_scale.is_none() {
            self.window_shift = 0;
        }
    }

    /// Judges a segment of the guest.
    pub fn judge(&self, header: &TcpHeader) -> Judgement {
        let acknowledges_another = header.flags.has(Flags::ACK)
            && !header.flags.has(Flags::RST)
            && header.acknowledgement != self.send_next;
        if !self.handshaken && acknowledges_another {
            // RFC 9293, 3.10.7.3 and 3.10.7.4.
            return Judgement::Refuse;
        }
        if !self.synchronized {
            // Our SYN is not answered yet: smoltcp's own checks of SYN-SENT are complete.
            return Judgement::Accept;
        }
        if header.flags.has(Flags::RST) {
            return self.judge_reset(header);
        }
        if header.flags.has(Flags::SYN) {
            return Judgement::Challenge;
        }
        if !header.flags.has(Flags::ACK) {
            return Judgement::Ignore;
        }
        if before(self.send_next, header.acknowledgement) {
            return Judgement::Challenge;
        }
        if before(header.acknowledgement, self.send_unacknowledged) {
            let age = self.send_unacknowledged.wrapping_sub(header.acknowledgement);
            return if age <= self.largest_send_window.max(65_535) {
                Judgement::AcceptWithAcknowledgement(self.send_unacknowledged)
            } else {
                Judgement::Challenge
            };
        }
        Judgement::Accept
    }

    fn judge_reset(&self, header: &TcpHeader) -> Judgement {
        // What arrived in order and is not acknowledged yet counts as received.
        let into_window = header.sequence.wrapping_sub(self.receive_next);
        if into_window == 0 || header.sequence == self.receive_highest {
            Judgement::Reset
        } else if into_window < self.receive_window {
            Judgement::Challenge
        } else {
            Judgement::Ignore
        }
    }

    /// Follows a segment of the guest that was accepted.
    pub fn observe_from_guest(&mut self, header: &TcpHeader) {
        self.handshaken |= header.flags.has(Flags::ACK);
        if header.flags.has(Flags::ACK) && before(self.send_unacknowledged, header.acknowledgement)
        {
            self.send_unacknowledged = header.acknowledgement;
        }
        let end = header.sequence.wrapping_add(header.sequence_len());
        let within = end.wrapping_sub(self.receive_next) <= self.receive_window;
        if within && before(self.receive_highest, end) {
            self.receive_highest = end;
        }
        self.largest_send_window = self.largest_send_window.max(self.window_of(header));
    }

    /// What the window field of a segment of the guest means, in bytes.
    pub fn window_of(&self, header: &TcpHeader) -> u32 {
        let shift = if header.flags.has(Flags::SYN) { 0 } else { self.guest_shift };
        u32::from(header.window) << shift
    }

    /// Highest acknowledgement of the guest.
    pub fn acknowledged(&self) -> u32 {
        self.send_unacknowledged
    }

    /// Whether all that the guest has sent so far is in order and acknowledged.
    pub fn is_gapless(&self) -> bool {
        !before(self.receive_next, self.receive_highest)
    }

    /// Whether data that ends there fits the window as of our last segment.
    pub fn is_within_window(&self, end: u32) -> bool {
        end.wrapping_sub(self.receive_next) <= self.receive_window
    }

    /// Whether a challenge may be sent now; counts it when it may.
    pub fn may_challenge(&mut self, now: Instant) -> bool {
        let may = self.last_challenge.is_none_or(|last| last + CHALLENGE_INTERVAL <= now);
        if may {
            self.last_challenge = Some(now);
        }
        may
    }

    /// Follows an acknowledgement that we send beside smoltcp. The window stays: it moves on by as much.
    pub fn observe_acknowledgement(&mut self, next: u32) {
        self.receive_next = next;
    }

    /// Follows data that we send beside smoltcp, up to that number.
    pub fn observe_sent(&mut self, end: u32) {
        if before(self.send_next, end) {
            self.send_next = end;
        }
    }

    /// What a challenge says.
    pub fn expectation(&self) -> Expectation {
        Expectation {
            sequence: self.send_next,
            acknowledgement: self.receive_next,
            window: u16::try_from(self.receive_window >> self.window_shift).unwrap_or(u16::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(flags: u8, sequence: u32, acknowledgement: u32) -> TcpHeader {
        TcpHeader {
            source_port: 1,
            destination_port: 2,
            sequence,
            acknowledgement,
            flags: Flags(flags),
            window: 1000,
            header_len: 20,
            payload_len: 0,
        }
    }

    /// We have sent SYN|ACK with sequence 99, and expect 5000 next in a window of 1000.
    fn established() -> TcpGuard {
        let mut guard = TcpGuard::default();
        guard.observe_syn(Some(0));
        guard.observe_to_guest(&header(Flags::SYN | Flags::ACK, 99, 5000), Some(0));
        guard.observe_from_guest(&header(Flags::ACK, 5000, 100));
        guard
    }

    #[test]
    fn only_a_reset_with_the_exact_next_number_counts() {
        let guard = established();
        for (sequence, judgement) in [
            (5000, Judgement::Reset),
            (5001, Judgement::Challenge),
            (5999, Judgement::Challenge),
            (6000, Judgement::Ignore),
            (4999, Judgement::Ignore),
        ] {
            assert_eq!(guard.judge(&header(Flags::RST, sequence, 0)), judgement, "{sequence}");
        }
    }

    #[test]
    fn a_syn_is_challenged_whatever_its_number() {
        for sequence in [0, 4999, 5000, 5500, 90_000] {
            let judgement = established().judge(&header(Flags::SYN, sequence, 0));
            assert_eq!(judgement, Judgement::Challenge);
        }
    }

    #[test]
    fn an_acknowledgement_of_what_was_never_sent_is_challenged() {
        let guard = established();
        assert_eq!(guard.judge(&header(Flags::ACK, 5000, 100)), Judgement::Accept);
        assert_eq!(guard.judge(&header(Flags::ACK, 5000, 101)), Judgement::Challenge);
    }

    #[test]
    fn data_with_an_old_acknowledgement_is_kept() {
        let judgement = established().judge(&header(Flags::ACK, 5000, 90));
        assert_eq!(judgement, Judgement::AcceptWithAcknowledgement(100));
        let ancient = 100u32.wrapping_sub(70_000);
        assert_eq!(established().judge(&header(Flags::ACK, 5000, ancient)), Judgement::Challenge);
    }

    #[test]
    fn challenges_are_limited() {
        let mut guard = established();
        let start = Instant::from_micros(1);
        assert!(guard.may_challenge(start));
        assert!(!guard.may_challenge(start + Duration::from_millis(499)));
        assert!(guard.may_challenge(start + Duration::from_millis(500)));
    }
}
