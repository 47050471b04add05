//! How far copies give way to applications, and how fast they may be.

use std::time::Duration;

/// Longest time that a copy gives way after a step.
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// While applications ask for something a copy waits so many times as long as its step has taken. With one
/// time as long their slowest requests took twice as long again.
const YIELD: u32 = 4;
const SECOND: u128 = 1_000_000_000;

/// What a copy thread has done in a step, and what was asked of the unit meanwhile.
#[derive(Clone, Copy, Debug)]
pub(super) struct Done {
    /// How long the step has taken.
    pub(super) step: Duration,
    /// Bytes that it has read; holes count nothing.
    pub(super) bytes: u64,
    /// Requests of applications that have come in.
    pub(super) requests: u64,
}

/// The rates of one copy thread, in bytes per second.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rates {
    /// It does not give way below this.
    pub(super) least: u64,
    /// It is not faster than this.
    pub(super) most: u64,
}

impl Rates {
    /// The share of a thread, of which there are so many.
    pub(super) fn shared(self, threads: u64) -> Self {
        let share = |rate: u64| match rate {
            u64::MAX => rate,
            rate => (rate / threads.max(1)).max(1),
        };
        Self {
            least: share(self.least),
            most: share(self.most),
        }
    }

    /// The pause after a step. A copy of an idle unit does not wait; the largest rate holds in any case, also
    /// where the least is larger.
    pub(super) fn pause(self, done: Done) -> Duration {
        let due = |rate| time(done.bytes, rate).saturating_sub(done.step);
        let yielded = match done.requests {
            0 => Duration::ZERO,
            _ => (done.step * YIELD).min(PAUSE_MAX).min(due(self.least)),
        };
        yielded.max(due(self.most))
    }
}

/// How long so many bytes take at a rate.
fn time(bytes: u64, rate: u64) -> Duration {
    if rate == u64::MAX {
        return Duration::ZERO;
    }
    let nanos = u128::from(bytes) * SECOND / u128::from(rate.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FREE: Rates = Rates {
        least: 1,
        most: u64::MAX,
    };

    fn pause(rates: Rates, ms: u64, bytes: u64, requests: u64) -> u128 {
        let step = Duration::from_millis(ms);
        let done = Done {
            step,
            bytes,
            requests,
        };
        rates.pause(done).as_millis()
    }

    #[test]
    fn a_copy_gives_way_when_applications_are_there() {
        assert_eq!(pause(FREE, 7, 1 << 30, 0), 0);
        assert_eq!(pause(FREE, 7, 1 << 30, 1), 28);
        assert_eq!(pause(FREE, 7000, 1 << 40, 900), 100);
    }

    #[test]
    fn a_copy_does_not_give_way_below_its_least_rate() {
        let rates = Rates {
            least: 1_000_000,
            ..FREE
        };
        // 10,000 bytes are due after 10 ms.
        assert_eq!(pause(rates, 8, 10_000, 1), 2);
        assert_eq!(pause(rates, 20, 10_000, 1), 0);
    }

    #[test]
    fn no_copy_is_faster_than_its_largest_rate() {
        let rates = Rates {
            least: 1_000_000_000,
            most: 1_000_000,
        };
        assert_eq!(pause(rates, 8, 100_000, 0), 92);
        assert_eq!(pause(rates, 8, 100_000, 5), 92);
        assert_eq!(pause(rates, 8, 0, 0), 0, "holes are free");
        assert_eq!(pause(rates.shared(4), 8, 100_000, 0), 392);
    }
}
