//! The tables, as Markdown for people.

use std::io;

use super::Measurements;
use super::contender::Contender;
use super::datagrams::{self, Ends};
use super::goals;
use super::latency::Cores;
use super::raw::{self, Occasion};
use super::summary::Spread;
use super::throughput::{Direction, Kind};
use crate::lab::{Lab, run};

/// Prints the tables and writes the raw figures.
pub(super) fn write(lab: &Lab, measured: &Measurements) -> io::Result<()> {
    let occasion = occasion(lab);
    for (name, version) in &occasion.versions {
        println!("- {name}: {version}");
    }
    let kinds = [Kind::OneStream, Kind::OneStream6, Kind::FourStreams, Kind::BadLink];
    for kind in kinds.into_iter().filter(|kind| measured.has(kind.part())) {
        print!("\n{}\n{}", throughput(measured, kind), ratios(measured, kind));
    }
    for (part, tables) in [
        ("datagrams", &[datagram_rates, datagram_ratios][..]),
        ("connections", &[connections]),
        ("latency", &[latency]),
        ("idle", &[idle]),
    ] {
        if measured.has(part) {
            tables.iter().for_each(|table| print!("\n{}", table(measured)));
        }
    }
    print!("\n{}", goals::table(measured));
    raw::keep(measured, &occasion)
}

fn occasion(lab: &Lab) -> Occasion {
    let first_line = |words: &[&str]| {
        let outcome = run(&mut lab.person(words));
        let text = if outcome.out.trim().is_empty() { outcome.err } else { outcome.out };
        text.lines().next().unwrap_or_default().to_owned()
    };
    let lichen = lab.path("bin/lichen").display().to_string();
    let package = "dpkg-query -W -f '${Version}' passt";
    let date = first_line(&["date", "-u", "+%F"]);
    let processor = "echo $(nproc) cores, $(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -1)";
    let versions = [
        ("lichen", first_line(&[&lichen, "--version"])),
        ("pasta", first_line(&["sh", "-c", package])),
        ("slirp4netns", first_line(&["slirp4netns", "--version"])),
        ("iperf3", first_line(&["iperf3", "--version"])),
        ("kernel", first_line(&["uname", "-r"])),
        ("processor", first_line(&["sh", "-c", processor])),
    ]
    .map(|(name, version)| (name.to_owned(), version.into()));
    Occasion { date, versions: versions.into_iter().collect() }
}

impl Measurements {
    /// Whether a part was measured at all.
    pub(super) fn has(&self, part: &str) -> bool {
        self.throughput.iter().any(|run| run.kind.part() == part)
            || self.missing.iter().any(|missing| missing.part == part)
            || match part {
                "datagrams" => !self.datagrams.is_empty(),
                "connections" => !self.connections.is_empty(),
                "latency" => !self.latency.is_empty(),
                "idle" => !self.idle.is_empty(),
                _ => false,
            }
    }

    pub(super) fn rates(
        &self,
        kind: Kind,
        contender: Contender,
        direction: Direction,
    ) -> Option<Spread> {
        self.spread((kind, contender, direction), |run| run.gigabits_per_second)
    }

    pub(super) fn costs(
        &self,
        kind: Kind,
        contender: Contender,
        direction: Direction,
    ) -> Option<Spread> {
        self.spread((kind, contender, direction), |run| run.cpu_seconds_per_gibibyte)
    }

    fn spread(
        &self,
        wanted: (Kind, Contender, Direction),
        figure: impl Fn(&super::Throughput) -> f64,
    ) -> Option<Spread> {
        let runs = self.throughput.iter();
        let runs = runs.filter(|run| (run.kind, run.contender, run.direction) == wanted);
        Spread::of(&runs.map(figure).collect::<Vec<f64>>())
    }

    pub(super) fn connection_rates(
        &self,
        contender: Contender,
        direction: Direction,
        at_once: usize,
    ) -> Option<Spread> {
        let wanted = (contender, direction, at_once);
        let runs = self.connections.iter();
        let runs = runs.filter(|run| (run.contender, run.direction, run.at_once) == wanted);
        Spread::of(&runs.map(|run| run.per_second).collect::<Vec<f64>>())
    }
}

/// The head of a table with these columns after the row's name.
pub(super) fn head(title: &str, columns: &[&str]) -> String {
    let line = "| --- ".repeat(columns.len() + 1);
    format!("{title}\n\n| | {} |\n{line}|\n", columns.join(" | "))
}

/// Median, extremes in brackets, processor seconds per GiB after the semicolon.
fn throughput(measured: &Measurements, kind: Kind) -> String {
    let what = match kind {
        Kind::OneStream => "One TCP stream, Gbit/s",
        Kind::OneStream6 => "One TCP stream by IPv6, Gbit/s",
        Kind::FourStreams => "Four TCP streams, Gbit/s",
        Kind::BadLink => "One TCP stream to the upstream, 1 % loss each way and 20 ms, Mbit/s",
    };
    let title = format!("{what}: median (least–most); CPU seconds per GiB of all processes");
    let directions = kind.directions();
    let names: Vec<&str> = directions.iter().map(|direction| direction.name()).collect();
    let mut table = head(&title, &names);
    let unit = if kind == Kind::BadLink { 1000.0 } else { 1.0 };
    for contender in Contender::rotated(0) {
        let cells: Vec<String> = directions
            .iter()
            .map(|direction| {
                let rates = measured.rates(kind, contender, *direction);
                match (rates, measured.costs(kind, contender, *direction)) {
                    (Some(rate), Some(cost)) => format!(
                        "{:.1} ({:.1}–{:.1}); {:.2}",
                        unit * rate.median,
                        unit * rate.least,
                        unit * rate.most,
                        cost.median
                    ),
                    _ => measured.empty(kind.part(), contender, direction.name()),
                }
            })
            .collect();
        table.push_str(&format!("| {} | {} |\n", contender.name(), cells.join(" | ")));
    }
    table
}

/// Lichen's median over another's. The loopback has no published port: its way down stands for it.
fn ratios(measured: &Measurements, kind: Kind) -> String {
    let directions = kind.directions();
    let names: Vec<&str> = directions.iter().map(|direction| direction.name()).collect();
    let mut table = head("lichen's median over", &names);
    for other in Contender::rotated(0).into_iter().filter(|other| *other != Contender::Lichen) {
        let cells: Vec<String> = directions
            .iter()
            .map(|direction| {
                let compared = match (other, direction) {
                    (Contender::Loopback, Direction::Published) => Direction::Down,
                    _ => *direction,
                };
                let ours = measured.rates(kind, Contender::Lichen, *direction);
                match (ours, measured.rates(kind, other, compared)) {
                    (Some(ours), Some(theirs)) => format!("{:.2}", ours.median / theirs.median),
                    _ => "–".to_owned(),
                }
            })
            .collect();
        table.push_str(&format!("| {} | {} |\n", other.name(), cells.join(" | ")));
    }
    table
}

/// Median, extremes in brackets.
fn connections(measured: &Measurements) -> String {
    let kinds: Vec<(Direction, usize)> = super::connections::DIRECTIONS
        .into_iter()
        .flat_map(|direction| super::connections::AT_ONCE.map(|at_once| (direction, at_once)))
        .collect();
    let names: Vec<String> = kinds
        .iter()
        .map(|(direction, at_once)| format!("{}, {at_once} at once", direction.name()))
        .collect();
    let columns: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut table = head("Connections a second: median (least–most)", &columns);
    for contender in Contender::rotated(0) {
        let cells: Vec<String> = kinds
            .iter()
            .zip(&names)
            .map(|((direction, at_once), name)| {
                match measured.connection_rates(contender, *direction, *at_once) {
                    Some(rate) => {
                        format!("{:.0} ({:.0}–{:.0})", rate.median, rate.least, rate.most)
                    }
                    None => measured.empty("connections", contender, name),
                }
            })
            .collect();
        table.push_str(&format!("| {} | {} |\n", contender.name(), cells.join(" | ")));
    }
    table
}

fn idle(measured: &Measurements) -> String {
    let columns = [
        "one stream alone, before and after; Gbit/s",
        "beside the idle flows",
        "resident bytes a flow",
        "the kernel's, three sockets",
        "share of a core while idle",
    ];
    let mut table = head("Idle flows of lichen, on three ports", &columns);
    for run in &measured.idle {
        let [before, after] = run.alone_gigabits_per_second;
        table.push_str(&format!(
            "| {} flows | {before:.1}, {after:.1} | {:.1} | {:.0} | {:.0} | {:.3} |\n",
            run.idle_flows,
            run.beside_gigabits_per_second,
            run.resident_bytes_per_flow,
            run.kernel_bytes_per_flow,
            run.idle_core_share
        ));
    }
    if measured.idle.is_empty() {
        table.push_str(&format!("| {} | | | | |\n", measured.empty("idle", Contender::Lichen, "")));
    }
    table
}

impl Measurements {
    /// Rates and losses.
    pub(super) fn datagrams(
        &self,
        contender: Contender,
        kind: datagrams::Kind,
    ) -> Option<(Spread, Spread)> {
        let of = |figure: fn(&super::Datagrams) -> f64| {
            let runs = self.datagrams.iter();
            let runs = runs.filter(|run| run.contender == contender && run.kind == kind);
            Spread::of(&runs.map(figure).collect::<Vec<f64>>())
        };
        Some((of(|run| run.thousands_per_second)?, of(|run| run.lost)?))
    }
}

/// A table of both kinds of ends, with a cell for each kind of run.
fn datagram_tables(
    title: &str,
    rows: &[Contender],
    cell: impl Fn(Contender, datagrams::Kind) -> String,
) -> String {
    let tables = Ends::ALL.map(|ends| {
        let names: Vec<String> = datagrams::Kind::all(ends).map(datagrams::Kind::name).collect();
        let columns: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut table = head(&format!("{title} ({})", ends.name()), &columns);
        for contender in rows {
            let cells = datagrams::Kind::all(ends).map(|kind| cell(*contender, kind));
            let cells: Vec<String> = cells.collect();
            table.push_str(&format!("| {} | {} |\n", contender.name(), cells.join(" | ")));
        }
        table
    });
    tables.join("\n")
}

/// Median, extremes in brackets, the median of what was lost after the semicolon.
fn datagram_rates(measured: &Measurements) -> String {
    let title = "UDP, thousand datagrams a second at the receiver: median (least–most); lost";
    datagram_tables(title, &Contender::rotated(0), |contender, kind| {
        match measured.datagrams(contender, kind) {
            Some((rate, lost)) => format!(
                "{:.0} ({:.0}–{:.0}); {:.0} %",
                rate.median, rate.least, rate.most, lost.median
            ),
            None => measured.empty("datagrams", contender, &kind.full_name()),
        }
    })
}

fn datagram_ratios(measured: &Measurements) -> String {
    let others: Vec<Contender> =
        Contender::rotated(0).into_iter().filter(|other| *other != Contender::Lichen).collect();
    datagram_tables("UDP, lichen's median over", &others, |other, kind| {
        let of = |contender| measured.datagrams(contender, kind);
        match (of(Contender::Lichen), of(other)) {
            (Some((ours, _)), Some((theirs, _))) if theirs.median > 0.0 => {
                format!("{:.2}", ours.median / theirs.median)
            }
            _ => "–".to_owned(),
        }
    })
}

fn latency(measured: &Measurements) -> String {
    let both = [Cores::AsTheyAre, Cores::KeptAwake];
    let mut table = head("One byte there and back, µs: p50 / p99", &both.map(Cores::name));
    for contender in Contender::rotated(0) {
        let cells = both.map(|cores| match measured.latency(contender, cores) {
            Some(run) => format!("{:.0} / {:.0}", run.p50_microseconds, run.p99_microseconds),
            None => measured.empty("latency", contender, cores.name()),
        });
        table.push_str(&format!("| {} | {} |\n", contender.name(), cells.join(" | ")));
    }
    table
}

impl Measurements {
    pub(super) fn latency(&self, contender: Contender, cores: Cores) -> Option<&super::Latency> {
        self.latency.iter().find(|run| run.contender == contender && run.cores == cores)
    }
}
