//! Tables for people, JSON for programs.

use std::io::{self, Write};

use serde::Serialize;

/// Prints a table: a heading, rows, columns as wide as their widest cell. Every cell is printable.
pub(crate) fn table(heading: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    io::stdout().lock().write_all(render(heading, rows).as_bytes())
}

/// Prints JSON, indented, as Docker does.
pub(crate) fn json(value: &impl Serialize) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value)?;
    out.write_all(b"\n")
}

/// Prints one line.
pub(crate) fn line(text: &str) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{text}")
}

/// Prints text as it is, without an end of line.
pub(crate) fn text(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Clears a terminal for what is shown next, from its upper left on.
pub(crate) fn clear_screen() -> io::Result<()> {
    text("\x1b[H\x1b[J")
}

/// A number of bytes with three digits or four, and its unit.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let (mut tenths, mut unit) = (count.saturating_mul(10) / 1024, 0);
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

fn render(heading: &[&str], rows: &[Vec<String>]) -> String {
    let heading: Vec<String> = heading.iter().map(ToString::to_string).collect();
    let width = |column: usize| {
        std::iter::once(&heading)
            .chain(rows)
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heading.len()).map(width).collect();
    let mut text = String::new();
    for row in std::iter::once(&heading).chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:<width$}   "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_with_a_unit_that_fits() {
        for (count, shown) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_048_575, "1023.9 KiB"),
            (1_048_576, "1.0 MiB"),
            (5 << 30, "5.0 GiB"),
        ] {
            assert_eq!(bytes(count), shown);
        }
        assert!(bytes(u64::MAX).ends_with("PiB"));
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [vec!["80".to_owned(), "web-frontend".to_owned(), "80".to_owned()]];
        assert_eq!(
            render(&["HOST-PORT", "TARGET", "TARGET-PORT"], &rows),
            "HOST-PORT   TARGET         TARGET-PORT\n80          web-frontend   80\n"
        );
        assert_eq!(render(&["NAME", "SCOPE"], &[]), "NAME   SCOPE\n");
    }
}
