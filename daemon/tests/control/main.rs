//! Control as a whole, on a simulated datapath and simulated namespaces.

mod http;
mod lifecycle;
mod observing;
mod passed_descriptors;
mod queues;
mod simulated;
mod virtual_machines;
