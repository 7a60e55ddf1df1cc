//! What flows cost that nobody uses: the rate of one flow beside them, memory, processor time.

use std::fs;
use std::thread;
use std::time::Duration;

use serde::Serialize;

use super::contender::{IPERF, KEEP};
use crate::lab::address::GATEWAY;
use crate::lab::{Background, Lab, Role, within};

/// Ports with idle flows, the active flow's among them.
const PORTS: usize = 3;
/// Idle flows of each.
const FLOWS: usize = 3000;
/// How long the datapath is watched while nothing happens.
const WATCHED: Duration = Duration::from_secs(5);

/// One run.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Idle {
    pub(super) round: usize,
    pub(super) idle_flows: usize,
    /// One stream upward, before the idle flows came and after they went.
    pub(super) alone_gigabits_per_second: [f64; 2],
    /// The same stream beside them, on a port that has a third of them.
    pub(super) beside_gigabits_per_second: f64,
    /// What the datapath grew by for each flow.
    pub(super) resident_bytes_per_flow: f64,
    /// What the kernel's slabs grew by for each flow: three connected sockets, in the workload, of the datapath
    /// and of the server.
    pub(super) kernel_bytes_per_flow: f64,
    /// Share of one core that the datapath uses while nothing happens.
    pub(super) idle_core_share: f64,
}

/// An error says why there is no figure.
pub(super) fn measure(lab: &Lab, round: usize) -> Result<Idle, String> {
    let program = lab.path("bin/lichen-lab").display().to_string();
    let signs = lab.path(&format!("home/idle-{round}"));
    fs::create_dir(&signs).map_err(|error| error.to_string())?;
    // The person's workloads write into it.
    lab.host().sh(&format!("chmod 0777 {}", signs.display()));
    let hold = format!("{program} peer hold {GATEWAY}:{KEEP} {FLOWS}");
    let stream = format!("timeout -k 2 30 iperf3 -c {GATEWAY} -p {IPERF} -t 5 -O 1 -l 128K -J");
    let wait = |sign: &str| format!("until test -e {sign}; do sleep 0.05; done");
    let active = format!(
        "cd {}; echo reno >/proc/sys/net/ipv4/tcp_congestion_control
         {stream} >before; touch before.over; {}
         {hold} >held & holder=$!; {}
         {stream} >beside; touch beside.over; {}
         kill $holder; wait $holder; sleep 1; {stream} >after; touch after.over; sleep 600",
        signs.display(),
        wait("hold"),
        wait("stream"),
        wait("let-go")
    );
    let start = |script: &str| {
        let words = ["run", "--allow-host", IPERF, "--allow-host", KEEP, "--", "sh", "-c", script];
        Background::start(&mut lab.lichen_with(&words), &lab.path("logs"))
    };
    let sign = |name: &str| fs::write(signs.join(name), "").map_err(|error| error.to_string());
    let report = |name: &str| {
        let over = signs.join(format!("{name}.over"));
        within(40, || over.exists())
            .then_some(())
            .ok_or_else(|| format!("the stream {name} is not over"))?;
        let text = fs::read_to_string(signs.join(name)).map_err(|error| error.to_string())?;
        let report: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let rate = report["end"]["sum_received"]["bits_per_second"].as_f64();
        rate.map(|rate| rate / 1e9).ok_or_else(|| format!("the stream {name} has no figure"))
    };
    let all_open = format!("{FLOWS} of {FLOWS} open");

    let _active = start(&active);
    let before = report("before")?;
    let datapath = lab.process(Role::Datapath).ok_or("no datapath")?;
    let resident = || kibibytes(&datapath.status("VmRSS")).ok_or("no VmRSS");
    let (resident_before, slab_before) = (resident()?, slab()?);
    sign("hold")?;
    let holders: Vec<Background> = (1..PORTS).map(|_| start(&hold)).collect();
    let held = signs.join("held");
    let opened = within(60, || {
        holders.iter().all(|holder| holder.printed().contains(&all_open))
            && fs::read_to_string(&held).is_ok_and(|text| text.contains(&all_open))
    });
    if !opened {
        return Err("the idle flows did not all come".to_owned());
    }
    // What was only needed to begin them goes.
    thread::sleep(Duration::from_secs(3));
    let (resident_then, slab_then) = (resident()?, slab()?);
    let ticks = datapath.ticks();
    thread::sleep(WATCHED);
    let ticks = datapath.ticks() - ticks;
    sign("stream")?;
    let beside = report("beside")?;
    drop(holders);
    sign("let-go")?;
    let after = report("after")?;

    let flows = PORTS * FLOWS;
    let per_flow =
        |before: u64, then: u64| then.saturating_sub(before) as f64 * 1024.0 / flows as f64;
    let measured = Idle {
        round,
        idle_flows: flows,
        alone_gigabits_per_second: [before, after],
        beside_gigabits_per_second: beside,
        resident_bytes_per_flow: per_flow(resident_before, resident_then),
        kernel_bytes_per_flow: per_flow(slab_before, slab_then),
        idle_core_share: ticks as f64 / 100.0 / WATCHED.as_secs_f64(),
    };
    eprintln!("round {round}: {measured:?}");
    Ok(measured)
}

/// All of the kernel's slabs, in KiB.
fn slab() -> Result<u64, String> {
    let memory = fs::read_to_string("/proc/meminfo").map_err(|error| error.to_string())?;
    let line = memory.lines().find_map(|line| line.strip_prefix("Slab:"));
    line.and_then(kibibytes).ok_or_else(|| "no Slab in /proc/meminfo".to_owned())
}

fn kibibytes(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}
