//! Runs a scenario under many schedules, or some of them again.

use std::time::{Duration, Instant};

use shadowset::sync::world;
use shuttle::scheduler::{
    PctScheduler, RandomScheduler, Scheduler, UncontrolledNondeterminismCheckScheduler,
};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};

/// Schedules of one seed: to see one again, those before it are run too.
pub(crate) const BATCH: usize = 20;
/// Preemptions that decide, of the schedules by priority.
const DEPTH: usize = 4;

/// A scenario: what one schedule runs.
#[derive(Clone, Copy)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// Waits that are so short may end early.
    pub(crate) haste: Duration,
    pub(crate) run: fn(),
}

/// How the next thread is chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum By {
    /// Any that can go on, at each step.
    Random,
    /// By priorities, which change a few times (PCT).
    Priority,
}

impl By {
    const ALL: [Self; 2] = [Self::Random, Self::Priority];

    fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Priority => "priority",
        }
    }
}

fn number(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.map_or(default, |value| value.parse().expect("a number"))
}

fn config() -> Config {
    let mut config = Config::new();
    config.stack_size = 1 << 19;
    config.max_steps = MaxSteps::FailAfter(2_000_000);
    config.failure_persistence = FailurePersistence::None;
    config.silence_warnings = true;
    config
}

/// Says how to see a failure again.
struct Replay(Scenario, By, u64);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self(scenario, by, seed) = self;
            eprintln!(
                "\nagain: make schedule SCHEDULE={}:{}:{seed}\n",
                scenario.name,
                by.name()
            );
        }
    }
}

impl Scenario {
    /// Runs as many schedules as the environment says, half of them by random and half by priority, or those of
    /// one seed again.
    pub(crate) fn explore(self) {
        let which = std::env::var("SCHEDULE").unwrap_or_default();
        if !which.is_empty() {
            let mut parts = which.split(':');
            if parts.next() == Some(self.name) {
                let (by, seed) = (
                    parts.next(),
                    parts.next().and_then(|seed| seed.parse().ok()),
                );
                let by = By::ALL.into_iter().find(|one| Some(one.name()) == by);
                self.batch(by.expect("random or priority"), seed.expect("a seed"));
            }
            return;
        }
        let (schedules, first) = (number("SCHEDULES", 200), number("SEED", 1));
        let batches = schedules.div_ceil(2 * BATCH as u64);
        for by in By::ALL {
            let begun = Instant::now();
            (first..first + batches).for_each(|seed| self.batch(by, seed));
            let (count, took) = (batches * BATCH as u64, begun.elapsed());
            println!(
                "{}: {count} schedules by {} in {took:.1?}, {:.0} a minute",
                self.name,
                by.name(),
                count as f64 * 60.0 / took.as_secs_f64()
            );
        }
    }

    /// Runs the schedules of a seed.
    pub(crate) fn batch(self, by: By, seed: u64) {
        let _replay = Replay(self, by, seed);
        match by {
            By::Random => self.under(RandomScheduler::new_from_seed(seed, BATCH)),
            By::Priority => self.under(PctScheduler::new_from_seed(seed, DEPTH, BATCH)),
        }
    }

    fn under(self, scheduler: impl Scheduler + 'static) {
        let Self { haste, run, .. } = self;
        Runner::new(scheduler, config()).run(move || {
            world::begin(haste);
            run();
            world::end();
        });
    }

    /// Whether a schedule runs the same way twice.
    pub(crate) fn repeat(self, schedules: usize) {
        let random = RandomScheduler::new_from_seed(1, schedules);
        self.under(UncontrolledNondeterminismCheckScheduler::new(random));
    }
}
