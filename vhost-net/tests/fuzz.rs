//! Rings and conversations of random bytes, bred from those that a driver or a monitor could have written.
//! `LICHEN_FUZZ_SECONDS` sets how long each runs (three by default), `LICHEN_FUZZ_SEED` repeats a run.
#![cfg(target_os = "linux")]

use std::time::{Duration, Instant, SystemTime};

use lichen_netstack::testing::chance::Chance;
use lichen_vhost_net::queue::error::RingErrors;
use lichen_vhost_net::testing::conversation::{Said, conversation};
use lichen_vhost_net::testing::fuzz::{self, Served};

const LONGEST: usize = 8 + 6 * 320;

#[test]
fn no_bytes_in_a_ring_break_a_promise() {
    let (mut chance, until) = begin();
    let mut pool: Vec<Vec<u8>> = (0..16).map(|_| plausible(&mut chance)).collect();
    let mut runs = 0_u64;
    let mut total = Served::default();
    let mut slowest = Duration::ZERO;
    while Instant::now() < until {
        let parent = chance.below(pool.len());
        let mut data = pool[parent].clone();
        mutate(&mut chance, &mut data);
        let started = Instant::now();
        let served = fuzz::ring(&data);
        let took = started.elapsed();
        slowest = slowest.max(took);
        runs += 1;
        add(&mut total, served);
        // The pool drifts, and is drawn back by fresh blood.
        pool[parent] = if chance.below(20) == 0 { plausible(&mut chance) } else { data };
    }
    println!("{runs} rings, the slowest in {slowest:?}: {total:?}");
    assert!(total.received > 0 && total.sent > 0, "nothing passed");
    let RingErrors {
        looped,
        next,
        address,
        direction,
        available_index,
        indirect,
        length,
        head,
        // Not a ring's affair.
        call: 0,
    } = total.errors
    else {
        panic!("nobody was called");
    };
    let kinds = [looped, next, address, direction, available_index, indirect, length, head];
    assert!(kinds.iter().all(|count| *count > 0), "a kind of error was never met");
}

#[test]
fn no_bytes_of_a_monitor_break_a_promise() {
    let (mut chance, until) = begin();
    // Everything that QEMU says, in its order: request, flags, ring, number, descriptors, twist.
    let sound: Vec<u8> = [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [15, 0, 0, 0, 0, 0, 0, 0],
        [16, 0, 0, 13, 0, 0, 0, 0],
        [17, 0, 0, 0, 0, 0, 0, 0],
        [3, 0, 0, 0, 0, 0, 0, 0],
        [18, 0x80, 0, 0, 0, 0, 0, 0],
        [18, 0x80, 1, 0, 0, 0, 0, 0],
        [2, 0, 0, 0, 0, 0, 0, 0],
        [5, 0, 0, 0, 0, 0, 0, 0],
        [8, 0x40, 0, 0, 0, 0, 0, 0],
        [10, 0, 0, 0, 0, 0, 0, 0],
        [9, 0, 0, 0, 0, 0, 0, 0],
        [12, 0, 0, 0, 0, 0, 0, 0],
        [13, 0, 0, 0, 1, 0, 0, 0],
        [8, 0x40, 1, 0, 0, 0, 0, 0],
        [10, 0, 1, 0, 0, 0, 0, 0],
        [9, 0, 1, 0, 0, 0, 0, 0],
        [12, 0, 1, 0, 0, 0, 0, 0],
        [13, 0, 1, 0, 1, 0, 0, 0],
        [19, 8, 0, 0, 0, 0, 0, 0],
        // A second pair, of which one ring is switched off again.
        [8, 0x40, 2, 0, 0, 0, 0, 0],
        [9, 0, 2, 0, 0, 0, 0, 0],
        [12, 0, 2, 0, 0, 0, 0, 0],
        [8, 0x40, 3, 0, 0, 0, 0, 0],
        [9, 0, 3, 0, 0, 0, 0, 0],
        [12, 0, 3, 0, 0, 0, 0, 0],
        [18, 0x80, 2, 0, 0, 0, 0, 0],
        [18, 0x80, 3, 0, 0, 0, 0, 0],
        [18, 0, 3, 0, 0, 0, 0, 0],
        [11, 0, 0, 0, 0, 0, 0, 0],
        [11, 0, 1, 0, 0, 0, 0, 0],
    ]
    .concat();
    let mut total = Said::default();
    let mut runs = 0_u64;
    while Instant::now() < until {
        let mut data = sound.clone();
        if chance.below(8) > 0 {
            mutate(&mut chance, &mut data);
        }
        if chance.below(4) == 0 {
            // A second life, or part of one, on the same connection.
            data.extend_from_slice(&sound[8 * chance.below(28)..]);
        }
        let said = conversation(&data);
        total.messages += said.messages;
        total.plugged += said.plugged;
        total.ended += said.ended;
        runs += 1;
    }
    println!("{runs} conversations: {total:?}");
    assert!(total.plugged > 0 && total.ended > 0, "only one kind of end was met");
}

/// A generator whose seed is printed, and when to stop.
fn begin() -> (Chance, Instant) {
    let seconds = number("LICHEN_FUZZ_SECONDS").unwrap_or(3);
    let seed = number("LICHEN_FUZZ_SEED").unwrap_or_else(|| {
        let since = SystemTime::UNIX_EPOCH.elapsed().expect("a clock after 1970");
        u64::from(since.subsec_nanos()) << 20 | 1
    });
    println!("LICHEN_FUZZ_SEED={seed}");
    (Chance::new(seed), Instant::now() + Duration::from_secs(seconds))
}

#[test]
fn inputs_too_short_for_a_ring_do_nothing() {
    for len in 0..16 {
        fuzz::ring(&vec![0xff; len]);
    }
}

fn add(total: &mut Served, one: Served) {
    total.received += one.received;
    total.sent += one.sent;
    total.errors.looped += one.errors.looped;
    total.errors.next += one.errors.next;
    total.errors.address += one.errors.address;
    total.errors.direction += one.errors.direction;
    total.errors.available_index += one.errors.available_index;
    total.errors.indirect += one.errors.indirect;
    total.errors.length += one.errors.length;
    total.errors.head += one.errors.head;
}

/// Mostly single buffers and short chains, of one direction.
fn plausible(chance: &mut Chance) -> Vec<u8> {
    let flags = [0, 2][chance.below(2)];
    let mut data: Vec<u8> = (0..8).map(|_| chance.byte()).collect();
    data[3] = [64, 64, 64, 255][chance.below(4)];
    for at in 0..320_usize {
        let mut kind = [chance.below(8) as u8, chance.byte(), 4, chance.byte(), flags, 0];
        match chance.below(8) {
            0..3 => (kind[4], kind[5]) = (flags | 1, (at % 64 + 1) as u8 & 63),
            3 => (kind[0], kind[2], kind[4]) = (8, 3, 4),
            _ => {}
        }
        data.extend_from_slice(&kind);
    }
    if chance.below(4) == 0 {
        // A head beyond the ring, at one of the places that heads are made of.
        data[8 + 7 * chance.below(64)] = 0xff;
    }
    data
}

fn mutate(chance: &mut Chance, data: &mut Vec<u8>) {
    for _ in 0..=chance.below(8) {
        let all = data.len();
        let reach = [all, all, all, 8][chance.below(4)];
        let at = chance.below(reach);
        match chance.below(6) {
            0 => data[at] ^= 1 << chance.below(8),
            1 => data[at] = chance.byte(),
            2 => data[at] = [0, 1, 2, 0x7f, 0x80, 0xff][chance.below(6)],
            3 => {
                let (from, len) = (chance.below(data.len()), chance.below(24));
                let end = (from + len).min(data.len());
                let copy = data[from..end].to_vec();
                let room = copy.len().min(data.len() - at);
                data[at..at + room].copy_from_slice(&copy[..room]);
            }
            4 if data.len() > 64 => data.truncate(data.len() - chance.below(32)),
            _ => data.resize((data.len() + chance.below(64)).min(LONGEST), chance.byte()),
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}
