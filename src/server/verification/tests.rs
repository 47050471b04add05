//! Goal: a member that does not answer holds what it must hold and nothing else. Method: the data path on members in
//! memory that hang when they are told to, with a control thread that says yes to everything. Most of these tell
//! of a mistake that was there once.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Condvar, Mutex, Weak};

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::super::pipeline::{Errno, Live, Stores};
use super::super::rescue::Held;
use super::super::setup::{Durability, MemberSetup, Protect, Setup, default_scb};
use super::super::shares::Step;
use super::super::step::{Hold, Scratch, Target, copy_range};
use super::super::{create, start};
use super::*;
use crate::io::{IoMode, Payload, Queue, Seek, Storage, Then, Zero, Zeroed, sys};
use crate::server::params::{Params, Values};
use crate::server::setup::Mounting;
use crate::set::copy::MergeRest;
use crate::set::view::{Role, Seat};
use crate::set::{ByteRange, Bytes, Epoch, Verdict, View, WriteBitmap};

const SIZE: u64 = 1 << 20;
/// Bytes of which a slow member makes zeros in a call.
const PART: u64 = 8 << 10;
pub(in crate::server) const SOON: Duration = Duration::from_secs(30);

/// Waits until something is so; some of it takes its ten seconds.
pub(in crate::server) fn eventually(so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !so() {
        assert!(begun.elapsed() < SOON, "it should have happened by now");
        sys::poll(&[], Some(Duration::from_millis(5))).expect("a pause");
    }
}

/// A member in memory.
#[derive(Debug, Default)]
pub(in crate::server) struct Memory {
    pub(in crate::server) bytes: Mutex<Vec<u8>>,
    hangs: Mutex<bool>,
    goes_on: Condvar,
    calls: AtomicUsize,
    /// So many first calls are answered, hang or not.
    pub(in crate::server) answers: AtomicUsize,
    cannot_read: AtomicBool,
    pub(in crate::server) cannot_write: AtomicBool,
    /// So many reads and writes to come find it out of reach.
    blips: AtomicUsize,
    /// Whether it answers later; then itself, for the threads that it answers on.
    later: Option<Weak<Self>>,
    /// What is asked for later comes to nothing.
    cannot_queue: AtomicBool,
    /// It has no byte of data.
    pub(in crate::server) is_hole: AtomicBool,
    /// It is slow to make room and zeros, which it writes; then who watches whether it answers.
    slow: Mutex<Weak<Pipeline>>,
    /// The next flush fails; the one behind it does not say so.
    pub(in crate::server) fails_flush: AtomicBool,
}

impl Memory {
    pub(in crate::server) fn hang(&self, hangs: bool) {
        *self.hangs.lock().expect("no panic") = hangs;
        self.goes_on.notify_all();
    }

    fn answer(&self) {
        if self.calls.fetch_add(1, SeqCst) < self.answers.load(SeqCst) {
            return;
        }
        let hangs = self.hangs.lock().expect("no panic");
        let waited = self.goes_on.wait_while(hangs, |hangs| *hangs);
        drop(waited.expect("no panic"));
    }

    fn reach(&self) -> io::Result<()> {
        let fewer = |blips: usize| blips.checked_sub(1);
        match self.blips.fetch_update(SeqCst, SeqCst, fewer) {
            Ok(_) => Err(io::Error::from_raw_os_error(libc::ENOTCONN)),
            Err(_) => Ok(()),
        }
    }

    /// Works on the first of so many bytes for half a second, while it is watched.
    fn work(&self, len: u64) -> Option<u64> {
        self.calls.fetch_add(1, SeqCst);
        let pipeline = self.slow.lock().expect("no panic").upgrade()?;
        pipeline.watch.pass(Duration::from_millis(500));
        Look::default().look(&pipeline);
        Some(len.min(PART))
    }

    pub(in crate::server) fn first(&self) -> u8 {
        self.bytes.lock().expect("no panic")[0]
    }

    /// Waits for so many calls.
    pub(in crate::server) fn is_called(&self, calls: usize) {
        eventually(|| self.calls.load(SeqCst) >= calls);
    }
}

impl Storage for Memory {
    fn len(&self) -> u64 {
        SIZE
    }

    fn measure(&self) -> io::Result<u64> {
        self.answer();
        Ok(SIZE)
    }

    fn align(&self) -> u64 {
        1
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        self.answer();
        self.reach()?;
        if self.cannot_read.load(SeqCst) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let bytes = self.bytes.lock().expect("no panic");
        buf.copy_from_slice(&bytes[at as usize..][..buf.len()]);
        Ok(())
    }

    fn write_at(&self, buf: &[u8], at: u64) -> io::Result<()> {
        self.answer();
        self.reach()?;
        if self.cannot_write.load(SeqCst) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let mut bytes = self.bytes.lock().expect("no panic");
        bytes[at as usize..][..buf.len()].copy_from_slice(buf);
        Ok(())
    }

    fn zero_at(&self, at: u64, len: u64, _how: Zero) -> io::Result<Zeroed> {
        let part = self.work(len);
        let (bytes, written) = (part.unwrap_or(len), part.is_some());
        self.bytes.lock().expect("no panic")[at as usize..][..bytes as usize].fill(0);
        Ok(Zeroed { bytes, written })
    }

    fn allocate(&self, _at: u64, len: u64) -> io::Result<u64> {
        Ok(self.work(len).unwrap_or(len))
    }

    fn flush(&self) -> io::Result<()> {
        self.answer();
        match self.fails_flush.swap(false, SeqCst) {
            true => Err(io::Error::from_raw_os_error(libc::EIO)),
            false => Ok(()),
        }
    }

    fn seek(&self, at: u64, _what: Seek) -> io::Result<Option<u64>> {
        self.answer();
        match self.cannot_read.load(SeqCst) {
            true => Err(io::Error::from_raw_os_error(libc::EIO)),
            false => Ok(Some(at).filter(|_| !self.is_hole.load(SeqCst))),
        }
    }

    fn finds_holes(&self) -> bool {
        false
    }

    fn queue(&self) -> Option<&dyn Queue> {
        self.later.is_some().then_some(self)
    }
}

impl Queue for Memory {
    fn begin(&self, at: u64, len: usize, mut payload: Payload, then: Then) {
        let member = self.later.as_ref().and_then(Weak::upgrade);
        let member = member.expect("it is there");
        std::thread::spawn(move || {
            let outcome = match &mut payload {
                _ if member.cannot_queue.load(SeqCst) => Err(io::Error::other("a part only")),
                Payload::Room(slot) => member.read_at(&mut slot[..len], at),
                Payload::Data(slot) => member.write_at(&slot[..len], at),
            };
            drop(member);
            then(outcome, payload);
        });
    }
}

/// A data path that is watched.
pub(in crate::server) struct Bed {
    pub(in crate::server) pipeline: Arc<Pipeline>,
    pub(in crate::server) members: Vec<Arc<Memory>>,
    heard: Arc<Mutex<Vec<String>>>,
    /// Who holds it holds all verdicts back.
    pub(in crate::server) verdicts: Arc<Mutex<()>>,
}

impl Bed {
    pub(in crate::server) fn new(members: usize) -> Self {
        Self::of(&vec![false; members])
    }

    /// Members of which some answer later.
    fn of(later: &[bool]) -> Self {
        let bed = Self::unwatched(later);
        let watched = Arc::clone(&bed.pipeline);
        std::thread::spawn(move || watched.keep_watch());
        bed
    }

    /// The same, and nobody watches.
    pub(in crate::server) fn unwatched(later: &[bool]) -> Self {
        let view = view_of(later.len());
        let member = |later: &bool| {
            Arc::new_cyclic(|this| Memory {
                bytes: Mutex::new(vec![1; SIZE as usize]),
                later: later.then(|| Weak::clone(this)),
                ..Memory::default()
            })
        };
        let members: Vec<Arc<Memory>> = later.iter().map(member).collect();
        let mut stores = Stores::default();
        for (store, member) in stores.iter_mut().zip(&members) {
            *store = Some(Arc::clone(member) as Arc<dyn Storage>);
        }
        let (messages, inbox) = unbounded();
        let live = Live::new(view, &stores, messages);
        let params = Arc::new(Params::new(Values::default()));
        let pipeline = Pipeline::new(live, false, None, params);
        let verdicts = Arc::default();
        Self {
            pipeline,
            members,
            heard: control(inbox, Arc::clone(&verdicts)),
            verdicts,
        }
    }

    /// How often the first two members were called.
    pub(in crate::server) fn calls(&self) -> [usize; 2] {
        [0, 1].map(|at| self.members[at].calls.load(SeqCst))
    }

    pub(in crate::server) fn has_heard(&self, what: &str) -> bool {
        let heard = self.heard.lock().expect("no panic");
        heard.iter().any(|heard| heard.starts_with(what))
    }

    pub(in crate::server) fn hears(&self, what: &str) {
        eventually(|| self.has_heard(what));
    }

    /// Waits until all has been heard that was told, and looks for something.
    fn has_heard_by_now(&self, what: &str) -> bool {
        let last = Message::Event(Event::TooSlow(id(5)));
        self.pipeline.messages.send(last).expect("it is heard");
        self.hears("TooSlow(MemberId(5))");
        self.has_heard(what)
    }

    /// A member is slow to make zeros.
    fn slow_down(&self, at: usize) -> &Memory {
        let member = &self.members[at];
        *member.slow.lock().expect("no panic") = Arc::downgrade(&self.pipeline);
        member
    }

    pub(in crate::server) fn write(&self, at: u64) -> Receiver<Result<(), Errno>> {
        let (pipeline, (done, written)) = (Arc::clone(&self.pipeline), unbounded());
        let tell = move |outcome| {
            let _ = done.send(outcome);
        };
        std::thread::spawn(move || pipeline.write_then(at, &[7; 4096], Box::new(tell)));
        written
    }

    fn read(&self, at: u64) -> Receiver<Result<usize, Errno>> {
        let (pipeline, (done, read)): (_, (Sender<_>, _)) =
            (Arc::clone(&self.pipeline), unbounded());
        let tell = move |outcome: Result<&[u8], Errno>| {
            let _ = done.send(outcome.map(<[u8]>::len));
        };
        std::thread::spawn(move || {
            pipeline.read_then(at, &mut [0; 4096], Box::new(tell));
        });
        read
    }

    fn seek(&self, at: u64) -> Receiver<Result<u64, Errno>> {
        let (pipeline, (done, sought)) = (Arc::clone(&self.pipeline), unbounded());
        let tell = move |outcome| {
            let _ = done.send(outcome);
        };
        std::thread::spawn(move || pipeline.seek_then(at, Seek::Data, Box::new(tell)));
        sought
    }

    /// Another epoch begins.
    fn publish(&self, view: crate::set::View) {
        let mut stores = Stores::default();
        for (store, member) in stores.iter_mut().zip(&self.members) {
            *store = Some(Arc::clone(member) as Arc<dyn Storage>);
        }
        let messages = self.pipeline.messages.clone();
        self.pipeline.publish(Live::new(view, &stores, messages));
    }

    pub(in crate::server) fn abort(&self, places: &[usize]) {
        let members = places.iter().filter_map(|at| MemberId::new(*at));
        self.pipeline.abort(members.collect());
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.members.iter().for_each(|member| member.hang(false));
        self.pipeline.end_watch();
    }
}

pub(in crate::server) fn id(at: usize) -> MemberId {
    MemberId::new(at).expect("a place")
}

/// The first View of a set of so many members.
fn view_of(members: usize) -> crate::set::View {
    let dir = tempfile::tempdir().expect("a directory");
    let member = |n: usize| {
        let name = format!("m{}", n + 1);
        let path = dir.path().join(&name);
        MemberSetup {
            scb: default_scb(&name, &path, dir.path()),
            name,
            path,
            read_cost: 0,
            site: 0,
            timeout: 0,
            io: IoMode::Buffered,
            protect: Protect::None,
        }
    };
    let setup = Setup {
        unit: "dsa1".into(),
        label: None,
        region_blocks: 127,
        durability: Durability::Memory,
        state_dir: dir.path().join("state"),
        members: (0..members).map(member).collect(),
    };
    create::create(&setup, None, Some(Bytes(SIZE)), false).expect("created");
    let running = start(&setup, &Mounting::default()).expect("started");
    let view = running.handle().pipeline().live().view().clone();
    running.stop().expect("stopped");
    view
}

/// Says yes to everything, and notes what it hears.
fn control(inbox: Receiver<Message>, verdicts: Arc<Mutex<()>>) -> Arc<Mutex<Vec<String>>> {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let notes = Arc::clone(&heard);
    std::thread::spawn(move || {
        for message in inbox {
            let (note, answer) = match message {
                Message::Failed(failure, answer) => {
                    let what = if failure.range.is_some() {
                        ""
                    } else {
                        " flush"
                    };
                    (format!("Failed{what}"), Some(answer))
                }
                Message::ReadFailed(id, _) => (format!("ReadFailed {}", id.index()), None),
                Message::Event(event) => (format!("{event:?}"), None),
                _ => continue,
            };
            notes.lock().expect("no panic").push(note);
            let _verdict = verdicts.lock();
            let _ = answer.map(|answer| answer.send(Verdict::Acknowledge));
        }
    });
    heard
}

/// The second rescue once had no bytes, and what it wrote to the third member was nothing.
#[test]
fn a_write_that_two_members_hold_comes_to_the_third() {
    let bed = Bed::new(3);
    bed.members[0].hang(true);
    bed.members[1].hang(true);
    let written = bed.write(0);
    bed.members[0].is_called(1);
    bed.pipeline.give_up(id(0));
    bed.members[1].is_called(1);
    bed.pipeline.give_up(id(1));
    assert_eq!(written.recv_timeout(SOON), Ok(Ok(())));
    assert_eq!(bed.members[2].first(), 7);
}

/// A stop did not wait for it, and marked members clean that differed.
#[test]
fn a_stop_waits_for_a_write_that_goes_on_in_place_of_a_thread() {
    let bed = Bed::new(3);
    bed.members[1].hang(true);
    bed.members[2].hang(true);
    let written = bed.write(0);
    bed.members[1].is_called(1);
    bed.pipeline.give_up(id(1));
    bed.members[2].is_called(1);
    assert!(!bed.pipeline.flying.wait(Duration::ZERO));
    bed.members[2].hang(false);
    assert_eq!(written.recv_timeout(SOON), Ok(Ok(())));
    assert!(bed.pipeline.flying.wait(SOON));
}

#[test]
fn a_stop_waits_for_a_write_that_a_member_holds() {
    let bed = Bed::new(2);
    bed.members[0].hang(true);
    let written = bed.write(0);
    bed.members[0].is_called(1);
    bed.pipeline.await_changes();
    assert!(!bed.pipeline.flying.wait(Duration::ZERO));
    bed.members[0].hang(false);
    assert_eq!(written.recv_timeout(SOON), Ok(Ok(())));
    assert!(bed.pipeline.flying.wait(SOON));
}

#[test]
fn a_stop_waits_for_the_verdict_on_a_write_that_was_given_up() {
    let bed = Bed::new(1);
    bed.members[0].hang(true);
    let written = bed.write(0);
    bed.members[0].is_called(1);
    let verdicts = bed.verdicts.lock().expect("no panic");
    bed.abort(&[0]);
    assert!(!bed.pipeline.flying.wait(Duration::ZERO));
    drop(verdicts);
    assert!(written.recv_timeout(SOON).is_ok());
    assert!(bed.pipeline.flying.wait(SOON));
}

/// The read once went from thread to thread for ever.
#[test]
fn a_read_fails_that_one_member_cannot_answer_and_the_other_has_left() {
    let bed = Bed::new(2);
    bed.members[0].cannot_read.store(true, SeqCst);
    bed.members[1].hang(true);
    let read = bed.read(0);
    bed.members[1].is_called(1);
    bed.hears("ReadFailed 0");
    bed.pipeline.give_up(id(1));
    assert_eq!(read.recv_timeout(SOON), Ok(Err(Errno(libc::EIO))));
}

/// The watching thread once slept on while a flush hung.
#[test]
fn a_flush_that_hangs_is_noticed_on_a_unit_that_rests() {
    let bed = Bed::new(2);
    assert_eq!(bed.write(0).recv_timeout(SOON), Ok(Ok(())));
    eventually(|| bed.pipeline.watch.is_asleep());
    bed.members[1].hang(true);
    let pipeline = Arc::clone(&bed.pipeline);
    std::thread::spawn(move || pipeline.flush());
    bed.members[1].is_called(2);
    bed.hears("Silent");
}

/// The first call behind a rest once counted as 100 ms old, so that its read went to another member as well.
#[test]
fn a_call_that_ends_a_rest_has_only_begun() {
    let bed = Bed::unwatched(&[false, false]);
    let (mut look, watch) = (Look::default(), &bed.pipeline.watch);
    let mut last = Instant::now().checked_sub(TICK_MAX * 2).expect("a time");
    look.look(&bed.pipeline);
    let since = watch.now();
    watch.rouse();
    look.sleep(&bed.pipeline, &mut last);
    let ticket = watch.begin((id(0), since), Held::Nothing);
    look.look(&bed.pipeline);
    assert!(bed.pipeline.silent_members().is_empty());
    // From here on its time counts.
    last = last.checked_sub(TICK_MAX).expect("a time");
    watch.rouse();
    look.sleep(&bed.pipeline, &mut last);
    look.look(&bed.pipeline);
    assert!(bed.pipeline.silent_members().contains(id(0)));
    assert!(watch.end(ticket).is_some());
}

/// Reads go on with another member; the one that they were taken from owes an answer all the same.
#[test]
fn a_member_that_only_reads_ask_is_noticed_too() {
    let bed = Bed::new(2);
    bed.members[0].hang(true);
    let begun = Instant::now();
    while !bed.has_heard("Silent") {
        assert_eq!(bed.read(0).recv_timeout(SOON), Ok(Ok(4096)));
        // As if it were preferred for its cost.
        bed.pipeline
            .reading
            .iter()
            .for_each(|load| load.store(0, SeqCst));
        assert!(begun.elapsed() < SOON, "nobody is told");
    }
    assert!(
        bed.pipeline.watch.lost_threads() < 20,
        "they ask it again and again"
    );
}

/// The fence once went after two seconds, and a later write could come before the repair (I4).
#[test]
fn a_read_repair_that_hangs_keeps_its_fence() {
    let bed = Bed::new(2);
    let range = bed.pipeline.geometry().clip(Bytes(0), Bytes(4096));
    // The flush before it.
    bed.members[1].answers.store(1, SeqCst);
    bed.members[1].hang(true);
    bed.pipeline.repair_later(id(1), range.expect("inside"));
    bed.members[1].is_called(2);
    bed.hears("Silent");
    let written = bed.write(0);
    assert!(written.recv_timeout(Duration::from_secs(1)).is_err());
    assert_eq!(bed.members[1].calls.load(SeqCst), 2);
    bed.members[1].hang(false);
    assert_eq!(written.recv_timeout(SOON), Ok(Ok(())));
    assert_eq!((bed.members[0].first(), bed.members[1].first()), (7, 7));
}

/// What comes behind an abort once waited for ever, or called the member again.
#[test]
fn after_an_abort_nothing_waits_until_a_source_answers() {
    let bed = Bed::new(1);
    bed.members[0].hang(true);
    let first = bed.write(0);
    bed.hears("Silent");
    bed.abort(&[0]);
    assert!(first.recv_timeout(SOON).is_ok());
    for at in [8192, 16384] {
        assert_eq!(bed.read(at).recv_timeout(SOON), Ok(Err(Errno(libc::EIO))));
        assert_eq!(bed.write(at).recv_timeout(SOON), Ok(Err(Errno(libc::EIO))));
        assert_eq!(bed.seek(at).recv_timeout(SOON), Ok(Err(Errno(libc::EIO))));
    }
    assert_eq!(bed.members[0].calls.load(SeqCst), 1);
    bed.members[0].hang(false);
    eventually(|| matches!(bed.write(0).recv_timeout(SOON), Ok(Ok(()))));
}

/// An abort of reads alone once counted as their answer.
#[test]
fn an_abort_of_reads_holds_as_well() {
    let bed = Bed::new(1);
    bed.members[0].hang(true);
    let first = bed.read(0);
    bed.hears("Silent");
    bed.abort(&[0]);
    assert_eq!(first.recv_timeout(SOON), Ok(Err(Errno(libc::EIO))));
    assert_eq!(bed.read(8192).recv_timeout(SOON), Ok(Err(Errno(libc::EIO))));
    assert_eq!(bed.members[0].calls.load(SeqCst), 1);
}

/// Members are written one after the other: nobody knows of the next before it is asked.
#[test]
fn nobody_has_to_leave_before_another_source_has_answered() {
    let bed = Bed::new(2);
    bed.pipeline.set_timeouts([1, 1].into_iter());
    bed.members[0].hang(true);
    bed.members[1].hang(true);
    let written = bed.write(0);
    // The other one is asked by the watching thread.
    bed.members[1].is_called(1);
    bed.members[1].hang(false);
    bed.hears("GivenUp(MemberId(0)");
    bed.pipeline.give_up(id(0));
    assert_eq!(written.recv_timeout(SOON), Ok(Ok(())));
}

#[test]
fn members_that_answer_later_have_a_write_at_the_same_time() {
    let bed = Bed::of(&[true, true, true]);
    bed.members[0].hang(true);
    bed.members[1].hang(true);
    let written = bed.write(0);
    bed.members.iter().for_each(|member| member.is_called(1));
    bed.pipeline.give_up(id(0));
    assert!(written.try_recv().is_err(), "one has not answered");
    bed.pipeline.give_up(id(1));
    assert_eq!(written.recv_timeout(SOON), Ok(Ok(())));
    assert_eq!(bed.members[2].first(), 7);
    bed.hears("Failed");
}

#[test]
fn who_answers_later_comes_behind_who_is_waited_for() {
    let bed = Bed::of(&[true, false]);
    bed.members[1].hang(true);
    let written = bed.write(0);
    bed.members[1].is_called(1);
    assert_eq!(bed.members[0].calls.load(SeqCst), 0);
    bed.pipeline.give_up(id(1));
    assert_eq!(written.recv_timeout(SOON), Ok(Ok(())));
    assert_eq!(bed.members[0].first(), 7);
}

/// A member that is a member still may write what was given up, so nobody else may write there before it has (I4).
#[test]
fn a_part_that_was_given_up_stays_fenced_until_it_returns() {
    let bed = Bed::of(&[true, true]);
    bed.members.iter().for_each(|member| member.hang(true));
    let first = bed.write(0);
    bed.hears("Silent");
    bed.abort(&[0, 1]);
    assert!(first.recv_timeout(SOON).is_ok());
    bed.members[1].hang(false);
    eventually(|| !bed.pipeline.is_dead());
    let second = bed.write(0);
    assert!(second.recv_timeout(Duration::from_secs(1)).is_err());
    assert_eq!(bed.calls(), [1, 1], "nobody is asked before");
    bed.members[0].hang(false);
    assert_eq!(second.recv_timeout(SOON), Ok(Ok(())));
    assert_eq!((bed.members[0].first(), bed.members[1].first()), (7, 7));
}

/// Calls that were given up once freed the range as they returned, and a copy step read there before the set knew what
/// had failed.
#[test]
fn a_write_that_was_given_up_stays_fenced_until_the_verdict() {
    for later in [&[false][..], &[true], &[true, true]] {
        let bed = Bed::of(later);
        bed.members.iter().for_each(|member| member.hang(true));
        let first = bed.write(0);
        bed.members.iter().for_each(|member| member.is_called(1));
        bed.hears("Silent");
        let verdicts = bed.verdicts.lock().expect("no panic");
        bed.abort(&[0]);
        bed.members.iter().for_each(|member| member.hang(false));
        eventually(|| !bed.pipeline.has_lost_threads() && !bed.pipeline.is_dead());
        let second = bed.write(0);
        assert!(second.recv_timeout(Duration::from_secs(1)).is_err());
        let calls = bed.members.iter().map(|member| member.calls.load(SeqCst));
        assert!(calls.eq(later.iter().map(|_| 1)), "nobody is asked before");
        assert!(first.try_recv().is_err(), "there is no verdict yet");
        drop(verdicts);
        assert!(first.recv_timeout(SOON).is_ok());
        assert_eq!(second.recv_timeout(SOON), Ok(Ok(())));
    }
}

#[test]
fn what_cannot_be_done_later_is_waited_for() {
    let bed = Bed::of(&[true, true]);
    bed.members[1].cannot_queue.store(true, SeqCst);
    assert_eq!(bed.write(0).recv_timeout(SOON), Ok(Ok(())));
    assert_eq!((bed.members[0].first(), bed.members[1].first()), (7, 7));
    assert!(!bed.has_heard("Failed"), "nothing has failed");
    // As if others read them too: who reads alone waits itself.
    let busy = |readers| {
        let loads = bed.pipeline.reading.iter();
        loads.for_each(|load| load.store(readers, SeqCst));
    };
    for place in [0, 1] {
        busy(3);
        bed.pipeline.reading[place].store(2, SeqCst);
        let before = bed.members[place].calls.load(SeqCst);
        assert_eq!(bed.read(0).recv_timeout(SOON), Ok(Ok(4096)));
        assert_eq!(bed.members[place].calls.load(SeqCst), before + 1);
    }
    busy(0);
}

#[test]
fn a_read_of_a_member_that_answers_later_goes_on_with_another() {
    let bed = Bed::of(&[true, true]);
    let [first, second] = [0, 1].map(|at| &bed.pipeline.reading[at]);
    first.store(1, SeqCst);
    second.store(9, SeqCst);
    bed.members[0].hang(true);
    let read = bed.read(0);
    bed.members[0].is_called(1);
    assert_eq!(
        read.recv_timeout(SOON),
        Ok(Ok(4096)),
        "the other one answers"
    );
    bed.members[0].hang(false);
    eventually(|| first.load(SeqCst) == 1);
    assert!(bed.pipeline.flying.wait(SOON));
}

/// The answer was once left to the thread that the member held.
#[test]
fn a_seek_goes_on_with_another_member() {
    let bed = Bed::new(2);
    bed.members[0].hang(true);
    assert_eq!(bed.seek(512).recv_timeout(SOON), Ok(Ok(512)));
    assert_eq!(bed.calls(), [1, 1]);
    assert_eq!(bed.pipeline.watch.lost_threads(), 1);
}

#[test]
fn a_seek_that_the_other_member_cannot_answer_waits() {
    let bed = Bed::new(2);
    bed.members[0].hang(true);
    bed.members[1].cannot_read.store(true, SeqCst);
    let sought = bed.seek(512);
    bed.members[1].is_called(1);
    bed.members[0].is_called(2);
    bed.members[0].hang(false);
    assert_eq!(sought.recv_timeout(SOON), Ok(Ok(512)));
}

/// A detach was once answered while its image was still looked at, and an attach right behind it was refused.
#[test]
fn an_epoch_lasts_as_long_as_a_look_at_its_images() {
    let seek = |pipeline: &Arc<Pipeline>| {
        let pipeline = Arc::clone(pipeline);
        drop(std::thread::spawn(move || pipeline.seek(0, Seek::Data)));
    };
    let probe = |pipeline: &Arc<Pipeline>| pipeline.probe(id(0));
    for look in [seek as fn(&Arc<Pipeline>), probe] {
        let bed = Bed::new(1);
        let view = bed.pipeline.live().view().clone();
        // Who watches lets go of the epoch when a look is late.
        bed.pipeline.end_watch();
        bed.publish(view.clone());
        bed.members[0].hang(true);
        look(&bed.pipeline);
        bed.members[0].is_called(1);
        let epoch = Arc::downgrade(&bed.pipeline.live());
        bed.publish(view);
        assert!(epoch.strong_count() > 0, "it is over");
        bed.members[0].hang(false);
        eventually(|| epoch.strong_count() == 0);
    }
}

/// As a read: who waits for the end of the epoch must not wait for the member.
#[test]
fn a_look_that_hangs_keeps_no_epoch_alive() {
    let bed = Bed::new(2);
    let view = bed.pipeline.live().view().clone();
    bed.members[0].hang(true);
    drop(bed.seek(0));
    bed.members[0].is_called(1);
    let epoch = Arc::downgrade(&bed.pipeline.live());
    bed.publish(view);
    eventually(|| epoch.strong_count() == 0);
}

/// The zeros of a long range were one call, behind which the member was taken for one that does not answer.
#[test]
fn a_member_that_works_on_a_long_range_answers() {
    type Change = fn(&Pipeline, super::super::change::Changed);
    let changes: [Change; 3] = [
        |pipeline, done| pipeline.zero_then(0, SIZE, Zero::Punch, done),
        |pipeline, done| pipeline.zero_then(0, SIZE, Zero::Keep, done),
        |pipeline, done| pipeline.allocate_then(0, SIZE, done),
    ];
    for change in changes {
        let bed = Bed::new(2);
        let slow = bed.slow_down(1);
        let (done, changed) = unbounded();
        let before = bed.pipeline.watch.now();
        change(
            &bed.pipeline,
            Box::new(move |outcome| {
                let _ = done.send(outcome);
            }),
        );
        assert_eq!(changed.try_recv(), Ok(Ok(())));
        let took = Duration::from_millis(bed.pipeline.watch.now().since(before));
        assert!(took > 2 * bed.pipeline.timeout(id(1)), "{took:?}");
        assert_eq!(slow.calls.load(SeqCst) as u64, SIZE / PART);
        assert!(!bed.has_heard_by_now("GivenUp") && !bed.has_heard("Silent"));
    }
}

/// As above; and zeros that are written are data for the rates, and for the time that applications wait at a fence.
#[test]
fn a_copy_through_a_hole_has_every_call_answered() {
    const ROOM: u64 = 128 << 10;
    for is_slow in [true, false] {
        let bed = Bed::new(2);
        bed.members[0].is_hole.store(true, SeqCst);
        let target = match is_slow {
            true => bed.slow_down(1),
            false => &*bed.members[1],
        };
        let whole = bed.pipeline.geometry().whole();
        let permit = bed.pipeline.permit(bed.pipeline.enter(whole), whole);
        let flight = bed.pipeline.flying.begin();
        let step = Step::of_nobody(permit.expect("marked"), id(1), flight);
        let mut hold = Hold::new(&bed.pipeline, Held::Step(step));
        let mut scratch = Scratch::new(ROOM as usize);
        scratch.allow(2 * ROOM);
        let mut copied = Target::new(id(1), false);
        let stopped = copy_range(&mut hold, (&mut [&mut copied], whole), &mut scratch);
        let moved = if is_slow { 2 * ROOM } else { 0 };
        assert_eq!(stopped.ok(), Some(is_slow.then_some(moved)));
        assert!(copied.failed.is_none());
        assert_eq!(scratch.moved(), moved);
        let calls = if is_slow { moved / PART } else { 2 };
        assert_eq!(target.calls.load(SeqCst) as u64, calls);
        let done = if is_slow { moved } else { SIZE };
        assert_eq!(scratch.hole_at(done).is_none(), is_slow, "steps stay short");
        let bytes = target.bytes.lock().expect("no panic").clone();
        assert!(
            bytes
                .iter()
                .zip(0..)
                .all(|(byte, at)| (*byte == 0) == (at < done))
        );
        assert!(!bed.has_heard_by_now("GivenUp") && !bed.has_heard("Silent"));
    }
}

fn first_page(bed: &Bed) -> ByteRange {
    let clipped = bed.pipeline.geometry().clip(Bytes(0), Bytes(4096));
    clipped.expect("inside")
}

/// A copy ended, and the member that it filled was taken out for good, where a request of an application would have waited.
#[test]
fn a_copy_waits_for_a_member_that_is_out_of_reach() {
    for blips in [[3, 0], [0, 3], [1, 1]] {
        let bed = Bed::new(2);
        for (member, blips) in bed.members.iter().zip(blips) {
            member.blips.store(blips, SeqCst);
        }
        let range = first_page(&bed);
        let permit = bed.pipeline.permit(bed.pipeline.enter(range), range);
        let flight = bed.pipeline.flying.begin();
        let step = Step::of_nobody(permit.expect("marked"), id(1), flight);
        let mut hold = Hold::new(&bed.pipeline, Held::Step(step));
        let mut copied = Target::new(id(1), false);
        let mut scratch = Scratch::new(4096);
        bed.members[0].bytes.lock().expect("no panic")[..4096].fill(9);
        let outcome = copy_range(&mut hold, (&mut [&mut copied], range), &mut scratch);
        assert!(matches!(outcome, Ok(None)) && copied.failed.is_none());
        assert_eq!(bed.members[1].first(), 9);
        assert!(!bed.has_heard_by_now("ReadFailed") && !bed.has_heard("GivenUp"));
    }
}

/// It was expelled at once, for a fault of its medium.
#[test]
fn a_read_repair_blames_nobody_who_is_out_of_reach() {
    // An abort holds: nobody looks who answers again.
    let bed = Bed::unwatched(&[false; 2]);
    bed.members[1].blips.store(usize::MAX, SeqCst);
    bed.abort(&[1]);
    let range = first_page(&bed);
    bed.pipeline.repair_later(id(1), range);
    // Behind a flush.
    bed.members[1].is_called(2);
    // Behind the repair.
    drop(bed.pipeline.enter(range));
    assert!(!bed.has_heard_by_now("Failed"));
}

/// As long as no source answers nobody is to blame: the other one was taken for good without having been asked.
#[test]
fn a_read_repair_that_is_given_up_blames_nobody() {
    let bed = Bed::unwatched(&[false; 2]);
    bed.members[0].answers.store(1, SeqCst);
    bed.members[0].hang(true);
    bed.pipeline.repair_later(id(1), first_page(&bed));
    // The first one was the read.
    bed.members[0].is_called(2);
    bed.pipeline.silent.store(0b11, SeqCst);
    bed.abort(&[0, 1]);
    // Behind the repair.
    drop(bed.pipeline.enter(first_page(&bed)));
    assert!(!bed.has_heard_by_now("Failed"));
}

/// What it had before a write that it lost was written over what the other one still had.
#[test]
fn a_read_repair_takes_nothing_from_who_cannot_be_flushed_or_has_left() {
    for leaves in [false, true] {
        let bed = Bed::new(2);
        bed.members[1].bytes.lock().expect("no panic")[..4096].fill(9);
        bed.members[0].fails_flush.store(!leaves, SeqCst);
        if leaves {
            bed.pipeline.give_up(id(0));
        }
        bed.pipeline.repair_later(id(1), first_page(&bed));
        bed.members[0].is_called(1);
        // Behind the repair.
        drop(bed.pipeline.enter(first_page(&bed)));
        assert_eq!(bed.has_heard_by_now("Failed flush"), !leaves);
        assert!(!bed.has_heard("ReadRepaired"));
        assert_eq!(bed.members[1].first(), 9);
    }
}

/// As above: only those were flushed that are sources everywhere.
#[test]
fn a_read_repair_takes_nothing_from_who_is_merged_elsewhere_and_cannot_be_flushed() {
    let bed = Bed::new(2);
    let view = bed.pipeline.live().view().clone();
    let nothing = || Arc::new(WriteBitmap::empty(view.geometry()));
    let seat = |place, role| Seat {
        id: id(place),
        role,
        read_cost: 0,
        site: 0,
    };
    let merging = Role::Merging(MergeRest::new(nothing(), None, Arc::default()));
    let seats = vec![seat(0, merging), seat(1, Role::Source)];
    bed.publish(View::new(Epoch(9), seats, Vec::new(), nothing()));
    bed.members[1].bytes.lock().expect("no panic")[..4096].fill(9);
    bed.members[0].fails_flush.store(true, SeqCst);
    bed.pipeline.repair_later(id(1), first_page(&bed));
    bed.members[0].is_called(1);
    // Behind the repair.
    drop(bed.pipeline.enter(first_page(&bed)));
    assert!(bed.has_heard_by_now("Failed flush"));
    assert!(!bed.has_heard("ReadRepaired"));
    assert_eq!(bed.members[1].first(), 9);
}

/// It was written behind the stamps of a stop, and a member that was absent at the next mount was taken for changed.
#[test]
fn a_stop_waits_for_a_read_repair() {
    for is_given_up in [false, true] {
        let bed = Bed::unwatched(&[false; 2]);
        // Its flush.
        bed.members[1].answers.store(1, SeqCst);
        bed.members[1].hang(true);
        bed.pipeline.repair_later(id(1), first_page(&bed));
        bed.members[1].is_called(2);
        assert!(!bed.pipeline.flying.wait(Duration::ZERO));
        match is_given_up {
            true => bed.abort(&[1]),
            false => bed.members[1].hang(false),
        }
        assert!(bed.pipeline.flying.wait(SOON));
    }
}

/// It is read back, and told of.
#[test]
fn a_read_repair_gives_a_member_what_the_other_one_has() {
    let bed = Bed::new(2);
    bed.members[1].bytes.lock().expect("no panic")[..4096].fill(9);
    bed.pipeline.repair_later(id(1), first_page(&bed));
    bed.hears("ReadRepaired");
    assert!(!bed.has_heard("Failed"));
    assert_eq!(bed.members[1].first(), 1);
}
