//! The unit against a flat model: seeded operations on its file or on a loop device over it, and commands, stops and kills
//! between them. Each read is compared at once, all members byte for byte whenever everything is at rest.
//!
//! `SHADOWSET_REF_SEEDS` sets the number of seeds, `SHADOWSET_REF_SEED` runs one. A story that fails is cut down before it
//! is told.

mod ops;

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use shadowset::io::aligned::AlignedBuf;
use shadowset::io::sys::{self, Fallocate};
use shadowset::testing::Rng;

use crate::bed::{Plan, Unit, asked};
use ops::{BLOCK, Change, Op, Story, bytes};

/// Seeds that `make test` runs.
const SEEDS: u64 = 12;
/// How long a story that has failed is cut down.
const SHRINK: Duration = Duration::from_secs(60);
/// Writers of a burst, and writes of each.
const BURST: (u64, u64) = (3, 6);

/// The mounted unit, and what it has to hold.
struct World {
    unit: Unit,
    device: Option<String>,
    model: Vec<u8>,
    /// What the images of members hold that are away.
    away: Vec<Option<Vec<u8>>>,
}

impl World {
    fn begin(story: &Story) -> Self {
        let mut plan = Plan::new(story.members, story.size).options(story.options);
        if story.direct {
            plan = plan.direct();
        }
        let unit = plan.mount();
        let device = story.device.then(|| unit.loop_device());
        Self {
            unit,
            device,
            model: vec![0; story.size as usize],
            away: vec![None; story.members + 1],
        }
    }

    fn path(&self) -> PathBuf {
        match &self.device {
            Some(device) => PathBuf::from(device),
            None => self.unit.file(),
        }
    }

    fn open(&self, flags: i32) -> File {
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).custom_flags(flags);
        options.open(self.path()).expect("the unit opens")
    }

    fn size(&self) -> u64 {
        self.model.len() as u64
    }

    /// The part of a range that the unit has.
    fn inside(&self, at: u64, len: u64) -> Range<usize> {
        let cut = |end: u64| end.min(self.size()) as usize;
        cut(at)..cut(at + len)
    }

    /// As `inside`, in whole blocks where a device takes no others.
    fn blocks(&self, at: u64, len: u64) -> Range<usize> {
        let unit = if self.device.is_some() { BLOCK } else { 1 };
        let first = at / unit * unit;
        self.inside(first, (at + len).next_multiple_of(unit) - first)
    }

    fn run(&mut self, op: &Op) {
        match op {
            Op::Read { at, len } => self.read(*at, *len),
            Op::ReadDirect { at, len } => self.read_direct(*at, *len),
            Op::Write { at, len, fill } => self.write(0, *at, &bytes(*fill, *len)),
            Op::WriteSync { at, len, fill } => self.write(libc::O_SYNC, *at, &bytes(*fill, *len)),
            Op::WriteDirect { at, len, fill } => {
                let mut aligned = AlignedBuf::zeroed(*len as usize);
                aligned.copy_from_slice(&bytes(*fill, *len));
                self.write(libc::O_DIRECT, *at, &aligned);
            }
            Op::Map { at, len, fill } => self.map(*at, *len, *fill),
            Op::Copy { from, to, len } => self.copy(*from, *to, *len),
            Op::Punch { at, len } => self.zero(*at, *len, Fallocate::PunchHole),
            Op::Zero { at, len } => self.zero(*at, *len, Fallocate::ZeroRange),
            Op::Sync { data: true } => self.open(0).sync_data().expect("fdatasync"),
            Op::Sync { data: false } => self.open(0).sync_all().expect("fsync"),
            Op::Truncate => self.truncate(),
            Op::Burst { seed } => self.burst(*seed),
            Op::Command { text, what } => self.command(text, what),
            Op::Grow { blocks } => self.grow(*blocks),
            Op::Quiet => self.compare(),
            Op::Verify => self.verify(),
            Op::Restart => self.restart(Unit::stop),
            Op::Kill => self.restart(|unit| {
                unit.kill();
                unit.umount();
                unit.gone();
            }),
        }
    }

    fn read(&self, at: u64, len: u64) {
        let mut buf = vec![0; len as usize];
        let got = read_full(&self.open(0), &mut buf, at);
        self.assert_read(at, got, &buf);
    }

    fn read_direct(&self, at: u64, len: u64) {
        let mut buf = AlignedBuf::zeroed(len as usize);
        let got = read_full(&self.open(libc::O_DIRECT), &mut buf, at);
        self.assert_read(at, got, &buf);
    }

    fn assert_read(&self, at: u64, got: usize, buf: &[u8]) {
        let expected = &self.model[self.inside(at, buf.len() as u64)];
        assert_eq!(got, expected.len(), "bytes read at {at}");
        same(&buf[..got], expected, at, "a read");
    }

    fn write(&mut self, flags: i32, at: u64, data: &[u8]) {
        let range = self.inside(at, data.len() as u64);
        match self.open(flags).write_at(data, at) {
            Ok(written) => assert_eq!(written, range.len(), "bytes written at {at}"),
            Err(cause) => {
                assert!(range.is_empty(), "{cause}");
                assert_eq!(cause.raw_os_error(), Some(libc::ENOSPC));
            }
        }
        let len = range.len();
        self.model[range].copy_from_slice(&data[..len]);
    }

    fn map(&mut self, at: u64, len: u64, fill: u64) {
        let range = self.inside(at, len);
        if range.is_empty() {
            return;
        }
        let data = bytes(fill, range.len() as u64);
        std::fs::write(self.unit.path("piece"), &data).expect("a file");
        let (page, end) = (range.start & !4095, range.end);
        std::fs::write(self.unit.path("before"), &self.model[page..end]).expect("a file");
        self.unit.python(&format!(
            "
f = os.open('{}', os.O_RDWR)
m = mmap.mmap(f, {end} - {page}, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset={page})
assert m[:] == open(D + '/before', 'rb').read(), 'what is mapped'
m[{} - {page}:] = open(D + '/piece', 'rb').read()
m.flush()
m.close()
",
            self.path().display(),
            range.start
        ));
        self.model[range].copy_from_slice(&data);
    }

    fn copy(&mut self, from: u64, to: u64, len: u64) {
        let (source, target) = (self.inside(from, len), self.inside(to, len));
        let len = source.len().min(target.len());
        let (from, to) = (source.start, target.start);
        if len == 0 || (from < to + len && to < from + len) {
            return;
        }
        let (mut reader, mut writer) = (self.open(0), self.open(0));
        reader.seek(SeekFrom::Start(from as u64)).expect("a place");
        writer.seek(SeekFrom::Start(to as u64)).expect("a place");
        let copied = io::copy(&mut reader.take(len as u64), &mut writer);
        assert_eq!(copied.expect("copied"), len as u64);
        self.model.copy_within(from..from + len, to);
    }

    fn zero(&mut self, at: u64, len: u64, how: Fallocate) {
        let range = self.blocks(at, len);
        if range.is_empty() {
            return;
        }
        let (at, len) = (range.start as u64, range.len() as u64);
        match (&self.device, how) {
            (None, how) => {
                sys::fallocate(self.open(0).as_fd(), how, at, len).expect("zeros");
            }
            (Some(device), how) => {
                let zeros = if how == Fallocate::ZeroRange {
                    "-z"
                } else {
                    ""
                };
                let line = format!("blkdiscard {zeros} -f -o {at} -l {len} {device}");
                self.unit.sh(&line);
            }
        }
        self.model[range].fill(0);
    }

    fn truncate(&self) {
        if self.device.is_some() {
            return;
        }
        let sizes = [
            (self.size() - 1, libc::EPERM),
            (self.size() + 1, libc::EFBIG),
        ];
        for (size, errno) in sizes {
            let refused = self.open(0).set_len(size).expect_err("the size is fixed");
            assert_eq!(refused.raw_os_error(), Some(errno));
        }
    }

    /// Each writer has a part of whole pages, so that none touches a page of another.
    fn burst(&mut self, seed: u64) {
        let part = (self.size() / BURST.0).next_multiple_of(4096);
        let path = self.path();
        let parts = self.model.chunks_mut(part as usize);
        std::thread::scope(|scope| {
            for (n, model) in (0..).zip(parts) {
                let path = &path;
                scope.spawn(move || write_part(path, n * part, model, seed ^ n));
            }
        });
    }

    /// A refusal is one of the state that the set is in, and changes nothing.
    fn command(&mut self, text: &str, what: &Change) {
        self.open(0).sync_all().expect("fsync");
        match (self.unit.command(text.as_bytes()), what) {
            (Ok(_), Change::Leaves(n)) => self.away[*n] = Some(self.model.clone()),
            (Ok(_), Change::Returns(n)) => self.away[*n] = None,
            (Ok(_), Change::None) => {}
            (Err(refused), _) => {
                let never = [libc::ESTALE, libc::EIO, libc::ETIMEDOUT, libc::EUCLEAN];
                let wrong = never.contains(&refused.errno);
                assert!(!wrong, "{text}: {refused:?}");
            }
        }
    }

    fn grow(&mut self, blocks: u64) {
        self.rest();
        let members = 1..self.away.len();
        if !members.clone().all(|n| self.state(n) == "source") {
            return;
        }
        let mut size = self.size() + blocks * BLOCK;
        if self.model.len() % 4096 == 0 {
            size = size.next_multiple_of(4096);
        }
        for n in members {
            self.unit.sh(&format!("truncate -s {size} $I/m{n}.img"));
        }
        let grown = self.unit.accepted(&format!("resize {size}"));
        assert_eq!(grown.number("size"), size);
        if let Some(device) = &self.device {
            self.unit.sh(&format!("losetup -c {device}"));
        }
        self.model.resize(size as usize, 0);
    }

    /// Waits until no copy runs.
    fn rest(&self) {
        self.open(0).sync_all().expect("fsync");
        self.unit.rest();
    }

    fn state(&self, n: usize) -> String {
        self.unit.state_of(&format!("m{n}"))
    }

    fn compare(&self) {
        self.rest();
        self.read(0, self.size());
        for n in 1..self.away.len() {
            let image = self.unit.contents(&format!("m{n}"));
            match (self.state(n).as_str(), &self.away[n]) {
                ("source", _) => same(&image, &self.model, 0, &format!("m{n}")),
                (state @ ("detached" | "expelled"), Some(cut)) => {
                    same(&image[..cut.len()], cut, 0, &format!("m{n}, {state}"));
                }
                (state, _) => panic!("m{n} is {state} at rest"),
            }
        }
    }

    fn verify(&self) {
        self.rest();
        if let Ok(answer) = self.unit.command(b"verify") {
            let op = self.unit.finished(answer.number("operation"));
            assert_eq!(op["differing_blocks"], 0, "{op}");
        }
    }

    fn restart(&mut self, end: impl FnOnce(&mut Unit)) {
        self.open(0).sync_all().expect("fsync");
        let had = self.device.take();
        if let Some(device) = &had {
            self.unit.free(device);
        }
        end(&mut self.unit);
        self.unit.mount();
        self.device = had.map(|_| self.unit.loop_device());
    }

    /// Whoever is away comes back, and all members are the model.
    fn end(mut self) {
        self.rest();
        for n in 1..self.away.len() {
            if self.state(n) != "source" {
                self.unit.sh(&format!(
                    "shadowset attach dsa1 m{n} --policy minicopy=optional --wait"
                ));
            }
        }
        self.read(0, self.size());
        if let Some(device) = self.device.take() {
            self.unit.free(&device);
        }
        self.unit.stop();
        for n in 1..self.away.len() {
            let image = self.unit.contents(&format!("m{n}"));
            same(&image, &self.model, 0, &format!("m{n} at the end"));
        }
    }
}

/// Writes at random places of one part.
fn write_part(path: &PathBuf, from: u64, model: &mut [u8], seed: u64) {
    let mut rng = Rng::new(seed);
    let file = OpenOptions::new().write(true).open(path).expect("the unit");
    for _ in 0..BURST.1 {
        let at = rng.below(model.len() as u64);
        let len = 1 + rng.below((model.len() as u64 - at).min(100_000));
        let data = bytes(rng.bits(), len);
        file.write_all_at(&data, from + at).expect("written");
        model[at as usize..(at + len) as usize].copy_from_slice(&data);
    }
}

fn read_full(file: &File, buf: &mut [u8], at: u64) -> usize {
    let mut done = 0;
    while done < buf.len() {
        match file
            .read_at(&mut buf[done..], at + done as u64)
            .expect("read")
        {
            0 => break,
            n => done += n,
        }
    }
    done
}

/// Compares without printing what is megabytes long.
fn same(found: &[u8], expected: &[u8], at: u64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}: its length");
    if found == expected {
        return;
    }
    let differ = |n: &usize| found[*n] != expected[*n];
    let places: Vec<usize> = (0..found.len()).filter(differ).collect();
    let (first, last) = (
        at + places[0] as u64,
        at + *places.last().expect("one") as u64,
    );
    let count = places.len();
    panic!("{what}: {count} wrong bytes from {first} to {last}");
}

/// Runs a story; gives what has failed, and at which operation.
fn tell(story: &Story) -> Result<(), String> {
    let mut at = 0;
    let told = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::begin(story);
        for (n, op) in story.ops.iter().enumerate() {
            at = n;
            println!("{n} {op:?}");
            world.run(op);
        }
        at = story.ops.len();
        world.end();
    }));
    told.map_err(|cause| {
        let text = cause.downcast_ref::<String>().cloned();
        let text = text.or_else(|| cause.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        format!("operation {at}: {}", text.unwrap_or_default())
    })
}

/// Leaves out operations as long as the story fails and there is time.
fn shrink(story: &Story) -> Story {
    let (mut story, end) = (story.clone(), Instant::now() + SHRINK);
    let mut piece = story.ops.len().div_ceil(2);
    while piece > 0 {
        let mut at = 0;
        while at < story.ops.len() && Instant::now() < end {
            let mut shorter = story.clone();
            shorter.ops.drain(at..(at + piece).min(story.ops.len()));
            match tell(&shorter) {
                Ok(()) => at += piece,
                Err(_) => story = shorter,
            }
        }
        piece /= 2;
    }
    story
}

#[test]
fn a_unit_is_a_flat_file_whatever_happens_to_its_members() {
    let seeds = match asked("SHADOWSET_REF_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..asked("SHADOWSET_REF_SEEDS").unwrap_or(SEEDS),
    };
    let begun = Instant::now();
    for seed in seeds.clone() {
        let story = Story::of(seed);
        let Err(failed) = tell(&story) else { continue };
        let short = shrink(&story);
        panic!(
            "seed {seed}: {failed}\ncut down to {short:#?}\nagain: \
             SHADOWSET_REF_SEED={seed} cargo test --test mount reference"
        );
    }
    println!("{seeds:?}: {:.1?}", begun.elapsed());
}
