//! As many datagrams as go through, between two ends that cost little: the sender hands many to one call of the kernel.

use std::io::{self, ErrorKind, IoSlice};
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use rustix::net::addr::SocketAddrArg as _;
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, sendmmsg};

/// Datagrams to one call.
const BURST: usize = 32;
const LONGEST: usize = 1472;
/// How long an answer is waited for, and how often it is asked for again.
const PATIENCE: Duration = Duration::from_millis(500);
const ATTEMPTS: usize = 10;
/// The last datagrams are through after that.
const DRAINED: Duration = Duration::from_millis(200);

/// What a datagram says, by its first byte.
const ONE_OF_MANY: u8 = b'.';
/// How many have come? The answer is this byte and the number.
const HOW_MANY: u8 = b'?';
/// Send me many: the size and the seconds, two bytes each.
const SEND_ME: u8 = b'<';
/// These were all: the number that was sent.
const ALL: u8 = b'=';

/// Counts what comes to `address`, and sends many to who asks for it.
pub(super) fn hear(address: &str) -> io::Result<()> {
    let socket = UdpSocket::bind(address)?;
    println!("listening");
    let (mut buffer, mut heard) = ([0; LONGEST], 0_u64);
    loop {
        let (len, from) = socket.recv_from(&mut buffer)?;
        match buffer[..len] {
            [ONE_OF_MANY, ..] => heard += 1,
            [HOW_MANY] => drop(socket.send_to(&numbered(HOW_MANY, heard), from)?),
            [SEND_ME, a, b, c, d] => {
                let size = usize::from(u16::from_be_bytes([a, b]));
                let lasting = Duration::from_secs(u16::from_be_bytes([c, d]).into());
                let sent = send_many(&socket, from, size, lasting)?;
                std::thread::sleep(DRAINED);
                for _ in 0..ATTEMPTS {
                    socket.send_to(&numbered(ALL, sent), from)?;
                }
            }
            _ => {}
        }
    }
}

/// Sends many of `size` bytes to who hears at `address`, or has it send them here. Prints how many arrived a second,
/// and how many of those that were sent did not, in percent.
pub(super) fn flood(direction: &str, address: &str, size: &str, seconds: &str) -> io::Result<()> {
    let address: SocketAddr = address.parse().map_err(io::Error::other)?;
    let number = |text: &str| text.parse::<u16>().map_err(io::Error::other);
    let (size, seconds) = (number(size)?, number(seconds)?);
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let (sent, arrived) = match direction {
        "up" => {
            let before = heard_there(&socket)?;
            let lasting = Duration::from_secs(seconds.into());
            let sent = send_many(&socket, address, size.into(), lasting)?;
            std::thread::sleep(DRAINED);
            (sent, heard_there(&socket)? - before)
        }
        "down" => {
            let wish = [&[SEND_ME][..], &size.to_be_bytes(), &seconds.to_be_bytes()].concat();
            socket.send(&wish)?;
            count_here(&socket)?
        }
        _ => return Err(io::Error::other("a direction is `up` or `down`")),
    };
    let lost = 100.0 * sent.saturating_sub(arrived) as f64 / sent.max(1) as f64;
    println!("{:.1} {lost:.1}", arrived as f64 / f64::from(seconds));
    Ok(())
}

/// Answers how many were sent.
fn send_many(
    socket: &UdpSocket,
    to: SocketAddr,
    size: usize,
    lasting: Duration,
) -> io::Result<u64> {
    let datagram = vec![ONE_OF_MANY; size.clamp(1, LONGEST)];
    let parts = [IoSlice::new(&datagram)];
    let to = to.as_any();
    let (begun, mut sent) = (Instant::now(), 0);
    while begun.elapsed() < lasting {
        let mut nothing: [_; BURST] = std::array::from_fn(|_| SendAncillaryBuffer::default());
        let mut all = nothing.each_mut().map(|more| MMsgHdr::new_with_addr(&to, &parts, more));
        match sendmmsg(socket, &mut all, SendFlags::empty()) {
            Ok(count) => sent += count as u64,
            Err(rustix::io::Errno::CONNREFUSED | rustix::io::Errno::NOBUFS) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(sent)
}

/// Asks how many have come there.
fn heard_there(socket: &UdpSocket) -> io::Result<u64> {
    let mut answer = [0; 9];
    for _ in 0..ATTEMPTS {
        socket.send(&[HOW_MANY])?;
        match socket.recv(&mut answer) {
            Ok(9) if answer[0] == HOW_MANY => return Ok(number_of(answer)),
            Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
            _ => {}
        }
    }
    Err(ErrorKind::TimedOut.into())
}

/// How many were sent, and how many of them came here.
fn count_here(socket: &UdpSocket) -> io::Result<(u64, u64)> {
    let (mut buffer, mut heard) = ([0; LONGEST], 0);
    let mut silent = 0;
    loop {
        match socket.recv(&mut buffer) {
            Ok(9) if buffer[0] == ALL => {
                let answer = *buffer.first_chunk().expect("a longer buffer");
                return Ok((number_of(answer), heard));
            }
            Ok(_) => heard += 1,
            Err(error) if error.kind() == ErrorKind::WouldBlock && silent < ATTEMPTS => silent += 1,
            Err(error) => return Err(error),
        }
    }
}

fn numbered(kind: u8, number: u64) -> [u8; 9] {
    let mut message = [kind; 9];
    message[1..].copy_from_slice(&number.to_be_bytes());
    message
}

fn number_of([_, number @ ..]: [u8; 9]) -> u64 {
    u64::from_be_bytes(number)
}
