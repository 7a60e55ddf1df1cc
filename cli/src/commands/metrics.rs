//! `lichen metrics`: counters and gauges for Prometheus, printed or served on the loopback.
//!
//! The daemon itself listens on no TCP port. What is served here is one text, fetched anew for each request;
//! one client at a time, briefly, and nothing but `GET /metrics`.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::args::Metrics;
use crate::{Outcome, daemon, exit, output};

/// Longest head of a request, in bytes.
const MAX_HEAD: usize = 8 * 1024;
/// How long a client may take to ask, and to take the answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Prints the metrics, or serves them until it is ended.
pub(crate) async fn metrics(arguments: &Metrics) -> Outcome {
    match arguments.listen {
        None => {
            output::text(&daemon::connect().await?.metrics().await?)?;
            Ok(ExitCode::SUCCESS)
        }
        Some(address) => serve(address).await,
    }
}

async fn serve(address: SocketAddr) -> Outcome {
    let listener = TcpListener::bind(address)
        .await
        .map_err(|error| format!("cannot listen on {address}: {error}"))?;
    eprintln!("lichen: serving http://{}/metrics", listener.local_addr()?);
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // A client that is slow or gone is nobody's loss.
                let _ = tokio::time::timeout(PATIENCE, answer(stream)).await;
            }
            // Out of descriptors, most likely: waiting beats spinning.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn answer(mut stream: TcpStream) -> io::Result<()> {
    let head = read_head(&mut stream).await?;
    let (status, body) = match judge(&head) {
        Ok(()) => match fetch().await {
            Ok(text) => ("200 OK", text),
            Err(error) => ("503 Service Unavailable", format!("{}\n", exit::chain(&*error))),
        },
        Err((status, why)) => (status, format!("{why}\n")),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain; version=0.0.4; charset=utf-8\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

async fn fetch() -> Result<String, Box<dyn std::error::Error>> {
    Ok(daemon::connect().await?.metrics().await?)
}

async fn read_head(stream: &mut TcpStream) -> io::Result<String> {
    let mut head = Vec::new();
    let mut piece = [0; 1024];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < MAX_HEAD {
        match stream.read(&mut piece).await? {
            0 => break,
            count => head.extend_from_slice(&piece[..count]),
        }
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// Whether a request is answered with the metrics. A web page that has its own name resolved to the loopback
/// says that name, and is refused.
fn judge(head: &str) -> Result<(), (&'static str, &'static str)> {
    let (request, fields) = head.split_once("\r\n").unwrap_or((head, ""));
    if !fields.contains("\r\n\r\n") && !fields.starts_with("\r\n") {
        return Err(("400 Bad Request", "the request's head is too long or cut short"));
    }
    let mut words = request.split(' ');
    match (words.next(), words.next(), words.next()) {
        (Some("GET"), Some("/metrics"), Some(version)) if version.starts_with("HTTP/1.") => {}
        (Some("GET"), Some(_), Some(_)) => {
            return Err(("404 Not Found", "there is only /metrics here"));
        }
        (Some(_), Some(_), Some(_)) => {
            return Err(("405 Method Not Allowed", "only GET is served"));
        }
        _ => return Err(("400 Bad Request", "this is not HTTP/1.1")),
    }
    let host = fields.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("host").then(|| value.trim())
    });
    match host {
        None => Ok(()),
        Some(host) if is_own(host) => Ok(()),
        Some(_) => Err(("421 Misdirected Request", "ask for it by an address, or as localhost")),
    }
}

fn is_own(host: &str) -> bool {
    let address = host.parse::<SocketAddr>().map(|it| it.ip());
    let address = address.or_else(|_| host.trim_matches(['[', ']']).parse::<IpAddr>());
    address.is_ok() || host.split(':').next() == Some("localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_the_metrics_is_served_and_no_web_page_gets_them() {
        let status = |head: &str| judge(head).err().map_or("200", |(status, _)| &status[..3]);
        let with_host = |host: &str| format!("GET /metrics HTTP/1.1\r\nHost: {host}\r\n\r\n");
        for host in ["127.0.0.1:9464", "localhost:9464", "localhost", "[::1]:9464", "[::1]"] {
            assert_eq!(status(&with_host(host)), "200", "{host}");
        }
        for host in ["evil.example", "evil.example:9464", "localhost.evil.example"] {
            assert_eq!(status(&with_host(host)), "421", "{host}");
        }
        assert_eq!(status("GET /metrics HTTP/1.0\r\n\r\n"), "200");
        assert_eq!(status("GET / HTTP/1.1\r\n\r\n"), "404");
        assert_eq!(status("GET /v1/daemon/stop HTTP/1.1\r\n\r\n"), "404");
        assert_eq!(status("POST /metrics HTTP/1.1\r\n\r\n"), "405");
        for head in ["", "\r\n\r\n", "GET /metrics HTTP/1.1\r\nHost: x", "nonsense\r\n\r\n"] {
            assert_eq!(status(head), "400", "{head:?}");
        }
    }
}
