//! Where the verbs write: plain or coloured text, or JSON, and how errors are shown.
//!
//! A reader that goes away (`shadowset status | head -1`) is not a failure.

use std::error::Error as _;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};

use serde_json::json;

use super::{hints, log};
use crate::error::{Error, Result};

/// Standard output as the verbs see it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Out {
    /// Whether the answer is wanted as JSON.
    pub(super) json: bool,
    /// Whether standard output is a terminal.
    pub(super) terminal: bool,
    /// Whether escape sequences for colours are welcome.
    pub(super) color: bool,
}

/// What a piece of text means, for its colour.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Tone {
    /// As it should be.
    Good,
    /// On the way, or left on purpose.
    Busy,
    /// A human must look.
    Bad,
    /// A heading.
    Strong,
}

impl Out {
    /// Looks at the process's standard output and environment.
    pub(super) fn of_process(json: bool) -> Self {
        let terminal = io::stdout().is_terminal();
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|v| v == "dumb");
        Self {
            json,
            terminal,
            color: terminal && !no_color && !dumb,
        }
    }

    /// Writes text as it is.
    pub(super) fn text(self, text: &str) -> Result<()> {
        let mut stdout = io::stdout().lock();
        stdout
            .write_all(text.as_bytes())
            .and_then(|()| stdout.flush())
            .map_err(|cause| Error::io("cannot write to standard output", cause))
    }

    /// Writes one line.
    pub(super) fn line(self, line: &str) -> Result<()> {
        self.text(&format!("{line}\n"))
    }

    /// Writes a JSON value on one line.
    pub(super) fn value(self, value: &serde_json::Value) -> Result<()> {
        self.line(&value.to_string())
    }

    /// Writes one or the other: a JSON value, or a sentence for people.
    pub(super) fn either(self, value: &serde_json::Value, sentence: &str) -> Result<()> {
        if self.json {
            self.value(value)
        } else {
            self.line(sentence)
        }
    }

    /// The text in the colour of its meaning.
    pub(super) fn paint(self, tone: Tone, text: &str) -> String {
        if !self.color {
            return text.to_owned();
        }
        let code = match tone {
            Tone::Good => "32",
            Tone::Busy => "33",
            Tone::Bad => "1;31",
            Tone::Strong => "1",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// The same error, its sentence preceded by what was asked for, and the unit named once.
pub(super) fn about(subject: &str, error: &Error) -> Error {
    Error::new(error.code(), sentence_about(subject, &error.to_string()))
        .with_hint(hints::of(error))
}

/// The sentence preceded by what was asked for; the last word of that is not said twice.
pub(super) fn sentence_about(subject: &str, sentence: &str) -> String {
    let object = subject.rsplit(' ').next().unwrap_or(subject);
    let rest = sentence
        .strip_prefix(object)
        .and_then(|rest| rest.strip_prefix(": "));
    format!("{subject}: {}", rest.unwrap_or(sentence))
}

/// Text without what a terminal would act on.
pub(super) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            plain.extend(c.escape_default());
        } else {
            plain.push(c);
        }
    }
    plain
}

/// Whether the error only says that the reader of our output has gone.
pub(super) fn reader_has_gone(error: &Error) -> bool {
    let cause = error.source().and_then(|s| s.downcast_ref::<io::Error>());
    cause.is_some_and(|c| c.kind() == io::ErrorKind::BrokenPipe)
}

/// The same, unless it only says that the reader of our output has gone: what was to be told has happened all the same.
pub(super) fn unless_reader_has_gone<T>(told: Result<T>) -> Result<Option<T>> {
    match told {
        Err(error) if reader_has_gone(&error) => Ok(None),
        told => told.map(Some),
    }
}

/// The error for people: one sentence and a hint.
pub(super) fn error_lines(error: &Error) -> String {
    let mut lines = format!("shadowset: {error}\n");
    let hint = hints::of(error);
    if !hint.is_empty() {
        let _ = writeln!(lines, "hint: {hint}");
    }
    lines
}

/// The error for programs.
pub(super) fn error_value(error: &Error) -> serde_json::Value {
    json!({
        "ok": false,
        "code": error.code().name(),
        "errno": error.errno(),
        "sentence": error.to_string(),
        "hint": hints::of(error),
    })
}

/// Shows an error: lines on standard error, and with `--json` a value on standard output.
pub(super) fn report(error: &Error, json: bool) {
    // Nobody is left to be told when even these writes fail.
    let _ = log::errors().write_all(error_lines(error).as_bytes());
    if json {
        let _ = writeln!(io::stdout().lock(), "{}", error_value(error));
    }
}

/// Shows what an operator has to know though nothing has failed.
pub(super) fn warn(text: &str) {
    // As with errors: nobody is left to be told.
    let _ = writeln!(io::stderr().lock(), "shadowset: warning: {text}");
}

/// Lays rows out in columns, two blanks between them; the last one is never padded.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|r| r.get(column))
            .map(|c| visible(c))
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.push_str(&" ".repeat(width - visible(cell) + 2));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Characters of the text that take room: colours do not.
fn visible(text: &str) -> usize {
    let mut count = 0;
    let mut escape = false;
    for c in text.chars() {
        match (escape, c) {
            (false, '\x1b') => escape = true,
            (false, _) => count += 1,
            (true, 'm') => escape = false,
            (true, _) => {}
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::set::Code;

    #[test]
    fn an_error_is_one_sentence_and_a_hint() {
        let error = Error::new(Code::LastSource, "detach m1: m1 is the only source member");
        let expected = "shadowset: detach m1: m1 is the only source member\n\
                        hint: attach another member first\n";
        assert_eq!(error_lines(&error), expected);
        let value = error_value(&error);
        assert_eq!(value["code"], "last-source");
        assert_eq!(value["errno"], libc::EBUSY);
        assert_eq!(value["hint"], "attach another member first");
    }

    #[test]
    fn an_error_says_what_was_asked_for() {
        let cause = Error::new(Code::InUse, "/dev/loop9 is mounted").with_hint("unmount it");
        let error = about("loop detach dsa1", &cause);
        assert_eq!(error.to_string(), "loop detach dsa1: /dev/loop9 is mounted");
        assert_eq!((error.exit_code(), error.hint()), (4, "unmount it"));
        let own = Error::new(
            Code::OutOfRange,
            "dsa1: 1000 bytes is not a multiple of 512",
        );
        let expected = "create dsa1: 1000 bytes is not a multiple of 512";
        assert_eq!(about("create dsa1", &own).to_string(), expected);
    }

    #[test]
    fn a_broken_pipe_is_told_from_other_errors() {
        let gone = Error::io("cannot write", io::ErrorKind::BrokenPipe.into());
        let full = Error::io("cannot write", io::ErrorKind::StorageFull.into());
        assert!(reader_has_gone(&gone) && !reader_has_gone(&full));
        assert!(!reader_has_gone(&Error::new(Code::Io, "no cause")));
    }

    #[test]
    fn columns_line_up_with_and_without_colour() {
        let plain = Out {
            json: false,
            terminal: false,
            color: false,
        };
        let color = Out {
            color: true,
            ..plain
        };
        for out in [plain, color] {
            let rows = vec![
                vec!["MEMBER".to_owned(), "STATE".to_owned(), "SIZE".to_owned()],
                vec![
                    "m1".to_owned(),
                    out.paint(Tone::Good, "source"),
                    "1 GiB".to_owned(),
                ],
            ];
            let text = table(&rows);
            let lines: Vec<_> = text.lines().collect();
            assert_eq!(lines[0], "MEMBER  STATE   SIZE");
            assert_eq!(visible(lines[1]), "m1      source  1 GiB".len());
        }
        assert_eq!(plain.paint(Tone::Bad, "failed"), "failed");
        assert_eq!(color.paint(Tone::Bad, "failed"), "\x1b[1;31mfailed\x1b[0m");
    }
}
