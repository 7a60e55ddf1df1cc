//! How the workers that carry the frames run, as whatever starts them says.

use std::ffi::OsString;
use std::thread::available_parallelism;
use std::time::Duration;

/// How many there are. Sixteen are more than anybody needs; between each two there are queues.
const WORKERS: Setting = Setting {
    variable: "LICHEN_WORKERS",
    meaning: "how many workers carry frames",
    least: 1,
    most: 16,
    unsaid: || usual(available_parallelism().map_or(1, usize::from)),
};
/// How long each looks for more before it sleeps. A millisecond is far beyond any answer that is worth it.
const BUSY_POLL: Setting = Setting {
    variable: "LICHEN_BUSY_POLL_US",
    meaning: "for how many microseconds a worker looks for more before it sleeps",
    least: 0,
    most: 1000,
    unsaid: || 0,
};

/// How many workers there are where nobody says: half as many as cores, whose other half is the workloads', since on cores
/// that they share a second worker wins nothing. More than four have not been measured.
fn usual(cores: usize) -> u16 {
    u16::try_from((cores / 2).clamp(1, 4)).expect("at most four")
}

/// What is wanted of a datapath that starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// How many workers.
    pub workers: u16,
    /// For how many microseconds each looks for more before it sleeps.
    pub busy_poll_us: u16,
}

impl Wanted {
    /// For how long each worker looks for more before it sleeps.
    pub fn busy_poll(&self) -> Duration {
        Duration::from_micros(self.busy_poll_us.into())
    }
}

/// What was said is no such number.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{variable} is {said:?}; set it to {meaning}, {least} to {most}, or not at all")]
pub struct Invalid {
    variable: &'static str,
    said: OsString,
    meaning: &'static str,
    least: u16,
    most: u16,
}

/// What is wanted of a datapath that starts now.
pub fn wanted() -> Result<Wanted, Invalid> {
    Ok(Wanted { workers: WORKERS.read()?, busy_poll_us: BUSY_POLL.read()? })
}

/// A number in an environment variable.
struct Setting {
    variable: &'static str,
    meaning: &'static str,
    least: u16,
    most: u16,
    /// What it is when nothing is said.
    unsaid: fn() -> u16,
}

impl Setting {
    fn read(&self) -> Result<u16, Invalid> {
        self.parse(std::env::var_os(self.variable))
    }

    fn parse(&self, said: Option<OsString>) -> Result<u16, Invalid> {
        let Some(said) = said.filter(|said| !said.is_empty()) else { return Ok((self.unsaid)()) };
        let number = said.to_str().and_then(|said| said.parse().ok());
        let &Self { variable, meaning, least, most, .. } = self;
        let number = number.filter(|number| (least..=most).contains(number));
        number.ok_or(Invalid { variable, said, meaning, least, most })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_cores_are_left_to_the_workloads() {
        let cases = [(1, 1), (2, 1), (3, 1), (4, 2), (6, 3), (8, 4), (64, 4)];
        for (cores, workers) in cases {
            assert_eq!(usual(cores), workers, "{cores}");
        }
    }

    #[test]
    fn a_number_within_bounds_is_taken_and_anything_else_refused() {
        let cores = available_parallelism().map_or(1, usize::from);
        let cases = [
            (
                WORKERS,
                usual(cores),
                ["1", "16"],
                "1 to 16",
                ["0", "17", "-1", "two", "2 ", "65537"],
            ),
            (
                BUSY_POLL,
                0,
                ["0", "1000"],
                "0 to 1000",
                ["1001", "-1", "50us", "1.5", " 5", "65586"],
            ),
        ];
        for (setting, unsaid, taken, bounds, refused) in cases {
            let parse = |said: &str| setting.parse(Some(said.into()));
            assert_eq!((setting.parse(None), parse("")), (Ok(unsaid), Ok(unsaid)));
            for said in taken {
                assert_eq!(parse(said), Ok(said.parse().unwrap()));
            }
            for said in refused {
                let error = parse(said).unwrap_err().to_string();
                assert!(error.contains(setting.variable) && error.contains(bounds), "{error}");
            }
        }
    }
}
