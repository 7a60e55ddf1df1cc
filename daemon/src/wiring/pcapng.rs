//! The file format of captures (draft-ietf-opsawg-pcapng): blocks, each with its length at both ends, in the
//! byte order of this machine, which the first block tells.

/// Nanoseconds since 1970, as every interface here counts.
pub(super) type Nanoseconds = u64;

/// LINKTYPE_ETHERNET.
const ETHERNET: u16 = 1;
const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const INTERFACE_STATISTICS: u32 = 5;
const ENHANCED_PACKET: u32 = 6;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
/// Bytes of an enhanced packet block beside its packet.
pub(super) const PACKET_OVERHEAD: usize = 44;

/// Which way a packet went, as the option `epb_flags` has it; seen from the interface's own machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Into the guest.
    Inbound = 1,
    /// Out of the guest.
    Outbound = 2,
}

/// The block that begins a file, with a note on what is in it.
pub(super) fn section_header(program: &str, note: &str) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend_from_slice(&BYTE_ORDER.to_ne_bytes());
    body.extend_from_slice(&1u16.to_ne_bytes());
    body.extend_from_slice(&0u16.to_ne_bytes());
    // The section's length is not known.
    body.extend_from_slice(&u64::MAX.to_ne_bytes());
    option(&mut body, 4, program.as_bytes());
    option(&mut body, 1, note.as_bytes());
    end_of_options(&mut body);
    block(SECTION_HEADER, &body)
}

/// The block of an interface; they are numbered from zero as they come.
pub(super) fn interface(name: &str, description: &str, snaplen: u32) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend_from_slice(&ETHERNET.to_ne_bytes());
    body.extend_from_slice(&0u16.to_ne_bytes());
    body.extend_from_slice(&snaplen.to_ne_bytes());
    option(&mut body, 2, name.as_bytes());
    option(&mut body, 3, description.as_bytes());
    // Time is counted in 10⁻⁹ seconds.
    option(&mut body, 9, &[9]);
    end_of_options(&mut body);
    block(INTERFACE_DESCRIPTION, &body)
}

/// Appends the block of a packet of which `kept` bytes are there, of `len`.
pub(super) fn packet(
    out: &mut Vec<u8>,
    interface: u32,
    at: Nanoseconds,
    way: Way,
    kept: &[u8],
    len: usize,
) {
    let padded = kept.len().next_multiple_of(4);
    let total = number(PACKET_OVERHEAD + padded);
    let words = [
        ENHANCED_PACKET,
        total,
        interface,
        number_of(at >> 32),
        number_of(at & 0xffff_ffff),
        number(kept.len()),
        number(len),
    ];
    words.iter().for_each(|word| out.extend_from_slice(&word.to_ne_bytes()));
    out.extend_from_slice(kept);
    out.resize(out.len() + padded - kept.len(), 0);
    option(out, 2, &(way as u32).to_ne_bytes());
    end_of_options(out);
    out.extend_from_slice(&total.to_ne_bytes());
}

/// The block that says how many packets of an interface were lost so far.
pub(super) fn losses(interface: u32, at: Nanoseconds, lost: u64) -> Vec<u8> {
    let mut body = Vec::new();
    for word in [interface, number_of(at >> 32), number_of(at & 0xffff_ffff)] {
        body.extend_from_slice(&word.to_ne_bytes());
    }
    option(&mut body, 5, &lost.to_ne_bytes());
    end_of_options(&mut body);
    block(INTERFACE_STATISTICS, &body)
}

fn block(kind: u32, body: &[u8]) -> Vec<u8> {
    let total = number(body.len() + 12).to_ne_bytes();
    [&kind.to_ne_bytes(), &total, body, &total].concat()
}

fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    let len = u16::try_from(value.len()).expect("names are short");
    out.extend_from_slice(&code.to_ne_bytes());
    out.extend_from_slice(&len.to_ne_bytes());
    out.extend_from_slice(value);
    out.resize(out.len() + value.len().next_multiple_of(4) - value.len(), 0);
}

fn end_of_options(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0; 4]);
}

fn number(value: usize) -> u32 {
    u32::try_from(value).expect("frames are below 64 KiB")
}

fn number_of(value: u64) -> u32 {
    u32::try_from(value).expect("half of it")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kinds of the blocks that bytes consist of.
    fn kinds(mut bytes: &[u8]) -> Vec<u32> {
        let word =
            |bytes: &[u8], at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        let mut kinds = Vec::new();
        while !bytes.is_empty() {
            let len = word(bytes, 4) as usize;
            assert_eq!(word(bytes, len - 4) as usize, len, "both lengths agree");
            assert!(len.is_multiple_of(4));
            kinds.push(word(bytes, 0));
            bytes = &bytes[len..];
        }
        kinds
    }

    #[test]
    fn blocks_are_whole_whatever_they_hold() {
        let mut file = section_header("lichen 0.1.0", "frames are whole");
        file.extend(interface("web", "10.88.0.2 on bridge", 65_535));
        for len in 0..70 {
            let before = file.len();
            packet(&mut file, 0, 1, Way::Outbound, &vec![1; len], 1514);
            assert_eq!(file.len() - before, PACKET_OVERHEAD + len.next_multiple_of(4));
        }
        file.extend(losses(0, 2, 7));
        let kinds = kinds(&file);
        assert_eq!(kinds[..2], [SECTION_HEADER, INTERFACE_DESCRIPTION]);
        assert!(kinds[2..72].iter().all(|kind| *kind == ENHANCED_PACKET));
        assert_eq!(kinds[72..], [INTERFACE_STATISTICS]);
    }
}
