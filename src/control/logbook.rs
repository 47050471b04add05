//! The last refusals, for `last_error` and `error_log`.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::text;
use crate::set::Moment;

/// Refusals that `error_log` keeps.
pub const ERRORS_KEPT: usize = 16;

/// What has been refused.
#[derive(Debug, Default)]
pub struct Logbook {
    errors: Mutex<Errors>,
}

#[derive(Debug, Default)]
struct Errors {
    last: Option<String>,
    log: VecDeque<String>,
}

impl Logbook {
    /// Writes a refusal down; `answer` is the text that its author got.
    pub fn note(&self, now: Moment, answer: &str) {
        let record = format!("{answer}time: {}\n", text::moment(now));
        let mut errors = self.lock();
        errors.last = Some(record.clone());
        errors.log.push_back(record);
        if errors.log.len() > ERRORS_KEPT {
            errors.log.pop_front();
        }
    }

    /// The last refusal; nothing clears it but the next.
    #[must_use]
    pub fn last(&self) -> Option<String> {
        self.lock().last.clone()
    }

    /// The last refusals, oldest first, separated by an empty line.
    #[must_use]
    pub fn log(&self) -> String {
        let errors = self.lock();
        let records: Vec<&str> = errors.log.iter().map(String::as_str).collect();
        records.join("\n")
    }

    /// Empties the log.
    pub fn clear(&self) {
        self.lock().log.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Errors> {
        self.errors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_keeps_sixteen_and_clearing_leaves_the_last_error() {
        let book = Logbook::default();
        assert_eq!((book.last(), book.log()), (None, String::new()));
        for n in 0..20 {
            book.note(Moment(0), &format!("error: {n}\n"));
        }
        let log = book.log();
        assert_eq!(log.matches("error: ").count(), ERRORS_KEPT);
        assert!(log.starts_with("error: 4\ntime: 1970-01-01T00:00:00.000Z\n\nerror: 5\n"));
        book.clear();
        assert_eq!(book.log(), "");
        assert_eq!(
            book.last().as_deref(),
            Some("error: 19\ntime: 1970-01-01T00:00:00.000Z\n")
        );
    }
}
