//! A bad link between two network namespaces, in user space: not every kernel has netem.
//!
//! One tap in each, and what is read from one is written to the other when the [`Shaper`] of that direction
//! says so. The taps take no offloads, so the kernel cuts large segments and completes checksums first:
//! what is lost is a frame as on a wire. (netem on a veth drops a segment of 64 KiB as a whole.)

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::time::{Duration, Instant};

use lichen_netstack::testing::shaper::{Shaped, Shaper, Shaping};
use lichen_netstack::time::Instant as Now;
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::raw::{TapReader, tap};

/// Bytes of the virtio-net header in front of each frame.
const VNET_LEN: usize = 12;
/// Frames read from one tap before the other has its turn.
const MAX_BATCH: usize = 64;
/// A link on which nothing has happened for so long says what it has done.
const QUIET: Duration = Duration::from_millis(100);

/// Joins the namespaces of two processes. `forth` and `back` say how each direction is, as [`text`] writes it.
pub(super) fn shape(ends: [(&str, &str); 2], forth: &str, back: &str) -> io::Result<()> {
    let mut taps = Vec::new();
    for (pid, name) in ends {
        let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
        move_into_link_name_space(
            std::os::fd::AsFd::as_fd(&namespace),
            Some(LinkNameSpaceType::Network),
        )?;
        let tap = tap(name, TapReader::TakesNothing)?;
        rustix::io::ioctl_fionbio(&tap, true)?;
        taps.push(tap);
    }
    let taps: [File; 2] = taps.try_into().expect("one for each end");
    let shapers = [forth, back].map(|text| parse(text).map_err(io::Error::other));
    let [forth, back] = shapers;
    let [forth, back] = [forth?, back?].map(|(shaping, seed)| Shaper::new(shaping, seed));
    println!("ready");
    Link { taps, shapers: [forth, back], start: Instant::now() }.run()
}

/// A direction as one word.
pub(crate) fn text(shaping: &Shaping, seed: u64) -> String {
    let Shaping { impairment, delay, rate, room } = shaping;
    format!(
        "{seed},{},{},{},{},{},{room}",
        impairment.loss,
        impairment.duplicate,
        impairment.reorder,
        delay.as_micros(),
        rate.unwrap_or(0)
    )
}

fn parse(text: &str) -> Result<(Shaping, u64), String> {
    let numbers: Result<Vec<u64>, _> = text.split(',').map(str::parse).collect();
    let Ok([seed, loss, duplicate, reorder, delay, rate, room]) = numbers.as_deref() else {
        return Err(format!("{text}: not SEED,LOSS,DUPLICATE,REORDER,MICROSECONDS,RATE,ROOM"));
    };
    let mut shaping = Shaping {
        delay: Duration::from_micros(*delay),
        rate: (*rate > 0).then_some(*rate),
        room: usize::try_from(*room).map_err(|error| error.to_string())?,
        ..Shaping::default()
    };
    shaping.impairment.loss = *loss;
    shaping.impairment.duplicate = *duplicate;
    shaping.impairment.reorder = *reorder;
    Ok((shaping, *seed))
}

struct Link {
    taps: [File; 2],
    /// From each tap to the other.
    shapers: [Shaper; 2],
    start: Instant,
}

impl Link {
    fn run(mut self) -> io::Result<()> {
        let poller = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for (tap, number) in self.taps.iter().zip(0..) {
            let data = epoll::EventData::new_u64(number);
            epoll::add(&poller, tap, data, epoll::EventFlags::IN)?;
        }
        let (mut events, mut told) = (Vec::with_capacity(2), None);
        loop {
            let due = self.shapers.iter().filter_map(Shaper::poll_timeout).min();
            let wait = due.map_or(QUIET, |at| at.since(self.now()));
            let wait = Timespec {
                tv_sec: i64::try_from(wait.as_secs()).map_err(io::Error::other)?,
                tv_nsec: wait.subsec_nanos().into(),
            };
            events.clear();
            match epoll::wait(&poller, spare_capacity(&mut events), Some(&wait)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                self.take(usize::from(event.data.u64() == 1))?;
            }
            let now = self.now();
            for (from, to) in [(0, 1), (1, 0)] {
                while let Some(frame) = self.shapers[from].poll_frame(now) {
                    deliver(&mut self.taps[to], &frame)?;
                }
            }
            let shaped = self.shapers.each_ref().map(Shaper::shaped);
            if events.is_empty() && due.is_none() && told != Some(shaped) {
                println!("{}", shaped.map(|shaped| counts(&shaped)).join(" "));
                told = Some(shaped);
            }
        }
    }

    fn take(&mut self, from: usize) -> io::Result<()> {
        let mut buffer = [0; 2048];
        for _ in 0..MAX_BATCH {
            let len = match self.taps[from].read(&mut buffer) {
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // The interface is not up yet, or not any more.
                Err(error) if error.raw_os_error() == Some(libc::EIO) => break,
                Err(error) => return Err(error),
            };
            let now = self.now();
            let frame = &buffer[..len];
            if is_upkeep(frame) {
                self.shapers[from].handle_upkeep(now, frame);
            } else {
                self.shapers[from].handle_frame(now, frame);
            }
        }
        Ok(())
    }

    fn now(&self) -> Now {
        Now::START + self.start.elapsed()
    }
}

fn deliver(tap: &mut File, frame: &[u8]) -> io::Result<()> {
    match tap.write(frame) {
        Ok(_) => Ok(()),
        // An interface that is down takes nothing, as nobody would hear it.
        Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(()),
        Err(error) => Err(error),
    }
}

/// `frames/lost/duplicated/reordered/overflowed`
fn counts(shaped: &Shaped) -> String {
    let Shaped { fates, overflowed } = shaped;
    format!("{}/{}/{}/{}/{overflowed}", fates.frames, fates.lost, fates.duplicated, fates.reordered)
}

/// ARP, neighbour discovery and everything else to groups: what keeps the link up, not what it is for.
fn is_upkeep(frame: &[u8]) -> bool {
    let Some(ethernet) = frame.get(VNET_LEN..) else { return true };
    let is_group = ethernet.first().is_some_and(|byte| byte & 1 == 1);
    let is_icmp6_discovery = ethernet.get(20) == Some(&58)
        && ethernet.get(54).is_some_and(|kind| (133..=137).contains(kind));
    match ethernet.get(12..14) {
        Some([0x08, 0x00]) => is_group,
        Some([0x86, 0xdd]) => is_group || is_icmp6_discovery,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use lichen_netstack::ids::MacAddr;
    use lichen_netstack::testing::frames::{ethernet, icmp6, udp};
    use lichen_netstack::testing::impair::Impairment;

    use super::*;

    #[test]
    fn a_direction_is_read_as_it_was_written() {
        let impairment = Impairment { loss: 1, duplicate: 2, reorder: 3 };
        let delay = Duration::from_millis(10);
        for rate in [None, Some(125_000)] {
            let shaping = Shaping { impairment, delay, rate, room: 7 };
            assert_eq!(parse(&text(&shaping, 42)), Ok((shaping, 42)));
        }
        for wrong in ["", "1,2,3", "1,2,3,4,5,6,x", "1,2,3,4,5,6,7,8"] {
            assert!(parse(wrong).is_err_and(|error| error.contains("MICROSECONDS")), "{wrong}");
        }
    }

    #[test]
    fn only_what_keeps_the_link_up_is_left_alone() {
        let (near, far) = (MacAddr([2, 0, 0, 0, 0, 1]), MacAddr([2, 0, 0, 0, 0, 2]));
        let end = |text: &str| text.parse::<SocketAddr>().unwrap();
        let datagram = udp(end("192.0.2.1:1"), end("192.0.2.2:2"), b"x");
        assert!(!is_upkeep(&ethernet(near, far, 0x0800, &datagram)));
        assert!(is_upkeep(&ethernet(near, MacAddr([0xff; 6]), 0x0800, &datagram)));
        assert!(is_upkeep(&ethernet(near, far, 0x0806, &[0; 28])));
        let address = |text: &str| text.parse().unwrap();
        let (from, to) = (address("fe80::1"), address("fe80::2"));
        let message = |kind: u8| icmp6(from, to, 255, &[kind, 0, 0, 0, 0, 0, 0, 0]);
        assert!(is_upkeep(&ethernet(near, far, 0x86dd, &message(135))));
        assert!(!is_upkeep(&ethernet(near, far, 0x86dd, &message(128))));
        assert!(is_upkeep(&[0; 4]));
    }
}
