//! What a seed draws before its run begins: the world's shape, weights and fault rates.

use shadowset::set::Start;
use shadowset::set::geometry::REGION_BLOCKS_DEFAULT;
use shadowset::testing::Rng;

/// Kinds of things that the scheduler picks from.
pub(crate) const DEEDS: usize = 6;

/// Blocks of a region in most simulated units, the fewest that are allowed.
pub(crate) const REGION_BLOCKS: u32 = 8;
/// Blocks that a step of a request or a copy moves at most, in most worlds.
pub(crate) const STRIDE: u64 = 6;

/// Everything that one seed decides about a run as a whole.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) blocks: u64,
    pub(crate) region_blocks: u32,
    /// Blocks that a step of a request or a copy moves at most.
    pub(crate) stride: u64,
    pub(crate) starts: Vec<Start>,
    pub(crate) steps: u64,
    pub(crate) requests_max: usize,
    pub(crate) blocks_max: u64,
    /// Requests fall into this many blocks around a region border.
    pub(crate) hot_blocks: u64,
    /// Weights of: new request, request step, copy step, event, flush end, command.
    pub(crate) deeds: [u64; DEEDS],
    /// Weights of: write, discard, flush, read.
    pub(crate) kinds: [u64; 4],
    pub(crate) faults: Faults,
    pub(crate) budget_regions: u64,
    pub(crate) timeouts: u64,
    /// Crashes, per ten thousand steps.
    pub(crate) crashes: u64,
    /// Whether bitmaps are kept, and how many regions one mark makes durable at once.
    pub(crate) home: (bool, u64),
    /// Members that are absent when the set is mounted again, per mille.
    pub(crate) absent: u64,
    /// Requests that are given their turn seldom, per mille.
    pub(crate) slow: u64,
    /// The unit is stopped under faults and copies.
    pub(crate) stop_early: bool,
    /// An image and its block are copied for later, per mille of steps.
    pub(crate) backups: u64,
    /// The clock is set anew, per ten thousand steps.
    pub(crate) clock: u64,
    /// Mounts that keep bitmaps in memory only, per mille.
    pub(crate) memory: u64,
    /// Whether every image is larger than the unit.
    pub(crate) grows: bool,
    /// Commands are given although another is not answered yet, per mille.
    pub(crate) impatience: u64,
    /// The limits of copies are changed instead of a command, per mille; with 0 they never differ from the default.
    pub(crate) limits: u64,
    /// Changes are stalled, or go on, instead of a command, per mille; with 0 they never are.
    pub(crate) stalls: u64,
    /// A verify is asked for instead of a command, per mille.
    pub(crate) verifies: u64,
    /// All copies are held until the quiet phase, unless limits are changed.
    pub(crate) held: bool,
    /// A member does not answer for a while, per ten thousand steps.
    pub(crate) hangs: u64,
}

/// Rates per mille.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    /// A block cannot be written.
    pub(crate) write: u64,
    /// A write or flush fails on all members, as when space has run out.
    pub(crate) everywhere: u64,
    /// A block cannot be read.
    pub(crate) read: u64,
    /// A flush fails on a member.
    pub(crate) flush: u64,
    /// A fault stays until the member is attached again.
    pub(crate) sticky: u64,
    /// A flush of the set's own fails on all members.
    pub(crate) flush_everywhere: u64,
    /// The image of a departed member is changed by somebody else.
    pub(crate) changed: u64,
    /// The home of bitmaps breaks.
    pub(crate) home: u64,
    /// A control block cannot be written, per mille.
    pub(crate) block: u64,
    /// One operation fails as a script says: what is exact without faults need not be.
    pub(crate) planned: u64,
}

impl Faults {
    pub(crate) fn none(self) -> bool {
        self.write
            + self.everywhere
            + self.read
            + self.flush
            + self.flush_everywhere
            + self.home
            + self.block
            + self.planned
            == 0
    }
}

impl Plan {
    pub(crate) fn draw(rng: &mut Rng, faults: bool) -> Self {
        let regions = match rng.chance(600) {
            true => rng.between(1, 6),
            false => rng.between(7, 40),
        };
        let blocks = (regions - 1) * 8 + rng.between(1, 8);
        let mut weight = |most| rng.between(1, most);
        let deeds = [20, 60, 40, 20, 10, 4].map(&mut weight);
        let kinds = [weight(20), weight(5), weight(3), weight(10)];
        Self {
            blocks,
            region_blocks: REGION_BLOCKS,
            stride: STRIDE,
            starts: starts(rng),
            steps: rng.between(300, 2500),
            requests_max: rng.place(8) + 1,
            blocks_max: rng.between(1, 24).min(blocks),
            hot_blocks: if rng.chance(300) {
                rng.between(4, 24)
            } else {
                blocks
            }
            .min(blocks),
            deeds,
            kinds,
            faults: if faults {
                Faults::draw(rng)
            } else {
                Faults::default()
            },
            budget_regions: rng.between(1, 5),
            slow: rate(rng, 500, 300),
            crashes: rate(rng, 400, 40),
            home: (rng.chance(750), rng.between(1, 3)),
            absent: if rng.chance(300) { 200 } else { 0 },
            stop_early: rng.chance(250),
            timeouts: rate(rng, 500, 20),
            backups: rate(rng, 400, 30),
            clock: if rng.chance(300) { 20 } else { 0 },
            memory: if rng.chance(300) { 200 } else { 0 },
            impatience: if rng.chance(300) { 100 } else { 0 },
            limits: 0,
            stalls: 0,
            verifies: 0,
            held: false,
            hangs: 0,
            grows: false,
        }
    }
}

/// Regions as large as real ones, units of every remainder, requests of up to 2 MiB.
pub(crate) fn widen(plan: &mut Plan, rng: &mut Rng) {
    plan.region_blocks = REGION_BLOCKS_DEFAULT;
    let region = u64::from(plan.region_blocks);
    let regions = match rng.chance(800) {
        true => rng.between(1, 6),
        false => rng.between(7, 40),
    };
    plan.blocks = (regions - 1) * region + rng.between(1, region);
    plan.blocks_max = match rng.chance(500) {
        true => rng.between(1, 4096),
        false => rng.between(1, 200),
    }
    .min(plan.blocks);
    plan.hot_blocks = plan.blocks;
    plan.stride = rng.between(30, 600);
    plan.steps = rng.between(100, 500);
}

/// Most runs change no limit. Drawn apart, so that those runs are what they are without limits.
pub(crate) fn limits(seed: u64) -> u64 {
    rate(&mut Rng::new(seed ^ 0x11_4175), 400, 300)
}

/// Most runs have no stall. Drawn apart, so that those runs are what they are without.
pub(crate) fn stalls(seed: u64) -> u64 {
    let rng = &mut Rng::new(seed ^ 0x57_a11);
    match rng.chance(250) {
        true => rng.between(50, 400),
        false => 0,
    }
}

/// Every other run has verifies. Drawn apart, as the limits are.
pub(crate) fn verifies(seed: u64) -> u64 {
    let rng = &mut Rng::new(seed ^ 0x7e_21f1);
    match rng.chance(500) {
        true => rng.between(50, 500),
        false => 0,
    }
}

/// Of a thousand runs `often` have it, at some rate up to `most`.
fn rate(rng: &mut Rng, often: u64, most: u64) -> u64 {
    match rng.chance(often) {
        true => rng.between(1, most),
        false => 0,
    }
}

impl Faults {
    fn draw(rng: &mut Rng) -> Self {
        let mut rate = |often, most| rate(rng, often, most);
        Self {
            write: rate(600, 20),
            everywhere: rate(400, 40),
            read: rate(500, 50),
            flush: rate(400, 60),
            sticky: rate(500, 500),
            flush_everywhere: rate(200, 60),
            changed: rate(300, 300),
            home: rate(200, 10),
            block: rate(150, 700),
            planned: 0,
        }
    }
}

/// The first member is a source; most others are too.
fn starts(rng: &mut Rng) -> Vec<Start> {
    let members = match rng.chance(100) {
        true => rng.between(1, 6),
        false => rng.between(2, 4),
    };
    let plain = rng.chance(600);
    let start = |n| match n {
        _ if plain => Start::Source,
        0 => Start::Source,
        _ => match rng.below(10) {
            0 => Start::StillMerging,
            1 => Start::Copy { resume: true },
            2 => Start::Detached,
            3 => Start::Expelled,
            4 => Start::Missing { equal: false },
            _ => Start::Source,
        },
    };
    (0..members).map(start).collect()
}
