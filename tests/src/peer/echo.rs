//! One byte there, one byte back.

use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::bench::percentile;

/// Answers every byte with itself, on the loopback; one connection after the other.
pub(super) fn answer(port: &str) -> io::Result<()> {
    let port = port.parse().map_err(io::Error::other)?;
    for connection in TcpListener::bind(("127.0.0.1", port))?.incoming() {
        let mut connection = connection?;
        connection.set_nodelay(true)?;
        let mut byte = [0];
        while connection.read(&mut byte)? == 1 {
            connection.write_all(&byte)?;
        }
    }
    Ok(())
}

/// Asks for some seconds and prints how often, and the median and the 99th percentile in microseconds.
pub(super) fn ask(address: &str, port: &str, seconds: &str) -> io::Result<()> {
    let mut connection = TcpStream::connect(format!("{address}:{port}"))?;
    connection.set_nodelay(true)?;
    let lasting = Duration::from_secs(seconds.parse().map_err(io::Error::other)?);
    let (started, mut microseconds) = (Instant::now(), Vec::new());
    while started.elapsed() < lasting {
        let asked = Instant::now();
        connection.write_all(&[1])?;
        connection.read_exact(&mut [0])?;
        microseconds.push(asked.elapsed().as_secs_f64() * 1e6);
    }
    let (p50, p99) = (percentile(&microseconds, 50), percentile(&microseconds, 99));
    println!("{} {p50:.1} {p99:.1}", microseconds.len());
    Ok(())
}
