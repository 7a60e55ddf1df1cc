//! One question on its way to the host's resolvers: what is sent, and which replies count.

use hickory_proto::op::{Message, ResponseCode};

use crate::question::{HEADER_LEN, Question, name_at};
use crate::secrets::Secrets;

/// A message as it was sent to one resolver.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) id: u16,
    /// The question section as sent, in the case of chance that a reply must repeat.
    question: Vec<u8>,
}

/// What a reply is.
#[derive(Debug)]
pub(crate) enum Judged {
    /// Not an answer to what was sent: forged, stale or garbage.
    Foreign,
    /// Cut short: to be asked again over TCP.
    Truncated,
    /// The resolver cannot; another may.
    Unable,
    /// The answer.
    Answer(Box<Message>),
}

impl Sent {
    /// Makes the message for one resolver out of an asker's: a fresh id, the name in a case of chance.
    pub(crate) fn prepare(message: &[u8], secrets: &mut Secrets) -> Option<(Self, Vec<u8>)> {
        let mut bytes = message.to_vec();
        let id = secrets.next_u16();
        bytes.get_mut(..2)?.copy_from_slice(&id.to_be_bytes());
        let len = name_at(bytes.get(HEADER_LEN..)?)?.len();
        secrets.shuffle_case(&mut bytes[HEADER_LEN..HEADER_LEN + len]);
        let question = bytes.get(HEADER_LEN..HEADER_LEN + len + 4)?.to_vec();
        Some((Self { id, question }, bytes))
    }

    /// Judges what came back.
    pub(crate) fn judge(&self, reply: &[u8]) -> Judged {
        let Some(header) = reply.first_chunk::<HEADER_LEN>() else { return Judged::Foreign };
        let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let question = reply.get(HEADER_LEN..HEADER_LEN + self.question.len());
        if header[2] & 0xf8 != 0x80 || word(0) != self.id || word(4) != 1 {
            return Judged::Foreign;
        }
        let Some(question) = question else { return Judged::Foreign };
        if question != self.question {
            // A resolver that does not repeat the case is asked over TCP, where it need not.
            let same_but_case = question.eq_ignore_ascii_case(&self.question);
            return if same_but_case { Judged::Truncated } else { Judged::Foreign };
        }
        if header[2] & 0x02 != 0 {
            return Judged::Truncated;
        }
        self.parse(reply)
    }

    /// As [`Sent::judge`] for a reply over TCP, where the connection itself is proof of who speaks.
    pub(crate) fn judge_stream(&self, reply: &[u8]) -> Judged {
        let id = reply.first_chunk::<2>().map(|bytes| u16::from_be_bytes(*bytes));
        let question = reply.get(HEADER_LEN..HEADER_LEN + self.question.len());
        let same = question.is_some_and(|bytes| bytes.eq_ignore_ascii_case(&self.question));
        if id == Some(self.id) && same && reply[2] & 0xf8 == 0x80 {
            self.parse(reply)
        } else {
            Judged::Foreign
        }
    }

    fn parse(&self, reply: &[u8]) -> Judged {
        match Message::from_vec(reply) {
            Ok(message) => match message.metadata.response_code {
                ResponseCode::NoError | ResponseCode::NXDomain => Judged::Answer(Box::new(message)),
                _ => Judged::Unable,
            },
            Err(_) => Judged::Foreign,
        }
    }
}

/// Gives a reply the id and the case of name that an asker used, and cuts it to what the asker takes.
pub(crate) fn readdress(reply: &[u8], question: &Question, limit: usize) -> Vec<u8> {
    let name = HEADER_LEN..HEADER_LEN + question.name.len();
    let mut bytes = reply.to_vec();
    bytes[..2].copy_from_slice(&question.id.to_be_bytes());
    bytes[name.clone()].copy_from_slice(&question.name);
    if bytes.len() > limit {
        bytes.truncate(name.end + 4);
        bytes[2] |= 0x02;
        bytes[6..HEADER_LEN].fill(0);
    }
    bytes
}
