//! Processes that die between a DHCP offer and its acknowledgement (security row D06).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write as _;
use std::thread;
use std::time::Duration;

use crate::lab::{Background, Dice, Lab, Role, eventually, run};
use crate::runner::scenarios;

scenarios![two_hundred_kills_between_offer_and_acknowledgement_change_no_address];

const KILLS: u32 = 200;
const CLIENTS: [&str; 3] = ["ant", "bee", "cow"];
/// The longest pause between a kill and the request, so that it comes before, amid and after the repair.
const PAUSE: Duration = Duration::from_millis(30);

/// A workload that asks for its address step by step.
struct Client {
    process: Background,
    steps: File,
    heard: usize,
}

impl Client {
    fn start(lab: &Lab, name: &str) -> Self {
        let pipe = lab.path(&format!("home/{name}.steps")).display().to_string();
        run(&mut lab.person(&["mkfifo", &pipe])).success();
        let program = lab.path("bin/lichen-lab").display().to_string();
        let words = ["run", "--name", name, "--", &program, "peer", "lease", &pipe];
        let process = Background::start(&mut lab.lichen(words), &lab.path("logs"));
        eventually("the client is there", || addresses(lab).contains_key(name));
        // Waits until the client has opened its end.
        let steps = File::options().write(true).open(&pipe).expect("a pipe");
        Self { process, steps, heard: 0 }
    }

    fn tell(&mut self, step: &str) {
        writeln!(self.steps, "{step}").expect("the client reads");
    }

    /// The next thing that it was answered.
    #[track_caller]
    fn hear(&mut self) -> String {
        let mut line = None;
        eventually("the client is answered", || {
            line = self.process.printed().lines().nth(self.heard).map(str::to_owned);
            line.is_some()
        });
        self.heard += 1;
        line.expect("just waited for")
    }
}

/// Two kills of three are of control: the datapath answers on its own, and must go on with what it offered.
/// The third is of the datapath, whose successor knows nothing of the offer; now and then both are killed.
/// In every fourth round somebody else is given an address meanwhile.
fn two_hundred_kills_between_offer_and_acknowledgement_change_no_address(lab: &Lab) {
    let mut dice = Dice::new();
    let mut clients = CLIENTS.map(|name| Client::start(lab, name));
    let fixed = addresses(lab);
    assert_eq!(fixed.len(), CLIENTS.len());
    let (mut kills, mut newcomers) = ([0, 0], 0);
    while kills[0] + kills[1] < KILLS {
        let at = usize::try_from(dice.below(3)).expect("small");
        let (name, client) = (CLIENTS[at], &mut clients[at]);
        client.tell("discover");
        assert_eq!(client.hear(), format!("offer {}", fixed[name]), "{name}");

        let which = dice.below(6);
        if which != 4 {
            kills[0] += u32::from(lab.kill_if_there(Role::Control));
        }
        if which >= 4 {
            kills[1] += u32::from(lab.kill_if_there(Role::Datapath));
        }
        if dice.below(2) == 0 {
            client.tell("request");
            thread::sleep(dice.pause(PAUSE));
        } else {
            thread::sleep(dice.pause(PAUSE));
            client.tell("request");
        }
        if dice.below(4) == 0 {
            newcomers += 1;
            let words = ["run", "--name", &format!("new{newcomers}"), "--", "hostname", "-I"];
            let given = run(&mut lab.lichen(words)).success();
            assert!(!fixed.values().any(|fixed| fixed == given.trim()), "{given} is taken");
        }
        // The next call repairs.
        assert_eq!(addresses(lab), fixed);
        assert_eq!(client.hear(), format!("ack {}", fixed[name]), "{name}");
    }
    let [control, datapath] = kills;
    println!("   {control} kills of control and {datapath} of the datapath, {newcomers} newcomers");
    assert!(control > KILLS / 3 && datapath > KILLS / 10, "both were killed often");
    assert!(newcomers > KILLS / 20, "addresses were given meanwhile");
}

/// Whose each address is; none is two workloads'.
fn addresses(lab: &Lab) -> BTreeMap<String, String> {
    let list = run(&mut lab.lichen(["ps", "-o", "json"])).success();
    let list: Vec<serde_json::Value> = serde_json::from_str(&list).expect("JSON");
    let text = |row: &serde_json::Value, key: &str| row[key].as_str().expect("text").to_owned();
    let clients = list.iter().filter(|row| CLIENTS.contains(&text(row, "name").as_str()));
    let held: BTreeMap<_, _> =
        clients.map(|row| (text(row, "name"), text(row, "address"))).collect();
    let distinct: BTreeSet<_> = list.iter().map(|row| text(row, "address")).collect();
    assert_eq!(distinct.len(), list.len(), "an address is given twice: {list:#?}");
    held
}
