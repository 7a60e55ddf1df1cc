//! A workload that holds conversations with the names over TCP without saying much.

use std::io::{self, Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_linger;

/// Asks for the address of `web.hypr`.
const QUERY: &[u8] =
    b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03web\x04hypr\x00\x00\x01\x00\x01";
const CONNECTIONS: usize = 500;
const PATIENCE: Duration = Duration::from_secs(50);

/// Does one thing after the other, and prints what came of each.
pub(super) fn converse(server: &str) -> io::Result<()> {
    let begun = Instant::now();
    let mut open = open_many(server)?;
    println!("{} of {CONNECTIONS} open", open.len());
    println!("asked by a datagram: {}", ask_by_datagram(server)?);
    for connection in &mut open {
        await_end(connection)?;
    }
    println!("closed after {} s", begun.elapsed().as_secs());

    drip(server)?;
    println!("dripped");
    for _ in 0..50 {
        // What is half said counts until its five seconds are over, so some of these are refused.
        leave_half_said(server, Leaving::Close)?;
        leave_half_said(server, Leaving::Reset)?;
    }
    println!("asked by a conversation: {}", ask_by_conversation(server)?);
    Ok(())
}

fn length() -> [u8; 2] {
    u16::try_from(QUERY.len()).expect("a short message").to_be_bytes()
}

/// Those of many connections that are not reset.
fn open_many(server: &str) -> io::Result<Vec<TcpStream>> {
    let mut open: Vec<TcpStream> =
        (0..CONNECTIONS).filter_map(|_| TcpStream::connect(server).ok()).collect();
    for connection in &open {
        connection.set_read_timeout(Some(Duration::from_millis(1)))?;
    }
    // One that was reset, and not one that merely says nothing.
    open.retain_mut(|connection| {
        matches!(connection.read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    });
    Ok(open)
}

fn await_end(connection: &mut TcpStream) -> io::Result<()> {
    connection.set_read_timeout(Some(PATIENCE))?;
    match connection.read(&mut [0]) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
        _ => Ok(()),
    }
}

/// A query, one byte a second, on as many connections as there may be.
fn drip(server: &str) -> io::Result<()> {
    let mut slow: Vec<TcpStream> =
        (0..16).filter_map(|_| TcpStream::connect(server).ok()).collect();
    for byte in [&length()[..], QUERY].concat().iter().take(8) {
        for connection in &mut slow {
            // It may be closed by now.
            let _ = connection.write_all(&[*byte]);
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    Ok(())
}

#[derive(PartialEq)]
enum Leaving {
    /// After a length and no more.
    Close,
    /// After a part of a message.
    Reset,
}

fn leave_half_said(server: &str, leaving: Leaving) -> io::Result<()> {
    let Ok(mut connection) = TcpStream::connect(server) else { return Ok(()) };
    // It may be reset by now, being one too many.
    let _ = connection.write_all(&length());
    if leaving == Leaving::Reset {
        let _ = connection.write_all(&QUERY[..9]);
        set_socket_linger(&connection, Some(Duration::ZERO))?;
    }
    Ok(())
}

fn ask_by_datagram(server: &str) -> io::Result<&'static str> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(QUERY)?;
    let mut answer = [0; 1500];
    let len = socket.recv(&mut answer)?;
    Ok(judged(&answer[..len]))
}

fn ask_by_conversation(server: &str) -> io::Result<&'static str> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let asked = (|| {
            let mut connection = TcpStream::connect(server)?;
            connection.set_read_timeout(Some(PATIENCE))?;
            connection.write_all(&[&length()[..], QUERY].concat())?;
            let mut len = [0; 2];
            connection.read_exact(&mut len)?;
            let mut answer = vec![0; u16::from_be_bytes(len).into()];
            connection.read_exact(&mut answer)?;
            Ok(judged(&answer))
        })();
        // What was left open before ends within its five seconds.
        match asked {
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(100)),
            asked => return asked,
        }
    }
}

fn judged(answer: &[u8]) -> &'static str {
    let is_answer = answer.len() > QUERY.len() && answer[..2] == QUERY[..2];
    // No error, and one answer.
    if is_answer && answer[3] & 15 == 0 && answer[6..8] == [0, 1] { "answered" } else { "refused" }
}
