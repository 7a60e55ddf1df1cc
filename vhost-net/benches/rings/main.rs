//! How many frames a second pass from one ring to another, and what one frame costs.
//!
//! A driver on a second thread writes each header and a running number, and checks every number and length
//! that comes back. The device copies each frame out and in again, in batches of at most 64. Beside our rings
//! stand the same rings with the whole datapath between them (guard, look-up of the MAC address, counters),
//! and a device of the crate `virtio-queue` that copies as the rings alone do. Nobody kicks: both sides poll.
//!
//! "Driver waits" is the share of its turns in which nothing had come: where that is little, the driver is what limits.
//!
//! "Two workers" has each ring's port on a worker of its own, on two threads the receiver's on the second; what one
//! frame costs there is the work of both. The last table tells how pairs of rings scale, each pair with a worker and a
//! driver of its own, taking turns on one core: one pair, and two pairs on two cores.
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
    println!("frame     device       device     driver        Mpps     Gbit/s  driver waits");
    for load in guest::LOADS {
        use device::Kind;
        use measure::Rate;
        for kind in [Kind::Ours, Kind::Datapath, Kind::TwoWorkers, Kind::VirtioQueue] {
            if !words.iter().all(|word| word == load.name || word == kind.name()) {
                continue;
            }
            let turns = measure::taking_turns(load, kind, Duration::from_secs(1));
            let Rate { frames: rate, waits } = match kind {
                Kind::TwoWorkers => measure::across(load, Duration::from_secs(2)),
                _ => measure::on_two_threads(load, kind, Duration::from_secs(2)),
            };
            let gigabits = rate * 8.0 * load.frame_len as f64 / 1e9;
            println!(
                "{:<9} {:<12} {:>6.1}     {:>6.1}     {:>7.2}     {gigabits:>6.1}  {:>10.0} %",
                load.name,
                kind.name(),
                turns.device,
                turns.driver,
                rate / 1e6,
                100.0 * waits,
            );
        }
    }
    if words.iter().any(|word| word != "scaling") {
        return;
    }
    println!();
    println!("pairs of rings       one, Mpps    two, Mpps    ratio");
    for load in guest::LOADS {
        match measure::scaling(load, Duration::from_secs(2), 5) {
            Some((one, two)) => println!(
                "{:<18} {:>11.2}  {:>11.2}   {:>6.2}",
                load.name,
                one / 1e6,
                two / 1e6,
                two / one
            ),
            None => return println!("not measured: there is only one core"),
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

    use super::device::{self, Device, Kind};
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

    /// What a driver came to.
    pub(super) struct Rate {
        /// Frames a second.
        pub(super) frames: f64,
        /// The share of turns that brought none.
        pub(super) waits: f64,
    }

    pub(super) fn on_two_threads(load: Load, kind: Kind, time: Duration) -> Rate {
        let memory = memory();
        let ready = Barrier::new(2);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let driver = scope.spawn(|| {
                let _stop = StopAtTheEnd(&stop);
                let mut guest = Guest::new(&memory, load);
                ready.wait();
                rate(time, || guest.turn())
            });
            ready.wait();
            let mut device = Device::new(kind, &memory);
            while !stop.load(Ordering::Relaxed) {
                device.turn(&stop);
            }
            driver.join().expect("every frame arrived in order")
        })
    }

    /// What `turn` comes to, which answers how many frames it brought.
    fn rate(time: Duration, mut turn: impl FnMut() -> u64) -> Rate {
        let start = Instant::now();
        let (mut frames, mut turns, mut in_vain) = (0, 0_u64, 0_u64);
        while start.elapsed() < time {
            for _ in 0..64 {
                let came = turn();
                frames += came;
                turns += 1;
                in_vain += u64::from(came == 0);
            }
        }
        Rate {
            frames: frames as f64 / start.elapsed().as_secs_f64(),
            waits: in_vain as f64 / turns as f64,
        }
    }

    /// Frames a second, the sender's worker and the driver on one thread, the receiver's worker on another.
    pub(super) fn across(load: Load, time: Duration) -> Rate {
        let memory = memory();
        let [at_sender, at_receiver] = device::links();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (far_memory, stop) = (&memory, &stop);
            scope.spawn(move || {
                let mut receiver = device::receiver(far_memory, at_receiver);
                while !stop.load(Ordering::Relaxed) {
                    receiver.handle_crossings();
                }
            });
            let _stop = StopAtTheEnd(stop);
            let mut guest = Guest::new(&memory, load);
            let mut sender = device::sender(&memory, at_sender);
            rate(time, || {
                let frames = guest.turn();
                device::take_turn(&mut sender);
                frames
            })
        })
    }

    /// Frames a second of one pair of rings on one core, and of two on two: of several rounds, in turn, the median of
    /// each. `None` where there is only one core.
    pub(super) fn scaling(load: Load, time: Duration, rounds: usize) -> Option<(f64, f64)> {
        let cores = cores();
        if cores.len() < 2 {
            return None;
        }
        let (mut one, mut two) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            one.push(on_cores(&cores[..1], load, time));
            two.push(on_cores(&cores[..2], load, time));
        }
        let median = |mut rates: Vec<f64>| {
            rates.sort_by(f64::total_cmp);
            rates[rates.len() / 2]
        };
        Some((median(one), median(two)))
    }

    /// Frames a second of all pairs together, each on its core.
    fn on_cores(cores: &[usize], load: Load, time: Duration) -> f64 {
        let ready = Barrier::new(cores.len());
        std::thread::scope(|scope| {
            let pair = |core: usize| {
                let ready = &ready;
                scope.spawn(move || {
                    pin(core);
                    let memory = memory();
                    let mut guest = Guest::new(&memory, load);
                    let mut device = Device::new(Kind::Datapath, &memory);
                    let never = AtomicBool::new(false);
                    ready.wait();
                    rate(time, || {
                        let frames = guest.turn();
                        device.turn(&never);
                        frames
                    })
                })
            };
            let pairs: Vec<_> = cores.iter().map(|core| pair(*core)).collect();
            pairs.into_iter().map(|pair| pair.join().expect("every frame arrived").frames).sum()
        })
    }

    /// The cores that this process may use.
    fn cores() -> Vec<usize> {
        let set = rustix::thread::sched_getaffinity(None).expect("of this thread");
        (0..rustix::thread::CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect()
    }

    fn pin(core: usize) {
        let mut set = rustix::thread::CpuSet::new();
        set.set(core);
        rustix::thread::sched_setaffinity(None, &set).expect("one of those allowed");
    }

    /// Lets the device go, also when a check fails.
    struct StopAtTheEnd<'a>(&'a AtomicBool);

    impl Drop for StopAtTheEnd<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}
