//! Which networks somebody wants listed or pruned: Docker's filters, read as what they mean. Pure.
//!
//! Of several keys each must match. Of several values of one key one suffices, except of `label`, where each
//! must match, as with Docker. A network that has one label of several `label!` stays.

use std::collections::BTreeMap;

use lichen_api::{Filters, MAX_FILTER_BYTES, MAX_FILTERS};

use super::moment::{self, MomentError};
use crate::names::NetworkName;
use crate::state::NetworkRow;

const LIST_KEYS: [&str; 6] = ["driver", "id", "label", "name", "scope", "type"];
const PRUNE_KEYS: [&str; 3] = ["label", "label!", "until"];

/// Those that Docker brings along; there are networks of `bridge` only.
const DRIVERS: [&str; 7] = ["bridge", "host", "ipvlan", "macvlan", "none", "null", "overlay"];
const SCOPES: [&str; 3] = ["global", "local", "swarm"];
const KINDS: [&str; 2] = ["builtin", "custom"];

/// A filter that makes no sense.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum FilterError {
    /// Its key.
    #[error("there is no filter `{key}` here; there are: {}", known.join(", "))]
    Key {
        /// As it was said.
        key: String,
        /// What there is.
        known: &'static [&'static str],
    },
    /// Its value.
    #[error("filter `{key}` knows no `{value}`; it knows: {}", known.join(", "))]
    Value {
        /// Which filter.
        key: &'static str,
        /// As it was said.
        value: String,
        /// What there is.
        known: &'static [&'static str],
    },
    /// Nothing after the `=`.
    #[error("filter `{0}` needs a value: {0}=VALUE")]
    Empty(String),
    /// More than one moment.
    #[error("filter `until` is said twice; say it once")]
    Untils,
    /// No moment.
    #[error("filter `until`: {0}")]
    Until(#[from] MomentError),
    /// Too many.
    #[error("too many filters: at most {MAX_FILTERS}, of {MAX_FILTER_BYTES} bytes together")]
    TooMany,
}

/// Which networks are listed.
#[derive(Debug)]
pub(super) struct ListFilter(Values);

impl ListFilter {
    pub(super) fn parse(filters: &Filters) -> Result<Self, FilterError> {
        let values = Values::parse(filters, &LIST_KEYS)?;
        values.known("driver", &DRIVERS)?;
        values.known("scope", &SCOPES)?;
        values.known("type", &KINDS)?;
        Ok(Self(values))
    }

    pub(super) fn matches(&self, row: &NetworkRow) -> bool {
        let one_of = |key: &'static str, is: &dyn Fn(&str) -> bool| {
            let wanted = self.0.of(key);
            wanted.is_empty() || wanted.iter().any(|value| is(value))
        };
        let is_default = row.name == NetworkName::default_network().as_str();
        let kind = if is_default { "builtin" } else { "custom" };
        one_of("name", &|part| is_part(part, &row.name))
            && one_of("id", &|part| is_part(part, &row.uid))
            && one_of("driver", &|driver| driver == "bridge")
            && one_of("scope", &|scope| scope == "local")
            && one_of("type", &|wanted| wanted == kind)
            && self.0.of("label").iter().all(|label| has_label(&row.labels, label))
    }
}

/// Which of the networks that nobody uses are pruned.
#[derive(Debug)]
pub(super) struct PruneFilter {
    values: Values,
    /// Only those that were made until then, in seconds since 1970.
    until: Option<i64>,
}

impl PruneFilter {
    pub(super) fn parse(filters: &Filters, now: i64) -> Result<Self, FilterError> {
        let values = Values::parse(filters, &PRUNE_KEYS)?;
        let until = match values.of("until") {
            [] => None,
            [text] => Some(moment::parse(text, now)?),
            _ => return Err(FilterError::Untils),
        };
        Ok(Self { values, until })
    }

    pub(super) fn matches(&self, row: &NetworkRow) -> bool {
        self.values.of("label").iter().all(|label| has_label(&row.labels, label))
            && !self.values.of("label!").iter().any(|label| has_label(&row.labels, label))
            && self.until.is_none_or(|until| row.created_at <= until)
    }
}

/// Values by key, within bounds, each of which says something.
#[derive(Debug)]
struct Values(BTreeMap<&'static str, Vec<String>>);

impl Values {
    fn parse(filters: &Filters, known: &'static [&'static str]) -> Result<Self, FilterError> {
        let values = || filters.0.values().flatten();
        let bytes: usize = values().chain(filters.0.keys()).map(String::len).sum();
        if values().count() > MAX_FILTERS
            || filters.0.len() > MAX_FILTERS
            || bytes > MAX_FILTER_BYTES
        {
            return Err(FilterError::TooMany);
        }
        let mut by_key = BTreeMap::new();
        for (key, values) in &filters.0 {
            let Some(known_key) = known.iter().find(|known| *known == key) else {
                return Err(FilterError::Key { key: shown(key), known });
            };
            if values.iter().any(String::is_empty) {
                return Err(FilterError::Empty(key.clone()));
            }
            by_key.insert(*known_key, values.clone());
        }
        Ok(Self(by_key))
    }

    fn of(&self, key: &'static str) -> &[String] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }

    fn known(&self, key: &'static str, known: &'static [&'static str]) -> Result<(), FilterError> {
        match self.of(key).iter().find(|value| !known.contains(&value.as_str())) {
            Some(value) => Err(FilterError::Value { key, value: shown(value), known }),
            None => Ok(()),
        }
    }
}

/// Whether `text` has that part; after `^` at its beginning, before `$` at its end. Of what else Docker's regular
/// expressions can say, names and ids hold nothing.
fn is_part(part: &str, text: &str) -> bool {
    let part = part.to_ascii_lowercase();
    match (part.strip_prefix('^'), part.strip_suffix('$')) {
        (Some(rest), Some(_)) => rest.strip_suffix('$') == Some(text),
        (Some(beginning), None) => text.starts_with(beginning),
        (None, Some(end)) => text.ends_with(end),
        (None, None) => text.contains(&part),
    }
}

/// Whether there is that label: `KEY`, or `KEY=VALUE` with just that value.
fn has_label(labels: &BTreeMap<String, String>, wanted: &str) -> bool {
    match wanted.split_once('=') {
        Some((key, value)) => labels.get(key).is_some_and(|there| there == value),
        None => labels.contains_key(wanted),
    }
}

/// What came from outside, safe to print.
fn shown(text: &str) -> String {
    text.chars().take(64).collect::<String>().escape_default().to_string()
}

#[cfg(test)]
mod tests {
    use lichen_netstack::ids::NetworkId;

    use super::*;

    fn network(name: &str, labels: &[(&str, &str)], created_at: i64) -> NetworkRow {
        NetworkRow {
            id: NetworkId(1),
            uid: format!("{:0>64}", if name == "bridge" { "b1" } else { "c2" }),
            name: name.into(),
            subnet: "10.89.0.0/16".parse().unwrap(),
            gateway: [10, 89, 0, 1].into(),
            prefix6: None,
            mtu: 1500,
            internal: false,
            nat64: false,
            labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            created: String::new(),
            created_at,
        }
    }

    fn filters(said: &[(&str, &str)]) -> Filters {
        let mut filters = Filters::default();
        for (key, value) in said {
            filters.0.entry((*key).to_owned()).or_default().push((*value).to_owned());
        }
        filters
    }

    #[test]
    fn one_value_of_a_key_suffices_every_key_must_match_and_so_must_every_label() {
        let networks = [
            network("bridge", &[], 0),
            network("frontend", &[("tier", "front"), ("team", "a")], 0),
            network("backend", &[("tier", "back")], 0),
        ];
        let listed = |said: &[(&str, &str)]| -> Vec<&str> {
            let filter = ListFilter::parse(&filters(said)).unwrap();
            let matching = networks.iter().filter(|row| filter.matches(row));
            matching.map(|row| row.name.as_str()).collect()
        };
        assert_eq!(listed(&[]), ["bridge", "frontend", "backend"]);
        assert_eq!(listed(&[("name", "end")]), ["frontend", "backend"]);
        assert_eq!(listed(&[("name", "Front"), ("name", "bri")]), ["bridge", "frontend"]);
        assert_eq!(listed(&[("name", "^end")]), [""; 0]);
        assert_eq!(listed(&[("name", "^front")]), ["frontend"]);
        assert_eq!(listed(&[("name", "kend$")]), ["backend"]);
        assert_eq!(listed(&[("name", "^bridge$"), ("id", "b1$")]), ["bridge"]);
        assert_eq!(listed(&[("name", "^ridge$")]), [""; 0]);
        assert_eq!(listed(&[("name", "end"), ("label", "team")]), ["frontend"]);
        assert_eq!(listed(&[("label", "tier")]), ["frontend", "backend"]);
        assert_eq!(listed(&[("label", "tier=back")]), ["backend"]);
        assert_eq!(listed(&[("label", "tier"), ("label", "team=a")]), ["frontend"]);
        assert_eq!(listed(&[("label", "tier=")]), [""; 0]);
        assert_eq!(listed(&[("id", "0B1")]), ["bridge"]);
        assert_eq!(listed(&[("type", "builtin")]), ["bridge"]);
        assert_eq!(listed(&[("type", "custom")]), ["frontend", "backend"]);
        assert_eq!(listed(&[("type", "custom"), ("type", "builtin")]).len(), 3);
        assert_eq!(listed(&[("driver", "bridge"), ("scope", "local")]).len(), 3);
        assert_eq!(listed(&[("driver", "overlay")]), [""; 0]);
        assert_eq!(listed(&[("scope", "swarm")]), [""; 0]);
    }

    #[test]
    fn pruning_follows_labels_and_age() {
        let networks = [
            network("old", &[("keep", "")], 100),
            network("mid", &[("tier", "back")], 200),
            network("new", &[], 300),
        ];
        let pruned = |said: &[(&str, &str)]| -> Vec<&str> {
            let filter = PruneFilter::parse(&filters(said), 400).unwrap();
            let matching = networks.iter().filter(|row| filter.matches(row));
            matching.map(|row| row.name.as_str()).collect()
        };
        assert_eq!(pruned(&[]), ["old", "mid", "new"]);
        assert_eq!(pruned(&[("label", "tier")]), ["mid"]);
        assert_eq!(pruned(&[("label", "tier=front")]), [""; 0]);
        assert_eq!(pruned(&[("label!", "keep")]), ["mid", "new"]);
        assert_eq!(pruned(&[("label!", "keep"), ("label!", "tier=back")]), ["new"]);
        assert_eq!(pruned(&[("until", "200")]), ["old", "mid"]);
        assert_eq!(pruned(&[("until", "250s")]), ["old"]);
        assert_eq!(pruned(&[("until", "200"), ("label!", "keep")]), ["mid"]);
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_what_there_is() {
        let listing = |key: &str, value: &str| {
            ListFilter::parse(&filters(&[(key, value)])).unwrap_err().to_string()
        };
        let keys = "there are: driver, id, label, name, scope, type";
        assert!(listing("color\n", "red").contains(keys));
        assert!(!listing("color\n", "red").contains('\n'));
        assert!(listing("until", "1h").contains(keys), "that is for pruning");
        assert!(listing("type", "odd").contains("it knows: builtin, custom"));
        assert!(listing("scope", "odd").contains("it knows: global, local, swarm"));
        assert!(listing("driver", "odd").contains("it knows: bridge, host"));
        assert!(listing("name", "").contains("name=VALUE"));
        let pruning =
            |said: &[(&str, &str)]| PruneFilter::parse(&filters(said), 0).unwrap_err().to_string();
        assert!(pruning(&[("name", "x")]).contains("there are: label, label!, until"));
        assert!(pruning(&[("until", "soon")]).contains("such as 24h"));
        assert!(pruning(&[("until", "1h"), ("until", "2h")]).contains("once"));
        assert!(pruning(&[("label", &"x".repeat(5000))]).contains("at most 64"));
        assert!(pruning(&[("label", "x"); 65]).contains("at most 64"));
    }
}
