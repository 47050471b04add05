//! How far a merge gives way to applications.

use std::time::Duration;

/// Longest pause after a step.
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// The pause after a step of a merge that took `step`, while `requests` of applications came in: about half
/// of the time is theirs then. A merge of an idle unit does not wait.
pub(super) fn pause_after(step: Duration, requests: u64) -> Duration {
    match requests {
        0 => Duration::ZERO,
        _ => step.min(PAUSE_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_merge_waits_as_long_as_its_step_when_applications_are_there() {
        let ms = Duration::from_millis;
        assert_eq!(pause_after(ms(7), 0), ms(0));
        assert_eq!(pause_after(ms(7), 1), ms(7));
        assert_eq!(pause_after(ms(7000), 900), ms(100));
    }
}
