//! Ends of UDP conversations.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

/// Much longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(10);

/// Answers every datagram with who sent it and what it says.
pub(super) fn tell(port: &str) -> io::Result<()> {
    let socket = bind(port)?;
    let mut buffer = vec![0; 65_535];
    loop {
        let (len, from) = socket.recv_from(&mut buffer)?;
        let told = [from.to_string().as_bytes(), b" ", &buffer[..len]].concat();
        socket.send_to(&told, from)?;
    }
}

/// Says something and prints what is answered, or how it was refused.
pub(super) fn say(address: &str, text: &str) -> io::Result<()> {
    let socket = UdpSocket::bind(if address.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" })?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut buffer = vec![0; 65_535];
    match socket.send(text.as_bytes()).and_then(|_| socket.recv(&mut buffer)) {
        Ok(len) => println!("{}", String::from_utf8_lossy(&buffer[..len]).trim_end()),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => println!("refused"),
        Err(error) if error.kind() == ErrorKind::WouldBlock => println!("silence"),
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Sends so many datagrams, each with its number, slowly enough that nobody on the way has to lose any.
pub(super) fn number(address: &str, count: &str) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(address)?;
    for number in 0..count.parse::<u32>().map_err(io::Error::other)? {
        socket.send(&number.to_be_bytes())?;
        std::thread::sleep(Duration::from_micros(500));
    }
    Ok(())
}

/// Prints the numbers that come, in their order, until none has come for five seconds.
pub(super) fn numbers(port: &str) -> io::Result<()> {
    let socket = bind(port)?;
    println!("listening");
    let (mut buffer, mut numbers) = ([0; 4], Vec::new());
    socket.recv(&mut buffer).map(|_| numbers.push(u32::from_be_bytes(buffer)))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    while socket.recv(&mut buffer).is_ok() {
        numbers.push(u32::from_be_bytes(buffer));
    }
    let numbers: Vec<String> = numbers.iter().map(u32::to_string).collect();
    println!("{}", numbers.join(" "));
    Ok(())
}

/// Waits for one datagram, answers it again and again, and prints whether the sender's host says at last
/// that nobody hears.
pub(super) fn pester(port: &str) -> io::Result<()> {
    let socket = bind(port)?;
    let (_, from) = socket.recv_from(&mut [0; 16])?;
    socket.connect(from)?;
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        match socket.send(b"are you there?") {
            Ok(_) => std::thread::sleep(Duration::from_millis(20)),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                println!("refused");
                return Ok(());
            }
            Err(error) => return Err(error),
        }
    }
    println!("silence");
    Ok(())
}

fn bind(port: &str) -> io::Result<UdpSocket> {
    UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port.parse().map_err(io::Error::other)?))
}
