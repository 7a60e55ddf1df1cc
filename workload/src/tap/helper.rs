//! The netns helper: the role that enters a workload's user and network namespace, makes its tap, and
//! hands its descriptors back.

use std::fs;
use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::process::ExitCode;

use super::error::{Doing as _, TapError};
use super::target::Target;
use super::{device, resolv_conf};
use crate::netlink::{LOOPBACK, Socket};
use crate::role;
use crate::spec::TapRequest;

/// The role `netns-helper`. Standard input is the channel of [`open_tap`](super::open_tap).
pub fn netns_helper_main() -> ExitCode {
    let Ok(channel) = role::channel_of_this_role() else {
        eprintln!("lichen netns-helper is started by lichen daemon, not by hand");
        return ExitCode::FAILURE;
    };
    let Ok(Some((request, _))) = channel.receive() else {
        return ExitCode::FAILURE;
    };
    let sent = match serve(&request) {
        Ok(queues) => {
            let queues: Vec<BorrowedFd<'_>> = queues.iter().map(|queue| queue.as_fd()).collect();
            channel.send(&Ok::<(), TapError>(()), &queues)
        }
        Err(error) => channel.send(&Err::<(), TapError>(error), &[]),
    };
    if sent.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn serve(request: &TapRequest) -> Result<Vec<OwnedFd>, TapError> {
    let target = Target::find(&request.target)?;
    target.enter()?;
    let queues = device::open(&request.interface, request.queues)?;
    configure(request)?;
    if let (Some(root), Some(content)) = (target.foreign_root(), &request.resolv_conf) {
        resolv_conf::write(root, content)
            .map_err(|error| TapError::ResolvConf { os: error.into() })?;
    }
    // Only now: what has failed leaves no interface that was not there before.
    device::keep(&queues[0])?;
    Ok(queues)
}

/// Every step replaces what is there by the same, so a tap that is opened again is repaired.
fn configure(request: &TapRequest) -> Result<(), TapError> {
    let socket = Socket::open().doing("open a netlink socket")?;
    let interface = socket
        .index_of(&request.interface)
        .doing("find the interface")?
        .ok_or_else(|| TapError::InterfaceForeign { name: request.interface.clone() })?;

    // A host without IPv6 has no such files; then the workload has none either.
    let address6 = request.address6.filter(|_| prepare_ipv6(&request.interface).is_ok());
    if address6.is_none() {
        let _ = set_ipv6(&request.interface, "disable_ipv6", "1");
    }
    socket.set_link(interface, request.mac, request.mtu).doing("set MAC and MTU")?;
    socket
        .set_only_address(interface, request.address, request.prefix_len)
        .doing("set the address")?;
    socket.set_up(LOOPBACK).doing("set lo up")?;
    socket.set_up(interface).doing("set the interface up")?;
    if let Some(gateway) = request.gateway {
        socket.set_default_route(interface, gateway.into()).doing("set the default route")?;
    }
    if let Some(address) = address6 {
        socket.set_only_address6(interface, address).doing("set the IPv6 address")?;
        if request.gateway.is_some() {
            let router = ROUTER.into();
            socket.set_default_route(interface, router).doing("set the IPv6 default route")?;
        }
    }
    Ok(())
}

/// Every network's router, on its link.
const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Lets the interface speak IPv6 with the addresses that it is given and the one that follows from its MAC: it asks no
/// router, makes no further ones, and does not wait to see whether another has them, which no other can.
fn prepare_ipv6(interface: &str) -> io::Result<()> {
    for (name, value) in [
        ("accept_ra", "0"),
        ("autoconf", "0"),
        ("accept_dad", "0"),
        ("addr_gen_mode", "0"),
        ("disable_ipv6", "0"),
    ] {
        set_ipv6(interface, name, value)?;
    }
    Ok(())
}

fn set_ipv6(interface: &str, name: &str, value: &str) -> io::Result<()> {
    fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/{name}"), value)
}
