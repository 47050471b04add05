//! What the cells say together: medians over the rounds, ratios inside a round.

use std::collections::BTreeSet;
use std::fmt::Write;

use serde_json::{Value, json};

/// What one run has measured.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Figures {
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    /// Bytes read and written, for figures to be divided by.
    pub(crate) bytes: f64,
    pub(crate) p50_us: Option<f64>,
    pub(crate) p99_us: Option<f64>,
}

/// What one run has cost the programs of its target; nothing where the kernel does it all.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub(crate) struct Cost {
    pub(crate) cpu_s_per_gib: Option<f64>,
    pub(crate) peak_mib: Option<f64>,
}

/// One workload on one target in one round.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    pub(crate) work: String,
    pub(crate) target: String,
    pub(crate) round: u32,
    pub(crate) outcome: Result<(Figures, Cost), String>,
}

impl Cell {
    fn value(&self) -> Option<f64> {
        self.outcome.as_ref().ok().map(|(figures, _)| figures.value)
    }

    pub(crate) fn json(&self) -> Value {
        let mut cell = json!({
            "work": self.work, "target": self.target, "round": self.round,
        });
        match &self.outcome {
            Err(error) => cell["error"] = json!(error),
            Ok((figures, cost)) => {
                cell["value"] = json!(figures.value);
                cell["unit"] = json!(figures.unit);
                cell["p50_us"] = json!(figures.p50_us);
                cell["p99_us"] = json!(figures.p99_us);
                cell["cpu_s_per_gib"] = json!(cost.cpu_s_per_gib);
                cell["peak_mib"] = json!(cost.peak_mib);
            }
        }
        cell
    }
}

/// The middle of some numbers, and their ends.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// Of no numbers there is none. Of an even count the median lies between the two in the middle.
    pub(crate) fn of(numbers: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = numbers.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let (low, high) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        let median = f64::midpoint(low, high);
        Some(Self { median, min, max })
    }

    fn json(self) -> Value {
        json!({"median": self.median, "min": self.min, "max": self.max})
    }
}

/// One workload on one target over all rounds.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) work: String,
    pub(crate) target: String,
    pub(crate) rounds: usize,
    pub(crate) unit: &'static str,
    pub(crate) value: Option<Spread>,
    /// To each target that is asked for; none where the two have no round in common.
    pub(crate) ratios: Vec<Option<Spread>>,
    pub(crate) p50_us: Option<f64>,
    pub(crate) p99_us: Option<f64>,
    pub(crate) cpu_s_per_gib: Option<f64>,
    pub(crate) peak_mib: Option<f64>,
    pub(crate) errors: BTreeSet<String>,
}

/// One row for each workload and target, in the order in which they come first.
pub(crate) fn rows(cells: &[Cell], against: &[String]) -> Vec<Row> {
    let mut known: Vec<(&str, &str)> = Vec::new();
    for cell in cells {
        let key = (cell.work.as_str(), cell.target.as_str());
        if !known.contains(&key) {
            known.push(key);
        }
    }
    known.sort_by_key(|key| cells.iter().position(|cell| cell.work == key.0));
    known
        .into_iter()
        .map(|key| row(cells, key, against))
        .collect()
}

fn row(cells: &[Cell], (work, target): (&str, &str), against: &[String]) -> Row {
    let all = |target: &str| {
        let own = cells
            .iter()
            .filter(|cell| cell.work == work && cell.target == target);
        own.collect::<Vec<_>>()
    };
    let own = all(target);
    let good: Vec<_> = own
        .iter()
        .filter_map(|cell| cell.outcome.as_ref().ok())
        .collect();
    let middle = |of: &dyn Fn(&(Figures, Cost)) -> Option<f64>| {
        Spread::of(good.iter().filter_map(|measured| of(measured)))
    };
    Row {
        work: work.to_owned(),
        target: target.to_owned(),
        rounds: good.len(),
        unit: good.first().map_or("", |(figures, _)| figures.unit),
        value: middle(&|(figures, _)| Some(figures.value)),
        ratios: against
            .iter()
            .map(|other| ratio(&own, &all(other)))
            .collect(),
        p50_us: middle(&|(figures, _)| figures.p50_us).map(|s| s.median),
        p99_us: middle(&|(figures, _)| figures.p99_us).map(|s| s.median),
        cpu_s_per_gib: middle(&|(_, cost)| cost.cpu_s_per_gib).map(|s| s.median),
        peak_mib: middle(&|(_, cost)| cost.peak_mib).map(|s| s.max),
        errors: own
            .iter()
            .filter_map(|cell| cell.outcome.clone().err())
            .collect(),
    }
}

/// What a machine does at the time hits both cells of a round: only their ratio means something elsewhere.
fn ratio(own: &[&Cell], other: &[&Cell]) -> Option<Spread> {
    let in_round = |cell: &&Cell| {
        let there = other.iter().find(|there| there.round == cell.round)?;
        let (value, base) = (cell.value()?, there.value()?);
        (base > 0.0).then(|| value / base)
    };
    Spread::of(own.iter().filter_map(in_round))
}

impl Row {
    pub(crate) fn json(&self, against: &[String]) -> Value {
        let ratios = against.iter().zip(&self.ratios);
        let ratios: serde_json::Map<_, _> = ratios
            .filter_map(|(name, ratio)| Some((name.clone(), ratio.as_ref()?.json())))
            .collect();
        json!({
            "work": self.work, "target": self.target, "rounds": self.rounds, "unit": self.unit,
            "value": self.value.map(Spread::json), "ratios": ratios,
            "p50_us": self.p50_us, "p99_us": self.p99_us,
            "cpu_s_per_gib": self.cpu_s_per_gib, "peak_mib": self.peak_mib, "errors": self.errors,
        })
    }
}

/// The rows as a table, a part for each workload.
pub(crate) fn table(rows: &[Row], against: &[String]) -> String {
    let (mut text, mut work) = (String::new(), "");
    let width = rows
        .iter()
        .map(|row| row.target.len())
        .max()
        .unwrap_or(0)
        .max(8);
    for row in rows {
        if row.work != work {
            work = &row.work;
            let _ = write!(
                text,
                "\n{work}, {}\n{:width$} {:>9} {:>19}",
                row.unit, "", "median", "min..max"
            );
            for other in against {
                let _ = write!(text, " {:>20}", format!("to {other}"));
            }
            let _ = writeln!(
                text,
                " {:>8} {:>8} {:>9} {:>8}",
                "p50 us", "p99 us", "CPU s/GiB", "peak MiB"
            );
        }
        line(&mut text, row, width);
    }
    text
}

fn line(text: &mut String, row: &Row, width: usize) {
    let none = || "-".to_owned();
    let (median, ends) = row.value.map_or((none(), none()), |value| {
        (
            format!("{:.0}", value.median),
            format!("{:.0}..{:.0}", value.min, value.max),
        )
    });
    let _ = write!(text, "{:width$} {median:>9} {ends:>19}", row.target);
    for ratio in &row.ratios {
        let ratio = ratio.map_or(none(), |r| {
            format!("{:.2} ({:.2}..{:.2})", r.median, r.min, r.max)
        });
        let _ = write!(text, " {ratio:>20}");
    }
    let number =
        |number: Option<f64>, digits: usize| number.map_or(none(), |n| format!("{n:.digits$}"));
    let (p50, p99) = (number(row.p50_us, 0), number(row.p99_us, 0));
    let (cpu, peak) = (number(row.cpu_s_per_gib, 2), number(row.peak_mib, 1));
    let _ = write!(text, " {p50:>8} {p99:>8} {cpu:>9} {peak:>8}");
    for error in &row.errors {
        let _ = write!(text, "  !! {error}");
    }
    text.push('\n');
}
