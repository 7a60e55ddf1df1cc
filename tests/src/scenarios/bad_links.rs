//! The host's link is bad: lossy, slow, out of order. What the host's TCP mends there, no workload notices.

use std::time::Duration;

use lichen_netstack::testing::impair::{ImpairedLink, Impairment};
use lichen_netstack::testing::shaper::Shaping;

use super::outward::bytes_arrive_whole;
use crate::lab::address::{HOST, UPSTREAM};
use crate::lab::{Background, Direction, Lab, eventually, run, run_within, within};
use crate::runner::scenarios;

scenarios![
    a_transfer_over_a_lossy_and_slow_link_arrives_whole_in_both_directions,
    a_transfer_over_a_link_that_swaps_and_repeats_arrives_whole_in_both_directions,
    of_datagrams_exactly_those_arrive_that_the_links_seed_lets_through,
    a_link_has_the_rate_and_the_delay_that_it_was_given,
];

fn direction(impairment: Impairment, delay: Duration, seed: u64) -> Direction {
    Direction { shaping: Shaping { impairment, delay, ..Shaping::default() }, seed }
}

fn transfers_arrive_whole(lab: &Lab, bytes: &str) {
    let limit = Duration::from_secs(120);
    bytes_arrive_whole(lab, bytes, UPSTREAM, |script| {
        run_within(limit, &mut lab.lichen(["run", "--", "sh", "-c", script])).success()
    });
}

/// One frame in a hundred is lost each way, and there and back takes 20 ms.
fn a_transfer_over_a_lossy_and_slow_link_arrives_whole_in_both_directions(lab: &Lab) {
    let lossy = Impairment { loss: 1, ..Impairment::default() };
    let delay = Duration::from_millis(10);
    let link = lab.shape(direction(lossy, delay, 11), direction(lossy, delay, 12));
    transfers_arrive_whole(lab, "seq 1000000 | head -c 6000000");
    for counts in link.counts_of(1000) {
        println!("   {counts:?}");
        assert!(counts.lost > 0 && counts.overflowed == 0, "the link was no worse: {counts:?}");
    }
}

fn a_transfer_over_a_link_that_swaps_and_repeats_arrives_whole_in_both_directions(lab: &Lab) {
    let mixed = Impairment { loss: 0, duplicate: 5, reorder: 5 };
    let delay = Duration::from_millis(1);
    let link = lab.shape(direction(mixed, delay, 21), direction(mixed, delay, 22));
    transfers_arrive_whole(lab, "seq 2000000 | head -c 14000000");
    for counts in link.counts_of(1000) {
        println!("   {counts:?}");
        assert!(counts.duplicated > 10 && counts.reordered > 10, "{counts:?}");
        assert_eq!(counts.lost, 0);
    }
}

/// So few that all of them fit every socket's buffer, should nobody on the way be given a processor meanwhile.
const COUNT: u32 = 200;

/// From a workload to the upstream, and from there to a published port.
fn of_datagrams_exactly_those_arrive_that_the_links_seed_lets_through(lab: &Lab) {
    let impairment = Impairment { loss: 5, duplicate: 5, reorder: 5 };
    let (forth, back) = (31, 32);
    let delay = Duration::from_millis(2);
    let _link = lab.shape(direction(impairment, delay, forth), direction(impairment, delay, back));
    let program = lab.path("bin/lichen-lab").display().to_string();
    let receive = [&program, "peer", "numbers", "7100"];
    let listens = |receiver: &Background| {
        eventually("the receiver listens", || receiver.printed().contains("listening"));
    };
    let received = |receiver: &mut Background| {
        assert!(within(30, || receiver.ended().is_some()), "the receiver goes on listening");
        let printed = receiver.printed();
        let last = printed.lines().last().expect("what it heard");
        last.split(' ').map(|word| word.parse().expect("a number")).collect::<Vec<u32>>()
    };

    let mut outside = lab.upstream().start_in_background(&receive);
    listens(&outside);
    lab.in_workload(&format!("{program} peer number {UPSTREAM}:7100 {COUNT}"));
    let up = received(&mut outside);

    let publish = ["run", "-p", "0.0.0.0:7101:7100/udp", "--", &program, "peer", "numbers", "7100"];
    let mut inside = Background::start(&mut lab.lichen(publish), &lab.path("logs"));
    listens(&inside);
    eventually("the port is open", || {
        run(&mut lab.lichen(["port", "ls"])).success().contains("active")
    });
    lab.upstream().sh(&format!("{program} peer number {HOST}:7101 {COUNT}"));
    let down = received(&mut inside);

    for (name, seen, seed) in [("up", up, forth), ("down", down, back)] {
        let expected = let_through(impairment, seed);
        println!(
            "   {name}: {} of {COUNT} datagrams, the seed says {}",
            seen.len(),
            expected.len()
        );
        assert!(!seen.is_sorted(), "{name}: some are overtaken");
        let mut seen = seen;
        // Which one overtakes whom depends on when it comes, and the sender's pauses are not the seed's.
        seen.sort_unstable();
        assert_eq!(seen, expected, "{name}");
    }
}

/// The numbers that a link with that seed lets through, in order.
fn let_through(impairment: Impairment, seed: u64) -> Vec<u32> {
    let mut link = ImpairedLink::new(impairment, seed);
    let mut frames: Vec<Vec<u8>> =
        (0..COUNT).flat_map(|number| link.send(number.to_be_bytes().to_vec())).collect();
    frames.extend(link.release());
    let mut numbers: Vec<u32> = frames
        .iter()
        .map(|frame| u32::from_be_bytes(frame[..].try_into().expect("four bytes")))
        .collect();
    numbers.sort_unstable();
    numbers
}

/// Both are lower bounds, which a busy machine cannot break.
fn a_link_has_the_rate_and_the_delay_that_it_was_given(lab: &Lab) {
    let delay = Duration::from_millis(50);
    let slow = Shaping { delay, rate: Some(250_000), ..Shaping::default() };
    let direction = Direction { shaping: slow, seed: 1 };
    let _link = lab.shape(direction, direction);
    let pinged = lab.in_workload(&format!("ping -c3 -i0.2 -W5 {UPSTREAM}"));
    let least = pinged.split("min/avg/max/mdev = ").nth(1).and_then(|it| it.split('/').next());
    let least: f64 = least.and_then(|it| it.parse().ok()).expect("ping's summary");
    assert!(least >= 100.0, "{least} ms there and back");

    let source = ["busybox", "nc", "-l", "-p", "7002", "-e", "head", "-c", "500000", "/dev/zero"];
    let _source = lab.upstream().start_in_background(&source);
    lab.upstream().sh("until busybox netstat -ltn | grep -q :7002; do sleep 0.05; done");
    let fetch = format!("nc -d {UPSTREAM} 7002 | wc -c");
    let fetched = run(&mut lab.lichen(["run", "--", "sh", "-c", &fetch]));
    let took = fetched.took;
    assert_eq!(fetched.success().trim(), "500000");
    assert!(took >= Duration::from_secs(2), "{took:?} for 500 kB at 250 kB/s");
}
