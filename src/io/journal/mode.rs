//! Message modes: which announcements of new marks are committed together, and when.
//!
//! An announcement is what a writer says when it finds a region that is not marked durably yet. A value
//! with no clock of its own: whoever asks tells the time. It must not commit anything, and nothing
//! here says that an announcement is durable.

use crate::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

/// Most announcements of one commit in buffered-message mode.
pub const BUFFERED_MOST: usize = 9;

/// Who decides when announcements are committed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum MessageMode {
    /// Commit when the commit before is done, everything that waits together. No clock is read.
    #[default]
    Auto,
    /// Single-message or buffered-message mode, switched by the announcements in an interval.
    Manual,
}

impl MessageMode {
    /// Every mode, the default first.
    pub const ALL: [Self; 2] = [Self::Auto, Self::Manual];

    /// The word of the parameter.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Manual => "manual",
        }
    }
}

/// The parameters of the message modes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MessageSettings {
    /// Who decides.
    pub mode: MessageMode,
    /// How long announcements are counted for a switch of the mode, and how long the first that is collected
    /// waits at most in buffered-message mode, in milliseconds.
    pub interval_ms: u64,
    /// As many announcements in an interval switch to buffered-message mode.
    pub upper: u64,
    /// Fewer announcements in an interval switch back to single-message mode.
    pub lower: u64,
}

impl MessageSettings {
    /// Those of the manual, which are not in force in the mode that is the default here.
    pub const DEFAULT: Self = Self {
        mode: MessageMode::Auto,
        interval_ms: 10,
        upper: 100,
        lower: 10,
    };

    fn interval(&self) -> Duration {
        Duration::from_millis(self.interval_ms)
    }
}

impl Default for MessageSettings {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// What is counted of announcements, for people. Only grows; read at any time.
#[derive(Debug, Default)]
pub struct MessageCounts {
    announcements: AtomicU64,
    switches: AtomicU64,
    /// Commits of one announcement, of two, and so on; the last are those of more than nine.
    sizes: [AtomicU64; BUFFERED_MOST + 1],
    mode: AtomicU64,
}

/// Names of the modes that announcements are committed in, at the places of their codes.
const NAMES: [&str; 3] = ["auto", "single", "buffered"];

impl MessageCounts {
    /// `auto`, `single` or `buffered`: the mode now.
    #[must_use]
    pub fn mode(&self) -> &'static str {
        let code = usize::try_from(self.mode.load(Ordering::Relaxed));
        code.ok()
            .and_then(|code| NAMES.get(code))
            .unwrap_or(&NAMES[0])
    }

    /// Announcements: first writes to regions.
    #[must_use]
    pub fn announcements(&self) -> u64 {
        self.announcements.load(Ordering::Relaxed)
    }

    /// Switches between single-message and buffered-message mode.
    #[must_use]
    pub fn switches(&self) -> u64 {
        self.switches.load(Ordering::Relaxed)
    }

    /// Commits of 1 to 9 announcements, then those of more.
    #[must_use]
    pub fn sizes(&self) -> [u64; BUFFERED_MOST + 1] {
        std::array::from_fn(|at| self.sizes[at].load(Ordering::Relaxed))
    }

    /// Has everything be counted from 0 again; the mode stays.
    pub fn begin_anew(&self) {
        let counters = [&self.announcements, &self.switches];
        for counter in counters.into_iter().chain(&self.sizes) {
            counter.store(0, Ordering::Relaxed);
        }
    }

    /// Commits of announcements.
    #[must_use]
    pub fn commits(&self) -> u64 {
        self.sizes().iter().sum()
    }
}

/// When those that wait are to be committed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Due {
    /// Now, at most so many together, the oldest first.
    Now(u64),
    /// At this time, unless more come.
    At(Duration),
}

/// The mode, and what decides about its switches. Times are since any fixed instant and never go back.
#[derive(Debug, Default)]
pub(super) struct Messages {
    settings: MessageSettings,
    buffered: bool,
    /// When the interval began in which announcements are counted.
    since: Duration,
    /// Announcements in it.
    count: u64,
    counts: Arc<MessageCounts>,
}

impl Messages {
    /// Whether the time matters.
    pub(super) fn needs_time(&self) -> bool {
        self.settings.mode == MessageMode::Manual
    }

    /// What is counted.
    #[cfg(test)]
    pub(super) fn counts(&self) -> &Arc<MessageCounts> {
        &self.counts
    }

    /// Counts into these from now on.
    pub(super) fn count_into(&mut self, counts: Arc<MessageCounts>) {
        self.counts = counts;
        self.show();
    }

    /// Goes by other parameters from now on, beginning in single-message mode where the mode is manual.
    pub(super) fn set(&mut self, settings: MessageSettings, now: Duration) {
        if settings.mode != self.settings.mode {
            self.buffered = false;
        }
        (self.since, self.count) = (now, 0);
        self.settings = settings;
        self.show();
    }

    /// Takes note of an announcement; the mode may switch with it.
    pub(super) fn announce(&mut self, now: Duration) {
        self.counts.announcements.fetch_add(1, Ordering::Relaxed);
        if !self.needs_time() {
            return;
        }
        let MessageSettings { upper, lower, .. } = self.settings;
        let interval = self.settings.interval();
        let passed = now.saturating_sub(self.since);
        if passed >= interval {
            // Intervals follow each other without a gap; in all but the first that is over nothing came.
            let quiet = passed >= interval.saturating_mul(2);
            if self.buffered && (self.count < lower || (quiet && lower > 0)) {
                self.switch(false);
            }
            let into = passed.as_nanos().checked_rem(interval.as_nanos());
            let into = u64::try_from(into.unwrap_or(0)).unwrap_or(0);
            (self.since, self.count) = (now.saturating_sub(Duration::from_nanos(into)), 0);
        }
        self.count += 1;
        if !self.buffered && self.count >= upper {
            self.switch(true);
        }
    }

    /// When `waiting` announcements, at least one, of which the oldest came at `oldest`, are to be committed.
    pub(super) fn due(&self, waiting: u64, oldest: Duration, now: Duration) -> Due {
        const MOST: u64 = BUFFERED_MOST as u64;
        match (self.settings.mode, self.buffered) {
            (MessageMode::Auto, _) => Due::Now(waiting),
            (MessageMode::Manual, false) => Due::Now(1),
            (MessageMode::Manual, true) => {
                let end = oldest.saturating_add(self.settings.interval());
                match waiting >= MOST || now >= end {
                    true => Due::Now(MOST),
                    false => Due::At(end),
                }
            }
        }
    }

    /// Takes note of a commit of so many announcements.
    pub(super) fn committed(&self, announcements: u64) {
        let at = usize::try_from(announcements.saturating_sub(1)).unwrap_or(BUFFERED_MOST);
        self.counts.sizes[at.min(BUFFERED_MOST)].fetch_add(1, Ordering::Relaxed);
    }

    fn switch(&mut self, buffered: bool) {
        self.buffered = buffered;
        self.counts.switches.fetch_add(1, Ordering::Relaxed);
        self.show();
    }

    fn show(&self) {
        let code = match (self.settings.mode, self.buffered) {
            (MessageMode::Auto, _) => 0,
            (MessageMode::Manual, false) => 1,
            (MessageMode::Manual, true) => 2,
        };
        self.counts.mode.store(code, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MANUAL: MessageSettings = MessageSettings {
        mode: MessageMode::Manual,
        interval_ms: 10,
        upper: 100,
        lower: 10,
    };

    fn us(n: u64) -> Duration {
        Duration::from_micros(n)
    }

    fn manual(settings: MessageSettings) -> Messages {
        let mut messages = Messages::default();
        messages.set(settings, Duration::ZERO);
        messages
    }

    /// Announcements evenly over the interval that begins at `start`, in microseconds.
    fn interval(messages: &mut Messages, start: u64, announcements: u64) {
        for n in 0..announcements {
            messages.announce(us(start + n * 10_000 / announcements));
        }
    }

    #[test]
    fn auto_commits_at_once_everything_that_waits() {
        let mut messages = Messages::default();
        assert!(!messages.needs_time());
        for _ in 0..1000 {
            messages.announce(Duration::ZERO);
        }
        assert_eq!(messages.due(7, us(0), us(0)), Due::Now(7));
        assert_eq!(messages.due(700, us(0), us(0)), Due::Now(700));
        let counts = messages.counts();
        assert_eq!((counts.mode(), counts.switches()), ("auto", 0));
        assert_eq!(counts.announcements(), 1000);
    }

    /// 100 in 10 ms are buffered, 99 are not; 10 in 10 ms stay buffered, 9 do not.
    #[test]
    fn the_mode_is_switched_at_the_thresholds_of_the_manual() {
        let mut messages = manual(MANUAL);
        interval(&mut messages, 0, 99);
        interval(&mut messages, 10_000, 99);
        assert_eq!(messages.counts().mode(), "single");
        assert_eq!(messages.due(50, us(0), us(20_000)), Due::Now(1));
        interval(&mut messages, 20_000, 100);
        assert_eq!(messages.counts().mode(), "buffered");
        interval(&mut messages, 30_000, 10);
        interval(&mut messages, 40_000, 10);
        assert_eq!(messages.counts().mode(), "buffered");
        interval(&mut messages, 50_000, 9);
        assert_eq!(
            messages.counts().mode(),
            "buffered",
            "the interval is not over"
        );
        interval(&mut messages, 60_000, 1);
        assert_eq!(messages.counts().mode(), "single");
        assert_eq!(messages.counts().switches(), 2);
    }

    /// The switch comes with the announcement that reaches the threshold, and back after silence.
    #[test]
    fn a_burst_is_buffered_at_once_and_silence_ends_it() {
        let mut messages = manual(MANUAL);
        for n in 0..99 {
            messages.announce(us(n));
        }
        assert_eq!(messages.due(1, us(98), us(98)), Due::Now(1));
        messages.announce(us(99));
        assert_eq!(messages.due(1, us(99), us(99)), Due::At(us(10_099)));
        // That interval had enough, those behind it had none.
        messages.announce(us(3_600_000_000));
        assert_eq!(
            messages.due(1, us(3_600_000_000), us(3_600_000_000)),
            Due::Now(1)
        );
        assert_eq!(messages.counts().switches(), 2);
    }

    #[test]
    fn buffered_mode_collects_nine_or_waits_for_the_interval_of_the_oldest() {
        let always = MessageSettings {
            upper: 0,
            lower: 0,
            ..MANUAL
        };
        let mut messages = manual(always);
        messages.announce(us(500));
        assert_eq!(messages.counts().mode(), "buffered");
        assert_eq!(messages.due(1, us(500), us(500)), Due::At(us(10_500)));
        assert_eq!(messages.due(8, us(500), us(10_499)), Due::At(us(10_500)));
        assert_eq!(messages.due(8, us(500), us(10_500)), Due::Now(9));
        assert_eq!(messages.due(9, us(500), us(501)), Due::Now(9));
        assert_eq!(messages.due(40, us(500), us(501)), Due::Now(9));
        for waiting in [1, 2, 9, 10, 700] {
            messages.committed(waiting);
        }
        assert_eq!(messages.counts().sizes(), [1, 1, 0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(messages.counts().commits(), 5);
    }

    #[test]
    fn a_change_of_the_mode_begins_with_single_messages() {
        let mut messages = manual(MessageSettings { upper: 1, ..MANUAL });
        messages.announce(us(1));
        assert_eq!(messages.counts().mode(), "buffered");
        messages.set(MessageSettings { upper: 5, ..MANUAL }, us(2));
        assert_eq!(
            messages.counts().mode(),
            "buffered",
            "the mode is still manual"
        );
        messages.set(MessageSettings::default(), us(3));
        assert_eq!(messages.counts().mode(), "auto");
        messages.set(MANUAL, us(4));
        assert_eq!(messages.counts().mode(), "single");
        assert_eq!(messages.counts().switches(), 1, "by announcements only");
    }

    proptest! {
        /// Against a naive reading of the manual: all announcements of all intervals are kept.
        #[test]
        fn switches_are_those_of_a_naive_count(
            steps in proptest::collection::vec(0u64..4000, 1..400),
            upper in 0u64..12, lower in 0u64..8,
        ) {
            let settings = MessageSettings { upper, lower, ..MANUAL };
            let mut messages = manual(settings);
            let (mut now, mut all, mut buffered) = (0, Vec::new(), false);
            let in_interval = |all: &[u64], n: u64| all.iter().filter(|t| **t / 10_000 == n).count() as u64;
            for step in steps {
                let before = now / 10_000;
                now += if step < 3 { step * 20_000 } else { step };
                for over in before..now / 10_000 {
                    buffered &= in_interval(&all, over) >= lower;
                }
                all.push(now);
                buffered |= in_interval(&all, now / 10_000) >= upper;
                messages.announce(us(now));
                let word = if buffered { "buffered" } else { "single" };
                prop_assert_eq!(messages.counts().mode(), word, "at {}", now);
            }
        }
    }
}
