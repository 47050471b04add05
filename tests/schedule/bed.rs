//! A unit in a schedule: real images and control blocks on tmpfs, the real server, and threads that use it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use shadowset::io::{Seek, scb_file};
use shadowset::server::params::Param;
use shadowset::server::setup::{
    Durability, IoMode, MemberSetup, Mounting, Protect, Setup, default_scb,
};
use shadowset::server::{Handle, Published, Request, Running, create, inspect, start};
use shadowset::set::{
    Answer, AttachPolicy, Bytes, Code, OpId, Policy, Refusal, ScbFound, UNLIMITED,
};
use shadowset::sync::channel::bounded;
use shadowset::sync::thread::{self, JoinHandle};
use shadowset::sync::{Condvar, Mutex, world};
use shuttle::rand::{Rng, thread_rng};

use super::history::{History, Id, contents};
use super::member::{BLOCK, Members};

/// Blocks of the unit: five regions and a short one.
pub(crate) const BLOCKS: usize = 5 * REGION + 3;
/// Blocks of a region.
pub(crate) const REGION: usize = 8;

/// No wait takes so long.
const LONG: Duration = Duration::from_secs(600);

/// A running unit.
pub(crate) struct Bed {
    setup: Setup,
    running: Option<Running>,
    pub(crate) unit: Unit,
    changed: Arc<Changed>,
    _dir: tempfile::TempDir,
}

/// Counts states that were published.
type Changed = (Mutex<u64>, Condvar);

/// What a thread needs that uses the unit.
#[derive(Clone)]
pub(crate) struct Unit {
    pub(crate) handle: Handle,
    pub(crate) members: Arc<Members>,
    pub(crate) history: Arc<History>,
    /// Where the control blocks of the members are.
    blocks: Arc<[PathBuf]>,
}

impl Bed {
    /// A new unit, started.
    pub(crate) fn new(members: usize, durability: Durability) -> Self {
        Self::of(members, durability, Members::default())
    }

    /// As [`Self::new`], of members that answer later.
    pub(crate) fn later(members: usize, durability: Durability) -> Self {
        let mut watched = Members::default();
        watched.later = true;
        Self::of(members, durability, watched)
    }

    fn of(members: usize, durability: Durability, watched: Members) -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a tmpfs");
        let setup = setup(dir.path(), members, durability);
        let watched = Arc::new(watched);
        watched.watch();
        let size = Bytes(BLOCKS as u64 * BLOCK);
        create::create(&setup, None, Some(size), false).expect("created");
        let (running, handle, changed) = run(&setup);
        let blocks = setup.members.iter().map(|m| m.scb.clone()).collect();
        Self {
            setup,
            running: Some(running),
            unit: Unit {
                handle,
                members: watched,
                history: Arc::new(History::new(BLOCKS)),
                blocks,
            },
            changed,
            _dir: dir,
        }
    }

    /// Starts the unit once more.
    pub(crate) fn start(&mut self) {
        let (running, handle, changed) = run(&self.setup);
        (self.running, self.unit.handle, self.changed) = (Some(running), handle, changed);
    }

    /// Stops the unit in order.
    pub(crate) fn stop(&mut self) {
        let running = self.running.take().expect("it runs");
        running.stop().expect("stopped in order");
    }

    /// The image of a member, as its file is.
    pub(crate) fn image(&self, place: usize) -> Vec<u8> {
        std::fs::read(&self.setup.members[place].path).expect("an image")
    }

    /// Waits until the state is as it should be.
    pub(crate) fn until(&self, is: impl Fn(&Published) -> bool) {
        let (count, changed) = &*self.changed;
        let seen = count.lock().unwrap_or_else(PoisonError::into_inner);
        let wrong = |_: &mut u64| !is(&self.unit.handle.state());
        let waited = changed.wait_timeout_while(seen, LONG, wrong);
        let in_time = !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out();
        if !in_time {
            let events = self.unit.handle.events();
            let events: Vec<_> = events.iter().map(|e| (&e.event, &e.facts)).collect();
            panic!("it does not come to its end: {events:#?}");
        }
    }

    /// Waits until all members are sources and nothing is under way.
    pub(crate) fn until_whole(&self) {
        self.until(|now| {
            now.set.members.iter().all(|m| m.state == "source")
                && now.set.operations.iter().all(|op| op.state.is_over())
        });
    }

    /// Detaches a member with a bitmap, and checks its image.
    pub(crate) fn detach(&self, place: usize) -> Vec<u8> {
        let history = &self.unit.history;
        let mut begun = history.now();
        while let Err(refusal) = self.unit.command(detach(place)) {
            // Where time passes as it likes it may take too long; then the member comes back, or leaves late.
            assert_eq!(refusal.code, Code::TimedOut, "{refusal:?}");
            self.until(|now| ["source", "detached"].contains(&now.set.members[place].state));
            if self.unit.handle.state().set.members[place].state == "detached" {
                break;
            }
            begun = history.now();
        }
        let (ended, cut) = (history.now(), self.image(place));
        history.check_cut(&cut, (begun, ended));
        let durable = self.unit.members.durable(place);
        assert!(cut == durable, "I5: the detached image is not flushed");
        cut
    }

    /// Attaches a member that was expelled, once all its calls have returned.
    pub(crate) fn attach_again(&self, place: usize) {
        let back = || attach_by(place, AttachPolicy::MinicopyOptional);
        while let Err(refusal) = self.unit.command(back()) {
            assert_eq!(refusal.code, Code::InUse, "{refusal:?}");
            world::pause(Duration::from_millis(100));
        }
    }

    /// As [`Self::attach_again`], until all members are sources.
    pub(crate) fn bring_back(&self, place: usize) {
        self.attach_again(place);
        self.until_whole();
    }

    /// Attaches a member that was detached, whose image must be as it was.
    pub(crate) fn attach(&self, place: usize, cut: &[u8]) {
        assert!(self.image(place) == cut, "I5: a detached image has changed");
        self.unit.command(attach(place)).expect("attached");
    }

    /// Stops the unit, and demands that all sources are equal and hold what was written last.
    pub(crate) fn finish(mut self) {
        let state = self.unit.handle.state();
        self.stop();
        let now = self.unit.history.now();
        let sources = state.set.members.iter().filter(|m| m.state == "source");
        for member in sources {
            let place = member.id.index();
            let image = self.image(place);
            self.unit.history.check("at the end", 0, &image, (now, now));
            assert!(
                image == self.image(state.set.master.index()),
                "{place} differs"
            );
            assert!(
                image == self.unit.members.durable(place),
                "I10: member {place} is not flushed at the end"
            );
        }
    }
}

impl Unit {
    /// Gives a command and waits for its answer.
    pub(crate) fn command(&self, request: Request) -> Result<Answer, Refusal> {
        let (sender, answer) = bounded(1);
        let done = move |outcome| drop(sender.send(outcome));
        self.handle.submit(request, Box::new(done));
        answer.recv().expect("every command is answered")
    }

    /// Writes some blocks.
    pub(crate) fn write(&self, first: usize, end: usize) -> bool {
        let id = self.history.begin(first, end);
        let opened = [0, 1, 2].map(|place| self.members.opened(place));
        let bytes = contents(id, end - first);
        let written = self.handle.pipeline().write(first as u64 * BLOCK, &bytes);
        if written.is_ok() {
            self.check_left(id, opened);
            self.history.acknowledge(id);
        }
        written.is_ok()
    }

    /// When a write that missed a member is acknowledged, the blocks of the sources say that it has left (I3). Not of one
    /// that has come back by now: its bitmap had the write.
    fn check_left(&self, id: Id, opened: [u64; 3]) {
        let state = self.handle.state();
        let missed = |at: &usize| self.members.has_missed(*at, id);
        let away = |at: &usize| self.members.opened(*at) == opened[*at];
        for place in (0..state.set.members.len()).filter(missed).filter(away) {
            let of_sources = (0..self.blocks.len()).filter(|at| *at != place);
            for block in of_sources.map(|at| scb_file::read(&self.blocks[at])) {
                let ScbFound::Read(scb) = block.expect("it can be read") else {
                    panic!("a source has no block");
                };
                let row = scb.table.iter().find(|row| row.name == name(place));
                let left = row.is_none_or(|row| row.state.has_left()) || scb.state.has_left();
                assert!(
                    left,
                    "I3: write {id} missed member {place}, and nothing durable says so"
                );
            }
        }
    }

    /// Reads some blocks and checks them.
    pub(crate) fn read(&self, first: usize, end: usize) {
        let begun = self.history.now();
        let mut bytes = vec![0; (end - first) * BLOCK as usize];
        let read = self
            .handle
            .pipeline()
            .read(first as u64 * BLOCK, &mut bytes);
        assert_eq!(read, Ok(bytes.len()), "a source is left");
        let ended = self.history.now();
        self.history
            .check("I11: a read", first, &bytes, (begun, ended));
    }

    /// Flushes, and checks that what was acknowledged before is durable on every source (I10).
    pub(crate) fn flush(&self) {
        let begun = self.history.now();
        self.handle.pipeline().flush().expect("a source is left");
        let ended = self.history.now();
        for place in inspect::sources() {
            let durable = self.members.durable(place);
            self.history
                .check("I10: flushed", 0, &durable, (begun, ended));
        }
    }

    /// Starts a thread.
    pub(crate) fn spawn(&self, run: impl FnOnce(Self) + Send + 'static) -> JoinHandle<()> {
        let unit = self.clone();
        thread::spawn(move || run(unit))
    }

    /// A thread that writes at random.
    pub(crate) fn writer(&self, writes: usize) -> JoinHandle<()> {
        self.spawn(move |unit| {
            for _ in 0..writes {
                let (first, end) = some_blocks();
                assert!(unit.write(first, end), "a source is left");
            }
        })
    }

    /// A thread that writes the same few blocks as others.
    pub(crate) fn crowd(&self, writes: usize) -> JoinHandle<()> {
        self.spawn(move |unit| {
            for first in 0..writes {
                assert!(unit.write(first, first + 3), "a source is left");
            }
        })
    }

    /// A thread that writes and flushes.
    pub(crate) fn flusher(&self, writes: usize) -> JoinHandle<()> {
        self.spawn(move |unit| {
            for _ in 0..writes {
                let (first, end) = some_blocks();
                assert!(unit.write(first, end), "a source is left");
                unit.flush();
            }
        })
    }

    /// The operation that was begun last.
    pub(crate) fn last_operation(&self) -> OpId {
        let state = self.handle.state();
        let last = state.set.operations.last();
        last.expect("an operation").id
    }

    /// A thread that reads at random, and asks for data.
    pub(crate) fn reader(&self, reads: usize) -> JoinHandle<()> {
        self.spawn(move |unit| {
            for _ in 0..reads {
                let (first, end) = some_blocks();
                unit.read(first, end);
                // Behind the last byte of data there is none.
                let _ = unit
                    .handle
                    .pipeline()
                    .seek(first as u64 * BLOCK, Seek::Data);
            }
        })
    }
}

/// Starts a unit whose copies give way to nobody, and whose members take turns at reads.
fn run(setup: &Setup) -> (Running, Handle, Arc<Changed>) {
    let mut mounting = Mounting::default();
    mounting.params.set(Param::CopyRateMin, UNLIMITED);
    mounting.params.set(Param::ReadPolicy, 1);
    let running = start(setup, &mounting).expect("started");
    let (handle, changed) = (running.handle(), Arc::<Changed>::default());
    let tell = Arc::clone(&changed);
    handle.on_change(Box::new(move || {
        *tell.0.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        tell.1.notify_all();
    }));
    (running, handle, changed)
}

/// Blocks in one or two regions; threads meet often.
pub(crate) fn some_blocks() -> (usize, usize) {
    let first = thread_rng().gen_range(0..BLOCKS);
    let end = (first + thread_rng().gen_range(1..=4)).min(BLOCKS);
    (first, end)
}

pub(crate) fn join(threads: impl IntoIterator<Item = JoinHandle<()>>) {
    for thread in threads {
        thread.join().expect("it has found nothing wrong");
    }
}

pub(crate) fn name(place: usize) -> String {
    format!("m{}", place + 1)
}

pub(crate) fn detach(place: usize) -> Request {
    Request::Detach {
        member: name(place),
        policy: Some(Policy::Minicopy),
    }
}

pub(crate) fn attach(place: usize) -> Request {
    attach_by(place, AttachPolicy::Minicopy)
}

pub(crate) fn attach_by(place: usize, policy: AttachPolicy) -> Request {
    Request::Attach {
        what: name(place),
        name: None,
        policy,
        source: None,
        confirm: false,
    }
}

fn setup(dir: &Path, members: usize, durability: Durability) -> Setup {
    let member = |place: usize| {
        let path: PathBuf = dir.join(format!("{}.img", name(place)));
        MemberSetup {
            name: name(place),
            scb: default_scb(&name(place), &path, dir),
            path,
            read_cost: 0,
            site: 0,
            timeout: 0,
            io: IoMode::Buffered,
            protect: Protect::None,
        }
    };
    Setup {
        unit: "dsa1".into(),
        label: Some("test".into()),
        region_blocks: REGION as u32,
        durability,
        state_dir: dir.to_owned(),
        members: (0..members).map(member).collect(),
    }
}
