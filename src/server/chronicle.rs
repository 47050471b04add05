//! The chronicle: the last events, numbered without end, and what is kept of them over the end of the unit.
//!
//! Numbers only grow, also over restarts. A server that was killed may have told readers of events that its file
//! does not hold: then the numbers go on a thousand later, so that none is used twice.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::io::event_log::EventLog;
use crate::set::Moment;

/// Events that are kept for readers.
pub const EVENTS_KEPT: usize = 256;
/// The last event of a unit that was stopped in good order.
const LAST: &str = "unmounted";
/// So many numbers are left out after the end of a server that was killed.
const STRIDE: u64 = 1000;

/// A larger number in the file is none of ours.
const SEQ_MAX: u64 = u64::MAX >> 1;

/// Keys and values of an event, in the order in which they are shown.
pub(super) type Facts = Vec<(Cow<'static, str>, String)>;

/// One line of the `events` file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EventRecord {
    /// Number, growing.
    pub seq: u64,
    /// When.
    pub time: Moment,
    /// Name of the event, such as `member-detached`.
    pub event: Cow<'static, str>,
    /// Its objects: key and value.
    pub facts: Vec<(Cow<'static, str>, String)>,
}

/// An event in the file.
#[derive(Serialize, Deserialize)]
struct Line {
    seq: u64,
    time_ms: u64,
    event: String,
    facts: Vec<(String, String)>,
}

/// The last events.
#[derive(Debug, Default)]
pub(super) struct Chronicle {
    events: VecDeque<EventRecord>,
    /// Number of the last event that there was.
    last: u64,
    log: Option<EventLog>,
}

impl EventRecord {
    pub(super) fn read(line: &str) -> Option<Self> {
        let line: Line = serde_json::from_str(line).ok()?;
        // No unit comes that far, and the numbers have to go on behind it.
        if line.seq > SEQ_MAX {
            return None;
        }
        let owned = |(key, value)| (Cow::Owned(key), value);
        Some(Self {
            seq: line.seq,
            time: Moment(line.time_ms),
            event: Cow::Owned(line.event),
            facts: line.facts.into_iter().map(owned).collect(),
        })
    }

    pub(super) fn write(&self) -> Option<String> {
        let facts = self.facts.iter();
        let line = Line {
            seq: self.seq,
            time_ms: self.time.0,
            event: self.event.clone().into_owned(),
            facts: facts
                .map(|(key, value)| (key.clone().into_owned(), value.clone()))
                .collect(),
        };
        serde_json::to_string(&line).ok()
    }
}

impl Chronicle {
    /// Goes on with what the state directory holds. Where that cannot be read, events are in memory only.
    pub(super) fn open(dir: &Path) -> Self {
        match EventLog::open(dir) {
            Ok((log, lines)) => Self::after(Some(log), &lines),
            Err(error) => {
                tracing::warn!(%error, "events of earlier mounts are not there, and none are kept");
                Self::default()
            }
        }
    }

    pub(super) fn after(log: Option<EventLog>, lines: &[String]) -> Self {
        let events: VecDeque<_> = lines.iter().filter_map(|l| EventRecord::read(l)).collect();
        let last = match events.back() {
            None => 0,
            Some(event) if event.event == LAST => event.seq,
            Some(event) => event.seq + STRIDE,
        };
        Self { events, last, log }
    }

    /// Adds an event.
    pub(super) fn keep(&mut self, time: Moment, event: &'static str, facts: Facts) {
        self.last += 1;
        let record = EventRecord {
            seq: self.last,
            time,
            event: Cow::Borrowed(event),
            facts,
        };
        if let (Some(log), Some(line)) = (&self.log, record.write()) {
            log.append(line);
        }
        if self.events.len() == EVENTS_KEPT {
            self.events.pop_front();
        }
        self.events.push_back(record);
    }

    /// The events, oldest first.
    pub(super) fn events(&self) -> Vec<EventRecord> {
        self.events.iter().cloned().collect()
    }

    /// The unit has been stopped in good order; gives the file back, to be closed.
    pub(super) fn end(&mut self, time: Moment) -> Option<EventLog> {
        debug_assert!(super::record::EVENTS.contains(&LAST));
        self.keep(time, LAST, Vec::new());
        self.log.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(chronicle: &Chronicle) -> Vec<u64> {
        chronicle.events().iter().map(|event| event.seq).collect()
    }

    #[test]
    fn numbers_go_on_after_a_good_end_and_leap_after_a_bad_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut first = Chronicle::open(dir.path());
        let facts = vec![("b".into(), "1".to_owned()), ("a".into(), "2".to_owned())];
        first.keep(Moment(5), "member-detached", facts);
        first.end(Moment(6)).expect("kept").close();
        let events = first.events();
        let mut second = Chronicle::open(dir.path());
        assert_eq!(second.events(), events, "order of facts included");
        second.keep(Moment(7), "mounted", Vec::new());
        assert_eq!(numbers(&second), [1, 2, 3]);
        // It ends without its last event.
        second.log.take().expect("kept").close();
        let mut third = Chronicle::open(dir.path());
        third.keep(Moment(8), "mounted", Vec::new());
        assert_eq!(numbers(&third), [1, 2, 3, 1004]);
    }

    #[test]
    fn numbers_go_on_where_nothing_can_be_written() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut first = Chronicle::open(dir.path());
        first.keep(Moment(5), "mounted", Vec::new());
        first.end(Moment(6)).expect("kept").close();
        // The new file cannot be made.
        std::fs::create_dir(dir.path().join("events.new")).expect("made");
        let mut second = Chronicle::open(dir.path());
        second.keep(Moment(7), "mounted", Vec::new());
        assert_eq!(numbers(&second), [1, 2, 3]);
    }

    #[test]
    fn a_number_that_none_can_follow_is_none_of_ours() {
        let mut chronicle = Chronicle::after(
            None,
            &[4, u64::MAX - 500, u64::MAX]
                .map(|seq| format!(r#"{{"seq":{seq},"time_ms":1,"event":"mounted","facts":[]}}"#)),
        );
        chronicle.keep(Moment(8), "mounted", Vec::new());
        assert_eq!(numbers(&chronicle), [4, 1005]);
    }

    #[test]
    fn the_last_ones_are_kept() {
        let mut chronicle = Chronicle::default();
        (0..300).for_each(|_| chronicle.keep(Moment(0), "mounted", Vec::new()));
        let numbers = numbers(&chronicle);
        assert_eq!((numbers[0], numbers.len()), (45, EVENTS_KEPT));
    }
}
