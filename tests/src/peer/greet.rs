//! Connections for one byte each way, as many a second as go.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Threads that accept; more than there are cores, as one waits for its client's byte.
const SERVERS: usize = 16;
/// Much longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(5);

/// Answers one byte of every connection.
pub(super) fn greet(address: &str) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    println!("listening");
    thread::scope(|scope| {
        let servers: Vec<_> = (0..SERVERS).map(|_| scope.spawn(|| serve(&listener))).collect();
        servers.into_iter().try_for_each(|server| server.join().expect("it does not panic"))
    })
}

fn serve(listener: &TcpListener) -> io::Result<()> {
    loop {
        let (mut connection, _) = listener.accept()?;
        connection.set_read_timeout(Some(PATIENCE))?;
        let mut byte = [0];
        // One that goes before it is answered costs nobody else.
        let answered = connection.read_exact(&mut byte).and_then(|()| connection.write_all(&byte));
        if answered.is_ok() {
            // The client closes first, so that its port waits and not ours.
            let _ = connection.read(&mut byte);
        }
    }
}

/// Makes connections, so many at once, until there were `most` or the seconds are over. Prints how many were
/// answered a second, and how many were not.
pub(super) fn connections(
    address: &str,
    at_once: &str,
    most: &str,
    seconds: &str,
) -> io::Result<()> {
    let address: SocketAddr = address.parse().map_err(io::Error::other)?;
    let number = |text: &str| text.parse::<u64>().map_err(io::Error::other);
    let (at_once, most) = (number(at_once)?, number(most)?);
    let lasting = Duration::from_secs(number(seconds)?);
    let (begun, answered, failed) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let started = Instant::now();
    thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while started.elapsed() < lasting && begun.fetch_add(1, Ordering::Relaxed) < most {
                    let counter = if exchange(address).is_ok() { &answered } else { &failed };
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let per_second = answered.into_inner() as f64 / started.elapsed().as_secs_f64();
    println!("{per_second:.1} {}", failed.into_inner());
    Ok(())
}

fn exchange(address: SocketAddr) -> io::Result<()> {
    let mut connection = TcpStream::connect_timeout(&address, PATIENCE)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.write_all(&[1])?;
    connection.read_exact(&mut [0])
}
