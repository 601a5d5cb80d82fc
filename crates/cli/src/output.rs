//! Everything that is printed: stdout is data, stderr is for people.

use serde::Serialize;
use std::io::{self, Write};

use crate::failure::Failure;

/// A line of data on stdout.
pub fn data(line: &str) {
    write(io::stdout().lock(), line);
}

/// A value on stdout as one line of JSON.
pub fn json(value: &impl Serialize) {
    match serde_json::to_string(value) {
        Ok(text) => data(&text),
        Err(error) => note(&format!("error: failed to write JSON: {error}")),
    }
}

/// A line for people on stderr.
pub fn note(line: &str) {
    write(io::stderr().lock(), line);
}

/// Something that a person should know and nothing depends on.
pub fn warning(text: &str) {
    note(&format!("warning: {text}"));
}

/// An error, its causes, the log of the worker it happened in, and what to do.
pub fn failure(failure: &Failure) {
    note(&render(failure));
}

fn render(failure: &Failure) -> String {
    let mut last = failure.error.to_string();
    let mut text = format!("error: {last}");
    for cause in failure.error.chain().skip(1) {
        let cause = cause.to_string();
        // Some libraries repeat their source's message in their own.
        if !last.ends_with(&cause) {
            text.push_str(&format!("\n  Caused by: {}", cause.trim_end().replace('\n', "\n    ")));
            last = cause;
        }
    }
    if !failure.log_tail.is_empty() {
        text.push_str("\n  Last lines of its log:");
        for line in &failure.log_tail {
            text.push_str(&format!("\n    {line}"));
        }
    }
    if let Some(hint) = &failure.hint {
        text.push_str(&format!("\n\nhint: {hint}"));
    }
    text
}

/// Columns aligned to the widest cell of each; the last is not padded. A row is one line, whatever its cells hold.
pub fn table(rows: &[Vec<String>]) -> String {
    let in_a_line = |cell: &String| cell.replace('\n', "\\n");
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(in_a_line).collect()).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}", width = *width)).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn write(mut stream: impl Write, line: &str) {
    // A reader that has gone away, such as `head`, has read all that it wanted.
    writeln!(stream, "{line}").and_then(|()| stream.flush()).ok();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Exit;
    use anyhow::Context as _;

    #[test]
    fn an_error_shows_causes_log_and_hint() {
        let error = Err::<(), _>(io::Error::other("disk on fire")).context("read checkpoint").unwrap_err();
        let plain = Failure::new(Exit::FAILED, error);
        assert_eq!(render(&plain), "error: read checkpoint\n  Caused by: disk on fire");
        let full = Failure { log_tail: vec!["last words".into()], ..plain }.hint("buy water");
        assert_eq!(
            render(&full),
            "error: read checkpoint\n  Caused by: disk on fire\n  Last lines of its log:\n    last words\n\nhint: buy water"
        );
    }

    #[test]
    fn columns_align() {
        let rows = [vec!["a".to_owned(), "bcd".to_owned()], vec!["long".to_owned(), "x".to_owned()]];
        assert_eq!(table(&rows), "a     bcd\nlong  x");
        assert_eq!(table(&[vec!["a\nb".to_owned(), "c".to_owned()]]), "a\\nb  c");
    }
}
