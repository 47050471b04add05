//! Open files and directories of the control tree.
//!
//! A file holds what was rendered when it was opened or last read from its start, or the answer to
//! the last command that was written to it. The lock of a file is held for moments only and never
//! while anything is rendered, answered or notified.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use fuser::PollNotifier;

use crate::control::{NodeRef, Tree};

/// A text of more bytes is a long one, as of a bitmap with many runs.
const LONG: usize = 1 << 20;
/// Bytes of long texts that open files may keep together; one alone may have more.
const LONG_MAX: usize = 64 << 20;

/// One name of an open directory.
#[derive(Clone, Debug)]
pub(super) struct Name {
    pub(super) name: String,
    pub(super) ino: u64,
    pub(super) kind: fuser::FileType,
}

/// An open control file.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) node: NodeRef,
    inner: Mutex<Contents>,
}

#[derive(Debug, Default)]
struct Contents {
    bytes: Vec<u8>,
    /// Offset at which `bytes` begins; the next read decides when it is not known.
    origin: Option<u64>,
    /// Whether `bytes` is the answer to a command: then it stays until the next one.
    is_answer: bool,
    /// What was rendered when the file was read last.
    seen: Option<Seen>,
    waiting: Option<PollNotifier>,
}

/// What a reader has seen of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Seen {
    /// The number of the state.
    seq: u64,
    /// Hash of the bytes.
    hash: u64,
}

impl Seen {
    fn of(seq: u64, bytes: &[u8]) -> Self {
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        let hash = hasher.finish();
        Self { seq, hash }
    }
}

impl OpenFile {
    /// An open file that shows the node as it is now; `None` when the node is gone.
    pub(super) fn new(tree: &Tree, node: NodeRef) -> Option<Self> {
        let (seq, bytes) = tree.look(node)?;
        let inner = Mutex::new(Contents {
            seen: Some(Seen::of(seq, &bytes)),
            bytes,
            origin: Some(0),
            ..Contents::default()
        });
        Some(Self { node, inner })
    }

    /// Up to `size` bytes from `offset`; a read from the start shows the node anew.
    ///
    /// The first read after a command gets its answer from the start wherever it reads: a
    /// program that has just written goes on behind what it wrote.
    pub(super) fn read(&self, tree: &Tree, offset: u64, size: usize) -> Vec<u8> {
        let fresh = match offset {
            0 => tree.look(self.node),
            _ => None,
        };
        let mut inner = self.lock();
        if let Some((seq, bytes)) = fresh {
            inner.seen = Some(Seen::of(seq, &bytes));
            if !inner.is_answer {
                inner.bytes = bytes;
            }
        }
        if offset == 0 {
            inner.origin = Some(0);
        }
        let origin = *inner.origin.get_or_insert(offset);
        let start = usize::try_from(offset.saturating_sub(origin)).unwrap_or(usize::MAX);
        let rest = inner.bytes.get(start..).unwrap_or_default();
        rest[..rest.len().min(size)].to_vec()
    }

    /// Bytes that it keeps.
    fn len(&self) -> usize {
        self.lock().bytes.len()
    }

    /// Keeps the answer to a command, to be read.
    pub(super) fn answer(&self, text: String) {
        let mut inner = self.lock();
        inner.bytes = text.into_bytes();
        inner.origin = None;
        inner.is_answer = true;
        inner.seen = None;
    }

    /// Whether the node has changed since the file was read last; a node that is gone has.
    pub(super) fn has_changed(&self, tree: &Tree) -> bool {
        let Some(seen) = self.lock().seen else {
            return true;
        };
        // Counters go on between two states, but nobody would be woken to read them.
        if tree.seq() == seen.seq {
            return false;
        }
        let Some((seq, bytes)) = tree.look(self.node) else {
            return true;
        };
        let now = Seen::of(seq, &bytes);
        if now.hash != seen.hash {
            return true;
        }
        let mut inner = self.lock();
        // Not rendered again for this state, unless it was read meanwhile.
        if inner.seen == Some(seen) {
            inner.seen = Some(now);
        }
        false
    }

    /// Keeps whom to wake.
    pub(super) fn wait(&self, notifier: PollNotifier) {
        self.lock().waiting = Some(notifier);
    }

    /// Takes whom to wake, when the node has changed.
    fn to_wake(&self, tree: &Tree) -> Option<PollNotifier> {
        let waits = self.lock().waiting.is_some();
        if waits && self.has_changed(tree) {
            self.lock().waiting.take()
        } else {
            None
        }
    }

    fn lock(&self) -> MutexGuard<'_, Contents> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a file handle stands for.
#[derive(Clone, Debug)]
pub(super) enum Open {
    File(Arc<OpenFile>),
    Dir(Arc<[Name]>),
}

/// The open files and directories; numbers are used again.
#[derive(Debug, Default)]
pub(super) struct Handles {
    slots: Mutex<Slots>,
}

#[derive(Debug, Default)]
struct Slots {
    open: Vec<Option<Open>>,
    free: Vec<usize>,
}

impl Handles {
    /// Keeps what was opened; the number is never 0, which stands for none.
    pub(super) fn insert(&self, open: Open) -> u64 {
        let mut slots = self.lock();
        let index = match slots.free.pop() {
            Some(index) => {
                slots.open[index] = Some(open);
                index
            }
            None => {
                slots.open.push(Some(open));
                slots.open.len() - 1
            }
        };
        index as u64 + 1
    }

    /// Keeps a file that was opened; none when it is a long one and those that are open keep as much as they may: whoever
    /// opens files could have all memory otherwise.
    pub(super) fn insert_file(&self, file: OpenFile) -> Option<u64> {
        let len = file.len();
        if len > LONG {
            let kept = self.files().into_iter().map(|file| file.len());
            let kept: usize = kept.filter(|len| *len > LONG).sum();
            if kept > 0 && kept + len > LONG_MAX {
                return None;
            }
        }
        Some(self.insert(Open::File(Arc::new(file))))
    }

    /// Forgets what was opened.
    pub(super) fn remove(&self, number: u64) {
        let mut slots = self.lock();
        let Some(index) = index(number) else { return };
        let slot = slots.open.get_mut(index);
        if slot.is_some_and(|slot| slot.take().is_some()) {
            slots.free.push(index);
        }
    }

    /// The file with this number.
    pub(super) fn file(&self, number: u64) -> Option<Arc<OpenFile>> {
        match self.get(number) {
            Some(Open::File(file)) => Some(file),
            _ => None,
        }
    }

    /// The names of the directory with this number.
    pub(super) fn dir(&self, number: u64) -> Option<Arc<[Name]>> {
        match self.get(number) {
            Some(Open::Dir(names)) => Some(names),
            _ => None,
        }
    }

    fn get(&self, number: u64) -> Option<Open> {
        let slots = self.lock();
        slots.open.get(index(number)?)?.clone()
    }

    fn files(&self) -> Vec<Arc<OpenFile>> {
        let slots = self.lock();
        let file = |open: &Open| match open {
            Open::File(file) => Some(Arc::clone(file)),
            Open::Dir(_) => None,
        };
        slots.open.iter().flatten().filter_map(file).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn index(number: u64) -> Option<usize> {
    usize::try_from(number.checked_sub(1)?).ok()
}

/// Rings when something may have changed; never blocks, and many rings may be heard as one.
#[derive(Clone, Debug)]
pub(super) struct Bell(Sender<()>);

impl Bell {
    /// A bell and what hears it.
    pub(super) fn new() -> (Self, Receiver<()>) {
        let (tx, rx) = bounded(1);
        (Self(tx), rx)
    }

    /// Rings.
    pub(super) fn ring(&self) {
        match self.0.try_send(()) {
            // Full: a ring that is not heard yet is as good as this one.
            Ok(()) | Err(TrySendError::Full(()) | TrySendError::Disconnected(())) => {}
        }
    }
}

/// Wakes those who poll files that have changed; called on a thread that serves no request.
pub(super) fn wake(handles: &Handles, tree: &Tree) {
    for file in handles.files() {
        let woken = file.to_wake(tree).map(|notifier| notifier.notify());
        if let Some(Err(error)) = woken {
            // The file was closed meanwhile, or the unit is being unmounted.
            tracing::debug!(%error, "nobody polls any more");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::logbook::Logbook;
    use crate::control::testing::Fake;

    fn open(path: &str) -> (Arc<Fake>, Tree, OpenFile) {
        let fake = Fake::new();
        let tree = Tree::new(Arc::<Fake>::clone(&fake), Arc::new(Logbook::default()));
        let node = path.split('/').fold(NodeRef::ROOT, |dir, name| {
            tree.lookup(dir, name).expect(name)
        });
        let file = OpenFile::new(&tree, node).expect("there");
        (fake, tree, file)
    }

    fn text(file: &OpenFile, tree: &Tree, offset: u64) -> String {
        String::from_utf8(file.read(tree, offset, 4096)).expect("UTF-8")
    }

    #[test]
    fn a_read_from_the_start_is_fresh_and_later_ones_go_on_in_it() {
        let (fake, tree, file) = open("generation");
        assert_eq!(file.read(&tree, 0, 1), b"5");
        let next = |p: &mut crate::server::Published| {
            p.set.generation = p.set.generation.next();
        };
        fake.change(next);
        assert_eq!(text(&file, &tree, 1), "\n");
        assert_eq!(text(&file, &tree, 0), "6\n");
        assert_eq!(text(&file, &tree, 2), "");
        assert_eq!(text(&file, &tree, u64::MAX), "");
    }

    #[test]
    fn an_answer_is_read_from_the_start_or_from_behind_the_command() {
        let (_, tree, file) = open("control");
        file.answer("ok: done\n".to_owned());
        assert_eq!(text(&file, &tree, 10), "ok: done\n");
        assert_eq!(text(&file, &tree, 19), "");
        assert_eq!(text(&file, &tree, 0), "ok: done\n");
        assert_eq!(text(&file, &tree, 4), "done\n");
        file.answer("ok: again\n".to_owned());
        assert_eq!(text(&file, &tree, 0), "ok: again\n");
    }

    #[test]
    fn a_file_has_changed_until_it_is_read_from_the_start() {
        let (fake, tree, file) = open("members/m1/state");
        assert!(!file.has_changed(&tree));
        fake.change(|p| p.set.members[0].state = "detached");
        assert!(file.has_changed(&tree));
        assert_eq!(text(&file, &tree, 3), "rce\n");
        assert!(file.has_changed(&tree), "the old text was read");
        assert_eq!(text(&file, &tree, 0), "detached\n");
        assert!(!file.has_changed(&tree));
        file.answer("ok: done\n".to_owned());
        assert!(file.has_changed(&tree));
        assert_eq!(text(&file, &tree, 0), "ok: done\n");
        assert!(!file.has_changed(&tree), "the answer was read");
    }

    #[test]
    fn a_state_that_says_nothing_new_is_no_change() {
        let (fake, tree, file) = open("members/m1/state");
        fake.change(|p| p.set.members[0].errors = 1);
        assert!(!file.has_changed(&tree));
        assert_eq!(file.lock().seen.map(|s| s.seq), Some(tree.seq()));
        fake.change(|p| p.set.members[0].state = "detached");
        assert!(file.has_changed(&tree));
    }

    #[test]
    fn what_was_open_when_its_object_went_is_still_read() {
        let (fake, tree, file) = open("operations/9/state");
        fake.change(|p| p.set.operations.clear());
        assert!(file.has_changed(&tree));
        assert_eq!(text(&file, &tree, 0), "running\n");
    }

    #[test]
    fn handles_are_used_again() {
        let (_, tree, file) = open("state");
        let node = file.node;
        let handles = Handles::default();
        let first = handles.insert(Open::File(Arc::new(file)));
        let second = handles.insert(Open::Dir(Arc::from([])));
        assert_eq!((first, second), (1, 2));
        assert!(handles.file(first).is_some() && handles.dir(first).is_none());
        assert!(handles.dir(second).is_some() && handles.file(0).is_none());
        handles.remove(first);
        handles.remove(first);
        assert!(handles.file(first).is_none());
        let again = OpenFile::new(&tree, node).expect("there");
        assert_eq!(handles.insert(Open::File(Arc::new(again))), first);
        assert_eq!(handles.insert(Open::Dir(Arc::from([]))), 3);
        assert_eq!(handles.files().len(), 1);
    }

    /// Each open file of a large bitmap kept its text, without any limit.
    #[test]
    fn open_files_keep_so_much_of_long_texts_and_no_more() {
        let handles = Handles::default();
        let file = |bytes: usize| {
            let (_, _, file) = open("state");
            file.answer("x".repeat(bytes));
            file
        };
        let alone = handles.insert_file(file(LONG_MAX + 1)).expect("one alone");
        assert_eq!(handles.insert_file(file(LONG + 1)), None);
        assert!(handles.insert_file(file(LONG)).is_some(), "a short one");
        handles.remove(alone);
        let half = || handles.insert_file(file(LONG_MAX / 2));
        assert!(half().is_some() && half().is_some());
        assert_eq!(half(), None);
    }

    #[test]
    fn a_bell_never_blocks() {
        let (bell, heard) = Bell::new();
        bell.ring();
        bell.ring();
        assert!(heard.try_recv().is_ok() && heard.try_recv().is_err());
        drop(heard);
        bell.ring();
    }
}
