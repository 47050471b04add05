//! The answer to a command, as text that is read back on the same file and kept in the logs.
//!
//! Good: `ok: <sentence>`, then `key value` lines. Refused: `error: <code> <ERRNO>`, the sentence,
//! the command with a `^` under the word at fault, and `hint: <what to do>`.

use std::fmt::Write as _;

use super::command;
use super::text;
use crate::error::errno;
use crate::set::{Answer, Refusal};

/// Characters of an over-long command that are shown.
const ECHO_CHARS: usize = 4096;

/// The command as it is shown: one line, one character for one.
#[must_use]
pub fn echo(command: &[u8]) -> String {
    let command = command.strip_suffix(b"\n").unwrap_or(command);
    String::from_utf8_lossy(command)
        .chars()
        .take(ECHO_CHARS)
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

/// The text of a good answer.
#[must_use]
pub fn good(answer: &Answer) -> String {
    let mut out = format!("ok: {}\n", text::line(&answer.text));
    for (key, value) in &answer.facts {
        let _ = writeln!(out, "{key} {}", text::line(value));
    }
    out
}

/// The text of a refusal of `command`, which is shown by [`echo`].
#[must_use]
pub fn refused(command: &str, refusal: &Refusal) -> String {
    let number = errno(refusal.code);
    let mut out = format!("error: {} {}\n", refusal.code, errno_name(number));
    let _ = writeln!(out, "{}", text::line(&refusal.text));
    if !command.trim().is_empty() {
        let _ = writeln!(out, "  {command}");
        let word = refusal.word.as_deref();
        if let Some(column) = word.and_then(|word| command::locate(command, word)) {
            let _ = writeln!(out, "  {:column$}^", "");
        }
    }
    let _ = writeln!(out, "hint: {}", text::line(refusal.hint()));
    out
}

macro_rules! names {
    ($($name:ident)+) => { &[$((libc::$name, stringify!($name)),)+] };
}

/// The errnos that a refusal can have.
const NAMES: &[(i32, &str)] = names! {
    EINVAL E2BIG ENOENT EEXIST EALREADY EBUSY EUCLEAN ENODATA ESTALE EMEDIUMTYPE ENOSPC ENOMEM
    EROFS ECANCELED EMLINK EUSERS EAGAIN EOPNOTSUPP ETIMEDOUT EPERM ENOTCONN EIO
};

/// The name of an errno that a refusal can have.
#[must_use]
pub fn errno_name(number: i32) -> &'static str {
    NAMES
        .iter()
        .find(|(n, _)| *n == number)
        .map_or("EIO", |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::set::Code;

    #[test]
    fn every_code_has_the_name_of_its_errno() {
        for code in Code::ALL {
            assert!(
                NAMES.iter().any(|(n, _)| *n == errno(*code)),
                "{code} has no errno name"
            );
        }
        assert_eq!(errno_name(libc::EBUSY), "EBUSY");
        assert_eq!(errno_name(libc::EUCLEAN), "EUCLEAN");
    }

    #[test]
    fn a_refusal_points_at_the_word() {
        let refusal = Refusal::new(Code::LastSource, "m1 is the only source member").at("m1");
        assert_eq!(
            refused("detach  m1 policy=minicopy", &refusal),
            "error: last-source EBUSY\n\
             m1 is the only source member\n  \
             detach  m1 policy=minicopy\n          ^\n\
             hint: attach another member first\n"
        );
    }

    #[test]
    fn without_a_word_there_is_no_caret_and_without_a_command_no_line() {
        let refusal = Refusal::new(Code::Syntax, "the command is empty").with_hint("say something");
        assert_eq!(
            refused("", &refusal),
            "error: syntax EINVAL\nthe command is empty\nhint: say something\n"
        );
        let text = refused("detach m9", &refusal);
        assert!(!text.contains('^') && text.contains("\n  detach m9\n"));
    }

    #[test]
    fn facts_follow_a_good_answer() {
        let answer = Answer {
            text: "m3 is detached".to_owned(),
            facts: vec![("bitmap", "00000007".to_owned()), ("reason", String::new())],
        };
        assert_eq!(
            good(&answer),
            "ok: m3 is detached\nbitmap 00000007\nreason -\n"
        );
    }

    #[test]
    fn an_echo_is_one_line() {
        assert_eq!(echo(b"a\nb\0c\n"), "a?b?c");
        assert_eq!(echo(b"x\xffy"), "x\u{fffd}y");
    }
}
