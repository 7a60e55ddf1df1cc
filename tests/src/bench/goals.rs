//! What must hold, as ratios: lichen's median over the limit's or the best peer's, beside the goal.

use super::Measurements;
use super::contender::Contender;
use super::latency::Cores;
use super::report::head;
use super::throughput::{Direction, Kind};
use super::{connections, datagrams};

const PEERS: [Contender; 3] = [Contender::Pasta1500, Contender::Pasta65520, Contender::Slirp65520];
/// Resident bytes that an idle flow may cost.
const IDLE_BYTES: f64 = 8192.0;

/// One row: of which part of the bench, what, the figure, and which side of the bound is good.
struct Row {
    part: &'static str,
    what: String,
    figure: Option<f64>,
    goal: Goal,
}

#[derive(Clone, Copy)]
enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

impl Goal {
    fn is_met(self, figure: f64) -> bool {
        match self {
            Self::AtLeast(bound) => figure >= bound,
            Self::AtMost(bound) => figure <= bound,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtLeast(bound) => format!("≥ {bound}"),
            Self::AtMost(bound) => format!("≤ {bound}"),
        }
    }
}

/// The rows of what was measured.
pub(super) fn table(measured: &Measurements) -> String {
    let mut table = head("Goals", &["figure", "goal", ""]);
    let rows =
        [streams(measured), datagram_rows(measured), connection_rows(measured), others(measured)];
    for row in rows.into_iter().flatten().filter(|row| measured.has(row.part)) {
        let Row { what, figure, goal, .. } = row;
        let (figure, verdict) = match figure {
            Some(figure) if goal.is_met(figure) => (format!("{figure:.2}"), "met"),
            Some(figure) => (format!("{figure:.2}"), "missed"),
            None => ("–".to_owned(), "no figure"),
        };
        table.push_str(&format!("| {what} | {figure} | {} | {verdict} |\n", goal.text()));
    }
    table
}

/// Ours over theirs.
fn ratio(ours: Option<f64>, theirs: Option<f64>) -> Option<f64> {
    ours.zip(theirs.filter(|theirs| *theirs > 0.0)).map(|(ours, theirs)| ours / theirs)
}

/// The largest of the peers' figures.
fn best(figure: impl Fn(Contender) -> Option<f64>) -> Option<f64> {
    PEERS.into_iter().filter_map(figure).reduce(f64::max)
}

/// A row that holds lichen's rate against the best peer's.
fn over_best_peer(
    part: &'static str,
    what: &str,
    rate: impl Fn(Contender) -> Option<f64>,
    least: f64,
) -> Row {
    Row {
        part,
        what: format!("{what}, over the best peer"),
        figure: ratio(rate(Contender::Lichen), best(&rate)),
        goal: Goal::AtLeast(least),
    }
}

fn streams(measured: &Measurements) -> Vec<Row> {
    let rate = |kind, contender, direction| {
        measured.rates(kind, contender, direction).map(|spread| spread.median)
    };
    let mut rows = Vec::new();
    for direction in Direction::ALL {
        let name = direction.name();
        let as_loopback =
            if direction == Direction::Published { Direction::Down } else { direction };
        let ours = rate(Kind::OneStream, Contender::Lichen, direction);
        let over = |other, direction| ratio(ours, rate(Kind::OneStream, other, direction));
        let cost = |contender| {
            measured.costs(Kind::OneStream, contender, direction).map(|spread| spread.median)
        };
        let large = [Contender::Pasta65520, Contender::Slirp65520];
        let best_large = large
            .into_iter()
            .filter_map(|other| rate(Kind::OneStream, other, direction))
            .reduce(f64::max);
        rows.extend([
            Row {
                part: "throughput",
                what: format!("one stream {name}, over the loopback"),
                figure: over(Contender::Loopback, as_loopback),
                goal: Goal::AtLeast(0.5),
            },
            Row {
                part: "throughput",
                what: format!("one stream {name}, over pasta at MTU 1500"),
                figure: over(Contender::Pasta1500, direction),
                goal: Goal::AtLeast(8.0),
            },
            Row {
                part: "throughput",
                what: format!("one stream {name}, over the better peer at MTU 65520"),
                figure: ratio(ours, best_large),
                goal: Goal::AtLeast(1.0),
            },
            Row {
                part: "throughput",
                what: format!("CPU seconds per GiB {name}, over pasta at MTU 1500"),
                figure: ratio(cost(Contender::Lichen), cost(Contender::Pasta1500)),
                goal: Goal::AtMost(0.5),
            },
        ]);
    }
    for direction in [Direction::Up, Direction::Down] {
        let over = |kind, other| {
            ratio(rate(kind, Contender::Lichen, direction), rate(kind, other, direction))
        };
        rows.extend([
            Row {
                part: "ipv6",
                what: format!("one stream {} by IPv6, over the loopback", direction.name()),
                figure: over(Kind::OneStream6, Contender::Loopback),
                goal: Goal::AtLeast(0.5),
            },
            Row {
                part: "ipv6",
                what: format!("one stream {} by IPv6, over lichen's by IPv4", direction.name()),
                figure: ratio(
                    rate(Kind::OneStream6, Contender::Lichen, direction),
                    rate(Kind::OneStream, Contender::Lichen, direction),
                ),
                goal: Goal::AtLeast(0.9),
            },
            Row {
                part: "streams",
                what: format!("four streams {}, over the loopback's four", direction.name()),
                figure: over(Kind::FourStreams, Contender::Loopback),
                goal: Goal::AtLeast(0.4),
            },
            Row {
                part: "loss",
                what: format!("1 % loss and 20 ms {}, over pasta at MTU 1500", direction.name()),
                figure: over(Kind::BadLink, Contender::Pasta1500),
                goal: Goal::AtLeast(1.0),
            },
        ]);
    }
    rows
}

fn datagram_rows(measured: &Measurements) -> Vec<Row> {
    let mut rows = Vec::new();
    for kind in datagrams::Ends::ALL.into_iter().flat_map(datagrams::Kind::all) {
        let rate = |contender| measured.datagrams(contender, kind).map(|(rate, _)| rate.median);
        let what = format!("UDP {}", kind.full_name());
        if (kind.size, kind.direction) == ("64", Direction::Up) {
            rows.push(Row {
                part: "datagrams",
                what: format!("{what}, over pasta at MTU 1500"),
                figure: ratio(rate(Contender::Lichen), rate(Contender::Pasta1500)),
                goal: Goal::AtLeast(1.5),
            });
        }
        rows.push(over_best_peer("datagrams", &what, rate, 2.0));
    }
    rows
}

fn connection_rows(measured: &Measurements) -> Vec<Row> {
    let mut rows = Vec::new();
    for direction in connections::DIRECTIONS {
        for at_once in connections::AT_ONCE {
            let rate = |contender| {
                let rates = measured.connection_rates(contender, direction, at_once);
                rates.map(|spread| spread.median)
            };
            let what = format!("connections a second {}, {at_once} at once", direction.name());
            rows.push(over_best_peer("connections", &what, rate, 1.2));
        }
    }
    rows
}

fn others(measured: &Measurements) -> Vec<Row> {
    let median = |contender| {
        measured.latency(contender, Cores::KeptAwake).map(|latency| latency.p50_microseconds)
    };
    let mut rows = vec![Row {
        part: "latency",
        what: "one byte there and back, cores kept awake, over pasta at MTU 1500".to_owned(),
        figure: ratio(median(Contender::Lichen), median(Contender::Pasta1500)),
        goal: Goal::AtMost(1.1),
    }];
    for run in &measured.idle {
        let [before, after] = run.alone_gigabits_per_second;
        rows.extend([
            Row {
                part: "idle",
                what: format!(
                    "one stream beside {} idle flows, over its rate alone",
                    run.idle_flows
                ),
                figure: ratio(Some(run.beside_gigabits_per_second), Some(before.midpoint(after))),
                goal: Goal::AtLeast(0.95),
            },
            Row {
                part: "idle",
                what: "resident bytes of an idle flow".to_owned(),
                figure: Some(run.resident_bytes_per_flow),
                goal: Goal::AtMost(IDLE_BYTES),
            },
        ]);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Connections;

    fn connections_of(contender: Contender, per_second: f64) -> Connections {
        let direction = Direction::Up;
        Connections { contender, direction, at_once: 1, round: 0, per_second, failed: 0 }
    }

    #[test]
    fn the_best_peer_counts_and_a_part_that_was_not_measured_has_no_row() {
        let measured = Measurements {
            connections: vec![
                connections_of(Contender::Lichen, 2000.0),
                connections_of(Contender::Pasta1500, 1000.0),
                connections_of(Contender::Slirp65520, 1600.0),
                connections_of(Contender::Loopback, 9000.0),
            ],
            ..Measurements::default()
        };
        let table = table(&measured);
        let row = "| connections a second up, 1 at once, over the best peer | 1.25 | ≥ 1.2 | met |";
        assert!(table.contains(row), "{table}");
        let (_, rows) = table.split_once("| --- | --- | --- | --- |\n").expect("a head");
        assert_eq!(rows.lines().count(), 4, "{table}");
        assert!(rows.lines().all(|row| row.contains("connections")), "{table}");
        assert_eq!(rows.matches("| – | ≥ 1.2 | no figure |").count(), 3, "{table}");
    }
}
