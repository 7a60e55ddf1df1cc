//! What was asked for, and whether it is there.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::lab::{Dice, Lab, Role, eventually, run};

const WORKLOADS: [&str; 4] = ["ant", "bee", "cow", "dog"];
const NETWORKS: [&str; 3] = ["north", "south", "west"];
/// Published by `port add`; the ports of `run -p` follow [`OWN_PORTS`].
const PORTS: [u16; 4] = [8100, 8101, 8102, 8103];
const OWN_PORTS: [u16; 4] = [8200, 8201, 8202, 8203];

/// One change of the state.
pub(super) enum Change {
    Run { name: &'static str, network: &'static str, port: Option<u16> },
    Remove { name: &'static str },
    MakeNetwork(&'static str),
    RemoveNetwork(&'static str),
    Publish { port: u16, target: &'static str },
    Withdraw(u16),
}

impl Change {
    /// The call that makes it.
    pub(super) fn words(&self) -> Vec<String> {
        let text = match self {
            Self::Run { name, network, port } => {
                let port = port.map_or(String::new(), |port| format!("-p {port}:80 "));
                // Says its name to whoever connects.
                let server = format!("busybox nc -ll -p 80 -e echo {name}");
                format!("run -d --name {name} --network {network} {port}-- {server}")
            }
            Self::Remove { name } => format!("rm -f {name}"),
            Self::MakeNetwork(name) => format!("network create {name}"),
            Self::RemoveNetwork(name) => format!("network rm {name}"),
            Self::Publish { port, target } => {
                format!("port add --host-port {port} --target {target} --target-port 80")
            }
            Self::Withdraw(port) => format!("port rm {port}"),
        };
        text.split(' ').map(str::to_owned).collect()
    }
}

struct Member {
    network: &'static str,
    port: Option<u16>,
    /// Address and MAC, once seen: they stay for life.
    addresses: Option<(String, String)>,
}

/// All that was asked for.
#[derive(Default)]
pub(super) struct Wanted {
    members: BTreeMap<&'static str, Member>,
    networks: BTreeSet<&'static str>,
    ports: BTreeMap<u16, &'static str>,
}

impl Wanted {
    /// A change that makes sense now.
    pub(super) fn propose(&self, dice: &mut Dice) -> Change {
        match dice.below(10) {
            0..5 => {
                let at = dice.below(WORKLOADS.len() as u64) as usize;
                let name = WORKLOADS[at];
                if self.members.contains_key(name) {
                    return Change::Remove { name };
                }
                let networks: Vec<_> = self.networks.iter().copied().chain(["bridge"]).collect();
                let port = (dice.below(2) == 0).then_some(OWN_PORTS[at]);
                Change::Run { name, network: dice.pick(&networks), port }
            }
            5..7 => {
                let name = dice.pick(&NETWORKS);
                let is_used = self.members.values().any(|member| member.network == name);
                match (self.networks.contains(name), is_used) {
                    (true, false) => Change::RemoveNetwork(name),
                    // Made already, which is as good.
                    _ => Change::MakeNetwork(name),
                }
            }
            _ => {
                let port = dice.pick(&PORTS);
                match self.ports.contains_key(&port) {
                    true => Change::Withdraw(port),
                    false => Change::Publish { port, target: dice.pick(&WORKLOADS) },
                }
            }
        }
    }

    /// The change was made.
    pub(super) fn apply(&mut self, change: Change) {
        match change {
            Change::Run { name, network, port } => {
                self.members.insert(name, Member { network, port, addresses: None });
            }
            Change::Remove { name } => drop(self.members.remove(name)),
            Change::MakeNetwork(name) => drop(self.networks.insert(name)),
            Change::RemoveNetwork(name) => drop(self.networks.remove(name)),
            Change::Publish { port, target } => drop(self.ports.insert(port, target)),
            Change::Withdraw(port) => drop(self.ports.remove(&port)),
        }
    }

    /// Compares all that can be seen with all that was asked for.
    pub(super) fn check(&mut self, lab: &Lab) {
        eventually("every workload runs and every port answers as listed", || {
            let running = rows(lab, &["ps"]).iter().all(|row| row["state"]["state"] == "running");
            running && answers(lab) == self.expected_answers()
        });
        self.check_workloads(&rows(lab, &["ps"]));
        self.check_networks(&rows(lab, &["network", "ls"]));
        self.check_ports(&rows(lab, &["port", "ls"]));
        // Without a workload nothing above waits for a datapath that was killed last.
        eventually("both processes run", || {
            lab.process(Role::Control).is_some() && lab.process(Role::Datapath).is_some()
        });
        let inits = "cat /proc/[0-9]*/comm 2>/dev/null | grep -cx lichen-init || true";
        eventually("only the workloads that are listed run", || {
            lab.host().sh(inits).trim() == self.members.len().to_string()
        });
    }

    fn check_workloads(&mut self, rows: &[Value]) {
        assert_eq!(rows.len(), self.members.len(), "{rows:#?}");
        let mut taken = BTreeSet::new();
        for (name, member) in &mut self.members {
            let row = rows.iter().find(|row| row["name"] == *name);
            let row = row.unwrap_or_else(|| panic!("{name} is missing: {rows:#?}"));
            assert_eq!(row["network"], member.network, "{row:#?}");
            let [address, mac] = ["address", "mac"].map(|key| row[key].as_str().expect("text"));
            assert!(taken.insert(address) && taken.insert(mac), "given twice: {rows:#?}");
            let seen = (address.to_owned(), mac.to_owned());
            assert_eq!(*member.addresses.get_or_insert_with(|| seen.clone()), seen, "for life");
        }
    }

    fn check_networks(&self, rows: &[Value]) {
        let names: Vec<&str> = rows.iter().map(|row| row["Name"].as_str().expect("text")).collect();
        let distinct: BTreeSet<&str> = names.iter().copied().collect();
        let expected: BTreeSet<&str> = self.networks.iter().copied().chain(["bridge"]).collect();
        assert_eq!((names.len(), distinct), (expected.len(), expected), "{rows:#?}");
        let subnets: BTreeSet<&str> =
            rows.iter().map(|row| row["Subnet"].as_str().expect("text")).collect();
        assert_eq!(subnets.len(), rows.len(), "given twice: {rows:#?}");
    }

    fn check_ports(&self, rows: &[Value]) {
        let expected = self.leads();
        assert_eq!(rows.len(), expected.len(), "{rows:#?}");
        for (port, target) in expected {
            let row = rows.iter().find(|row| row["host_port"] == port);
            let row = row.unwrap_or_else(|| panic!("{port} is missing: {rows:#?}"));
            assert_eq!((&row["target"], &row["target_port"]), (&target.into(), &80.into()));
            let state = if self.members.contains_key(target) { "active" } else { "pending" };
            assert_eq!(row["status"]["state"], state, "{row:#?}");
        }
    }

    /// Where each published port leads.
    fn leads(&self) -> BTreeMap<u16, &'static str> {
        let own = self.members.iter().filter_map(|(name, it)| Some((it.port?, *name)));
        own.chain(self.ports.iter().map(|(port, target)| (*port, *target))).collect()
    }

    /// What each port of the script says to a client.
    fn expected_answers(&self) -> BTreeMap<u16, String> {
        let leads = self.leads();
        let says = |port: &u16| match leads.get(port) {
            Some(target) if self.members.contains_key(target) => (*target).to_owned(),
            _ => "refused".to_owned(),
        };
        PORTS.iter().chain(&OWN_PORTS).map(|port| (*port, says(port))).collect()
    }
}

fn rows(lab: &Lab, words: &[&str]) -> Vec<Value> {
    let text = run(&mut lab.lichen_with(&[words, &["-o", "json"]].concat())).success();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{words:?}: {error}: {text}"))
}

fn answers(lab: &Lab) -> BTreeMap<u16, String> {
    let ports: Vec<String> = PORTS.iter().chain(&OWN_PORTS).map(u16::to_string).collect();
    let script = format!(
        "for port in {}; do echo $port $(nc -d -w3 127.0.0.1 $port || echo refused); done",
        ports.join(" ")
    );
    let said = run(&mut lab.person(&["sh", "-c", &script])).success();
    let pair = |line: &str| {
        let (port, answer) = line.split_once(' ').unwrap_or((line, ""));
        (port.parse().expect("its own number"), answer.to_owned())
    };
    said.lines().map(pair).collect()
}
