//! The arithmetic of `cargo bench --bench unit`: what its tables say of the cells.

#![allow(clippy::expect_used, reason = "a test ends at the first surprise")]

#[path = "../benches/unit/report.rs"]
#[allow(dead_code, reason = "the benchmark uses the rest")]
mod report;

use report::{Cell, Cost, Figures, Row, Spread, rows, table};

fn cell(work: &str, target: &str, round: u32, value: f64) -> Cell {
    let figures = Figures {
        value,
        unit: "IO/s",
        bytes: 0.0,
        p50_us: None,
        p99_us: None,
    };
    let cost = Cost {
        cpu_s_per_gib: Some(value),
        peak_mib: Some(value),
    };
    Cell {
        work: work.to_owned(),
        target: target.to_owned(),
        round,
        outcome: Ok((figures, cost)),
    }
}

fn spread(median: f64, min: f64, max: f64) -> Option<Spread> {
    Some(Spread { median, min, max })
}

fn find<'a>(rows: &'a [Row], work: &str, target: &str) -> &'a Row {
    let found = rows
        .iter()
        .find(|row| (&*row.work, &*row.target) == (work, target));
    found.expect("a row for each workload and target")
}

#[test]
fn a_median_of_an_even_count_lies_between_two() {
    assert_eq!(Spread::of([]), None);
    assert_eq!(Spread::of([3.0]), spread(3.0, 3.0, 3.0));
    assert_eq!(Spread::of([9.0, 1.0, 4.0]), spread(4.0, 1.0, 9.0));
    assert_eq!(Spread::of([9.0, 1.0, 4.0, 2.0]), spread(3.0, 1.0, 9.0));
}

/// The machine is ten times as fast in the second round, and something hits ours in the third.
#[test]
fn ratios_are_taken_inside_a_round_and_their_median_over_the_rounds() {
    let plain = [100.0, 1000.0, 200.0];
    let ours = [50.0, 600.0, 20.0];
    let mut cells = Vec::new();
    for (round, (plain, ours)) in (0..).zip(plain.into_iter().zip(ours)) {
        let mut both = [
            cell("w", "plain", round, plain),
            cell("w", "ours", round, ours),
        ];
        // Another workload has the same targets and rounds.
        let other = cell("r", "plain", round, 7.0);
        if round % 2 == 1 {
            both.reverse();
        }
        cells.extend(both.into_iter().chain([other]));
    }
    let against = ["plain".to_owned(), "absent".to_owned()];
    let rows = rows(&cells, &against);
    let ours = find(&rows, "w", "ours");
    assert_eq!(ours.value, spread(50.0, 20.0, 600.0));
    // 0.5, 0.6 and 0.1. The ratio of the medians would be 0.25.
    assert_eq!(ours.ratios, [spread(0.5, 0.1, 0.6), None]);
    assert_eq!(
        (ours.rounds, ours.cpu_s_per_gib, ours.peak_mib),
        (3, Some(50.0), Some(600.0))
    );
    assert_eq!(
        find(&rows, "w", "plain").ratios,
        [spread(1.0, 1.0, 1.0), None]
    );
    assert_eq!(
        find(&rows, "r", "plain").ratios,
        [spread(1.0, 1.0, 1.0), None]
    );
    let order: Vec<_> = rows.iter().map(|row| (&*row.work, &*row.target)).collect();
    assert_eq!(order, [("w", "plain"), ("w", "ours"), ("r", "plain")]);
    assert!(table(&rows, &against).contains("0.50 (0.10..0.60)"));
}

#[test]
fn a_round_that_failed_on_one_side_has_no_ratio() {
    let mut cells = vec![
        cell("w", "plain", 0, 100.0),
        cell("w", "ours", 0, 50.0),
        cell("w", "plain", 1, 100.0),
        cell("w", "ours", 1, 90.0),
        cell("w", "ours", 2, 1.0),
    ];
    cells[2].outcome = Err("no space".to_owned());
    let against = ["plain".to_owned()];
    let rows = rows(&cells, &against);
    assert_eq!(find(&rows, "w", "ours").ratios, [spread(0.5, 0.5, 0.5)]);
    assert_eq!(find(&rows, "w", "ours").rounds, 3);
    let plain = find(&rows, "w", "plain");
    assert_eq!((plain.rounds, plain.errors.len()), (1, 1));
    assert!(table(&rows, &against).contains("no space"));
}
