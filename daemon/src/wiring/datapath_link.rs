//! Control's end of the link: one question at a time, each answered; events go elsewhere as they come.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use lichen_netstack::command::{Answer, Command, Event, PROTOCOL};

use super::link::{Link, LinkError};

/// Longest wait for one answer. The datapath answers between two turns of its loop.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a question was not answered; the link is of no use afterwards.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// It could not be sent.
    #[error("the datapath could not be asked")]
    Link(#[from] LinkError),
    /// The other side closed.
    #[error("the datapath closed the link")]
    Closed,
    /// No answer in time.
    #[error("the datapath did not answer within {} s", PATIENCE.as_secs())]
    TimedOut,
    /// An answer that does not fit the question.
    #[error("the datapath's answer was not expected: {0}")]
    Unexpected(String),
    /// It would not have us.
    #[error("the datapath refused the connection: {0}")]
    Refused(String),
    /// It speaks other words.
    #[error(
        "the running datapath is lichen {version} (protocol {protocol}), control is lichen {} (protocol {PROTOCOL}); \
         bring it up to date with: lichen daemon restart --datapath",
        lichen_api::VERSION
    )]
    Skew {
        /// Its program version.
        version: String,
        /// Its protocol.
        protocol: u32,
    },
}

/// What the datapath says unasked.
#[derive(Debug)]
pub enum Unasked {
    /// Something happened.
    Event(Event),
    /// The link has ended.
    Closed,
}

/// Who answered the greeting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// Its program version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// How many workers carry its frames.
    pub workers: u16,
    /// For how many microseconds each looks for more before it sleeps.
    pub busy_poll_us: u16,
}

/// The link to one datapath.
pub struct DatapathLink {
    link: Link,
    answers: Receiver<(Answer, Option<OwnedFd>)>,
}

impl DatapathLink {
    /// Greets the datapath. `unasked` is called from a thread of the link's own.
    pub fn greet(
        link: Link,
        unasked: impl Fn(Unasked) + Send + 'static,
    ) -> Result<(Self, Greeting), AskError> {
        let (sender, answers) = mpsc::channel();
        let receiving = link.try_clone().map_err(LinkError::Io)?;
        std::thread::Builder::new()
            .name("datapath-link".to_owned())
            .spawn(move || {
                receive_all(&receiving, &sender, &unasked);
                receiving.close();
                drop(sender);
                unasked(Unasked::Closed);
            })
            .map_err(LinkError::Io)?;
        let mut this = Self { link, answers };
        let hello = Command::Hello { protocol: PROTOCOL, version: lichen_api::VERSION.to_owned() };
        match this.ask(&hello, &[])? {
            Answer::Hello { protocol: PROTOCOL, version, pid, workers, busy_poll_us } => {
                Ok((this, Greeting { version, pid, workers, busy_poll_us }))
            }
            Answer::Hello { protocol, version, .. } => Err(AskError::Skew { version, protocol }),
            Answer::Refused { reason } => Err(AskError::Refused(reason)),
            other => Err(AskError::Unexpected(format!("{other:?}"))),
        }
    }

    /// Asks, and waits for the answer.
    pub fn ask(
        &mut self,
        command: &Command,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Answer, AskError> {
        self.ask_for_descriptor(command, descriptors).map(|(answer, _)| answer)
    }

    /// Asks, and waits for the answer and the descriptor that may come with it.
    pub fn ask_for_descriptor(
        &mut self,
        command: &Command,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(Answer, Option<OwnedFd>), AskError> {
        self.link.send(command, descriptors)?;
        self.answers.recv_timeout(PATIENCE).map_err(|error| match error {
            RecvTimeoutError::Timeout => AskError::TimedOut,
            RecvTimeoutError::Disconnected => AskError::Closed,
        })
    }
}

impl Drop for DatapathLink {
    fn drop(&mut self) {
        self.link.close();
    }
}

/// Answers carry the key `answer`, events the key `event`.
#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Said {
    Answer(Answer),
    Event(Event),
}

fn receive_all(
    link: &Link,
    answers: &mpsc::Sender<(Answer, Option<OwnedFd>)>,
    unasked: &impl Fn(Unasked),
) {
    loop {
        let message = match link.receive() {
            Ok(Some(message)) => message,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%error, "the link to the datapath failed");
                return;
            }
        };
        match serde_json::from_slice(&message.body) {
            Ok(Said::Answer(answer)) => {
                let descriptor = message.descriptors.into_iter().next();
                if answers.send((answer, descriptor)).is_err() {
                    return;
                }
            }
            Ok(Said::Event(event)) => unasked(Unasked::Event(event)),
            Err(error) => {
                tracing::error!(%error, "the datapath said something that is not understood");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use lichen_netstack::ids::PortId;

    use super::*;

    /// A datapath that answers each command with what comes next, events included.
    fn datapath_that_says(said: Vec<serde_json::Value>) -> Link {
        let (ours, theirs) = UnixStream::pair().unwrap();
        std::thread::spawn(move || {
            let link = Link::new(theirs);
            for value in said {
                if value.get("answer").is_some() {
                    link.receive().unwrap();
                }
                link.send(&value, &[]).unwrap();
            }
        });
        Link::new(ours)
    }

    fn hello(protocol: u32) -> serde_json::Value {
        serde_json::to_value(Answer::Hello {
            protocol,
            version: "0.0.9".into(),
            pid: 7,
            workers: 2,
            busy_poll_us: 50,
        })
        .unwrap()
    }

    #[test]
    fn a_datapath_that_speaks_other_words_is_named_with_the_remedy() {
        let link = datapath_that_says(vec![hello(PROTOCOL + 1)]);
        let error = DatapathLink::greet(link, |_| {}).err().unwrap();
        assert!(error.to_string().contains("datapath is lichen 0.0.9"), "{error}");
        assert!(error.to_string().contains("lichen daemon restart --datapath"), "{error}");
    }

    #[test]
    fn events_go_their_own_way_between_answers_and_the_end_is_told_last() {
        let event = Event::PortLost { port: PortId(3), reason: "gone".into() };
        let link = datapath_that_says(vec![
            hello(PROTOCOL),
            serde_json::to_value(&event).unwrap(),
            serde_json::to_value(Answer::Done).unwrap(),
        ]);
        let (sender, unasked) = mpsc::channel();
        let (mut link, greeting) = DatapathLink::greet(link, move |what| {
            let _ = sender.send(what);
        })
        .unwrap();
        let (version, pid) = ("0.0.9".to_owned(), 7);
        assert_eq!(greeting, Greeting { version, pid, workers: 2, busy_poll_us: 50 });
        assert_eq!(link.ask(&Command::Inventory, &[]).unwrap(), Answer::Done);
        assert!(matches!(unasked.recv().unwrap(), Unasked::Event(told) if told == event));
        assert!(matches!(unasked.recv().unwrap(), Unasked::Closed));
        assert!(link.ask(&Command::Inventory, &[]).is_err());
    }
}
