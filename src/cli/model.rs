//! `status.json` as the command line reads it.
//!
//! Only what is shown has a field; keys that a newer server adds are passed over, and what an older
//! one leaves out is absent. The text itself, not this reading of it, is what `--json` prints.

use serde::Deserialize;

/// A unit at one instant.
#[derive(Deserialize, Clone, Debug)]
pub(super) struct Status {
    /// Name of the unit.
    pub(super) unit: String,
    /// Identity of the set.
    #[serde(default)]
    pub(super) uuid: Option<String>,
    /// Label of the set.
    #[serde(default)]
    pub(super) label: Option<String>,
    /// Grows with each change of membership.
    #[serde(default)]
    pub(super) generation: Option<u64>,
    /// The worst state that holds.
    pub(super) state: String,
    /// Served bytes.
    pub(super) size: u64,
    /// Blocks of a region.
    #[serde(default)]
    pub(super) region_blocks: Option<u64>,
    /// How long bitmaps live.
    #[serde(default)]
    pub(super) durability: Option<String>,
    /// Why they do not live as long as they should.
    #[serde(default)]
    pub(super) durability_reason: Option<String>,
    /// Why those of the last mount are lost that would be of use.
    #[serde(default)]
    pub(super) bitmaps_lost: Option<String>,
    /// Whether it was mounted to be read only.
    #[serde(default)]
    pub(super) read_only: bool,
    /// Until when writes wait by command, at most.
    #[serde(default)]
    pub(super) stalled: Option<String>,
    /// All members, detached ones too.
    #[serde(default)]
    pub(super) members: Vec<Member>,
    /// Write bitmaps.
    #[serde(default)]
    pub(super) bitmaps: Vec<Bitmap>,
    /// Running operations and the last finished ones.
    #[serde(default)]
    pub(super) operations: Vec<Operation>,
}

/// One member.
#[derive(Deserialize, Clone, Debug)]
pub(super) struct Member {
    /// Name in the set.
    pub(super) name: String,
    /// Its image.
    pub(super) path: String,
    /// `source`, `copy-target`, `merging`, `detached`, `expelled` or `missing`.
    pub(super) state: String,
    /// Why it is in this state.
    #[serde(default)]
    pub(super) reason: Option<String>,
    /// Since when.
    #[serde(default)]
    pub(super) since: Option<String>,
    /// Bytes of the image.
    #[serde(default)]
    pub(super) size: Option<u64>,
    /// Failed requests.
    #[serde(default)]
    pub(super) errors: Option<u64>,
    /// Id of its bitmap.
    #[serde(default)]
    pub(super) bitmap: Option<String>,
    /// Whether it answers what it is asked.
    #[serde(default)]
    pub(super) answers: Option<bool>,
}

/// One write bitmap.
#[derive(Deserialize, Clone, Debug)]
pub(super) struct Bitmap {
    /// Eight hexadecimal digits.
    pub(super) id: String,
    /// Whose it is; none when that member has left the set.
    #[serde(default)]
    pub(super) member: Option<String>,
    /// `minicopy` or `write-intent`.
    #[serde(rename = "type", default)]
    pub(super) kind: Option<String>,
    /// `active`, `in-use` or `invalid`.
    pub(super) state: String,
    /// Policy of the detach that made it.
    #[serde(default)]
    pub(super) policy: Option<String>,
    /// When it was made.
    #[serde(default)]
    pub(super) created: Option<String>,
    /// Generation when its member left with it, the last time.
    #[serde(default)]
    pub(super) generation: Option<u64>,
    /// Regions.
    #[serde(default)]
    pub(super) bits: Option<u64>,
    /// Regions that were written.
    #[serde(default)]
    pub(super) set_bits: Option<u64>,
    /// Bytes of the regions that were written.
    #[serde(default)]
    pub(super) set_bytes: Option<u64>,
    /// Bytes that the bitmap knows about.
    #[serde(default)]
    pub(super) covered_bytes: Option<u64>,
    /// Bytes behind its end: a copy takes all of them.
    #[serde(default)]
    pub(super) uncovered_bytes: Option<u64>,
}

/// One copy, merge or verify.
#[derive(Deserialize, Clone, Debug)]
pub(super) struct Operation {
    /// Its number.
    pub(super) id: u64,
    /// `full-copy`, `minicopy`, `compare-copy`, `merge`, `minimerge` or `verify`.
    pub(super) kind: String,
    /// Where the data comes from, when it is one member.
    #[serde(default)]
    pub(super) source: Option<String>,
    /// Which member is brought up to date.
    #[serde(default)]
    pub(super) target: Option<String>,
    /// `running`, `paused`, `queued`, `done`, `failed` or `cancelled`.
    pub(super) state: String,
    /// Bytes done.
    #[serde(default)]
    pub(super) done_bytes: u64,
    /// Bytes to do in all.
    #[serde(default)]
    pub(super) total_bytes: u64,
    /// Bytes written to the target.
    #[serde(default)]
    pub(super) copied_bytes: Option<u64>,
    /// Bytes that needed no copy.
    #[serde(default)]
    pub(super) skipped_bytes: Option<u64>,
    /// Bytes per second at present.
    #[serde(default)]
    pub(super) rate_bps: Option<f64>,
    /// Seconds to go at this rate.
    #[serde(default)]
    pub(super) eta_s: Option<f64>,
    /// Start.
    #[serde(default)]
    pub(super) started: Option<String>,
    /// End.
    #[serde(default)]
    pub(super) finished: Option<String>,
}

impl Status {
    /// Whether members are missing by fault, or the unit cannot be used.
    pub(super) fn is_degraded(&self) -> bool {
        // The state of the unit is the worst one: others may hide that a member is lost.
        let is_lost = |m: &Member| matches!(m.state.as_str(), "expelled" | "missing");
        matches!(self.state.as_str(), "reduced" | "mount-verify" | "failed")
            || self.members.iter().any(is_lost)
    }

    /// Whether nobody is missing by fault and nothing is copied or merged. The state of a unit that takes no
    /// writes says that it does not, whatever else holds.
    pub(super) fn is_steady(&self) -> bool {
        let rests = self.operations.iter().all(Operation::has_ended);
        match self.state.as_str() {
            "read-only" => rests && !self.is_degraded(),
            state => state == "steady",
        }
    }

    /// The member of this name.
    pub(super) fn member(&self, name: &str) -> Option<&Member> {
        self.members.iter().find(|m| m.name == name)
    }

    /// The operation of this number.
    pub(super) fn operation(&self, id: u64) -> Option<&Operation> {
        self.operations.iter().find(|op| op.id == id)
    }

    /// The bitmap of this id, or that of the member of this name.
    pub(super) fn bitmap(&self, id_or_member: &str) -> Option<&Bitmap> {
        let by_id = self.bitmaps.iter().find(|b| b.id == id_or_member);
        by_id.or_else(|| {
            self.bitmaps
                .iter()
                .find(|b| b.member.as_deref() == Some(id_or_member))
        })
    }
}

impl Operation {
    /// Whether it has ended, well or not.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.state.as_str(), "done" | "failed" | "cancelled")
    }

    /// The part that is done, in percent; all of it when there is nothing to do.
    pub(super) fn percent(&self) -> f64 {
        if self.total_bytes == 0 {
            return 100.0;
        }
        #[allow(
            clippy::cast_precision_loss,
            reason = "a percentage needs no more than 53 bits"
        )]
        let share = self.done_bytes as f64 / self.total_bytes as f64;
        (share * 100.0).min(100.0)
    }

    /// Whether it goes on at present: only then a rate and a time to go mean something.
    pub(super) fn is_moving(&self) -> bool {
        self.state == "running"
    }

    /// `minicopy m1 -> m2`.
    pub(super) fn title(&self) -> String {
        match (&self.source, &self.target) {
            (Some(source), Some(target)) => format!("{} {source} -> {target}", self.kind),
            (None, Some(target)) => format!("{} -> {target}", self.kind),
            (_, None) => self.kind.clone(),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A unit while its third member returns by minicopy and the second is out.
    pub(in crate::cli) const SAMPLE: &str = r#"{
        "schema": 1, "unit": "dsa1", "uuid": "3f0c7f6e-8a3d-4e0e-9d4b-4f0e8f3ac001",
        "label": "payroll", "generation": 118, "time": "2026-11-25T13:20:04Z",
        "state": "copying", "size": 1073741824, "volsize": 1073741824, "region_blocks": 127,
        "durability": "memory",
        "members": [
            {"name": "m1", "path": "/img/a.raw", "uuid": "u1", "state": "source", "reason": null,
             "since": "2026-11-25T10:00:00Z", "size": 1073741824, "errors": 0, "bitmap": null,
             "read_cost": 2, "site": 0, "fingerprint": null, "stats": {"reads": 9}},
            {"name": "m2", "path": "/img/b.raw", "uuid": "u2", "state": "detached",
             "reason": "detached by the operator", "since": "2026-11-25T12:41:00Z",
             "size": 2147483648, "errors": 0, "bitmap": "0a0b0c0d", "read_cost": 2, "site": 0,
             "fingerprint": {"size": 2147483648}, "stats": null},
            {"name": "m3", "path": "/img/c.raw", "uuid": "u3", "state": "copy-target",
             "reason": null, "since": null, "size": 1073741824, "errors": 2, "bitmap": "00000007",
             "read_cost": 2, "site": 0, "fingerprint": null, "stats": null}],
        "bitmaps": [
            {"id": "0a0b0c0d", "member": "m2", "type": "minicopy", "state": "active",
             "policy": "minicopy", "created": "2026-11-25T12:41:00Z", "bits": 16514,
             "set_bits": 310, "set_bytes": 20157440, "covered_bytes": 1073741824,
             "uncovered_bytes": 0},
            {"id": "00000007", "member": "m3", "type": "minicopy", "state": "in-use",
             "policy": "minicopy", "created": null, "bits": 16514, "set_bits": 1000,
             "set_bytes": 65024000, "covered_bytes": 1073741824, "uncovered_bytes": 0}],
        "operations": [
            {"id": 6, "kind": "minicopy", "source": "m1", "target": "m2", "state": "cancelled",
             "done_bytes": 5, "total_bytes": 10, "copied_bytes": 5, "skipped_bytes": 0,
             "percent": 50.0, "rate_bps": null, "eta_s": null, "started": "2026-11-25T11:00:00Z",
             "finished": "2026-11-25T11:00:01Z"},
            {"id": 7, "kind": "minicopy", "source": "m1", "target": "m3", "state": "running",
             "done_bytes": 41943040, "total_bytes": 104857600, "copied_bytes": 41943040,
             "skipped_bytes": 968884224, "percent": 40.0, "rate_bps": 20971520, "eta_s": 3,
             "started": "2026-11-25T13:20:02Z", "finished": null}],
        "params": {}, "a-key-of-a-newer-server": [1, 2]
    }"#;

    pub(in crate::cli) fn sample() -> Status {
        serde_json::from_str(SAMPLE).expect("the sample follows the schema")
    }

    #[test]
    fn the_sample_is_read_and_unknown_keys_are_passed_over() {
        let status = sample();
        assert_eq!((status.unit.as_str(), status.size), ("dsa1", 1 << 30));
        assert_eq!(status.bitmap("m2").map(|b| b.id.as_str()), Some("0a0b0c0d"));
        assert_eq!(
            status.bitmap("00000007").and_then(|b| b.member.as_deref()),
            Some("m3")
        );
        assert!(status.bitmap("m1").is_none() && status.member("m9").is_none());
        let op = status.operation(7).expect("running");
        assert_eq!((op.percent(), op.has_ended()), (40.0, false));
        assert_eq!(op.title(), "minicopy m1 -> m3");
        assert!(status.operation(6).is_some_and(Operation::has_ended));
    }

    #[test]
    fn only_faults_are_degraded() {
        let mut status = sample();
        for (state, degraded) in [
            ("steady", false),
            ("copying", false),
            ("merging", false),
            ("read-only", false),
            ("reduced", true),
            ("mount-verify", true),
            ("failed", true),
        ] {
            status.state = state.to_owned();
            assert_eq!(status.is_degraded(), degraded, "{state}");
        }
        for (member, degraded) in [("detached", false), ("expelled", true), ("missing", true)] {
            status.state = "read-only".to_owned();
            status.members[1].state = member.to_owned();
            assert_eq!(status.is_degraded(), degraded, "{member}");
        }
    }
}
