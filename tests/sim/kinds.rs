//! Kinds of worlds, each of which dwells on something that is rare in the others.

use shadowset::testing::Rng;

use crate::plan::{self, Plan};
use crate::world::World;

/// What a seed draws its world from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Anything, with faults for every other seed.
    Plain,
    /// Regions of 127 blocks, units of every remainder, requests of up to 2 MiB.
    Wide,
    /// Control blocks often cannot be written.
    Bad,
    /// The same with many commands.
    Busy,
    /// Neither control blocks nor bitmaps can be relied on.
    Lost,
    /// All copies and merges are held, so that reads have to merge.
    Held,
    /// Images are larger than the unit, which grows.
    Growing,
    /// Members do not answer for a while.
    Hanging,
}

/// What is to be known of a kind.
pub(crate) struct Facts {
    pub(crate) kind: Kind,
    /// As `SIM_WORLD` has it.
    pub(crate) name: &'static str,
    /// Seeds of a run of every test.
    pub(crate) seeds: u64,
    /// Paths that are rare and must be taken by that many seeds.
    pub(crate) rare: &'static [&'static str],
}

/// All kinds.
pub(crate) const KINDS: [Facts; 8] = [
    Facts {
        kind: Kind::Plain,
        name: "plain",
        seeds: 3000,
        rare: &[
            "a change waits for the end of a stall",
            "a detach while changes are stalled",
            "a failure from before a return",
            "a stall ended by its time",
            "a verify is done",
            "a verify has repaired a member",
            "a repair failed on a member",
            "a step of several copies",
            "all copies are held",
            "more copies may run, and one waits",
            "clock set back",
            "a life with bitmaps in memory only",
            "older image put back in a crash",
            "crash during a mount",
            "mounted without a member",
            "trouble at a member write",
            "trouble at a flush",
            "trouble at a durable mark",
            "expulsion during detach",
            "expulsion of a running copy target",
            "failed everywhere, then a merge",
            "a failed flush has lost a write",
            "a copy reads what has lost a write",
            "merge by reading",
            "copy cancelled with steps in flight",
            "detach timed out behind the cut",
            "attach timed out",
            "attach during writes",
            "image changed outside",
            "older image brought back",
            "stop with work under way",
            "kill",
            "loss of power",
            "crash between control blocks",
        ],
    },
    Facts {
        kind: Kind::Wide,
        name: "wide",
        seeds: 200,
        rare: &[
            "a request of more than 1 MiB",
            "merge step",
            "kill",
            "loss of power",
        ],
    },
    Facts {
        kind: Kind::Bad,
        name: "bad",
        seeds: 700,
        rare: &[
            "control block not written",
            "a membership became durable late",
        ],
    },
    Facts {
        kind: Kind::Busy,
        name: "busy",
        seeds: 300,
        rare: &["refused while the membership is not durable"],
    },
    Facts {
        kind: Kind::Lost,
        name: "lost",
        seeds: 700,
        rare: &["bits in memory only, and no block says so yet"],
    },
    Facts {
        kind: Kind::Held,
        name: "held",
        seeds: 700,
        rare: &["merge by reading"],
    },
    Facts {
        kind: Kind::Growing,
        name: "growing",
        seeds: 1200,
        rare: &["resized", "a change waits until the unit has grown"],
    },
    Facts {
        kind: Kind::Hanging,
        name: "hanging",
        seeds: 1200,
        rare: &[
            "a member does not answer in time",
            "a write comes late",
            "a verification is aborted",
            "a failed write keeps its fence",
        ],
    },
];

impl Kind {
    pub(crate) fn facts(self) -> &'static Facts {
        let own = KINDS.iter().find(|facts| facts.kind == self);
        own.expect("every kind is in the table")
    }

    /// The world of a seed.
    pub(crate) fn world(self, seed: u64, log: bool) -> World {
        let mut rng = Rng::new(seed);
        let faults = seed % 2 == 1 || matches!(self, Self::Bad | Self::Busy | Self::Lost);
        let mut plan = Plan::draw(&mut rng, faults);
        self.shape(&mut plan, &mut rng, seed);
        World::with(rng, plan, seed, log)
    }

    fn shape(self, plan: &mut Plan, rng: &mut Rng, seed: u64) {
        match self {
            Self::Plain | Self::Wide => {
                plan.limits = plan::limits(seed);
                plan.stalls = plan::stalls(seed);
                plan.verifies = plan::verifies(seed);
            }
            Self::Bad | Self::Busy | Self::Lost => {
                plan.faults.block = 300;
                plan.crashes = plan.crashes.max(40);
            }
            Self::Held => {
                plan.held = true;
                plan.crashes = plan.crashes.max(40);
            }
            Self::Growing => {
                plan.grows = true;
                plan.verifies = plan::verifies(seed);
            }
            Self::Hanging => {
                plan.hangs = 100;
                // Writes that fail everywhere set bits.
                plan.faults.planned += 1;
            }
        }
        match self {
            Self::Wide => plan::widen(plan, rng),
            Self::Busy => plan.deeds[5] *= 60,
            Self::Lost => plan.faults.home = 300,
            _ => {}
        }
    }
}
