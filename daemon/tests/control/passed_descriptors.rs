//! Descriptors of monitors: what a client hands over on a connection that is upgraded, and what it may send instead.

use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use lichen_api::{ClientError, CreateWorkload, ErrorCode, Force, VmAttachment, WorkloadKind};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    sendmsg, socketpair,
};

use crate::http::Served;
use crate::lifecycle::run_request;

/// A daemon with places for a stream (port 1), for datagrams (port 2) and for vhost-user (port 3).
fn served(name: &str) -> Served {
    let served = Served::start(name);
    let client = served.client();
    served.control.block_on(async {
        for (name, attachment) in [
            ("stream", VmAttachment::Stream),
            ("dgram", VmAttachment::Dgram),
            ("rings", VmAttachment::VhostUser),
        ] {
            let attachment = Some(attachment);
            let request =
                CreateWorkload { kind: WorkloadKind::Vm, attachment, ..run_request(name) };
            client.create_workload(&request).await.unwrap();
        }
    });
    served
}

/// A connection that the daemon has upgraded for the place of that name.
fn upgraded(served: &Served, name: &str) -> UnixStream {
    let mut stream = served.connect();
    stream.write_all(request(name).as_bytes()).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 101"), "{head}");
    assert!(head.contains("upgrade: lichen-descriptor"), "{head}");
    stream
}

fn request(name: &str) -> String {
    format!(
        "POST /v1/workloads/{name}/descriptor HTTP/1.1\r\nhost: lichen\r\nconnection: upgrade\r\n\
         upgrade: lichen-descriptor\r\ncontent-length: 0\r\n\r\n"
    )
}

/// Sends bytes with descriptors beside them.
fn send(stream: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(200))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(descriptors.is_empty() || ancillary.push(SendAncillaryMessage::ScmRights(descriptors)));
    sendmsg(stream, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL).unwrap();
}

/// What the daemon says in the end. Where it has left something unread, an error follows.
fn said(mut stream: UnixStream) -> String {
    let mut said = Vec::new();
    let _ = stream.read_to_end(&mut said);
    String::from_utf8(said).unwrap()
}

/// Whether a frame's bytes come out of what the datapath was given.
#[track_caller]
fn is_other_end(given: OwnedFd, theirs: &UnixStream) {
    (&*theirs).write_all(b"frame").unwrap();
    let mut read = [0; 5];
    UnixStream::from(given).read_exact(&mut read).unwrap();
    assert_eq!(&read, b"frame");
}

#[test]
fn a_descriptor_reaches_the_datapath_and_one_guest_is_there_at_a_time() {
    let served = served("plug");
    let (client, datapath) = (served.client(), &served.datapath);
    served.control.block_on(async {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let plugged = client.plug("stream", ours.as_fd()).await.unwrap();
        assert_eq!(
            (plugged.plugged.as_str(), plugged.attachment),
            ("stream", VmAttachment::Stream)
        );
        drop(ours);

        let (second, _) = UnixStream::pair().unwrap();
        let busy = client.plug("stream", second.as_fd()).await.unwrap_err();
        assert!(matches!(busy, ClientError::Refused { code: ErrorCode::Conflict, .. }), "{busy}");
        assert!(busy.to_string().contains("end it first"), "{busy}");
        is_other_end(datapath.take_plugged(1).unwrap(), &theirs);
        // It has gone, and the next one comes.
        client.plug("stream", second.as_fd()).await.unwrap();

        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let plugged = client.plug("dgram", ours.as_fd()).await.unwrap();
        assert_eq!(plugged.attachment, VmAttachment::Dgram);
        theirs.send(b"frame").unwrap();
        let given = UnixDatagram::from(datapath.take_plugged(2).unwrap());
        assert_eq!(given.recv(&mut [0; 9]).unwrap(), 5);
    });
}

#[test]
fn hundreds_are_handed_over_one_after_the_other_and_none_is_lost() {
    let served = served("plug-often");
    let client = served.client();
    served.control.block_on(async {
        for round in 0..300 {
            let (ours, theirs) = UnixStream::pair().unwrap();
            client.plug("stream", ours.as_fd()).await.unwrap_or_else(|e| panic!("{round}: {e}"));
            is_other_end(served.datapath.take_plugged(1).unwrap(), &theirs);
        }
    });
}

#[test]
fn whatever_is_no_connected_unix_socket_of_the_places_type_is_refused_with_what_to_pass() {
    let served = served("plug-unfit");
    let client = served.client();
    let refused = |name: &str, fd: BorrowedFd<'_>| {
        let error = served.control.block_on(client.plug(name, fd)).unwrap_err();
        let ClientError::Refused { code, message } = error else { panic!("{error}") };
        (code, message)
    };
    let (pipe, _writer) = std::io::pipe().unwrap();
    let null = File::open("/dev/null").unwrap();
    for fd in [pipe.as_fd(), null.as_fd()] {
        let (code, message) = refused("stream", fd);
        assert_eq!(code, ErrorCode::BadRequest);
        assert!(message.contains("is not a socket; pass one end"), "{message}");
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    assert!(refused("stream", tcp.as_fd()).1.contains("not a unix socket"));
    let flags = SocketFlags::CLOEXEC;
    let (packets, _) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    assert!(refused("stream", packets.as_fd()).1.contains("of another type"));
    let unbound = UnixDatagram::unbound().unwrap();
    assert!(refused("dgram", unbound.as_fd()).1.contains("not connected"));
    let path = std::env::temp_dir().join(format!("lichen-plug-unfit-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let listening = UnixListener::bind(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(refused("stream", listening.as_fd()).1.contains("not connected"));

    let (stream, _) = UnixStream::pair().unwrap();
    let (datagram, _other) = UnixDatagram::pair().unwrap();
    let (code, message) = refused("dgram", stream.as_fd());
    assert_eq!(code, ErrorCode::Unprocessable);
    assert!(message.contains("SOCK_STREAM") && message.contains("--attach stream"), "{message}");
    let (_, message) = refused("stream", datagram.as_fd());
    assert!(message.contains("SOCK_DGRAM") && message.contains("--attach dgram"), "{message}");
    assert!(refused("rings", stream.as_fd()).1.contains("takes vhost-user"));
    assert_eq!(refused("nowhere", stream.as_fd()).0, ErrorCode::NotFound);
    assert!(served.datapath.take_plugged(1).is_none() && served.datapath.take_plugged(2).is_none());
}

#[test]
fn a_client_that_sends_anything_but_one_byte_with_one_descriptor_is_refused() {
    let served = served("plug-hostile");
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let fd = ours.as_fd();
    for (bytes, descriptors) in [
        (&b"x"[..], vec![]),
        (b"x", vec![fd; 2]),
        (b"x", vec![fd; 3]),
        (b"x", vec![fd; 200]),
        (b"xy", vec![fd]),
        (b"GET / HTTP/1.1\r\n\r\n", vec![]),
    ] {
        let stream = upgraded(&served, "stream");
        send(&stream, bytes, &descriptors);
        let said = said(stream);
        let count = descriptors.len();
        assert!(said.contains(r#"{"error":{"code":"bad_request""#), "{count}: {said}");
        assert!(said.contains("exactly one byte and one descriptor"), "{count}: {said}");
    }
    assert!(served.datapath.take_plugged(1).is_none());

    // One that hangs up at once, and one that does so before it hears of the upgrade.
    drop(upgraded(&served, "stream"));
    let mut stream = served.connect();
    stream.write_all(request("stream").as_bytes()).unwrap();
    drop(stream);

    // What comes too early has lost its descriptor, and is told so.
    let stream = served.connect();
    send(&stream, &[request("stream").as_bytes(), b"x"].concat(), &[fd]);
    let told = said(stream);
    assert!(told.contains("before the connection was upgraded"), "{told}");

    // One that says nothing is given up, and everybody else is served meanwhile.
    let silent = upgraded(&served, "stream");
    served.control.block_on(served.client().plug("stream", fd)).unwrap();
    let told = said(silent);
    assert!(told.contains("no descriptor came within"), "{told}");
}

#[test]
fn a_place_that_is_taken_away_meanwhile_or_a_datapath_that_has_gone_is_told() {
    let served = served("plug-gone");
    let (ours, theirs) = UnixStream::pair().unwrap();
    let stream = upgraded(&served, "stream");
    served.control.block_on(served.client().remove_workload("stream", Force::No)).unwrap();
    send(&stream, b"x", &[ours.as_fd()]);
    let told = said(stream);
    assert!(told.contains("there is no such port"), "{told}");
    drop(ours);
    assert_eq!((&theirs).read(&mut [0]).unwrap(), 0, "nobody has kept it");

    // The next datapath has the place, and what was passed before is gone.
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    served.control.block_on(served.client().plug("dgram", ours.as_fd())).unwrap();
    drop(ours);
    served.datapath.kill();
    assert!(theirs.send(b"frame").is_err());
    let (ours, _theirs) = UnixDatagram::pair().unwrap();
    crate::lifecycle::eventually("plugged again", || {
        served.control.block_on(served.client().plug("dgram", ours.as_fd())).is_ok()
    });
}

#[test]
fn an_upgrade_that_is_not_asked_for_rightly_is_refused_without_one() {
    let served = served("plug-asked");
    for (asked, status) in [
        (request("stream").replace("connection: upgrade", "connection: close"), 400),
        (
            request("stream")
                .replace("lichen-descriptor", "websocket")
                .replace("connection: upgrade", "connection: close"),
            400,
        ),
        (request("stream").replace("HTTP/1.1", "HTTP/1.0"), 400),
        (
            request("stream")
                .replace("connection: upgrade", "connection: upgrade, close")
                .replace("POST", "GET"),
            405,
        ),
        (request("rings").replace("connection: upgrade", "connection: upgrade, close"), 422),
        (request("nowhere").replace("connection: upgrade", "connection: upgrade, close"), 404),
    ] {
        let answer = served.raw(asked.as_bytes());
        assert!(
            answer.starts_with("HTTP/1.1 ") || answer.starts_with("HTTP/1.0 "),
            "{asked}{answer}"
        );
        assert_eq!(answer[9..12].parse(), Ok(status), "{asked}{answer}");
    }
}

#[test]
fn silent_upgrades_are_as_bounded_as_idle_connections() {
    let served = served("plug-crowd");
    let crowd: Vec<UnixStream> = (0..100).map(|_| upgraded(&served, "stream")).collect();
    let (ours, _theirs) = UnixStream::pair().unwrap();
    served.control.block_on(served.client().plug("stream", ours.as_fd())).unwrap();
    // The oldest have made room.
    assert_eq!((&crowd[0]).read(&mut [0]).unwrap(), 0, "it was hung up on without a word");
}
