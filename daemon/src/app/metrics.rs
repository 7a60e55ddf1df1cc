//! What is counted, in the text form of Prometheus (exposition format 0.0.4). Names and numbers only: no
//! address of a peer, no query, nothing that a workload has said.

use std::fmt::Write as _;

use lichen_api::{DatapathState, VERSION};
use lichen_netstack::command::{PortStatistics, Statistics};

use super::{App, Refusal};
use crate::reconcile::Seen;
use crate::state::{Snapshot, snapshot};

impl App {
    /// Counters and gauges of daemon, datapath and workloads.
    pub async fn metrics(&self) -> Result<String, Refusal> {
        let snapshot = self.store.transact(snapshot).await?;
        let statistics = self.reconciler.statistics().await;
        let uptime = self.started.elapsed().as_secs();
        Ok(exposition(&snapshot, &self.observed.seen(), statistics.as_ref(), uptime))
    }
}

/// All of it as text. Without statistics the datapath does not answer, and counts of ports are left out.
fn exposition(
    snapshot: &Snapshot,
    seen: &Seen,
    statistics: Option<&Statistics>,
    uptime: u64,
) -> String {
    let mut text = Text::default();
    let is_up = u64::from(matches!(seen.datapath.state, DatapathState::Running { .. }));
    text.family("lichen_info", Kind::Gauge, "Always 1; the version of the daemon is a label.");
    text.sample("lichen_info", &[("version", VERSION)], 1);
    for (name, kind, help, value) in [
        ("lichen_uptime_seconds", Kind::Gauge, "Seconds since the daemon started.", uptime),
        ("lichen_datapath_up", Kind::Gauge, "Whether the datapath is connected.", is_up),
        (
            "lichen_datapath_restarts_total",
            Kind::Counter,
            "How often the datapath was started again since the daemon started.",
            seen.datapath.restarts,
        ),
        ("lichen_networks", Kind::Gauge, "Networks.", snapshot.networks.len() as u64),
        ("lichen_workloads", Kind::Gauge, "Workloads.", snapshot.workloads.len() as u64),
        ("lichen_published_ports", Kind::Gauge, "Published ports.", snapshot.ports.len() as u64),
    ] {
        text.family(name, kind, help);
        text.sample(name, &[], value);
    }
    let ports: Vec<Port<'_>> = statistics
        .into_iter()
        .flat_map(|all| &all.ports)
        .filter_map(|it| named(it, snapshot))
        .collect();
    traffic(&mut text, &ports);
    drops(&mut text, &ports);
    budgets(&mut text, &ports);
    text.0
}

/// A port's counts with the labels that all of them have.
struct Port<'a> {
    labels: [(&'static str, String); 3],
    counted: &'a PortStatistics,
}

/// A port whose workload has just ended has no name any more, and is left out.
fn named<'a>(counted: &'a PortStatistics, snapshot: &Snapshot) -> Option<Port<'a>> {
    let workload = snapshot.workloads.iter().find(|row| row.id.0 == counted.port)?;
    let network = snapshot.networks.iter().find(|row| row.id == workload.network)?;
    let labels = [
        ("port", counted.port.to_string()),
        ("workload", workload.name.clone()),
        ("network", network.name.clone()),
    ];
    Some(Port { labels, counted })
}

impl Port<'_> {
    fn labels<'b>(&'b self, further: &[(&'b str, &'b str)]) -> Vec<(&'b str, &'b str)> {
        let own = self.labels.iter().map(|(name, value)| (*name, value.as_str()));
        own.chain(further.iter().copied()).collect()
    }
}

fn traffic(text: &mut Text, ports: &[Port<'_>]) {
    let name = "lichen_port_frames_total";
    let help = "Frames that the workload sent (from_guest) and was given (to_guest).";
    text.family(name, Kind::Counter, help);
    for port in ports {
        let it = port.counted;
        text.both_ways(name, port, it.frames_from_guest, it.frames_to_guest);
    }
    let name = "lichen_port_bytes_total";
    text.family(name, Kind::Counter, "Bytes of those frames, Ethernet header included.");
    for port in ports {
        let it = port.counted;
        text.both_ways(name, port, it.bytes_from_guest, it.bytes_to_guest);
    }
}

fn drops(text: &mut Text, ports: &[Port<'_>]) {
    let name = "lichen_port_drops_total";
    let help =
        "Frames that went no further, by reason (lichen explain drop); zero ones are left out.";
    text.family(name, Kind::Counter, help);
    for port in ports {
        for (reason, count) in &port.counted.drops {
            text.sample(name, &port.labels(&[("reason", reason)]), *count);
        }
    }
}

fn budgets(text: &mut Text, ports: &[Port<'_>]) {
    for (name, help, is_cap) in [
        ("lichen_port_budget_used", "What of a budget is in use.", false),
        ("lichen_port_budget_cap", "What a budget never exceeds.", true),
    ] {
        text.family(name, Kind::Gauge, help);
        for port in ports {
            for (budget, it) in &port.counted.budgets {
                let value = if is_cap { it.cap } else { it.used };
                text.sample(name, &port.labels(&[("budget", budget)]), value);
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
}

#[derive(Default)]
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        if labels.is_empty() {
            return self.line(format_args!("{name} {value}"));
        }
        let labels: Vec<String> =
            labels.iter().map(|(label, value)| format!("{label}=\"{}\"", escaped(value))).collect();
        self.line(format_args!("{name}{{{}}} {value}", labels.join(",")));
    }

    fn both_ways(&mut self, name: &str, port: &Port<'_>, from_guest: u64, to_guest: u64) {
        for (direction, value) in [("from_guest", from_guest), ("to_guest", to_guest)] {
            self.sample(name, &port.labels(&[("direction", direction)]), value);
        }
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.0, "{line}").expect("writing to a string does not fail");
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use lichen_netstack::command::Budget;

    use super::*;

    #[test]
    fn a_port_is_told_with_its_names_and_reasons_and_the_form_is_kept() {
        let mut text = Text::default();
        let counted = PortStatistics {
            port: 3,
            frames_from_guest: 7,
            drops: BTreeMap::from([("mac_spoof".to_owned(), 2)]),
            budgets: BTreeMap::from([("tcp_flows".to_owned(), Budget { used: 1, cap: 4096 })]),
            ..PortStatistics::default()
        };
        let labels =
            [("port", "3".into()), ("workload", "w\"e\\b".into()), ("network", "n".into())];
        let ports = [Port { labels, counted: &counted }];
        traffic(&mut text, &ports);
        drops(&mut text, &ports);
        budgets(&mut text, &ports);
        let own = r#"port="3",workload="w\"e\\b",network="n""#;
        for line in [
            "# TYPE lichen_port_frames_total counter".to_owned(),
            format!("lichen_port_frames_total{{{own},direction=\"from_guest\"}} 7"),
            format!("lichen_port_frames_total{{{own},direction=\"to_guest\"}} 0"),
            format!("lichen_port_drops_total{{{own},reason=\"mac_spoof\"}} 2"),
            format!("lichen_port_budget_used{{{own},budget=\"tcp_flows\"}} 1"),
            format!("lichen_port_budget_cap{{{own},budget=\"tcp_flows\"}} 4096"),
        ] {
            assert!(text.0.lines().any(|it| it == line), "{line}\n{}", text.0);
        }
        assert!(text.0.ends_with('\n'));
    }
}
