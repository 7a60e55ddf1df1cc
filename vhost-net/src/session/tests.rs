//! Sessions whose time is the test's.

use rustix::event::{EventfdFlags, eventfd};

use super::*;
use crate::testing::front_end::messages::{SET_FEATURES, SET_VRING_ENABLE, pair};
use crate::testing::front_end::rings::{FROM_GUEST, TO_GUEST};
use crate::testing::front_end::{FEATURES, FrontEnd, LOG_ALL};

/// A datapath that is given nothing.
struct Nothing;

impl Datapath for Nothing {
    fn plug(&mut self, _: PortId, _: VhostPort) {
        panic!("no rings run without memory");
    }

    fn unplug(&mut self, _: PortId, _: &[BorrowedFd<'_>]) {}

    fn tell(&mut self, _: PortId, _: LinkState) {}
}

/// A monitor whose rings are switched on, as QEMU does it before there is a guest, and its session.
fn begin(now: Instant) -> (FrontEnd, Session) {
    let (theirs, ours) = UnixStream::pair().expect("two descriptors");
    let wake = eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
    let guest = (PortId(1), MacAddr([2; 6]));
    let mut session = Session::new(guest, ours, Arc::new(wake), now).expect("a few descriptors");
    let monitor = FrontEnd::over(theirs).expect("memory of its own");
    for ring in [0, 1] {
        monitor.send(SET_VRING_ENABLE, &pair(ring, 1), &[]).expect("it is read");
    }
    assert!(matches!(session.handle_readable(now, &mut Nothing), Ok(None)));
    (monitor, session)
}

#[test]
fn a_guest_whose_monitor_never_shares_memory_is_told_with_the_option_and_not_ended() {
    let begun = Instant::now();
    let driver = begun + Duration::from_secs(60);
    // QEMU either says where the rings are all the same, or nothing more.
    for rings in [&[TO_GUEST, FROM_GUEST][..], &[]] {
        let (monitor, mut session) = begin(begun);
        assert_eq!(session.deadline(), None, "firmware may take as long as it likes");
        monitor.send(SET_FEATURES, &FEATURES.to_ne_bytes(), &[]).unwrap();
        rings.iter().for_each(|ring| monitor.set_up_ring(*ring).unwrap());
        assert!(matches!(session.handle_readable(driver, &mut Nothing), Ok(None)));
        // More words do not put it off.
        monitor.send(SET_VRING_ENABLE, &pair(0, 1), &[]).unwrap();
        let later = driver + Duration::from_secs(4);
        assert!(matches!(session.handle_readable(later, &mut Nothing), Ok(None)));
        assert_eq!(session.deadline(), Some(driver + PATIENCE));
        assert!(matches!(session.handle_timeout(later), Ok(None)));
        let told = session.handle_timeout(driver + PATIENCE).expect("it goes on");
        let Some(LinkState::Trouble { reason }) = told else { panic!("{told:?}") };
        assert!(reason.contains("memory-backend-memfd,id=lichen-memory"), "{reason}");
        assert!(reason.contains("share=on -machine memory-backend=lichen-memory"), "{reason}");
        assert_eq!(session.deadline(), None, "once");
    }
}

#[test]
fn a_log_that_is_wanted_and_never_given_is_told_and_nothing_runs_without_it() {
    let now = Instant::now();
    let (monitor, mut session) = begin(now);
    monitor.send(SET_FEATURES, &(FEATURES | LOG_ALL).to_ne_bytes(), &[]).unwrap();
    monitor.set_memory().unwrap();
    [TO_GUEST, FROM_GUEST].iter().for_each(|ring| monitor.set_up_ring(*ring).unwrap());
    assert!(matches!(session.handle_readable(now, &mut Nothing), Ok(None)));
    let told = session.handle_timeout(now + PATIENCE).expect("it goes on");
    let Some(LinkState::Trouble { reason }) = told else { panic!("{told:?}") };
    assert!(reason.contains("logged and has not said where"), "{reason}");
}

#[test]
fn memory_that_comes_in_time_is_waited_for_no_longer() {
    let now = Instant::now();
    let (monitor, mut session) = begin(now);
    monitor.send(SET_FEATURES, &FEATURES.to_ne_bytes(), &[]).unwrap();
    assert!(matches!(session.handle_readable(now, &mut Nothing), Ok(None)));
    assert!(session.deadline().is_some());
    monitor.set_memory().unwrap();
    assert!(matches!(session.handle_readable(now, &mut Nothing), Ok(None)));
    assert_eq!(session.deadline(), None);
}
