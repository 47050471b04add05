//! What the faces see of a running unit: its state, its data path, and a way to give commands.

use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard};
use std::sync::{Arc, OnceLock, PoisonError};

use crate::sync::channel::Sender;
use crate::sync::swap::ArcSwap;

use super::Message;
use super::chronicle::{Chronicle, EventRecord};
use super::meter::Meters;
use super::params::{Params, Values};
use super::pipeline::Pipeline;
use super::setup::Durability;
use super::tally::Tally;
use crate::io::journal::MessageCounts;
use crate::set::{
    Answer, AttachPolicy, BitmapId, Bytes, Code, Command, CopyKind, Event, MemberId, MemberStatus,
    Moment, OpId, Policy, Refusal, RepairBy, SetStatus, StallEnd,
};

/// A command as it was typed, before names are looked up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// Take a member out on purpose.
    Detach {
        /// Its name.
        member: String,
        /// What is wanted of a bitmap; `None` for the default.
        policy: Option<Policy>,
    },
    /// Bring a member or an image in.
    Attach {
        /// Name of a member or path of an image.
        what: String,
        /// Name for a new member.
        name: Option<String>,
        /// What may be done.
        policy: AttachPolicy,
        /// The source that the copy should read.
        source: Option<String>,
        /// Agreement to overwrite an image that was never a member.
        confirm: bool,
    },
    /// Bring a member in that was expelled and wants to come back by itself; nobody types it.
    Return {
        /// Its name.
        member: String,
    },
    /// Take a member out at once.
    Expel {
        /// Its name.
        member: String,
    },
    /// Have a departed member give up its membership.
    Release {
        /// Its name.
        member: String,
    },
    /// Make the unit larger.
    Resize {
        /// Its new size; `None` for the largest that its members have room for.
        size: Option<Bytes>,
    },
    /// Make the members equal again: where writes may be in flight, or everywhere.
    Merge {
        /// Everywhere.
        full: bool,
    },
    /// Wait no longer for members that do not answer.
    Abort,
    /// Have changes of applications wait, and everything flushed.
    Stall {
        /// For how long at most.
        seconds: u64,
    },
    /// Let changes go on.
    Unstall,
    /// Compare the sources.
    Verify {
        /// First and last block; `None` for the whole unit.
        range: Option<(u64, u64)>,
        /// Whether and how what differs is repaired.
        repair: Option<RepairBy>,
    },
    /// Close the set and take the mount away.
    Dissolve {
        /// Whether a member must be able to come back by minicopy later.
        policy: Policy,
    },
    /// Have all counters begin at 0 again.
    ResetCounters,
    /// Delete an unused bitmap.
    DeleteBitmap(BitmapId),
    /// Hold an operation.
    Pause(OpId),
    /// Let an operation go on.
    Resume(OpId),
    /// End an operation.
    Cancel(OpId),
    /// Forget a finished operation.
    Forget(OpId),
    /// Give a parameter another value.
    Set {
        /// Its name.
        name: String,
        /// The value, as it is written.
        value: String,
    },
    /// Only say what this would do, or why it would be refused.
    DryRun(Box<Self>),
}

impl Request {
    /// The set's command for a request that needs nothing else.
    pub(super) fn command(self, params: &Params) -> Option<Command> {
        Some(match self {
            Self::Detach { member, policy } => {
                let policy = policy.unwrap_or_else(|| params.default_detach_policy());
                Command::Detach { member, policy }
            }
            Self::Attach { .. }
            | Self::Return { .. }
            | Self::Set { .. }
            | Self::Resize { .. }
            | Self::Dissolve { .. }
            | Self::DryRun(_) => return None,
            Self::Expel { member } => Command::Expel { member },
            Self::Release { member } => Command::Release { member },
            Self::Merge { full } => Command::Merge { full },
            Self::Verify { range, repair } => Command::Verify { range, repair },
            Self::Abort => Command::Abort,
            Self::ResetCounters => Command::ResetCounters,
            Self::Stall { seconds } => Command::Stall { seconds },
            Self::Unstall => Command::Unstall,
            Self::DeleteBitmap(id) => Command::DeleteBitmap { id },
            Self::Pause(op) => Command::Pause(op),
            Self::Resume(op) => Command::Resume(op),
            Self::Cancel(op) => Command::Cancel(op),
            Self::Forget(op) => Command::Forget(op),
        })
    }
}

/// Called once with the outcome of a command, by the control thread for the most part: it must not block.
pub type Done = Box<dyn FnOnce(Result<Answer, Refusal>) + Send>;

/// A command that is answered in any case: it may come when the control thread has looked for the last time.
struct Asked(Option<Done>);

impl Asked {
    fn answer(&mut self, outcome: Result<Answer, Refusal>) {
        if let Some(done) = self.0.take() {
            done(outcome);
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let stopped = Refusal::new(Code::StateChanged, "the unit is being stopped");
        self.answer(Err(stopped));
    }
}

/// Speed of an operation over the last seconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rate {
    /// Which operation.
    pub op: OpId,
    /// Bytes per second; `None` while it is unknown.
    pub bytes_per_second: Option<u64>,
    /// Seconds to go; `None` while it is unknown.
    pub eta_s: Option<u64>,
}

/// The state of the unit at one instant.
#[derive(Clone, Debug)]
pub struct Published {
    /// Number of this state, growing.
    pub seq: u64,
    /// When it was published.
    pub time: Moment,
    /// When the unit was mounted.
    pub mounted: Moment,
    /// When the set was created; `None` when nothing durable remembers it.
    pub created: Option<Moment>,
    /// Name of the unit.
    pub unit: String,
    /// Label of the set.
    pub label: String,
    /// Identity of the set.
    pub uuid: uuid::Uuid,
    /// Whether the unit takes no writes.
    pub read_only: bool,
    /// Until when changes of applications wait at most, where they wait by command.
    pub stalled: Option<Moment>,
    /// How long bitmaps are meant to live.
    pub durability: Durability,
    /// The set.
    pub set: SetStatus,
    /// Speeds of running operations.
    pub rates: Vec<Rate>,
    /// What copies of each kind can be expected to do, in bytes per second, where one was measured.
    pub expected: Vec<(CopyKind, u64)>,
    /// What is counted of announcements of new marks to the durable bitmaps; goes on counting.
    pub announced: Arc<MessageCounts>,
    /// What was asked of each member, and how long it took; goes on counting.
    pub meters: Arc<Meters>,
    /// What has come of operations.
    pub tally: Tally,
    /// What the contents of the images looked like when their members left, by place.
    pub fingerprints: Vec<Option<String>>,
    /// The parameters.
    pub params: Values,
}

impl Published {
    /// The word of a unit that takes no writes.
    pub const READ_ONLY: &'static str = "read-only";

    /// How long bitmaps live as things are: without a home those that there are end with the mount.
    #[must_use]
    pub fn durability_now(&self) -> Durability {
        match self.set.homeless {
            Some(_) => Durability::Memory,
            None => self.durability,
        }
    }

    /// The word of the state, the worst that applies; a unit that takes no writes says so first.
    #[must_use]
    pub fn state_word(&self) -> &'static str {
        match self.read_only {
            true => Self::READ_ONLY,
            false => self.set.state.name(),
        }
    }

    /// The member with this name.
    #[must_use]
    pub fn member(&self, name: &str) -> Option<&MemberStatus> {
        self.set.members.iter().find(|m| m.name == name)
    }

    /// What the contents of a member's image looked like when it left; `None` where nobody has looked.
    #[must_use]
    pub fn fingerprint(&self, id: MemberId) -> Option<&str> {
        self.fingerprints.get(id.index())?.as_deref()
    }

    /// The speed of an operation.
    #[must_use]
    pub fn rate(&self, op: OpId) -> Rate {
        let unknown = Rate {
            op,
            bytes_per_second: None,
            eta_s: None,
        };
        self.rates
            .iter()
            .find(|r| r.op == op)
            .copied()
            .unwrap_or(unknown)
    }
}

type Listener = Box<dyn Fn() + Send + Sync>;

/// A face that can be ended by a command.
pub trait Ender: Send + Sync {
    /// Who uses the unit, one sentence; `None` when nobody does.
    fn used_by(&self) -> Option<String>;
    /// As [`Self::used_by`]; when nobody uses the unit, nobody can from now on.
    fn close(&self) -> Option<String>;
    /// Has the face end. Called from the control thread: it must not block.
    fn end(&self);
}

/// State that the control thread publishes and the faces read.
pub(super) struct Board {
    pub(super) state: ArcSwap<Published>,
    pub(super) events: Mutex<Chronicle>,
    pub(super) listeners: Mutex<Vec<Listener>>,
    /// Device number of the unit's own mount; 0 while there is none.
    mount: AtomicU64,
    /// How the face is ended, if it can be.
    pub(super) ender: OnceLock<Box<dyn Ender>>,
}

impl std::fmt::Debug for Board {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Board")
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl Board {
    pub(super) fn new(first: Published, events: Chronicle) -> Self {
        Self {
            state: ArcSwap::from_pointee(first),
            events: Mutex::new(events),
            listeners: Mutex::default(),
            mount: AtomicU64::new(0),
            ender: OnceLock::new(),
        }
    }

    pub(super) fn chronicle(&self) -> MutexGuard<'_, Chronicle> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Device number of the unit's own mount.
    pub(super) fn mount(&self) -> Option<u64> {
        Some(self.mount.load(Ordering::Acquire)).filter(|dev| *dev != 0)
    }

    pub(super) fn publish(&self, state: Published) {
        self.state.store(Arc::new(state));
        for listener in self
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
        {
            listener();
        }
    }
}

/// A running unit.
#[derive(Clone, Debug)]
pub struct Handle {
    pub(super) board: Arc<Board>,
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) messages: Sender<Message>,
}

impl Handle {
    /// The state as it was published last; costs no lock and no I/O.
    #[must_use]
    pub fn state(&self) -> Arc<Published> {
        self.board.state.load_full()
    }

    /// The last events, oldest first.
    #[must_use]
    pub fn events(&self) -> Vec<EventRecord> {
        self.board.chronicle().events()
    }

    /// Calls `listener` from the control thread after every change; it must not block.
    pub fn on_change(&self, listener: Listener) {
        self.board
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(listener);
    }

    /// Hands a command to the control thread and returns at once; `done` gets the outcome.
    pub fn submit(&self, request: Request, done: Done) {
        let mut asked = Asked(Some(done));
        let done: Done = Box::new(move |outcome| asked.answer(outcome));
        // A closed channel answers it.
        let _ = self.messages.send(Message::Request(request, done));
    }

    /// Tells how the face is ended; the first one that says so is.
    pub fn ends_with(&self, ender: Box<dyn Ender>) {
        let _ = self.board.ender.set(ender);
    }

    /// Lets changes go on that wait by command: the unit is being stopped.
    pub fn end_stall(&self) {
        let end = Event::StallOver(StallEnd::Stop);
        // A closed channel means that the unit has ended, and its gate is closed.
        let _ = self.messages.send(Message::Event(end));
    }

    /// Tells on which device the unit is mounted: no image that lies there can become a member (I12).
    pub fn mounted_on(&self, device: u64) {
        self.board.mount.store(device, Ordering::Release);
    }

    /// The data path.
    #[must_use]
    pub fn pipeline(&self) -> &Arc<Pipeline> {
        &self.pipeline
    }
}
