//! `lichen network`.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use lichen_api::{Filters, MAX_FILTER_BYTES, MAX_FILTERS};

use crate::commands::network::FIELDS;
use crate::template::{Format, FormatError};

#[derive(Debug, Subcommand)]
pub(crate) enum NetworkCommand {
    /// List networks
    #[command(alias = "list")]
    Ls(ListNetworks),
    /// Make a network
    Create(CreateNetwork),
    /// Remove networks
    #[command(alias = "delete")]
    Rm(RmNetwork),
    /// Show networks in full, as JSON
    #[command(after_help = "Examples:\n  lichen network inspect mynet")]
    Inspect {
        /// Names or ids
        #[arg(required = true, value_name = "NETWORK")]
        names: Vec<String>,
    },
    /// Remove every network that nobody uses
    Prune(PruneNetworks),
}

#[derive(Debug, Args)]
#[command(after_help = "Filters, of which each key that is named must match:
  driver=NAME, scope=NAME, type=custom|builtin, name=PART, id=PART   one of several values suffices
  label=KEY[=VALUE]                                                  all of several must be there

A format is table, json (an object a line) or a template, in which \\t and \\n are known and these are values:
  {{.ID}} {{.Name}} {{.Driver}} {{.Scope}} {{.IPv6}} {{.Internal}} {{.Labels}} {{.CreatedAt}}
With the word table in front, what \\t separates are columns with a heading.

Examples:
  lichen network ls
  lichen network ls -o json
  lichen network ls -q --filter label=managed-by=helyos
  lichen network ls --format 'table {{.Name}}\\t{{.Labels}}'")]
pub(crate) struct ListNetworks {
    /// Only those that match; once for each filter
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = filter)]
    pub(crate) filter: Vec<Filter>,
    /// Only ids
    #[arg(short, long, conflicts_with = "format")]
    pub(crate) quiet: bool,
    /// table, json or a template
    #[arg(long, value_parser = format)]
    pub(crate) format: Option<Format>,
}

#[derive(Debug, Args)]
#[command(after_help = "Filters, each of which must match:
  label=KEY[=VALUE]    with that label
  label!=KEY[=VALUE]   without it
  until=MOMENT         made until then: 24h ago, 2024-01-15T10:30:00Z, or seconds since 1970

Examples:
  lichen network prune
  lichen network prune --filter until=24h --filter label!=keep")]
pub(crate) struct PruneNetworks {
    /// Only those that match; once for each filter
    #[arg(long, value_name = "KEY=VALUE", value_parser = filter)]
    pub(crate) filter: Vec<Filter>,
}

/// One filter.
#[derive(Clone, Debug)]
pub(crate) struct Filter {
    key: String,
    value: String,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lichen network create mynet
  lichen network create --subnet 10.89.0.0/16 --gateway 10.89.0.1 mynet
  lichen network create --subnet 10.89.0.0/16 --subnet fd12:3456:789a:1::/64 mynet
  lichen network create --label managed-by=helyos mynet
  lichen network create --ipv6=false old
  lichen network create --nat64 six
  lichen network create --internal backend")]
pub(crate) struct CreateNetwork {
    /// Its addresses, for example 10.89.0.0/16; once more for those of IPv6, a /64 [default: picked]
    #[arg(long)]
    pub(crate) subnet: Vec<String>,
    /// Whether it carries IPv6
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        default_value_t = true, action = clap::ArgAction::Set)]
    pub(crate) ipv6: bool,
    /// Its router, in its subnet; once more for IPv6, the first address there [default: the first address]
    #[arg(long, requires = "subnet")]
    pub(crate) gateway: Vec<String>,
    /// No way out: members reach only each other
    #[arg(long)]
    pub(crate) internal: bool,
    /// Let members that speak only IPv6 reach IPv4: 64:ff9b::192.0.2.1 is 192.0.2.1, and a name that has only IPv4 is
    /// answered so (NAT64, DNS64)
    #[arg(long, conflicts_with = "internal")]
    pub(crate) nat64: bool,
    /// A label of your own
    #[arg(long, value_name = "KEY[=VALUE]", value_parser = label)]
    pub(crate) label: Vec<(String, String)>,
    /// Its name
    pub(crate) name: String,
}

/// One of each for each family.
#[derive(Debug, thiserror::Error)]
#[error("--{what} names two {family} {what}s; a network has one {what} of each family")]
pub(crate) struct TwoOfOneFamily {
    what: &'static str,
    family: &'static str,
}

/// What was named in each family.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Families {
    pub(crate) v4: Option<String>,
    pub(crate) v6: Option<String>,
}

impl Families {
    fn of(what: &'static str, named: &[String]) -> Result<Self, TwoOfOneFamily> {
        let mut families = Self::default();
        for text in named {
            let (place, family) = if text.contains(':') {
                (&mut families.v6, "IPv6")
            } else {
                (&mut families.v4, "IPv4")
            };
            if place.replace(text.clone()).is_some() {
                return Err(TwoOfOneFamily { what, family });
            }
        }
        Ok(families)
    }
}

impl CreateNetwork {
    pub(crate) fn subnets(&self) -> Result<Families, TwoOfOneFamily> {
        Families::of("subnet", &self.subnet)
    }

    pub(crate) fn gateways(&self) -> Result<Families, TwoOfOneFamily> {
        Families::of("gateway", &self.gateway)
    }

    pub(crate) fn labels(&self) -> BTreeMap<String, String> {
        self.label.iter().cloned().collect()
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  lichen network rm mynet\n  lichen network rm -f mynet")]
pub(crate) struct RmNetwork {
    /// Detach its workloads first; they lose the network
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Names or ids
    #[arg(required = true, value_name = "NETWORK")]
    pub(crate) names: Vec<String>,
}

/// More than the daemon reads.
#[derive(Debug, thiserror::Error)]
#[error("too many filters: at most {MAX_FILTERS}, of {MAX_FILTER_BYTES} bytes together")]
pub(crate) struct TooManyFilters;

/// What several filters say together.
pub(crate) fn network_filters(said: &[Filter]) -> Result<Filters, TooManyFilters> {
    let bytes: usize = said.iter().map(|filter| filter.key.len() + filter.value.len()).sum();
    if said.len() > MAX_FILTERS || bytes > MAX_FILTER_BYTES {
        return Err(TooManyFilters);
    }
    let mut filters = Filters::default();
    for Filter { key, value } in said {
        filters.0.entry(key.clone()).or_default().push(value.clone());
    }
    Ok(filters)
}

/// What the keys mean, the daemon knows. A blank or a capital letter does not make another key, as with Docker.
fn filter(text: &str) -> Result<Filter, String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => {
            Ok(Filter { key: key.trim().to_ascii_lowercase(), value: value.to_owned() })
        }
        _ => Err("a filter is KEY=VALUE, such as label=tier=back".to_owned()),
    }
}

fn format(text: &str) -> Result<Format, FormatError> {
    Format::parse(text, &FIELDS)
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    if key.is_empty() {
        Err("a label needs a key".to_owned())
    } else {
        Ok((key.into(), value.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_of_one_key_stand_together_and_one_without_a_value_is_refused() {
        let said: Vec<Filter> =
            ["label=a=b", "Label=c", "label!=d", "name=x"].map(|text| filter(text).unwrap()).into();
        let filters = network_filters(&said).unwrap();
        let values = |key: &str| filters.0[key].iter().map(String::as_str).collect::<Vec<_>>();
        assert_eq!((values("label"), values("label!")), (vec!["a=b", "c"], vec!["d"]));
        assert_eq!(values("name"), ["x"]);
        for bad in ["", "label", "=x", " =x"] {
            assert!(filter(bad).unwrap_err().contains("KEY=VALUE"), "{bad}");
        }
        let many = vec![filter("name=x").unwrap(); 65];
        let long = [filter(&format!("name={}", "x".repeat(4096))).unwrap()];
        for too_many in [&many[..], &long] {
            let error = network_filters(too_many).unwrap_err().to_string();
            assert!(error.contains("at most 64, of 4096 bytes"), "{error}");
        }
    }

    #[test]
    fn a_network_has_one_subnet_and_one_gateway_of_each_family() {
        let named = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
        let both = Families::of("gateway", &named(&["fd12::1", "10.89.0.1"])).unwrap();
        let (v4, v6) = (Some("10.89.0.1".to_owned()), Some("fd12::1".to_owned()));
        assert_eq!(both, Families { v4, v6 });
        for (what, texts, told) in [
            ("gateway", ["10.89.0.1", "10.89.0.2"], "two IPv4 gateways; a network has one gateway"),
            ("gateway", ["fd12::1", "fd12::2"], "two IPv6 gateways; a network has one gateway"),
            ("subnet", ["10.89.0.0/16", "10.90.0.0/16"], "two IPv4 subnets; a network has one"),
        ] {
            let error = Families::of(what, &named(&texts)).unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
    }
}
