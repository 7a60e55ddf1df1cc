//! `lichen top`: what each workload carries and drops in a second, from the counters.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _, Read as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use lichen_api::{Status, WorkloadCounters};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use serde::Serialize;
use tokio::sync::mpsc;

use crate::args::Output;
use crate::{Outcome, daemon, output};

/// Time from one look to the next.
const PERIOD: Duration = Duration::from_secs(1);
/// Reasons that are shown of a workload.
const MAX_REASONS: usize = 3;

/// What a workload carried and dropped, in a second.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Rate {
    workload: String,
    bits_from_guest: u64,
    bits_to_guest: u64,
    frames_from_guest: u64,
    frames_to_guest: u64,
    drops: BTreeMap<String, u64>,
}

/// Shows rates every second until it is told to end; once where nobody watches.
pub(crate) async fn top(format: Output) -> Outcome {
    let client = daemon::connect().await?;
    let is_watched = format == Output::Table && io::stdout().is_terminal();
    let mut before = (Instant::now(), client.status().await?);
    let _keys = if is_watched { Keys::open() } else { None };
    let mut pressed = listen(is_watched);
    loop {
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            _ = pressed.recv(), if is_watched => return Ok(ExitCode::SUCCESS),
            interrupted = tokio::signal::ctrl_c() => {
                interrupted?;
                return Ok(ExitCode::SUCCESS);
            }
        }
        let after = (Instant::now(), client.status().await?);
        let rates = rates(&before.1, &after.1, after.0 - before.0);
        if is_watched {
            output::clear_screen()?;
        }
        match format {
            Output::Json => output::json(&rates)?,
            Output::Table => output::table(
                &["WORKLOAD", "SENT", "RECEIVED", "FRAMES OUT", "FRAMES IN", "DROPS"],
                &rates.iter().map(row).collect::<Vec<_>>(),
            )?,
        }
        if !is_watched {
            return Ok(ExitCode::SUCCESS);
        }
        before = after;
    }
}

/// What was counted between two looks, the busiest first.
fn rates(before: &Status, after: &Status, time: Duration) -> Vec<Rate> {
    let per_second = |now: u64, then: u64| {
        let counted = now.saturating_sub(then);
        // A thousandth of a second is as exact as a sleep is.
        counted.saturating_mul(1000) / u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1)
    };
    let mut rates: Vec<Rate> = after
        .counters
        .iter()
        .map(|now| {
            // Whoever is new was nothing before; so was everybody when the datapath has begun anew.
            let same = |then: &&WorkloadCounters| {
                then.workload == now.workload && then.frames_from_guest <= now.frames_from_guest
            };
            let then = before.counters.iter().find(same);
            let rate = |of: fn(&WorkloadCounters) -> u64| per_second(of(now), then.map_or(0, of));
            let dropped =
                |reason: &str| then.and_then(|then| then.drops.get(reason)).copied().unwrap_or(0);
            let drops = now
                .drops
                .iter()
                .map(|(reason, count)| (reason.clone(), per_second(*count, dropped(reason))));
            Rate {
                workload: now.workload.clone(),
                bits_from_guest: rate(|it| it.bytes_from_guest) * 8,
                bits_to_guest: rate(|it| it.bytes_to_guest) * 8,
                frames_from_guest: rate(|it| it.frames_from_guest),
                frames_to_guest: rate(|it| it.frames_to_guest),
                drops: drops.filter(|(_, rate)| *rate > 0).collect(),
            }
        })
        .collect();
    rates.sort_by_key(|rate| Reverse(rate.bits_from_guest + rate.bits_to_guest));
    rates
}

fn row(rate: &Rate) -> Vec<String> {
    let mut drops: Vec<(&String, &u64)> = rate.drops.iter().collect();
    drops.sort_by_key(|(_, count)| Reverse(**count));
    let rest = drops.len().saturating_sub(MAX_REASONS);
    let shown = drops.iter().take(MAX_REASONS).map(|(reason, count)| format!("{reason} {count}/s"));
    let mut drops = shown.collect::<Vec<_>>().join(", ");
    if rest > 0 {
        drops.push_str(&format!(", and {rest} more"));
    }
    vec![
        rate.workload.clone(),
        bits(rate.bits_from_guest),
        bits(rate.bits_to_guest),
        format!("{}/s", rate.frames_from_guest),
        format!("{}/s", rate.frames_to_guest),
        drops,
    ]
}

/// Bits in a second, with a unit.
fn bits(count: u64) -> String {
    match count {
        0..1000 => format!("{count} bit/s"),
        1000..1_000_000 => format!("{}.{} kbit/s", count / 1000, count / 100 % 10),
        1_000_000..1_000_000_000 => {
            format!("{}.{} Mbit/s", count / 1_000_000, count / 100_000 % 10)
        }
        _ => format!("{}.{} Gbit/s", count / 1_000_000_000, count / 100_000_000 % 10),
    }
}

/// The terminal, told to hand over each key at once; as it was when this is dropped.
struct Keys(Termios);

impl Keys {
    /// `None` where standard input is no terminal.
    fn open() -> Option<Self> {
        let before = tcgetattr(io::stdin()).ok()?;
        let mut changed = before.clone();
        changed.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
        tcsetattr(io::stdin(), OptionalActions::Now, &changed).ok()?;
        Some(Self(before))
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// Tells when q is pressed. The thread ends with the process.
fn listen(is_watched: bool) -> mpsc::Receiver<()> {
    let (press, pressed) = mpsc::channel(1);
    if is_watched {
        std::thread::spawn(move || {
            let mut key = [0; 1];
            while let Ok(1) = io::stdin().lock().read(&mut key) {
                if key == *b"q" && press.blocking_send(()).is_err() {
                    return;
                }
            }
            // Without a keyboard it ends by Ctrl-C alone.
            std::thread::park();
        });
    }
    pressed
}

#[cfg(test)]
mod tests {
    use lichen_api::{Datapath, DatapathState};

    use super::*;

    fn status(counters: Vec<WorkloadCounters>) -> Status {
        let state = DatapathState::Starting { reason: None };
        Status {
            version: String::new(),
            pid: 1,
            uptime_seconds: 0,
            datapath: Datapath { state, restarts: 0 },
            runtime_directory: String::new(),
            state_directory: String::new(),
            resolvers: Vec::new(),
            networks: 1,
            workloads: counters.len(),
            ports: 0,
            counters,
        }
    }

    fn counters(workload: &str, frames: u64, drops: u64) -> WorkloadCounters {
        WorkloadCounters {
            workload: workload.to_owned(),
            frames_from_guest: frames,
            bytes_from_guest: frames * 100,
            frames_to_guest: frames / 2,
            bytes_to_guest: frames * 50,
            drops: BTreeMap::from([("mac_spoof".to_owned(), drops)]),
            budgets: BTreeMap::new(),
        }
    }

    #[test]
    fn rates_are_what_was_counted_between_two_looks_the_busiest_first() {
        let before = status(vec![counters("calm", 10, 5), counters("reset", 1000, 0)]);
        let now = vec![counters("calm", 10, 5), counters("new", 200, 4), counters("reset", 40, 0)];
        let rates = rates(&before, &status(now), Duration::from_secs(2));
        let names: Vec<&str> = rates.iter().map(|rate| rate.workload.as_str()).collect();
        assert_eq!(names, ["new", "reset", "calm"]);
        assert_eq!((rates[0].frames_from_guest, rates[0].bits_from_guest), (100, 80_000));
        assert_eq!(
            row(&rates[0])[1..],
            ["80.0 kbit/s", "40.0 kbit/s", "100/s", "50/s", "mac_spoof 2/s"]
        );
        assert_eq!(rates[1].frames_from_guest, 20, "it has begun anew");
        assert_eq!(row(&rates[2])[1..], ["0 bit/s", "0 bit/s", "0/s", "0/s", ""]);
    }

    #[test]
    fn bits_have_a_unit_that_fits() {
        for (count, shown) in [
            (999, "999 bit/s"),
            (1500, "1.5 kbit/s"),
            (999_999, "999.9 kbit/s"),
            (12_345_678, "12.3 Mbit/s"),
            (10_800_000_000, "10.8 Gbit/s"),
        ] {
            assert_eq!(bits(count), shown);
        }
    }
}
