//! `events`: what has happened to a unit, and what happens from now on.

use serde_json::Value;

use super::args::EventsArgs;
use super::output::Out;
use super::place;
use crate::error::Result;
use crate::set::Code;

/// `events`.
pub(super) fn run(args: &EventsArgs, out: Out) -> Result<u8> {
    let tree = place::tree(&args.unit)?;
    let mut last = None;
    loop {
        let snapshot = match tree.snapshot("events") {
            // The end of the unit is the good end of following it.
            Err(error) if last.is_some() && error.code() == Code::NotMounted => return Ok(0),
            other => other?,
        };
        let (text, newest) = lines_after(&snapshot.text, last.flatten(), out.json);
        out.text(&text)?;
        last = Some(newest);
        if !args.follow {
            return Ok(0);
        }
        snapshot.wait(None)?;
    }
}

/// The events after number `last`, one line each, and the number of the newest.
fn lines_after(text: &str, last: Option<u64>, json: bool) -> (String, Option<u64>) {
    let mut lines = String::new();
    let mut newest = last;
    for line in text.lines() {
        let event: Value = serde_json::from_str(line).unwrap_or_default();
        let seq = event["seq"].as_u64();
        if seq.is_some() && seq <= last {
            continue;
        }
        newest = newest.max(seq);
        lines.push_str(&if json {
            line.to_owned()
        } else {
            human_line(line, &event)
        });
        lines.push('\n');
    }
    (lines, newest)
}

/// `time event key=value ...`; a line that is no event stays as it is.
fn human_line(line: &str, event: &Value) -> String {
    let (Some(time), Some(name)) = (event["time"].as_str(), event["event"].as_str()) else {
        return line.to_owned();
    };
    let mut text = format!("{time} {name}");
    let known = ["seq", "time", "event"];
    let objects = event.as_object().into_iter().flatten();
    for (key, value) in objects.filter(|(key, _)| !known.contains(&key.as_str())) {
        match value {
            Value::Null => {}
            Value::String(value) if !value.contains(' ') => {
                text.push_str(&format!(" {key}={value}"));
            }
            value => text.push_str(&format!(" {key}={value}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENTS: &str = "\
{\"seq\":1,\"time\":\"2026-11-25T12:41:00Z\",\"event\":\"detach\",\"member\":\"m3\",\"op\":null}
{\"seq\":2,\"time\":\"2026-11-25T12:42:00Z\",\"event\":\"minicopy-done\",\"bytes\":65024,\"text\":\"a b\"}
";

    #[test]
    fn events_are_read_by_people_and_by_programs() {
        let (text, newest) = lines_after(EVENTS, None, false);
        let expected = "2026-11-25T12:41:00Z detach member=m3\n\
                        2026-11-25T12:42:00Z minicopy-done bytes=65024 text=\"a b\"\n";
        assert_eq!((text.as_str(), newest), (expected, Some(2)));
        assert_eq!(lines_after(EVENTS, None, true).0, EVENTS);
    }

    #[test]
    fn what_was_shown_is_not_shown_again() {
        let (text, newest) = lines_after(EVENTS, Some(1), false);
        assert!(text.starts_with("2026-11-25T12:42") && text.lines().count() == 1);
        assert_eq!(newest, Some(2));
        assert_eq!(
            lines_after(EVENTS, Some(2), false),
            (String::new(), Some(2))
        );
    }
}
