//! What is done to a unit that is compared with a flat model: drawn from a seed, run from a list.

use shadowset::testing::Rng;

use crate::bed::{MIB, REGION};

/// Operations of one seed.
const OPS: u64 = 60;
/// The largest request.
const LARGEST: u64 = 2 * MIB;
/// Bytes of the blocks of a disk.
pub(super) const BLOCK: u64 = 512;

/// One operation. Bytes to write are decided by a number.
#[derive(Clone, Debug)]
pub(super) enum Op {
    /// Through the page cache, past the end too.
    Read { at: u64, len: u64 },
    /// As `Read`, with `O_DIRECT`.
    ReadDirect { at: u64, len: u64 },
    /// Through the page cache; what lies behind the end is cut off or refused.
    Write { at: u64, len: u64, fill: u64 },
    /// With `O_DIRECT`.
    WriteDirect { at: u64, len: u64, fill: u64 },
    /// With `O_SYNC`.
    WriteSync { at: u64, len: u64, fill: u64 },
    /// Through shared memory, and msync(2).
    Map { at: u64, len: u64, fill: u64 },
    /// A copy within the unit.
    Copy { from: u64, to: u64, len: u64 },
    /// A hole, or a discard of a device.
    Punch { at: u64, len: u64 },
    /// Zeros that keep their space.
    Zero { at: u64, len: u64 },
    /// fsync(2), or fdatasync(2).
    Sync { data: bool },
    /// Another size, which is refused.
    Truncate,
    /// Several writers at once, each in a part of its own.
    Burst { seed: u64 },
    /// A command that may be refused, and whether it takes a member out or brings it in.
    Command { text: String, what: Change },
    /// The unit becomes larger by so many blocks, if all members are sources.
    Grow { blocks: u64 },
    /// Everything at rest: the members are compared.
    Quiet,
    /// A verify finds nothing.
    Verify,
    /// Stop and mount.
    Restart,
    /// kill -9 and mount.
    Kill,
}

/// What a command does to a member when it is carried out.
#[derive(Clone, Debug)]
pub(super) enum Change {
    None,
    Leaves(usize),
    Returns(usize),
}

/// A unit and what is done to it.
#[derive(Clone, Debug)]
pub(super) struct Story {
    pub(super) members: usize,
    pub(super) size: u64,
    pub(super) direct: bool,
    pub(super) options: &'static str,
    /// Through a loop device.
    pub(super) device: bool,
    pub(super) ops: Vec<Op>,
}

impl Story {
    /// The story of a seed.
    pub(super) fn of(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let size = size(&mut rng, seed);
        let members = [2, 3, 3, 1, 4][rng.place(5)];
        let options = [
            "",
            "",
            "durability=crash",
            "durability=memory",
            "read_policy=round-robin,hbmm_rtc=1",
            "copy_rate_max=20M",
        ];
        let mut story = Self {
            members,
            size,
            direct: size % 4096 == 0 && rng.chance(500),
            options: options[rng.place(options.len())],
            device: rng.chance(400),
            ops: Vec::new(),
        };
        for _ in 0..OPS {
            let op = story.draw(&mut rng);
            story.ops.push(op);
        }
        story.ops.push(Op::Quiet);
        story
    }

    fn draw(&self, rng: &mut Rng) -> Op {
        let (at, len) = range(rng, self.size);
        let (from, count) = (at / BLOCK * BLOCK, len.div_ceil(BLOCK) * BLOCK);
        let fill = rng.bits();
        let weights = [14, 5, 22, 10, 4, 2, 6, 5, 4, 4, 1, 6, 14, 1, 2, 1, 1, 2];
        match rng.weighted(&weights).expect("not all are zero") {
            0 => Op::Read { at, len },
            1 => Op::ReadDirect {
                at: from,
                len: count,
            },
            2 => Op::Write { at, len, fill },
            3 => Op::WriteDirect {
                at: from,
                len: count,
                fill,
            },
            4 => Op::WriteSync { at, len, fill },
            5 => Op::Map { at, len, fill },
            6 => Op::Copy {
                from: range(rng, self.size).0,
                to: at,
                len,
            },
            7 => Op::Punch { at, len },
            8 => Op::Zero { at, len },
            9 => Op::Sync {
                data: rng.chance(500),
            },
            10 => Op::Truncate,
            11 => Op::Burst { seed: fill },
            12 => command(rng, self.members),
            13 => Op::Grow {
                blocks: rng.between(1, 300),
            },
            14 => Op::Quiet,
            15 => Op::Verify,
            16 => Op::Restart,
            _ => Op::Kill,
        }
    }
}

/// Some regions and a remainder: of each seed another kind.
fn size(rng: &mut Rng, seed: u64) -> u64 {
    let blocks = REGION / BLOCK;
    let remainder = match seed % 6 {
        0 => 0,
        1 => 1,
        2 => blocks - 1,
        3 => 8 * rng.between(1, blocks / 8),
        _ => rng.between(1, blocks - 1),
    };
    let regions = match rng.place(4) {
        0 => rng.between(1, 3),
        1 => 64,
        _ => rng.between(4, 80),
    };
    let size = (regions * blocks + remainder) * BLOCK;
    // Members past the page cache want whole pages.
    if seed % 6 == 3 {
        size / 4096 * 4096
    } else {
        size
    }
}

/// A range, often near the border of a region or the end, sometimes behind it.
fn range(rng: &mut Rng, size: u64) -> (u64, u64) {
    let len = match rng.place(5) {
        0 => 1 + rng.below(16),
        1 => rng.between(1, 3) * BLOCK,
        2 => 1 + rng.below(REGION / 4),
        3 => 1 + rng.below(3 * REGION),
        _ => 1 + rng.below(LARGEST),
    };
    let near = |place: u64, rng: &mut Rng| (place + rng.below(1200)).saturating_sub(600);
    let at = match rng.place(5) {
        0 => near(rng.below(size / REGION + 1) * REGION, rng),
        1 => near(size, rng),
        2 => size.saturating_sub(len),
        _ => rng.below(size),
    };
    (at, len)
}

/// A command with a member that may fit it or not.
fn command(rng: &mut Rng, members: usize) -> Op {
    let n = rng.between(1, members as u64) as usize;
    let member = format!("m{n}");
    let detach = ["minicopy", "minicopy", "minicopy=optional", "none"];
    let attach = [
        "minicopy",
        "minicopy=optional",
        "minicopy=optional",
        "compare",
        "full",
    ];
    let others = [
        "merge",
        "merge full",
        "set max_copies 1",
        "set max_copies 4",
        "set copy_depth 1",
        "set copy_rate_max 200M",
        "set read_policy round-robin",
        "set read_policy cost",
        "set hbmm_rtc 1",
        "set wbm_msg_mode 1",
        "stall 1",
        "unstall",
        "reset-counters",
    ];
    let (text, what) = match rng.place(7) {
        0 | 1 => (
            format!("detach {member} policy={}", detach[rng.place(4)]),
            Change::Leaves(n),
        ),
        2..=4 => (
            format!("attach {member} policy={}", attach[rng.place(5)]),
            Change::Returns(n),
        ),
        5 if rng.chance(400) => (format!("expel {member}"), Change::Leaves(n)),
        _ => (others[rng.place(others.len())].to_owned(), Change::None),
    };
    Op::Command { text, what }
}

/// The bytes that a number decides.
pub(super) fn bytes(fill: u64, len: u64) -> Vec<u8> {
    let mut rng = Rng::new(fill);
    let words = (0..len.div_ceil(8)).flat_map(|_| rng.bits().to_le_bytes());
    words.take(usize::try_from(len).expect("small")).collect()
}
