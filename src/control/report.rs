//! `operations/<n>/report`: what a verify has found up to now.

use std::fmt::Write as _;

use super::render::Context;
use super::text::{ABSENT, line, maybe};
use crate::set::{OpState, Operation, Report, Run, Verify};

/// The report of a verify; of another operation a dash.
pub(super) fn report(_: &Context<'_>, o: &Operation) -> String {
    let Some(verify) = o.verify() else {
        return ABSENT.to_owned();
    };
    let (report, blocks) = (verify.findings.report(), verify.range.blocks());
    let mut out = format!(
        "verdict {}\nblocks {}-{}\ncompared_bytes {}\ndiffering_blocks {}\nunreadable_blocks {}\n\
         repaired_blocks {}\ndigest fnv1a64\nreason {}\n",
        verdict(&report, o.state),
        blocks.first().0,
        blocks.end().0 - 1,
        o.progress.done_bytes(),
        report.counts.differing,
        report.counts.unreadable,
        report.counts.repaired,
        reason(verify),
    );
    for run in &report.runs {
        let _ = writeln!(out, "{}", text(run));
    }
    if report.left_out > 0 {
        let _ = writeln!(out, "... and {} more blocks", report.left_out);
    }
    out
}

fn reason(verify: &Verify) -> String {
    maybe(verify.reason.as_deref().map(line))
}

/// One sentence.
fn verdict(report: &Report, state: OpState) -> String {
    let counts = report.counts;
    let mut says = match (counts.differing, counts.unreadable) {
        (0, 0) => "no block differs".to_owned(),
        (1, 0) => "1 block differs".to_owned(),
        (differing, 0) => format!("{differing} blocks differ"),
        (0, unreadable) => format!("{unreadable} blocks cannot be read everywhere"),
        (differing, unreadable) => {
            format!("{differing} blocks differ, {unreadable} cannot be read everywhere")
        }
    };
    if counts.repaired > 0 {
        let _ = write!(says, ", {} repaired", counts.repaired);
    }
    if state != OpState::Done {
        says.push_str(", as far as it has come");
    }
    if report
        .runs
        .iter()
        .any(|run| run.differs && run.odd.is_none())
    {
        says.push_str("; where odd is unknown it cannot be told which member is right");
    }
    says
}

/// `differs 8-9 odd=m2 fate=left m1=85944171f73967e8 m2=cbf29ce484222325`.
fn text(run: &Run) -> String {
    let what = if run.differs { "differs" } else { "unreadable" };
    let odd = match &run.odd {
        Some(names) => names
            .iter()
            .map(|name| line(name))
            .collect::<Vec<_>>()
            .join(","),
        None => "unknown".to_owned(),
    };
    let mut out = format!(
        "{what} {}-{} odd={odd} fate={}",
        run.first,
        run.last,
        run.fate.name()
    );
    for (name, digest) in &run.digests {
        let digest = digest.map_or_else(|| "unreadable".to_owned(), |digest| digest.to_string());
        let _ = write!(out, " {}={digest}", line(name));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::set::{Counts, Digest, Fate};

    fn run(odd: Option<&str>, fate: Fate) -> Run {
        Run {
            first: 8,
            last: 9,
            differs: true,
            odd: odd.map(|name| vec![name.to_owned()]),
            fate,
            digests: vec![
                ("m1".to_owned(), Some(Digest::of(b"foobar"))),
                ("m2".to_owned(), None),
            ],
        }
    }

    #[test]
    fn a_run_is_one_line_with_a_digest_for_each_member() {
        let line = "differs 8-9 odd=m2 fate=repaired m1=85944171f73967e8 m2=unreadable";
        assert_eq!(text(&run(Some("m2"), Fate::Repaired)), line);
        assert!(text(&run(None, Fate::Left)).contains(" odd=unknown fate=left "));
    }

    #[test]
    fn the_verdict_says_when_it_cannot_be_told_who_is_right() {
        let mut report = Report::default();
        assert_eq!(verdict(&report, OpState::Done), "no block differs");
        assert!(verdict(&report, OpState::Cancelled).ends_with("as far as it has come"));
        report.counts = Counts {
            differing: 2,
            unreadable: 0,
            repaired: 1,
        };
        report.runs = vec![run(Some("m2"), Fate::Left)];
        assert_eq!(
            verdict(&report, OpState::Done),
            "2 blocks differ, 1 repaired"
        );
        report.runs.push(run(None, Fate::Left));
        let says = verdict(&report, OpState::Done);
        assert!(
            says.contains("cannot be told which member is right"),
            "{says}"
        );
    }
}
