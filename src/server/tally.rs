//! The tally: how many operations of each kind have ended, how, and what they moved. A value; nothing is decided here.

use crate::set::{CopyKind, Notice};

/// The words of all kinds of operations, in the order in which they are shown.
const KINDS: [&str; 6] = [
    CopyKind::Full.name(),
    CopyKind::Compare.name(),
    CopyKind::Mini.name(),
    CopyKind::Merge.name(),
    CopyKind::Minimerge.name(),
    "verify",
];

/// What has come of the operations of one kind since the mount, or since the counters began anew.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Total {
    /// Ended well.
    pub done: u64,
    /// Ended by an error.
    pub failed: u64,
    /// Ended by the operator.
    pub cancelled: u64,
    /// Bytes that those that have ended moved; a verify moves what it repairs.
    pub copied_bytes: u64,
}

/// The totals of all kinds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally([Total; KINDS.len()]);

impl Tally {
    /// Counts an operation that has ended, when the notice tells of one.
    pub(super) fn note(&mut self, notice: &Notice) {
        let (kind, end, bytes) = match notice {
            Notice::CopyEnded {
                kind,
                end,
                copied_bytes,
                ..
            } => (kind.name(), *end, *copied_bytes),
            Notice::VerifyEnded { state, counts, .. } => {
                let repaired = counts
                    .repaired
                    .saturating_mul(crate::set::geometry::BLOCK_BYTES);
                ("verify", *state, repaired)
            }
            _ => return,
        };
        let mut places = KINDS.iter().zip(&mut self.0);
        let Some((_, total)) = places.find(|(name, _)| **name == kind) else {
            return;
        };
        let count = match end {
            "done" => &mut total.done,
            "failed" => &mut total.failed,
            _ => &mut total.cancelled,
        };
        *count += 1;
        total.copied_bytes = total.copied_bytes.saturating_add(bytes);
    }

    /// The word of each kind with its total.
    pub fn totals(&self) -> impl Iterator<Item = (&'static str, Total)> {
        KINDS.into_iter().zip(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::set::{MemberId, OpId};

    #[test]
    fn each_end_of_each_kind_is_counted_apart() {
        let mut tally = Tally::default();
        let member = MemberId::new(1).expect("a place");
        for (kind, end) in [
            (CopyKind::Mini, "done"),
            (CopyKind::Mini, "failed"),
            (CopyKind::Full, "cancelled"),
        ] {
            tally.note(&Notice::CopyEnded {
                op: OpId(1),
                kind,
                member,
                end,
                copied_bytes: 512,
            });
        }
        tally.note(&Notice::Joined(member));
        let of = |kind| {
            tally
                .totals()
                .find(|(name, _)| *name == kind)
                .expect("known")
                .1
        };
        let mini = of("minicopy");
        assert_eq!((mini.done, mini.failed, mini.copied_bytes), (1, 1, 1024));
        assert_eq!(of("full-copy").cancelled, 1);
        assert_eq!(of("verify"), Total::default());
    }
}
