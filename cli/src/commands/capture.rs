//! `lichen capture`: frames as they pass, written as pcapng, a whole block at a time.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, IsTerminal as _, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::ExitCode;

use lichen_api::CaptureRequest;

use crate::args::Capture;
use crate::{Outcome, daemon};

/// The longest block that the daemon makes: a frame of 64 KiB and what is around it.
const MAX_BLOCK: usize = 128 * 1024;
const ENHANCED_PACKET: u32 = 6;
const INTERFACE_STATISTICS: u32 = 5;

/// Why a capture fails.
#[derive(Debug, thiserror::Error)]
enum CaptureError {
    #[error(
        "standard output is a terminal; name a file, or lead it into a program: -w - | tshark -r -"
    )]
    Terminal,
    #[error("cannot write {0}")]
    File(String, #[source] io::Error),
    #[error("what the daemon sends is no pcapng")]
    Garbled,
}

/// Records frames until it has enough, is interrupted, or nobody reads what it writes.
pub(crate) async fn capture(arguments: &Capture) -> Outcome {
    let client = daemon::connect().await?;
    let mut out = open(&arguments.write)?;
    let request = CaptureRequest {
        workload: arguments.workload.clone(),
        network: arguments.network.clone(),
        snaplen: arguments.snaplen,
        flow: arguments.flow,
        segment: arguments.segment,
    };
    let mut capture = client.capture(&request).await?;
    let mut blocks = Blocks::default();
    let wanted = arguments.count.unwrap_or(u64::MAX);
    let ended = loop {
        let piece = tokio::select! {
            piece = capture.next() => piece?,
            interrupted = tokio::signal::ctrl_c() => {
                interrupted?;
                break Ended::ByUser;
            }
        };
        let Some(piece) = piece else { break Ended::ByDaemon };
        blocks.push(&piece);
        match blocks.write_to(&mut out, wanted) {
            Ok(()) if blocks.frames >= wanted => break Ended::ByUser,
            Ok(()) => {}
            // Who read has seen enough.
            Err(Failed::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
                break Ended::ByUser;
            }
            Err(Failed::Write(error)) => {
                return Err(CaptureError::File(arguments.write.display().to_string(), error).into());
            }
            Err(Failed::Garbled) => return Err(CaptureError::Garbled.into()),
        }
    };
    let lost: u64 = blocks.lost.values().sum();
    eprintln!(
        "lichen: {} frames captured, {lost} lost because they were not written in time",
        blocks.frames
    );
    match ended {
        Ended::ByUser => Ok(ExitCode::SUCCESS),
        Ended::ByDaemon => {
            Err("the capture was ended by the daemon: the datapath or its workloads have ended"
                .into())
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    ByUser,
    ByDaemon,
}

fn open(path: &Path) -> Result<Box<dyn Write>, CaptureError> {
    if path == Path::new("-") {
        return if io::stdout().is_terminal() {
            Err(CaptureError::Terminal)
        } else {
            Ok(Box::new(io::stdout().lock()))
        };
    }
    // What passes is nobody else's business.
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    let file = file.map_err(|error| CaptureError::File(path.display().to_string(), error))?;
    Ok(Box::new(file))
}

/// Cuts a stream of pcapng into its blocks.
#[derive(Default)]
struct Blocks {
    bytes: Vec<u8>,
    /// Frames that were written.
    frames: u64,
    /// By interface, as the last block about it said.
    lost: BTreeMap<u32, u64>,
}

enum Failed {
    Write(io::Error),
    Garbled,
}

impl Blocks {
    fn push(&mut self, piece: &[u8]) {
        self.bytes.extend_from_slice(piece);
    }

    /// Writes the blocks that are there as a whole, up to so many frames.
    fn write_to(&mut self, out: &mut dyn Write, wanted: u64) -> Result<(), Failed> {
        let mut at = 0;
        while self.frames < wanted
            && let Some(head) = self.bytes.get(at..at + 8)
        {
            let kind = word(head, 0);
            let len = word(head, 4) as usize;
            if !(12..=MAX_BLOCK).contains(&len) || !len.is_multiple_of(4) {
                return Err(Failed::Garbled);
            }
            let Some(block) = self.bytes.get(at..at + len) else { break };
            match kind {
                ENHANCED_PACKET => self.frames += 1,
                INTERFACE_STATISTICS => {
                    self.lost.extend(losses(block));
                }
                _ => {}
            }
            at += len;
        }
        out.write_all(&self.bytes[..at]).and_then(|()| out.flush()).map_err(Failed::Write)?;
        self.bytes.drain(..at);
        Ok(())
    }
}

/// The interface of a statistics block and its lost frames: the option `isb_ifdrop` stands first.
fn losses(block: &[u8]) -> Option<(u32, u64)> {
    let value = block.get(24..32)?.first_chunk::<8>()?;
    (block[20..24] == [5u16.to_ne_bytes(), 8u16.to_ne_bytes()].concat())
        .then(|| (word(block, 8), u64::from_ne_bytes(*value)))
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(kind: u32, body: &[u8]) -> Vec<u8> {
        let total = u32::try_from(body.len() + 12).unwrap().to_ne_bytes();
        [&kind.to_ne_bytes(), &total, body, &total].concat()
    }

    #[test]
    fn whole_blocks_are_written_wherever_the_stream_is_torn_and_no_frame_too_many() {
        let losses =
            [&3u32.to_ne_bytes()[..], &[0; 8], &[5, 0, 8, 0], &7u64.to_ne_bytes(), &[0; 4]];
        let file = [
            block(0x0a0d_0d0a, &[0; 16]),
            block(1, &[0; 20]),
            block(ENHANCED_PACKET, &[1; 64]),
            block(INTERFACE_STATISTICS, &losses.concat()),
            block(ENHANCED_PACKET, &[2; 128]),
            block(ENHANCED_PACKET, &[3; 8]),
        ]
        .concat();
        let kept = file.len() - 20;
        for at in 0..file.len() {
            let (mut blocks, mut out) = (Blocks::default(), Vec::new());
            for piece in [&file[..at], &file[at..]] {
                blocks.push(piece);
                assert!(blocks.write_to(&mut out, 2).is_ok());
            }
            assert_eq!(out, file[..kept], "torn at {at}");
            assert_eq!((blocks.frames, blocks.lost[&3]), (2, 7));
        }
        let mut garbled = Blocks::default();
        garbled.push(&[0xff; 64]);
        assert!(matches!(garbled.write_to(&mut Vec::new(), 2), Err(Failed::Garbled)));
    }
}
