//! What every way onto a network has in common.

use std::net::Ipv4Addr;

use clap::Args;
use lichen_api::{AllowedPort, CreateWorkload, Publish, Source, WorkloadKind};

use super::{allow_host, publish};

#[derive(Debug, Args)]
pub(crate) struct Place {
    /// Network to join [default: bridge]
    #[arg(long, value_name = "NETWORK")]
    pub(crate) network: Option<String>,
    /// Address on the network [default: the lowest free one]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) ip: Option<Ipv4Addr>,
    /// Ethernet address [default: derived from the address]
    #[arg(long, value_name = "MAC")]
    pub(crate) mac: Option<String>,
    /// Publish a port: [[HOST_IP:]HOST[-END]:]PORT[-END][/udp]; without HOST one that is free
    #[arg(short, long = "publish", value_name = "PORTS", value_parser = publish::parse)]
    pub(crate) publish: Vec<Publish>,
    /// Let the workload reach this port of the host's loopback as host.lichen.internal:PORT
    #[arg(long, value_name = "PORT[/udp]", value_parser = allow_host::parse)]
    pub(crate) allow_host: Vec<AllowedPort>,
    /// Show the gateway's address to the workload instead of each client's own
    #[arg(long)]
    pub(crate) snat: bool,
}

impl Place {
    /// The request for a workload of that kind.
    pub(crate) fn request(&self, kind: WorkloadKind, name: Option<String>) -> CreateWorkload {
        CreateWorkload {
            uid: None,
            name,
            network: self.network.clone(),
            kind,
            address: self.ip,
            mac: self.mac.clone(),
            ports: self.publish.clone(),
            allow_host: self.allow_host.clone(),
            source: if self.snat { Source::Gateway } else { Source::Client },
            process: None,
            resolv_conf: false,
            attachment: None,
            queues: None,
        }
    }
}
