//! Virtual machines with a real kernel: Debian's, with busybox, in QEMU without acceleration.
//!
//! The image is made of packages and needs no root. A guest runs commands that come over its serial line
//! and answers with exit code and output, so a scenario speaks with it as with any other machine.

mod cpio;
mod guest;
mod image;

use std::path::Path;

pub(crate) use guest::Guest;
pub(crate) use image::Image;
use image::build;

/// The image that is kept beside this program; made when it is not there.
pub(crate) fn keep_image() -> Result<Image, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    // target/guest, beside target/release.
    let target = program.ancestors().nth(2).ok_or("this program lies in no target/release")?;
    build(&target.join("guest"))
}

/// Makes the image in `folder`, and prints the command that boots it, one word a line. The guest fetches
/// the page at `greet` and serves what came of it.
pub(crate) fn print_command(folder: &str, greet: &str) -> Result<(), String> {
    let folder = Path::new(folder);
    let image = build(folder)?;
    for mut word in guest::qemu(&image, &folder.join("agent")) {
        if word.starts_with("console=") {
            word.push_str(&format!(" greet={greet}"));
        }
        println!("{word}");
    }
    Ok(())
}
