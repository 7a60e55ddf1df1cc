//! Every single run, as JSON: of each part those of the last time it was measured, with when that was and with what.

use std::fs;
use std::io;
use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{Measurements, PARTS};

/// Beside the page that speaks of them, in the repository that the bench is run in.
const RAW: &str = "docs/performance/measurements.json";

/// When and with what something was measured.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Occasion {
    /// Such as 2026-11-28.
    pub(super) date: String,
    /// Programs, kernel and processor.
    pub(super) versions: Map<String, Value>,
}

/// Puts what was measured in the place of what was kept of the same parts.
pub(super) fn keep(measured: &Measurements, occasion: &Occasion) -> io::Result<()> {
    let kept = match fs::read_to_string(RAW) {
        Ok(text) => serde_json::from_str(&text)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Map::new(),
        Err(error) => return Err(error),
    };
    if let Some(folder) = Path::new(RAW).parent() {
        fs::create_dir_all(folder)?;
    }
    let kept = Value::Object(merged(kept, measured, occasion));
    fs::write(RAW, format!("{kept:#}\n"))
}

fn merged(
    mut kept: Map<String, Value>,
    measured: &Measurements,
    occasion: &Occasion,
) -> Map<String, Value> {
    for part in PARTS.into_iter().filter(|part| measured.has(part)) {
        let missing = measured.missing.iter().filter(|missing| missing.part == part);
        let entry = json!({
            "occasion": occasion,
            "runs": measured.runs(part),
            "missing": missing.collect::<Vec<_>>(),
        });
        kept.insert(part.to_owned(), entry);
    }
    kept
}

impl Measurements {
    fn runs(&self, part: &str) -> Value {
        match part {
            "datagrams" => json!(self.datagrams),
            "connections" => json!(self.connections),
            "latency" => json!(self.latency),
            "idle" => json!(self.idle),
            _ => {
                let runs = self.throughput.iter().filter(|run| run.kind.part() == part);
                json!(runs.collect::<Vec<_>>())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Connections;
    use crate::bench::contender::Contender;
    use crate::bench::missing::Missing;
    use crate::bench::throughput::Direction;

    #[test]
    fn parts_that_were_not_measured_this_time_keep_their_figures_and_their_date() {
        let (contender, direction) = (Contender::Lichen, Direction::Up);
        let measured = Measurements {
            connections: vec![Connections {
                contender,
                direction,
                at_once: 1,
                round: 0,
                per_second: 7.0,
                failed: 0,
            }],
            missing: vec![Missing {
                part: "idle",
                contender,
                what: String::new(),
                round: 0,
                why: "hung".to_owned(),
            }],
            ..Measurements::default()
        };
        let before = json!({"connections": "old", "loss": "old"});
        let Value::Object(before) = before else { unreachable!("an object") };
        let occasion = Occasion { date: "2026-11-28".to_owned(), versions: Map::new() };
        let kept = merged(before, &measured, &occasion);
        assert_eq!(kept["loss"], "old");
        assert_eq!(kept["connections"]["runs"][0]["per_second"], 7.0);
        assert_eq!(kept["connections"]["occasion"]["date"], "2026-11-28");
        assert_eq!(kept["idle"]["runs"], json!([]));
        assert_eq!(kept["idle"]["missing"][0]["why"], "hung");
        assert_eq!(kept.len(), 3);
    }
}
