//! How many frames a second pass from one ring to another, and what one frame costs.
//!
//! A driver on a second thread writes each header and a running number, and checks every number and length
//! that comes back. The device copies each frame out and in again, in batches of at most 64. Beside our rings
//! stand the same rings with the whole datapath between them (guard, look-up of the MAC address, counters),
//! and a device of the crate `virtio-queue` that copies as the rings alone do. Nobody kicks: both sides poll.
//!
//! With words behind `--`, only the rows that have all of them: `cargo bench … -- "64 B" datapath`.
#[cfg(target_os = "linux")]
mod device;
#[cfg(target_os = "linux")]
mod guest;

#[cfg(target_os = "linux")]
fn main() {
    use std::time::Duration;

    let words: Vec<String> =
        std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    println!("                    taking turns, ns a frame     on two threads");
    println!("frame     device       device     driver        Mpps     Gbit/s");
    for load in guest::LOADS {
        for kind in [device::Kind::Ours, device::Kind::Datapath, device::Kind::VirtioQueue] {
            if !words.iter().all(|word| word == load.name || word == kind.name()) {
                continue;
            }
            let turns = measure::taking_turns(load, kind, Duration::from_secs(1));
            let rate = measure::on_two_threads(load, kind, Duration::from_secs(2));
            let gigabits = rate * 8.0 * load.frame_len as f64 / 1e9;
            println!(
                "{:<9} {:<12} {:>6.1}     {:>6.1}     {:>7.2}     {gigabits:>6.1}",
                load.name,
                kind.name(),
                turns.device,
                turns.driver,
                rate / 1e6,
            );
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn main() {}

#[cfg(target_os = "linux")]
mod measure {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::{Duration, Instant};

    use super::device::{Device, Kind};
    use super::guest::{Guest, Load, memory};

    /// Nanoseconds a frame.
    pub(super) struct Turns {
        pub(super) device: f64,
        pub(super) driver: f64,
    }

    /// One thread plays both sides, a batch each: no cache line changes its core, no side waits.
    pub(super) fn taking_turns(load: Load, kind: Kind, time: Duration) -> Turns {
        let memory = memory();
        let mut guest = Guest::new(&memory, load);
        let mut device = Device::new(kind, &memory);
        let (mut by_device, mut by_driver) = (Duration::ZERO, Duration::ZERO);
        let mut frames = 0;
        while by_device + by_driver < time {
            let start = Instant::now();
            frames += guest.turn();
            let middle = Instant::now();
            device.turn(&AtomicBool::new(false));
            by_driver += middle - start;
            by_device += middle.elapsed();
        }
        let each = |time: Duration| time.as_secs_f64() * 1e9 / frames as f64;
        Turns { device: each(by_device), driver: each(by_driver) }
    }

    /// Frames a second.
    pub(super) fn on_two_threads(load: Load, kind: Kind, time: Duration) -> f64 {
        let memory = memory();
        let ready = Barrier::new(2);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let driver = scope.spawn(|| {
                let _stop = StopAtTheEnd(&stop);
                let mut guest = Guest::new(&memory, load);
                ready.wait();
                let start = Instant::now();
                let mut frames = 0;
                while start.elapsed() < time {
                    for _ in 0..64 {
                        frames += guest.turn();
                    }
                }
                frames as f64 / start.elapsed().as_secs_f64()
            });
            ready.wait();
            let mut device = Device::new(kind, &memory);
            while !stop.load(Ordering::Relaxed) {
                device.turn(&stop);
            }
            driver.join().expect("every frame arrived in order")
        })
    }

    /// Lets the device go, also when a check fails.
    struct StopAtTheEnd<'a>(&'a AtomicBool);

    impl Drop for StopAtTheEnd<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}
