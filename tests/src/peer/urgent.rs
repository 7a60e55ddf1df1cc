//! A byte that TCP calls urgent, among others.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use rustix::net::{SendFlags, send};

/// Longer than an answer takes.
const PATIENCE: Duration = Duration::from_secs(10);
const WORDS: [&[u8]; 3] = [b"before", b"!", b"after"];

/// Says something of which a part is urgent to a server that answers with what it has heard, and prints that.
pub(super) fn speak(address: &str) -> io::Result<()> {
    let mut connection = TcpStream::connect(address)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    let [before, urgent, after] = WORDS;
    connection.write_all(before)?;
    send(&connection, urgent, SendFlags::OOB)?;
    connection.write_all(after)?;
    let mut answer = WORDS.concat();
    connection.read_exact(&mut answer)?;
    println!("{}", String::from_utf8_lossy(&answer));
    Ok(())
}
