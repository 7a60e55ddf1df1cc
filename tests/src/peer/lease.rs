//! A DHCP client that waits at each step until it is told to go on.

use std::io::{self, BufRead as _, BufReader};
use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use lichen_netstack::ids::MacAddr;
use lichen_netstack::testing::dhcp::{Answer, Request};
use lichen_netstack::wire::dhcp::{CLIENT_PORT, MessageType, SERVER_PORT, option};

/// A message is said again when it was not answered for so long.
const PATIENCE: Duration = Duration::from_millis(300);
const ATTEMPTS: u32 = 60;

/// Reads `discover` and `request` from the pipe `steps`, does them, and prints what it is answered: `offer
/// ADDRESS`, `ack ADDRESS`. What is requested is what was offered last.
pub(super) fn lease(steps: &str) -> io::Result<()> {
    let mac = std::fs::read_to_string("/sys/class/net/eth0/address")?;
    let mac: MacAddr = mac.trim().parse().map_err(io::Error::other)?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, CLIENT_PORT))?;
    socket.set_broadcast(true)?;
    let mut client = Client { socket, transaction: 0 };
    let mut offered = Ipv4Addr::UNSPECIFIED;
    for step in BufReader::new(std::fs::File::open(steps)?).lines() {
        match step?.as_str() {
            "discover" => {
                let discover = Request::new(MessageType::Discover, mac);
                offered = client.ask(&discover, MessageType::Offer)?;
                println!("offer {offered}");
            }
            "request" => {
                let request = Request::new(MessageType::Request, mac)
                    .with(option::REQUESTED_ADDRESS, &offered.octets());
                println!("ack {}", client.ask(&request, MessageType::Ack)?);
            }
            other => return Err(io::Error::other(format!("{other} is no step"))),
        }
    }
    Ok(())
}

struct Client {
    socket: UdpSocket,
    transaction: u32,
}

impl Client {
    /// Says it until there is an answer, which must be of that kind.
    fn ask(&mut self, request: &Request, expected: MessageType) -> io::Result<Ipv4Addr> {
        self.transaction += 1;
        let transaction = self.transaction.to_be_bytes();
        let request = request.changed(|bytes| bytes[4..8].copy_from_slice(&transaction));
        self.socket.set_read_timeout(Some(PATIENCE))?;
        let mut buffer = [0; 1500];
        for _ in 0..ATTEMPTS {
            // Fails while the interface has no carrier.
            if self.socket.send_to(&request, (Ipv4Addr::BROADCAST, SERVER_PORT)).is_err() {
                std::thread::sleep(PATIENCE);
                continue;
            }
            // What is left of an earlier transaction is passed over.
            while let Ok(len) = self.socket.recv(&mut buffer) {
                if buffer[4..8] == transaction {
                    let answer = Answer::read(&buffer[..len]);
                    return if answer.kind == expected {
                        Ok(answer.yours)
                    } else {
                        Err(io::Error::other(format!("answered by {answer:?}")))
                    };
                }
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }
}
