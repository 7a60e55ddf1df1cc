//! The front of a DNS message, parsed by hand: header and question, which is all that forwarding needs.
//!
//! The question's name is kept in its encoded form. Compression is not accepted there: no client uses it
//! in the first name of a message, and a pointer could only point at itself or the header.

/// Bytes of a header.
pub(crate) const HEADER_LEN: usize = 12;
const MAX_NAME: usize = 255;

/// Response codes that we send ourselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    NoError = 0,
    FormErr = 1,
    ServFail = 2,
    NotImp = 4,
    Refused = 5,
    /// Extended: 16, whose upper bits go into the OPT record (RFC 6891).
    BadVers = 16,
}

/// Types that matter here.
pub(crate) mod kind {
    pub(crate) const A: u16 = 1;
    pub(crate) const SOA: u16 = 6;
    pub(crate) const PTR: u16 = 12;
    pub(crate) const AAAA: u16 = 28;
    pub(crate) const OPT: u16 = 41;
    pub(crate) const IXFR: u16 = 251;
    pub(crate) const AXFR: u16 = 252;
    pub(crate) const ANY: u16 = 255;
}

/// The IN class.
pub(crate) const CLASS_IN: u16 = 1;

/// A query's header and question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Question {
    pub(crate) id: u16,
    pub(crate) recursion_desired: bool,
    /// The asker wants also what fails to validate (CD, RFC 4035 3.2.2).
    pub(crate) checking_disabled: bool,
    /// Encoded, root label included, in the asker's own case.
    pub(crate) name: Vec<u8>,
    pub(crate) kind: u16,
    pub(crate) class: u16,
    pub(crate) edns: Option<Edns>,
}

/// What the OPT record of a query says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Edns {
    pub(crate) payload: u16,
    pub(crate) version: u8,
    /// The asker understands DNSSEC (DO, RFC 3225).
    pub(crate) dnssec_ok: bool,
}

/// What to do with a message that is no question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rejection {
    /// Nothing: it is too short, or a response.
    Silence,
    /// Say what is wrong with it, to that id and opcode.
    Answer { id: u16, opcode: u8, code: Code },
}

impl Question {
    pub(crate) fn parse(message: &[u8]) -> Result<Self, Rejection> {
        let header: &[u8; HEADER_LEN] = message.first_chunk().ok_or(Rejection::Silence)?;
        let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        if header[2] & 0x80 != 0 {
            return Err(Rejection::Silence);
        }
        let (id, opcode) = (word(0), header[2] >> 3 & 0xf);
        let reject = |code| Rejection::Answer { id, opcode, code };
        if opcode != 0 {
            return Err(reject(Code::NotImp));
        }
        // One question, no answers, no authorities; additionals may hold OPT, TSIG and a cookie's kin.
        if word(4) != 1 || word(6) != 0 || word(8) != 0 || word(10) > 4 {
            return Err(reject(Code::FormErr));
        }
        let rest = &message[HEADER_LEN..];
        let name = name_at(rest).ok_or(reject(Code::FormErr))?;
        let fixed = rest.get(name.len()..name.len() + 4).ok_or(reject(Code::FormErr))?;
        let mut at = HEADER_LEN + name.len() + 4;
        let mut edns = None;
        for _ in 0..word(10) {
            let (found, next) = additional(message, at).ok_or(reject(Code::FormErr))?;
            if found.is_some() && edns.is_some() {
                return Err(reject(Code::FormErr));
            }
            edns = edns.or(found);
            at = next;
        }
        Ok(Self {
            id,
            recursion_desired: header[2] & 1 != 0,
            checking_disabled: header[3] & 0x10 != 0,
            name: name.to_vec(),
            kind: u16::from_be_bytes([fixed[0], fixed[1]]),
            class: u16::from_be_bytes([fixed[2], fixed[3]]),
            edns,
        })
    }

    /// Bytes of an answer that the asker takes over UDP (RFC 6891; 1232 is what fragments nowhere).
    pub(crate) fn largest_datagram(&self) -> usize {
        usize::from(self.edns.map_or(512, |edns| edns.payload.clamp(512, 1232)))
    }

    /// The name's labels in lower case; `None` when one is not a plain host name label.
    pub(crate) fn labels(&self) -> Option<Vec<String>> {
        let mut labels = Vec::new();
        let mut rest = self.name.as_slice();
        while let [len @ 1..=63, tail @ ..] = rest {
            let (label, after) = tail.split_at(usize::from(*len));
            let plain = label.iter().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(b));
            if !plain {
                return None;
            }
            labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
            rest = after;
        }
        Some(labels)
    }
}

/// The encoded name at the front of `bytes`, its root label included.
pub(crate) fn name_at(bytes: &[u8]) -> Option<&[u8]> {
    let mut at = 0;
    loop {
        match *bytes.get(at)? {
            0 => return bytes.get(..at + 1),
            len @ 1..=63 => at += 1 + usize::from(len),
            // Compression, or the labels of RFC 2673 that nobody has.
            64.. => return None,
        }
        if at >= MAX_NAME {
            return None;
        }
    }
}

/// The additional record at `at`: what it says if it is OPT, and where the next begins.
fn additional(message: &[u8], at: usize) -> Option<(Option<Edns>, usize)> {
    let name = name_at(message.get(at..)?)?;
    let at = at + name.len();
    let fixed: &[u8; 10] = message.get(at..)?.first_chunk()?;
    let next = at + 10 + usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
    if next > message.len() {
        return None;
    }
    if u16::from_be_bytes([fixed[0], fixed[1]]) != kind::OPT {
        return Some((None, next));
    }
    let payload = u16::from_be_bytes([fixed[2], fixed[3]]);
    let dnssec_ok = fixed[6] & 0x80 != 0;
    (name == [0]).then_some((Some(Edns { payload, version: fixed[5], dnssec_ok }), next))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A query for `name` with recursion desired.
    pub(crate) fn query(id: u16, name: &str, kind: u16) -> Vec<u8> {
        let mut message = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        message[..2].copy_from_slice(&id.to_be_bytes());
        for label in name.split('.').filter(|label| !label.is_empty()) {
            message.push(u8::try_from(label.len()).unwrap());
            message.extend_from_slice(label.as_bytes());
        }
        message.push(0);
        message.extend_from_slice(&kind.to_be_bytes());
        message.extend_from_slice(&CLASS_IN.to_be_bytes());
        message
    }

    /// The same with an OPT record.
    pub(crate) fn query_with_edns(name: &str, kind: u16, payload: u16, version: u8) -> Vec<u8> {
        let mut message = query(1, name, kind);
        message[11] = 1;
        message.extend_from_slice(&[0, 0, 41]);
        message.extend_from_slice(&payload.to_be_bytes());
        message.extend_from_slice(&[0, version, 0, 0, 0, 0]);
        message
    }

    #[test]
    fn a_question_is_parsed() {
        let question = Question::parse(&query_with_edns("WEB.bridge", 1, 4096, 0)).unwrap();
        assert_eq!(question.labels().unwrap(), ["web", "bridge"]);
        assert_eq!(question.name, b"\x03WEB\x06bridge\0");
        assert_eq!(question.edns, Some(Edns { payload: 4096, version: 0, dnssec_ok: false }));
        assert_eq!(question.largest_datagram(), 1232);
    }

    #[test]
    fn every_prefix_of_a_question_is_rejected() {
        let whole = query_with_edns("web.bridge.internal", 1, 4096, 0);
        for len in 0..whole.len() {
            let rejection = Question::parse(&whole[..len]).unwrap_err();
            assert_eq!(rejection == Rejection::Silence, len < HEADER_LEN, "length {len}");
        }
    }

    #[test]
    fn malformed_names_and_counts_are_format_errors() {
        let formerr = Err(Rejection::Answer { id: 7, opcode: 0, code: Code::FormErr });
        let with = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut message = query(7, "web", 1);
            change(&mut message);
            Question::parse(&message)
        };
        assert_eq!(with(&|m| m[5] = 0), formerr);
        assert_eq!(with(&|m| m[5] = 2), formerr);
        assert_eq!(with(&|m| m[4..12].fill(0xff)), formerr);
        assert_eq!(with(&|m| m[12..14].copy_from_slice(&[0xc0, 12])), formerr);
        assert_eq!(with(&|m| m[12..14].copy_from_slice(&[0xc0, 20])), formerr);
        assert_eq!(with(&|m| m[12] = 64), formerr);
        assert_eq!(with(&|m| m[12] = 60), formerr);
        let long = [["a".repeat(63)].as_slice(); 5].concat().join(".");
        assert_eq!(Question::parse(&query(7, &long, 1)), formerr);
    }

    #[test]
    fn responses_are_met_with_silence_and_other_opcodes_with_notimp() {
        let mut message = query(7, "web", 1);
        message[2] |= 0x80;
        assert_eq!(Question::parse(&message), Err(Rejection::Silence));
        for opcode in [1, 2, 4, 5, 15] {
            let mut message = query(7, "web", 1);
            message[2] = opcode << 3;
            let notimp = Rejection::Answer { id: 7, opcode, code: Code::NotImp };
            assert_eq!(Question::parse(&message), Err(notimp));
        }
    }
}
