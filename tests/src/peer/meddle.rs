//! A workload's root that opens a queue of its own at the workload's tap, and changes what holds for all of them.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::thread;
use std::time::Duration;

use super::raw::further_queue;

/// Sends with headers shorter than ours, longer ones, ones that no frame's reader leaves room for, and ours again.
pub(super) fn meddle() -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    for header_size in [10, 14, 64, 1 << 20, 12] {
        let queue = further_queue("eth0", header_size)?;
        println!("headers of {header_size}");
        for port in 1..500 {
            // Whether it leaves is not what is asked here.
            let _ = socket.send_to(&[0xff; 200], (Ipv4Addr::new(10, 88, 0, 1), port));
            thread::sleep(Duration::from_millis(1));
        }
        drop(queue);
    }
    Ok(())
}
