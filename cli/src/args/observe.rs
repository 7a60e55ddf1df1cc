//! The grammar of what shows the datapath at work.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use lichen_api::CapturedFlow;

#[derive(Debug, Args)]
#[command(
    after_help = "Flows with the outside and with clients of published ports; frames between workloads are none.

Examples:
  lichen flows
  lichen flows web --watch
  lichen flows -o json"
)]
pub(crate) struct Flows {
    /// Show them again every second
    #[arg(short, long)]
    pub(crate) watch: bool,
    /// Only of this workload
    #[arg(value_name = "NAME")]
    pub(crate) workload: Option<String>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Each workload is an interface of the file, also one that joins meanwhile. Frames are shown as they \
pass: large segments whole, and checksums as they are between the workload and its port; --segment shows them as a \
wire would carry them. It ends with Ctrl-C, after -c frames, or when nobody reads standard output any more.

Examples:
  lichen capture --workload web -w web.pcapng
  lichen capture -w - | tshark -r -
  lichen capture --flow tcp:10.88.0.2:40000-192.0.2.1:443 --segment -w flow.pcapng
  lichen capture --network backend -c 100 --snaplen 128 -w backend.pcapng"
)]
pub(crate) struct Capture {
    /// Only of this workload
    #[arg(long, value_name = "NAME", conflicts_with = "network")]
    pub(crate) workload: Option<String>,
    /// Only of workloads on this network, those that join it later too
    #[arg(long, value_name = "NETWORK")]
    pub(crate) network: Option<String>,
    /// Only of this flow, as `lichen flows` shows it, both directions; either end may come first
    #[arg(long, value_name = "PROTO:GUEST-REMOTE")]
    pub(crate) flow: Option<CapturedFlow>,
    /// Cut large segments, and complete checksums, as a wire would show them
    #[arg(long)]
    pub(crate) segment: bool,
    /// Stop after so many frames
    #[arg(short, long, value_name = "FRAMES", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
    /// Keep at most so many bytes of each frame
    #[arg(long, value_name = "BYTES")]
    pub(crate) snaplen: Option<u32>,
    /// File to write, readable by you alone; - is standard output
    #[arg(short, long, value_name = "FILE")]
    pub(crate) write: PathBuf,
}

#[derive(Debug, Args)]
#[command(
    after_help = "With --listen it serves GET /metrics there until it is ended, so that Prometheus can fetch them; \
whoever may connect to that port of the loopback may read the names of your workloads.

Examples:
  lichen metrics
  lichen metrics --listen 127.0.0.1:9464"
)]
pub(crate) struct Metrics {
    /// Serve them by HTTP at this address of the loopback
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = loopback)]
    pub(crate) listen: Option<SocketAddr>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ExplainCommand {
    /// Explain why a frame was dropped
    #[command(after_help = "Examples:\n  lichen explain drop\n  lichen explain drop mac_spoof")]
    Drop {
        /// As `lichen status -o json` and `lichen metrics` have it; left out, all are listed
        reason: Option<String>,
    },
}

fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text
        .parse()
        .map_err(|_| "write an address and a port, such as 127.0.0.1:9464".to_owned())?;
    if address.ip().is_loopback() {
        Ok(address)
    } else {
        Err("only addresses of the loopback are served; use 127.0.0.1 or [::1]".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_served_on_the_loopback_only() {
        assert!(loopback("127.0.0.1:9464").is_ok() && loopback("[::1]:1").is_ok());
        for text in ["0.0.0.0:9464", "192.0.2.1:80", "[::]:1", "9464", "localhost:1"] {
            assert!(loopback(text).is_err(), "{text}");
        }
    }
}
