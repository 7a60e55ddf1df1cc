//! How long steps of the datapath take; what they cost in instructions is counted by `lichen-lab instructions`.

#![allow(missing_docs)] // of what criterion's macros make

use criterion::{Criterion, criterion_group, criterion_main};
use lichen_netstack::testing::steps::{self, Kind};

fn time(criterion: &mut Criterion) {
    let rings = lichen_vhost_net::testing::steps::KINDS;
    for Kind { name, prepare } in steps::KINDS.into_iter().chain(rings) {
        let mut step = prepare();
        criterion.bench_function(name, |bencher| bencher.iter(&mut step));
    }
}

criterion_group!(datapath, time);
criterion_main!(datapath);
