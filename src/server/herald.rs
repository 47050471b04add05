//! Tells people now and then how far running operations have come.
//!
//! An operation that is over before its turn is told of by its begin and its end alone.

use crate::sync::Instant;
use std::collections::BTreeMap;
use std::time::Duration;

use super::handle::Rate;
use super::record::record_progress;
use super::run::{Runner, now};
use crate::set::{OpId, Operation};

/// Time between two events of one operation.
const PAUSE: Duration = Duration::from_secs(10);

/// What was told of each running operation last, and when.
#[derive(Debug, Default)]
pub(super) struct Herald(BTreeMap<OpId, (Instant, u64)>);

impl Herald {
    /// The operations that are to be told of: those that have come further since their last turn.
    fn due<'a>(&mut self, operations: &'a [Operation], now: Instant) -> Vec<&'a Operation> {
        let runs = |op: &&Operation| !op.state.is_over();
        self.0
            .retain(|id, _| operations.iter().filter(runs).any(|op| op.id == *id));
        let mut due = Vec::new();
        for op in operations.iter().filter(runs) {
            let done = op.progress.done_bytes();
            let last = self.0.entry(op.id).or_insert((now, done));
            if now.duration_since(last.0) >= PAUSE && done > last.1 {
                *last = (now, done);
                due.push(op);
            }
        }
        due
    }
}

impl Runner {
    /// Writes down how far operations have come whose turn it is.
    pub(super) fn tell_progress(&mut self, at: Instant) {
        let rates = self.speeds.rates();
        for op in self.herald.due(self.set.operations(), at) {
            let rate: Option<&Rate> = rates.iter().find(|rate| rate.op == op.id);
            record_progress(&self.board, now(), op, rate);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::set::copy::CopyWork;
    use crate::set::operation::OpState;
    use crate::set::{Bytes, CopyKind, Geometry, MemberId, Moment, OwnedBitmap, Task, WriteBitmap};

    #[test]
    fn an_operation_is_told_of_every_ten_seconds_while_it_comes_further() {
        let geometry = Geometry::new(Bytes(512 * 127 * 4), 127).expect("valid");
        let (id, member) = (OpId(9), MemberId::new(0).expect("valid"));
        let map = OwnedBitmap::new(WriteBitmap::full(geometry));
        let mut work = CopyWork::new(id, CopyKind::Mini, member, map);
        work.begin();
        let operations = [Operation {
            id,
            task: Task::Copy {
                kind: CopyKind::Mini,
                target: member,
                source: member,
                tag: None,
            },
            state: OpState::Running,
            queued: Moment(0),
            started: None,
            finished: None,
            progress: work.progress(),
        }];
        let mut come_further = || {
            let step = work.next_step(|_| 1).expect("stale");
            work.finish(step, true);
        };
        let (mut herald, start) = (Herald::default(), Instant::now());
        let mut due = |seconds| {
            let at = start + Duration::from_secs(seconds);
            herald.due(&operations, at).len()
        };
        assert_eq!(due(0), 0);
        come_further();
        assert_eq!((due(9), due(10), due(11)), (0, 1, 0));
        assert_eq!(due(25), 0, "no step was taken");
        come_further();
        assert_eq!((due(26), due(30)), (1, 0));
    }
}
