//! Speed of running copies over the last thirty seconds, and the time to go.

use crate::sync::Instant;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::handle::Rate;
use super::run::Runner;
use crate::set::{CopyKind, CopyWork, OpId};

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
    /// When the copy began or went on, and what was done then.
    stretch: Option<(Instant, u64)>,
    kind: Option<CopyKind>,
    /// Bytes and time of the stretches between the breaks that are over.
    before: (u64, Duration),
}

/// The speeds of all running copies.
#[derive(Debug, Default)]
pub(super) struct Speeds {
    tracks: BTreeMap<OpId, Track>,
    /// What the last copies of each kind did on average while they ran.
    last: Vec<(CopyKind, u64)>,
}

impl Speeds {
    /// Whether no copy runs.
    pub(super) fn is_idle(&self) -> bool {
        self.tracks.is_empty()
    }

    /// A copy, or a verify, which is of no kind of copy, begins, or begins again, with so many bytes done.
    pub(super) fn begin(
        &mut self,
        op: OpId,
        kind: impl Into<Option<CopyKind>>,
        done: u64,
        now: Instant,
    ) {
        let track = self.tracks.entry(op).or_default();
        *track = Track {
            samples: VecDeque::from([(now, done)]),
            stretch: Some((now, done)),
            kind: kind.into(),
            ..Track::default()
        };
    }

    /// A copy is held with so many bytes done: its speed is unknown until it has gone on for a while.
    pub(super) fn hold(&mut self, op: OpId, done: u64, now: Instant) {
        if let Some(track) = self.tracks.get_mut(&op) {
            track.before = track.moved(done, now);
            (track.stretch, track.held) = (None, true);
            track.samples.clear();
        }
    }

    /// A held copy goes on, with so many bytes done: what was before does not count.
    pub(super) fn go_on(&mut self, op: OpId, done: u64, now: Instant) {
        if let Some(track) = self.tracks.get_mut(&op) {
            track.samples = VecDeque::from([(now, done)]);
            (track.stretch, track.held) = (Some((now, done)), false);
        }
    }

    /// A copy has ended with so many bytes done. One that was too short tells nothing of the next.
    pub(super) fn end(&mut self, op: OpId, done: u64, now: Instant) {
        let Some(track) = self.tracks.remove(&op) else {
            return;
        };
        let (bytes, time) = track.moved(done, now);
        let rate = per_second(bytes, time).filter(|rate| *rate > 0 && time >= PAUSE);
        if let (Some(kind), Some(rate)) = (track.kind, rate) {
            self.last.retain(|(other, _)| *other != kind);
            self.last.push((kind, rate));
        }
    }

    /// What a copy of each kind can be expected to do, in bytes per second: as the one that runs now, else
    /// as the last one. A kind of which nothing was measured is left out.
    pub(super) fn expected(&self) -> Vec<(CopyKind, u64)> {
        let running = self.tracks.iter().filter_map(|(op, track)| {
            let rate = track.rate(*op).bytes_per_second;
            Some((track.kind?, rate.filter(|rate| *rate > 0)?))
        });
        let mut expected: Vec<(CopyKind, u64)> = running.collect();
        for (kind, rate) in &self.last {
            if !expected.iter().any(|(other, _)| other == kind) {
                expected.push((*kind, *rate));
            }
        }
        expected
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

    /// Bytes and time since its begin, without the pauses.
    fn moved(&self, done: u64, now: Instant) -> (u64, Duration) {
        let (bytes, time) = self.before;
        match self.stretch {
            None => (bytes, time),
            Some((since, was)) => (
                bytes + done.saturating_sub(was),
                time + now.duration_since(since),
            ),
        }
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
        let Some(speed) = per_second(b.saturating_sub(*a), to.duration_since(*from)) else {
            return unknown;
        };
        let eta_s = (speed > 0).then(|| self.left.div_ceil(speed.max(1)));
        Rate {
            op,
            bytes_per_second: Some(speed),
            eta_s,
        }
    }
}

impl Runner {
    /// Lets a copy run, and its clock with it.
    pub(super) fn start_copy(&mut self, work: Box<CopyWork>) {
        let done = work.progress().done_bytes();
        self.speeds
            .begin(work.op(), work.kind(), done, Instant::now());
        self.copier.start(work);
    }

    /// Holds a copy or lets it go on, and its clock with it.
    pub(super) fn pause(&mut self, op: OpId, paused: bool) {
        self.copier.pause(op, paused);
        self.verifier.pause(op, paused);
        let (now, done) = (Instant::now(), self.done_by(op));
        match paused {
            true => self.speeds.hold(op, done, now),
            false => self.speeds.go_on(op, done, now),
        }
    }

    /// Bytes that an operation has done.
    pub(super) fn done_by(&self, op: OpId) -> u64 {
        self.set.progress_of(op).map_or(0, |(done, _)| done)
    }
}

fn per_second(bytes: u64, time: Duration) -> Option<u64> {
    let ms = time.as_millis();
    let rate = (u128::from(bytes) * 1000).checked_div(ms)?;
    Some(u64::try_from(rate).unwrap_or(u64::MAX))
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
            ..Track::default()
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
            speeds.begin(OP, CopyKind::Full, 0, now);
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
            self.speeds.hold(OP, self.done, self.now);
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
        clock.speeds.begin(OP, CopyKind::Full, done, now);
        assert_eq!(clock.rate(), (None, None));
        clock.run(2, 8 * MB);
        assert_eq!(clock.rate().0, Some(8 * MB), "not what was done before");
    }

    #[test]
    fn the_next_copy_is_expected_to_be_as_fast_as_the_last_without_its_pause() {
        let mut clock = Clock::new();
        assert_eq!(clock.speeds.expected(), [], "nothing was measured");
        clock.run(5, 4 * MB);
        assert_eq!(clock.speeds.expected(), [(CopyKind::Full, 4 * MB)]);
        clock.pause();
        clock.run(600, 0);
        assert_eq!(clock.speeds.expected(), [], "a held copy tells nothing");
        clock.resume();
        clock.run(5, 2 * MB);
        clock.speeds.end(OP, clock.done, clock.now);
        assert_eq!(clock.speeds.expected(), [(CopyKind::Full, 3 * MB)]);
        // One that moves nothing, and one that ends at once.
        for (seconds, bytes) in [(60, 0), (0, MB)] {
            clock
                .speeds
                .begin(OP, CopyKind::Full, clock.done, clock.now);
            clock.run(seconds, 0);
            clock
                .speeds
                .end(OP, clock.done + bytes, clock.now + Duration::from_millis(1));
            assert_eq!(clock.speeds.expected(), [(CopyKind::Full, 3 * MB)]);
        }
        clock
            .speeds
            .begin(OP, CopyKind::Compare, clock.done, clock.now);
        clock.run(1, 8 * MB);
        let both = [(CopyKind::Compare, 8 * MB), (CopyKind::Full, 3 * MB)];
        assert_eq!(clock.speeds.expected(), both);
    }
}
