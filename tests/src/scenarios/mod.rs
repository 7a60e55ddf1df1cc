//! The scenarios, by what they are about.

mod amid_changes;
mod attach;
mod attacks;
mod bad_links;
mod command_line;
mod datagrams;
mod deaths;
mod descriptors;
mod dhcp;
mod frame_sockets;
mod host_exposure;
mod inheritance;
mod ipv6;
mod lab_itself;
mod leases;
mod many_flows;
mod names;
mod nat64;
mod networks;
mod observing;
mod offload;
mod outward;
mod passed_descriptors;
mod privileges;
mod published;
mod service;
mod several_workers;
mod tap_queues;
mod virtual_machines;

use crate::runner::Scenario;

pub(crate) fn all() -> Vec<Scenario> {
    [
        lab_itself::SCENARIOS,
        privileges::SCENARIOS,
        command_line::SCENARIOS,
        networks::SCENARIOS,
        service::SCENARIOS,
        names::SCENARIOS,
        outward::SCENARIOS,
        ipv6::SCENARIOS,
        nat64::SCENARIOS,
        published::SCENARIOS,
        datagrams::SCENARIOS,
        bad_links::SCENARIOS,
        host_exposure::SCENARIOS,
        attach::SCENARIOS,
        inheritance::SCENARIOS,
        dhcp::SCENARIOS,
        descriptors::SCENARIOS,
        many_flows::SCENARIOS,
        offload::SCENARIOS,
        attacks::SCENARIOS,
        deaths::SCENARIOS,
        amid_changes::SCENARIOS,
        leases::SCENARIOS,
        virtual_machines::SCENARIOS,
        frame_sockets::SCENARIOS,
        passed_descriptors::SCENARIOS,
        several_workers::SCENARIOS,
        tap_queues::SCENARIOS,
        observing::SCENARIOS,
    ]
    .concat()
}
