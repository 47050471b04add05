//! Any lines as the events of earlier mounts.

#![allow(clippy::expect_used, reason = "a test ends at the first surprise")]

use super::chronicle::{Chronicle, EventRecord};
use crate::set::Moment;

/// An event is the same when it is written and read again, and numbers grow from where they were.
pub(crate) fn events(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for event in lines.iter().filter_map(|line| EventRecord::read(line)) {
        let line = event.write().expect("it was JSON");
        assert_eq!(EventRecord::read(&line), Some(event), "{line}");
    }
    let mut chronicle = Chronicle::after(None, &lines);
    let last = chronicle.events().last().map_or(0, |event| event.seq);
    chronicle.keep(Moment(1), "mounted", Vec::new());
    let next = chronicle.events().last().map_or(0, |event| event.seq);
    assert!(next > last, "{next} after {last}");
}
