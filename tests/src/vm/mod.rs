//! Virtual machines with a real kernel: Debian's, with busybox, in QEMU without acceleration.
//!
//! The image is made of packages and needs no root. A guest runs commands that come over its serial line
//! and answers with exit code and output, so a scenario speaks with it as with any other machine.

mod cpio;
mod guest;
mod image;

pub(crate) use guest::Guest;
pub(crate) use image::{Image, build};
