//! Many connections at once: each is answered only when all of them are open.

use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use rustix::buffer::spare_capacity;
use rustix::event::epoll;

/// Takes every connection and keeps it until its other end goes.
pub(super) fn keep(address: &str) -> io::Result<()> {
    allow_many_files();
    let listener = TcpListener::bind(address)?;
    println!("listening");
    let poller = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut connections: HashMap<u64, TcpStream> = HashMap::new();
    epoll::add(&poller, &listener, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
    let (mut events, mut next) = (Vec::with_capacity(256), 1);
    loop {
        events.clear();
        epoll::wait(&poller, spare_capacity(&mut events), None)?;
        for event in &events {
            if event.data.u64() > 0 {
                // Nobody sends anything here, so this is an end.
                connections.remove(&event.data.u64());
                continue;
            }
            let (connection, _) = listener.accept()?;
            let data = epoll::EventData::new_u64(next);
            epoll::add(&poller, &connection, data, epoll::EventFlags::IN)?;
            connections.insert(next, connection);
            next += 1;
        }
    }
}

/// As many as the hard limit lets us have.
fn allow_many_files() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    // Else it stays as it is, and who needs more says so.
    let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, raised);
}

/// Waits for so many connections on a port, then answers each with one byte.
pub(super) fn gather(port: &str, count: &str) -> io::Result<()> {
    let (port, count): (u16, usize) = (parse(port)?, parse(count)?);
    allow_many_files();
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    let connections: Vec<TcpStream> = listener.incoming().take(count).collect::<io::Result<_>>()?;
    for mut connection in connections {
        connection.write_all(&[1])?;
    }
    Ok(())
}

/// Opens so many connections, then waits for every answer, and prints how many came.
pub(super) fn crowd(address: &str, count: &str) -> io::Result<()> {
    let count: usize = parse(count)?;
    allow_many_files();
    let connections: Vec<TcpStream> =
        (0..count).map(|_| TcpStream::connect(address)).collect::<io::Result<_>>()?;
    let answered = connections
        .into_iter()
        .filter_map(|mut connection| connection.read_exact(&mut [0]).ok())
        .count();
    println!("{answered} of {count} answered");
    Ok(())
}

/// Opens as many of so many connections as it can, prints how many that were, and keeps them.
pub(super) fn hold(address: &str, count: &str) -> io::Result<()> {
    let count: usize = parse(count)?;
    allow_many_files();
    let mut connections: Vec<TcpStream> =
        (0..count).filter_map(|_| TcpStream::connect(address).ok()).collect();
    // One that was taken first and then reset was not open.
    connections.retain(|connection| connection.take_error().is_ok_and(|error| error.is_none()));
    println!("{} of {count} open", connections.len());
    loop {
        std::thread::park();
    }
}

fn parse<T: std::str::FromStr>(text: &str) -> io::Result<T> {
    text.parse().map_err(|_| io::Error::other(format!("{text} is no number")))
}
