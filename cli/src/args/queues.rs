//! `--queues`: how many ways the frames of one interface take at once.

use lichen_api::MAX_QUEUES;

/// Queues of a workload's interface, or pairs of rings of a virtual machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Queues(pub(crate) u16);

impl Queues {
    /// What everybody can do with.
    pub(crate) const ONE: Self = Self(1);
}

/// Of a virtual machine.
pub(crate) fn pairs_of_rings(said: &str) -> Result<Queues, String> {
    parse(said).ok_or_else(|| format!("a guest has 1 to {MAX_QUEUES} pairs of rings"))
}

/// Of a workload whose namespaces its interface is in.
pub(crate) fn of_interface(said: &str) -> Result<Queues, String> {
    parse(said).ok_or_else(|| format!("a workload's interface has 1 to {MAX_QUEUES} queues"))
}

fn parse(said: &str) -> Option<Queues> {
    said.parse().ok().filter(|number| (1..=MAX_QUEUES).contains(number)).map(Queues)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_to_four_are_taken_and_anything_else_refused() {
        for parse in [pairs_of_rings, of_interface] {
            assert_eq!((parse("1"), parse("4")), (Ok(Queues(1)), Ok(Queues(4))));
            for said in ["0", "5", "-1", "two", "", "65537"] {
                assert!(parse(said).unwrap_err().contains("1 to 4"), "{said}");
            }
        }
    }
}
