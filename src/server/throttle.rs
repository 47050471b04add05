//! How far copies give way to applications, and how fast they may be.

use crate::sync::Instant;
use std::time::Duration;

use crate::io::node_rate::NodeRate;
use crate::set::UNLIMITED;

/// Longest time that a copy gives way after a step.
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// While applications ask for something a copy waits so many times as long as its step has taken. With one
/// time as long their slowest requests took twice as long again.
const YIELD: u32 = 8;
/// When a copy comes again that has found another one at the rate of the node.
const BUSY_NODE: Duration = Duration::from_millis(1);
const SECOND: u128 = 1_000_000_000;

/// What a copy thread has done in a step, and what was asked of the unit meanwhile.
#[derive(Clone, Copy, Debug)]
pub(super) struct Done {
    /// How long the step has taken.
    pub(super) step: Duration,
    /// Bytes that it has moved; holes count nothing where no zeros have to be written.
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
            UNLIMITED => rate,
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

/// What a copy has read beyond its own rate, which it waits for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Debt {
    bytes: u64,
    /// Up to when the time that has passed has paid for something.
    since: Instant,
}

impl Debt {
    pub(super) fn none(now: Instant) -> Self {
        Self {
            bytes: 0,
            since: now,
        }
    }

    /// The time until the next step may begin at a rate. What has passed since the last question counts at this
    /// rate, so another one holds at once; time without debts is not saved up.
    pub(super) fn due(&mut self, rate: u64, now: Instant) -> Duration {
        let whole = time(self.bytes, rate);
        let left = (self.since + whole).saturating_duration_since(now);
        if left.is_zero() {
            *self = Self::none(now);
        } else {
            // Whole bytes are paid for, and the rest of the time counts at the next question.
            let bytes = bytes_in(left, rate).min(self.bytes);
            self.since += whole.saturating_sub(time(bytes, rate));
            self.bytes = bytes;
        }
        left
    }

    /// A step has read so much.
    pub(super) fn add(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

/// The pause that the rate of the node leaves after so many bytes, `since` ago; it is told of them once.
pub(super) fn share_of_node(
    rate: Option<&NodeRate>,
    told: &mut Option<Duration>,
    bytes: u64,
    since: Duration,
) -> Duration {
    let Some(rate) = rate.filter(|_| bytes > 0) else {
        return Duration::ZERO;
    };
    if told.is_none() {
        *told = rate
            .add(bytes)
            .unwrap_or_else(|error| {
                tracing::warn!(%error, "the rate of the node cannot be shared: each copy keeps it alone");
                Some(time(bytes, rate.rate()))
            })
            .map(|left| since + left);
    }
    told.unwrap_or(since + BUSY_NODE)
}

/// How much a rate gives in a time, rounded up.
fn bytes_in(time: Duration, rate: u64) -> u64 {
    let bytes = (time.as_nanos() * u128::from(rate)).div_ceil(SECOND);
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// How long so many bytes take at a rate.
pub(super) fn time(bytes: u64, rate: u64) -> Duration {
    if rate == UNLIMITED {
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
        assert_eq!(pause(FREE, 7, 1 << 30, 1), 56);
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
    fn a_debt_is_paid_at_the_rate_that_holds_and_time_is_not_saved_up() {
        let begun = Instant::now();
        let at = |ms| begun + Duration::from_millis(ms);
        let mut debt = Debt::none(begun);
        assert_eq!(debt.due(1000, at(5000)), Duration::ZERO);
        // The step itself has taken a second, which counts.
        debt.add(4000);
        assert_eq!(debt.due(1000, at(6000)), Duration::from_secs(3));
        for ms in 6001..8000 {
            debt.due(1000, at(ms));
        }
        assert_eq!(debt.due(1000, at(8000)), Duration::from_secs(1));
        assert_eq!(debt.due(500, at(8000)), Duration::from_secs(2));
        assert_eq!(debt.due(UNLIMITED, at(8000)), Duration::ZERO);
        assert_eq!(debt.due(1, at(8000)), Duration::ZERO, "it was remitted");
        // Questions in quick succession pay as well, however low the rate.
        debt.add(2);
        for ms in 8000..10_000 {
            debt.due(1, at(ms));
        }
        assert_eq!(debt.due(1, at(10_000)), Duration::ZERO);
        debt.add(1500);
        for ms in 10_000..10_500 {
            debt.due(1500, at(ms));
        }
        let left = debt.due(1500, at(10_500)).as_millis();
        assert!((499..=501).contains(&left), "{left}");
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
