//! Speed of running copies over the last thirty seconds, and the time to go.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::handle::Rate;
use crate::set::{OpId, Operation};

const WINDOW: Duration = Duration::from_secs(30);
/// Samples closer together than this tell nothing.
const PAUSE: Duration = Duration::from_millis(200);

#[derive(Debug, Default)]
struct Track {
    samples: VecDeque<(Instant, u64)>,
    left: u64,
}

/// The speeds of all running copies.
#[derive(Debug, Default)]
pub(super) struct Speeds {
    tracks: BTreeMap<OpId, Track>,
}

impl Speeds {
    /// Whether no copy runs.
    pub(super) fn is_idle(&self) -> bool {
        self.tracks.is_empty()
    }

    pub(super) fn begin(&mut self, op: OpId, now: Instant) {
        let track = self.tracks.entry(op).or_default();
        track.samples.push_back((now, 0));
    }

    pub(super) fn end(&mut self, op: OpId) {
        self.tracks.remove(&op);
    }

    /// Takes a sample when it is time; says whether it did.
    pub(super) fn sample(&mut self, operations: &[Operation], now: Instant) -> bool {
        let mut any = false;
        for (op, track) in &mut self.tracks {
            let Some(operation) = operations.iter().find(|o| o.id == *op) else {
                continue;
            };
            let last = track.samples.back().map(|(at, _)| *at);
            if last.is_some_and(|at| now.duration_since(at) < PAUSE) {
                continue;
            }
            let done = operation.progress.done_bytes();
            track.left = operation.progress.total_bytes().saturating_sub(done);
            track.samples.push_back((now, done));
            while track.samples.len() > 2 && now.duration_since(track.samples[1].0) > WINDOW {
                track.samples.pop_front();
            }
            any = true;
        }
        any
    }

    pub(super) fn rates(&self) -> Vec<Rate> {
        self.tracks
            .iter()
            .map(|(op, track)| track.rate(*op))
            .collect()
    }
}

impl Track {
    /// Bytes per second over the window; unknown until two samples lie apart, no time to go at a standstill.
    fn rate(&self, op: OpId) -> Rate {
        let unknown = Rate {
            op,
            bytes_per_second: None,
            eta_s: None,
        };
        let (Some((from, a)), Some((to, b))) = (self.samples.front(), self.samples.back()) else {
            return unknown;
        };
        let ms = u64::try_from(to.duration_since(*from).as_millis()).unwrap_or(u64::MAX);
        if ms == 0 {
            return unknown;
        }
        let speed = b.saturating_sub(*a).saturating_mul(1000) / ms;
        let eta_s = (speed > 0).then(|| self.left.div_ceil(speed.max(1)));
        Rate {
            op,
            bytes_per_second: Some(speed),
            eta_s,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_unknown_until_there_is_something_to_measure() {
        let start = Instant::now();
        let mut track = Track {
            samples: VecDeque::from([(start, 0)]),
            left: 100,
        };
        assert_eq!(track.rate(OpId(1)).bytes_per_second, None);
        track.samples.push_back((start + Duration::from_secs(2), 0));
        let rate = track.rate(OpId(1));
        assert_eq!(
            (rate.bytes_per_second, rate.eta_s),
            (Some(0), None),
            "no nonsense at a standstill"
        );
        track
            .samples
            .push_back((start + Duration::from_secs(4), 200));
        let rate = track.rate(OpId(1));
        assert_eq!((rate.bytes_per_second, rate.eta_s), (Some(50), Some(2)));
    }
}
