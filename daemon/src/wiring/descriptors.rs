//! How many files a process may hold open, and what of that is for flows.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Fewest with which both processes do their work.
const LEAST: usize = 64;
/// What flows leave to everything else where there is plenty: ports, listeners, resolvers, control.
const RESERVED: usize = 128;

/// There is no use in starting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "only {0} files may be open at once, and at least {LEAST} are needed; raise the limit where this was \
     started: ulimit -n 1024"
)]
pub struct TooFew(usize);

/// Takes all that the hard limit allows. Workloads are no children of ours, so they do not inherit this.
/// Answers how many files may be open.
pub fn raise() -> Result<usize, TooFew> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files could not be raised");
    }
    let limit = getrlimit(Resource::Nofile).current;
    enough(limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX)))
}

fn enough(limit: usize) -> Result<usize, TooFew> {
    if limit < LEAST { Err(TooFew(limit)) } else { Ok(limit) }
}

/// How many of them flows may hold: half of few, nearly all of many.
pub fn for_flows(limit: usize) -> usize {
    limit - RESERVED.min(limit / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_descriptors_are_halved_and_of_many_nearly_all_are_for_flows() {
        assert_eq!([64, 256, 1024].map(for_flows), [32, 128, 896]);
        assert_eq!(enough(63), Err(TooFew(63)));
        assert_eq!(enough(64), Ok(64));
        assert!(TooFew(63).to_string().contains("only 63 files"), "{}", TooFew(63));
    }
}
