//! The tables, as Markdown for people and as JSON with every single run.

use std::fs;
use std::io;
use std::path::Path;

use serde_json::json;

use super::Measurements;
use super::contender::Contender;
use super::datagrams::{DIRECTIONS, SIZES};
use super::latency::Cores;
use super::summary::Spread;
use super::throughput::Direction;
use crate::lab::{Lab, run};

/// Beside the page that speaks of them, in the repository that the bench is run in.
const RAW: &str = "docs/performance/measurements.json";

/// Prints the tables and writes the raw figures.
pub(super) fn write(lab: &Lab, measured: &Measurements) -> io::Result<()> {
    let versions = versions(lab);
    for (name, version) in &versions {
        println!("- {name}: {version}");
    }
    print!("\n{}\n{}\n", throughput(measured), ratios(measured));
    print!("{}\n{}\n{}", datagrams(measured), datagram_ratios(measured), latency(measured));
    if let Some(folder) = Path::new(RAW).parent() {
        fs::create_dir_all(folder)?;
    }
    let raw = json!({
        "versions": versions.into_iter().collect::<serde_json::Map<_, _>>(),
        "measurements": measured,
    });
    fs::write(RAW, format!("{raw:#}\n"))
}

fn versions(lab: &Lab) -> Vec<(String, serde_json::Value)> {
    let first_line = |words: &[&str]| {
        let outcome = run(&mut lab.person(words));
        let text = if outcome.out.trim().is_empty() { outcome.err } else { outcome.out };
        text.lines().next().unwrap_or_default().to_owned()
    };
    let lichen = lab.path("bin/lichen").display().to_string();
    let package = "dpkg-query -W -f '${Version}' passt";
    let processor = "echo $(nproc) cores, $(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -1)";
    [
        ("lichen", first_line(&[&lichen, "--version"])),
        ("pasta", first_line(&["sh", "-c", package])),
        ("slirp4netns", first_line(&["slirp4netns", "--version"])),
        ("iperf3", first_line(&["iperf3", "--version"])),
        ("kernel", first_line(&["uname", "-r"])),
        ("processor", first_line(&["sh", "-c", processor])),
    ]
    .map(|(name, version)| (name.to_owned(), version.into()))
    .to_vec()
}

impl Measurements {
    fn rates(&self, contender: Contender, direction: Direction) -> Option<Spread> {
        self.spread(contender, direction, |run| run.gigabits_per_second)
    }

    fn costs(&self, contender: Contender, direction: Direction) -> Option<Spread> {
        self.spread(contender, direction, |run| run.cpu_seconds_per_gibibyte)
    }

    fn spread(
        &self,
        contender: Contender,
        direction: Direction,
        figure: impl Fn(&super::Throughput) -> f64,
    ) -> Option<Spread> {
        let figures: Vec<f64> = self
            .throughput
            .iter()
            .filter(|run| run.contender == contender && run.direction == direction)
            .map(figure)
            .collect();
        Spread::of(&figures)
    }
}

/// Median, extremes in brackets, processor seconds per GiB after the semicolon.
fn throughput(measured: &Measurements) -> String {
    let mut table =
        "One TCP stream, Gbit/s: median (least–most); CPU seconds per GiB of all processes\n\n\
                     | | up | down | published port |\n| --- | --- | --- | --- |\n"
            .to_owned();
    for contender in Contender::rotated(0) {
        let cells = Direction::ALL.map(|direction| {
            let rates = measured.rates(contender, direction);
            match (rates, measured.costs(contender, direction)) {
                (Some(rate), Some(cost)) => format!(
                    "{:.1} ({:.1}–{:.1}); {:.2}",
                    rate.median, rate.least, rate.most, cost.median
                ),
                _ => "–".to_owned(),
            }
        });
        table.push_str(&format!("| {} | {} |\n", contender.name(), cells.join(" | ")));
    }
    table
}

/// Lichen's median over another's. The loopback has no published port: its way down stands for it.
fn ratios(measured: &Measurements) -> String {
    let mut table =
        "lichen's median over\n\n| | up | down | published port |\n| --- | --- | --- | --- |\n"
            .to_owned();
    for other in Contender::rotated(0).into_iter().filter(|other| *other != Contender::Lichen) {
        let cells = Direction::ALL.map(|direction| {
            let compared = match (other, direction) {
                (Contender::Loopback, Direction::Published) => Direction::Down,
                _ => direction,
            };
            let ours = measured.rates(Contender::Lichen, direction);
            match (ours, measured.rates(other, compared)) {
                (Some(ours), Some(theirs)) => format!("{:.2}", ours.median / theirs.median),
                _ => "–".to_owned(),
            }
        });
        table.push_str(&format!("| {} | {} |\n", other.name(), cells.join(" | ")));
    }
    table
}

/// The four kinds of runs with datagrams, with their headings.
fn datagram_kinds() -> Vec<(String, &'static str, Direction)> {
    let kinds = SIZES.into_iter().flat_map(|size| DIRECTIONS.map(|direction| (size, direction)));
    kinds
        .map(|(size, direction)| (format!("{size} B {}", direction.name()), size, direction))
        .collect()
}

impl Measurements {
    /// Rates and losses.
    fn datagrams(
        &self,
        contender: Contender,
        size: &str,
        direction: Direction,
    ) -> Option<(Spread, Spread)> {
        let of = |figure: fn(&super::Datagrams) -> f64| {
            let runs = self.datagrams.iter().filter(|run| {
                run.contender == contender && run.size == size && run.direction == direction
            });
            Spread::of(&runs.map(figure).collect::<Vec<f64>>())
        };
        Some((of(|run| run.thousands_per_second)?, of(|run| run.lost)?))
    }
}

fn heading(title: &str) -> String {
    let kinds = datagram_kinds();
    let names: Vec<&str> = kinds.iter().map(|(name, ..)| name.as_str()).collect();
    let line = "| --- ".repeat(names.len() + 1);
    format!("{title}\n\n| | {} |\n{line}|\n", names.join(" | "))
}

/// Median, extremes in brackets, the median of what was lost after the semicolon.
fn datagrams(measured: &Measurements) -> String {
    let mut table =
        heading("UDP, thousand datagrams a second at the receiver: median (least–most); lost");
    for contender in Contender::rotated(0) {
        let cells: Vec<String> = datagram_kinds()
            .into_iter()
            .map(|(_, size, direction)| match measured.datagrams(contender, size, direction) {
                Some((rate, lost)) => format!(
                    "{:.0} ({:.0}–{:.0}); {:.0} %",
                    rate.median, rate.least, rate.most, lost.median
                ),
                None => "–".to_owned(),
            })
            .collect();
        table.push_str(&format!("| {} | {} |\n", contender.name(), cells.join(" | ")));
    }
    table
}

fn datagram_ratios(measured: &Measurements) -> String {
    let mut table = heading("lichen's median over");
    for other in Contender::rotated(0).into_iter().filter(|other| *other != Contender::Lichen) {
        let cells: Vec<String> = datagram_kinds()
            .into_iter()
            .map(|(_, size, direction)| {
                let of = |contender| measured.datagrams(contender, size, direction);
                match (of(Contender::Lichen), of(other)) {
                    (Some((ours, _)), Some((theirs, _))) if theirs.median > 0.0 => {
                        format!("{:.2}", ours.median / theirs.median)
                    }
                    _ => "–".to_owned(),
                }
            })
            .collect();
        table.push_str(&format!("| {} | {} |\n", other.name(), cells.join(" | ")));
    }
    table
}

fn latency(measured: &Measurements) -> String {
    let mut table = "One byte there and back, µs: p50 / p99\n\n| |".to_owned();
    let both = [Cores::AsTheyAre, Cores::KeptAwake];
    for cores in both {
        table.push_str(&format!(" {} |", cores.name()));
    }
    table.push_str("\n| --- | --- | --- |\n");
    for contender in Contender::rotated(0) {
        let cells = both.map(|cores| {
            let run = measured
                .latency
                .iter()
                .find(|run| run.contender == contender && run.cores == cores);
            run.map_or("–".to_owned(), |run| {
                format!("{:.0} / {:.0}", run.p50_microseconds, run.p99_microseconds)
            })
        });
        table.push_str(&format!("| {} | {} |\n", contender.name(), cells.join(" | ")));
    }
    table
}
