//! Whether the documents name tests that exist.

use std::collections::HashSet;
use std::path::Path;
use std::{fs, io};

use crate::step::Failed;

/// The documents that say which test shows what.
const DOCUMENTS: [&str; 2] = ["docs/attacks.md", "docs/features.md"];

/// A name of a test is a sentence; shorter ones may be anything.
const FEWEST_WORDS: usize = 4;

/// Fails for the first test that a document names and no source has.
pub(crate) fn tests_exist() -> Result<(), Failed> {
    let mut functions = HashSet::new();
    collect_functions(Path::new("."), &mut functions)
        .map_err(|error| Failed::new(format!("cannot read the sources: {error}")))?;
    for document in DOCUMENTS {
        let text = fs::read_to_string(document)
            .map_err(|error| Failed::new(format!("{document}: {error}")))?;
        if let Some(name) = named_tests(&text).find(|name| !functions.contains(*name)) {
            return Err(Failed::new(format!("{document} names a test that is not there: {name}")));
        }
    }
    Ok(())
}

fn named_tests(text: &str) -> impl Iterator<Item = &str> {
    let quoted = text.lines().flat_map(|line| line.split('`').skip(1).step_by(2));
    quoted.filter(|name| {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        name.bytes().all(plain) && name.split('_').count() >= FEWEST_WORDS
    })
}

/// The names of all functions in the sources below `folder`.
fn collect_functions(folder: &Path, names: &mut HashSet<String>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes()[0] == b'.');
            if !hidden && !path.ends_with("target") {
                collect_functions(&path, names)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path)?;
            let after = text.split("fn ").skip(1);
            names.extend(after.filter_map(|rest| Some(rest.split_once('(')?.0.to_owned())));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sentences_in_quotes_are_names_of_tests() {
        let text = "| a `short_name` and `a_frame_that_is_lost`, not `Some::path_of_a_thing` | b |";
        assert_eq!(named_tests(text).collect::<Vec<_>>(), ["a_frame_that_is_lost"]);
    }
}
