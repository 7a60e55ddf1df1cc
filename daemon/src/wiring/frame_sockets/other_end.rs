//! Whether the other end of a pair of unix datagram sockets is still open.
//!
//! When it is closed nobody is told but who sends to it next, and a frame must not be made up to find out. So the
//! kernel is asked (sock_diag(7), `UDIAG_SHOW_PEER`): an end that is closed has no inode. It answers for sockets of
//! our own network namespace only.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::fstat;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const AF_UNIX: u8 = 1;
const UDIAG_SHOW_PEER: u32 = 4;
const UNIX_DIAG_PEER: u16 = 2;
/// `struct nlmsghdr`, and `struct unix_diag_msg` behind it.
const HEADER: usize = 16;
const MESSAGE: usize = 16;
const ANY: u32 = u32::MAX;

/// Whether a socket that was connected still is; an error where the kernel does not say.
pub(super) fn is_open(socket: BorrowedFd<'_>) -> io::Result<bool> {
    // The kernel numbers sockets with 32 bits.
    let inode = u32::try_from(fstat(socket)?.st_ino).map_err(io::Error::other)?;
    let flags = SocketFlags::CLOEXEC;
    let protocol = Some(netlink::SOCK_DIAG);
    let netlink = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
    send(&netlink, &question(inode), SendFlags::empty())?;
    let mut answer = [0; 1024];
    // It was made while we sent.
    let (len, _) = recv(&netlink, &mut answer, RecvFlags::DONTWAIT)?;
    read(&answer[..len]).ok_or_else(|| io::Error::other("the kernel does not know the socket"))
}

fn question(inode: u32) -> Vec<u8> {
    let mut request = Vec::new();
    for word in [ANY, inode, UDIAG_SHOW_PEER, ANY, ANY] {
        request.extend(word.to_ne_bytes());
    }
    // Family, protocol and padding in front.
    let request = [&[AF_UNIX, 0, 0, 0], &request[..]].concat();
    let len = u32::try_from(HEADER + request.len()).expect("40 bytes");
    let (sequence, pid) = (1u32, 0u32);
    let mut message = len.to_ne_bytes().to_vec();
    message.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    message.extend(NLM_F_REQUEST.to_ne_bytes());
    message.extend(sequence.to_ne_bytes());
    message.extend(pid.to_ne_bytes());
    message.extend(request);
    message
}

/// Whether the answer names an open peer; `None` when it is not about a socket. A peer to which sending has failed
/// is not mentioned any more.
fn read(answer: &[u8]) -> Option<bool> {
    let half = |bytes: &[u8], at: usize| {
        Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().expect("two bytes")))
    };
    if half(answer, 4)? != SOCK_DIAG_BY_FAMILY {
        return None;
    }
    let mut attributes = answer.get(HEADER + MESSAGE..)?;
    while let (Some(len), Some(kind)) = (half(attributes, 0), half(attributes, 2)) {
        let len = usize::from(len);
        if kind == UNIX_DIAG_PEER {
            return Some(attributes.get(4..8)?.iter().any(|byte| *byte != 0));
        }
        // At least its own header, or it would be read for ever.
        attributes = attributes.get(len.max(4).next_multiple_of(4)..)?;
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn an_end_that_is_closed_is_told_from_one_that_is_open() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let copy = theirs.try_clone().unwrap();
        assert!(is_open(ours.as_fd()).unwrap());
        drop(theirs);
        assert!(is_open(ours.as_fd()).unwrap(), "somebody else has it");
        drop(copy);
        assert!(!is_open(ours.as_fd()).unwrap());
        // Once somebody has sent to it, it is not even mentioned.
        ours.send(&[0]).unwrap_err();
        assert!(!is_open(ours.as_fd()).unwrap());
        assert!(is_open(std::fs::File::open("/dev/null").unwrap().as_fd()).is_err());
    }

    #[test]
    fn answers_that_are_cut_short_say_nothing() {
        let whole =
            [&[0; 4][..], &20u16.to_ne_bytes(), &[0; 26], &[8, 0, 2, 0, 1, 0, 0, 0]].concat();
        assert_eq!(read(&whole), Some(true));
        for len in 0..32 {
            assert_eq!(read(&whole[..len]), None, "{len}");
        }
        // An attribute without a length of its own does not hold us for ever.
        let endless = [&whole[..32], &[0, 0, 9, 0, 0, 0, 9, 0]].concat();
        assert_eq!(read(&endless), Some(false));
    }
}
