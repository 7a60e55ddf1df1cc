//! Why frames are dropped, in words: read out of `docs/drops.md`, the one place where the reasons are explained.

use serde::Serialize;

const DOCUMENT: &str = include_str!("../../docs/drops.md");

/// One reason to drop a frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DropExplanation {
    /// Its stable name.
    pub reason: String,
    /// What kind of reason it is.
    pub section: String,
    /// What it means.
    pub meaning: String,
    /// What to do.
    pub remedy: String,
}

/// All reasons, in the document's order.
pub fn drop_explanations() -> Vec<DropExplanation> {
    let (mut section, mut found) = ("", Vec::new());
    for line in DOCUMENT.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            section = title;
        }
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        if let [reason, meaning, remedy] = cells[..]
            && let Some(reason) = reason.strip_prefix('`').and_then(|it| it.strip_suffix('`'))
        {
            found.push(DropExplanation {
                reason: reason.to_owned(),
                section: section.to_owned(),
                meaning: meaning.to_owned(),
                remedy: remedy.to_owned(),
            });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_document_is_read() {
        let all = drop_explanations();
        let rows = DOCUMENT.lines().filter(|line| line.starts_with("| `")).count();
        assert_eq!(all.len(), rows);
        let spoof = all.iter().find(|it| it.reason == "mac_spoof").unwrap();
        assert!(spoof.meaning.contains("source MAC"), "{spoof:?}");
        assert!(spoof.remedy.contains("leave the MAC"), "{spoof:?}");
        assert!(spoof.section.contains("never sees"), "{spoof:?}");
        assert!(all.iter().all(|it| !it.meaning.is_empty() && !it.remedy.is_empty()));
    }
}
