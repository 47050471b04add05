//! `list`: the mounted and the configured units.

use serde_json::{Value, json};

use super::config::Config;
use super::output::{self, Out, table};
use super::place;
use super::size::human;
use super::system::{self, Running};
use super::tree::{Tree, parse_status};
use crate::error::Result;
use crate::set::Code;

/// State of a unit whose server does not answer in time.
const SILENT: &str = "does not answer";

/// One unit of the list.
struct Row {
    unit: String,
    state: String,
    size: Option<u64>,
    members: Option<usize>,
    running: Option<Running>,
    config: Option<String>,
}

/// `list`.
pub(super) fn run(out: Out) -> Result<u8> {
    let mut rows: Vec<Row> = system::running()?.into_iter().map(mounted).collect();
    for (path, config) in place::configured() {
        let path = path.display().to_string();
        match config {
            Ok(config) => match rows.iter_mut().find(|row| row.unit == config.setup.unit) {
                Some(row) => row.config = Some(path),
                None => rows.push(configured(&config, path)),
            },
            // One bad file does not hide the units of the others.
            Err(error) => output::report(&error, false),
        }
    }
    rows.sort_by(|a, b| a.unit.cmp(&b.unit));
    if out.json {
        out.value(&Value::Array(rows.iter().map(value).collect()))?;
    } else {
        out.text(&text(&rows))?;
    }
    Ok(0)
}

fn mounted(running: Running) -> Row {
    let status = Tree::of(&running).status_in_time();
    let status = status.and_then(|text| parse_status(&text));
    let (state, size, members) = match status {
        Ok(status) => {
            // A mount that was taken away lazily is there for those who have it open, and for nobody else.
            let state = match running.is_listed() {
                true => status.state,
                false => "stopping".to_owned(),
            };
            (state, Some(status.size), Some(status.members.len()))
        }
        Err(error) if error.code() == Code::TimedOut => (SILENT.to_owned(), None, None),
        // Its server has died or does not answer to us.
        Err(_) if running.pid.is_none() => ("dead".to_owned(), None, None),
        // Unmounted, and still closing its members.
        Err(error) if error.code() == Code::NotMounted => ("stopping".to_owned(), None, None),
        Err(error) => (format!("unknown: {}", error.code()), None, None),
    };
    Row {
        unit: running.unit.clone(),
        state,
        size,
        members,
        running: Some(running),
        config: None,
    }
}

fn configured(config: &Config, path: String) -> Row {
    Row {
        unit: config.setup.unit.clone(),
        state: "not-mounted".to_owned(),
        size: None,
        members: Some(config.setup.members.len()),
        running: None,
        config: Some(path),
    }
}

fn value(row: &Row) -> Value {
    let running = row.running.as_ref();
    json!({
        "unit": row.unit,
        "state": row.state,
        "size": row.size,
        "members": row.members,
        "mountpoint": running.map(|r| r.mountpoint.display().to_string()),
        "pid": running.and_then(|r| r.pid),
        "config": row.config,
    })
}

fn text(rows: &[Row]) -> String {
    let head = ["UNIT", "STATE", "SIZE", "MEMBERS", "MOUNTPOINT", "PID"];
    let mut cells = vec![head.map(str::to_owned).to_vec()];
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    for row in rows {
        let running = row.running.as_ref();
        cells.push(vec![
            row.unit.clone(),
            row.state.clone(),
            or_dash(row.size.map(human)),
            or_dash(row.members.map(|n| n.to_string())),
            or_dash(running.map(|r| r.mountpoint.display().to_string())),
            or_dash(running.and_then(|r| r.pid).map(|pid| pid.to_string())),
        ]);
    }
    table(&cells)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_that_is_not_mounted_any_more_but_served_is_being_stopped() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let row = |pid| {
            mounted(Running {
                unit: "dsa1".into(),
                pid,
                mountpoint: dir.path().to_owned(),
            })
        };
        assert_eq!(row(Some(77)).state, "stopping");
        assert_eq!(row(None).state, "dead");
    }

    #[test]
    fn a_list_is_columns_or_json() {
        let running = Running {
            unit: "dsa1".into(),
            pid: Some(77),
            mountpoint: "/srv/dsa1".into(),
        };
        let row = |unit: &str, state: &str, running: Option<Running>| Row {
            unit: unit.into(),
            state: state.into(),
            size: running.is_some().then_some(1 << 30),
            members: Some(3),
            running,
            config: None,
        };
        let rows = [
            row("dsa1", "steady", Some(running)),
            row("dsa2", "not-mounted", None),
        ];
        let expected = "UNIT  STATE        SIZE      MEMBERS  MOUNTPOINT  PID\n\
                        dsa1  steady       1.00 GiB  3        /srv/dsa1   77\n\
                        dsa2  not-mounted  -         3        -           -\n";
        assert_eq!(text(&rows), expected);
        assert_eq!(value(&rows[0])["pid"], 77);
        assert_eq!(value(&rows[1])["mountpoint"], Value::Null);
    }
}
