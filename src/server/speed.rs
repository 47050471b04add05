//! Speed of running copies over the last thirty seconds, and the time to go.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::handle::Rate;
use super::run::Runner;
use crate::set::OpId;

const WINDOW: Duration = Duration::from_secs(30);
/// Samples closer together than this tell nothing.
const PAUSE: Duration = Duration::from_millis(200);

#[derive(Debug, Default)]
struct Track {
    /// When, and how many bytes were done; only from a time without a break.
    samples: VecDeque<(Instant, u64)>,
    left: u64,
    /// Whether the copy is held: then nothing is measured.
    held: bool,
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

    /// A copy begins, or begins again, with so many bytes done.
    pub(super) fn begin(&mut self, op: OpId, done: u64, now: Instant) {
        let track = self.tracks.entry(op).or_default();
        *track = Track {
            samples: VecDeque::from([(now, done)]),
            ..Track::default()
        };
    }

    /// A copy is held: its speed is unknown until it has gone on for a while.
    pub(super) fn hold(&mut self, op: OpId) {
        if let Some(track) = self.tracks.get_mut(&op) {
            track.samples.clear();
            track.held = true;
        }
    }

    /// A held copy goes on, with so many bytes done: what was before does not count.
    pub(super) fn go_on(&mut self, op: OpId, done: u64, now: Instant) {
        if let Some(track) = self.tracks.get_mut(&op) {
            track.samples = VecDeque::from([(now, done)]);
            track.held = false;
        }
    }

    pub(super) fn end(&mut self, op: OpId) {
        self.tracks.remove(&op);
    }

    /// Takes samples when it is time; says whether there is anything new. `progress` tells the bytes of an
    /// operation that are done, and all of them.
    pub(super) fn sample(
        &mut self,
        progress: impl Fn(OpId) -> Option<(u64, u64)>,
        now: Instant,
    ) -> bool {
        let mut any = false;
        for (op, track) in &mut self.tracks {
            if let Some((done, total)) = progress(*op) {
                any |= track.sample(done, total.saturating_sub(done), now);
            }
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
    fn sample(&mut self, done: u64, left: u64, now: Instant) -> bool {
        let news = left != std::mem::replace(&mut self.left, left);
        if self.held {
            // Steps that were under way end.
            return news;
        }
        let last = self.samples.back().map(|(at, _)| *at);
        if last.is_some_and(|at| now.duration_since(at) < PAUSE) {
            return false;
        }
        self.samples.push_back((now, done));
        while self.samples.len() > 2 && now.duration_since(self.samples[1].0) > WINDOW {
            self.samples.pop_front();
        }
        true
    }

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
        let bytes = u128::from(b.saturating_sub(*a));
        let speed = u64::try_from(bytes * 1000 / u128::from(ms)).unwrap_or(u64::MAX);
        let eta_s = (speed > 0).then(|| self.left.div_ceil(speed.max(1)));
        Rate {
            op,
            bytes_per_second: Some(speed),
            eta_s,
        }
    }
}

impl Runner {
    /// Holds a copy or lets it go on, and its clock with it.
    pub(super) fn pause(&mut self, op: OpId, paused: bool) {
        self.copier.pause(op, paused);
        match self.set.progress_of(op) {
            Some((done, _)) if !paused => self.speeds.go_on(op, done, Instant::now()),
            _ => self.speeds.hold(op),
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
            held: false,
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

    /// Speeds on a clock of their own: one copy, sampled four times a second.
    struct Clock {
        speeds: Speeds,
        now: Instant,
        done: u64,
    }

    const OP: OpId = OpId(1);
    const MB: u64 = 1_000_000;
    const TOTAL: u64 = 1024 * MB;

    impl Clock {
        fn new() -> Self {
            let (mut speeds, now) = (Speeds::default(), Instant::now());
            speeds.begin(OP, 0, now);
            Self {
                speeds,
                now,
                done: 0,
            }
        }

        /// Lets so many seconds go by, with so many bytes done in each.
        fn run(&mut self, seconds: u64, rate: u64) {
            for _ in 0..4 * seconds {
                self.now += Duration::from_millis(250);
                self.done += rate / 4;
                self.speeds.sample(|_| Some((self.done, TOTAL)), self.now);
            }
        }

        fn pause(&mut self) {
            self.speeds.hold(OP);
        }

        fn resume(&mut self) {
            self.speeds.go_on(OP, self.done, self.now);
        }

        fn rate(&self) -> (Option<u64>, Option<u64>) {
            let rates = self.speeds.rates();
            (rates[0].bytes_per_second, rates[0].eta_s)
        }
    }

    #[test]
    fn a_pause_is_no_time_of_the_copy() {
        let mut clock = Clock::new();
        clock.run(10, 4 * MB);
        assert_eq!(clock.rate(), (Some(4 * MB), Some(246)));
        clock.pause();
        assert_eq!(clock.rate(), (None, None), "unknown at once");
        // A step that was under way ends.
        clock.run(1, 4 * MB);
        clock.run(600, 0);
        assert_eq!(clock.rate(), (None, None), "and as long as it is held");
        clock.resume();
        assert_eq!(clock.rate(), (None, None), "nothing is measured yet");
        clock.run(1, 4 * MB);
        assert_eq!(clock.rate(), (Some(4 * MB), Some(244)));
        // Neither does the speed before the pause.
        clock.run(19, 2 * MB);
        let (rate, _) = clock.rate();
        assert_eq!(rate, Some((4 * MB + 19 * 2 * MB) / 20));
        clock.run(60, 2 * MB);
        assert_eq!(clock.rate().0, Some(2 * MB), "thirty seconds, no more");
    }

    #[test]
    fn a_copy_that_begins_again_is_measured_anew() {
        let mut clock = Clock::new();
        clock.run(10, 8 * MB);
        let (done, now) = (clock.done, clock.now + Duration::from_secs(100));
        clock.now = now;
        clock.speeds.begin(OP, done, now);
        assert_eq!(clock.rate(), (None, None));
        clock.run(2, 8 * MB);
        assert_eq!(clock.rate().0, Some(8 * MB), "not what was done before");
    }
}
