//! The tree as a face sees it: names, attributes, contents, and writes that are answered later.
//!
//! A node is a place in the table and the number of an object. Nothing is kept for an object: when
//! it is gone, so are its nodes, and its number never comes again.

use std::sync::Arc;
use std::time::SystemTime;

use super::answer;
use super::command;
use super::logbook::Logbook;
use super::render::{Context, Key, render};
use super::table::{Changes, Kind, Node, Store, TABLE};
use crate::error::errno;
use crate::server::params::Param;
use crate::server::{Done, EventRecord, Handle, Published, Request};
use crate::set::{Answer, BitmapId, Code, MemberId, Moment, OpId, Refusal};

/// What the tree needs of a running unit.
pub trait Unit: Send + Sync {
    /// The state as it was published last.
    fn state(&self) -> Arc<Published>;
    /// The last events, oldest first.
    fn events(&self) -> Vec<EventRecord>;
    /// Hands a command over; `done` gets the outcome once.
    fn submit(&self, request: Request, done: Done);
}

impl Unit for Handle {
    fn state(&self) -> Arc<Published> {
        Self::state(self)
    }

    fn events(&self) -> Vec<EventRecord> {
        Self::events(self)
    }

    fn submit(&self, request: Request, done: Done) {
        Self::submit(self, request, done);
    }
}

/// A node of the tree: a place in the table and, below the directory of an object, its number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct NodeRef {
    index: u8,
    object: u64,
}

/// Bits of a node's number that hold its place in the table.
const INDEX_BITS: u32 = 8;

impl NodeRef {
    /// `.shadow/` itself.
    pub const ROOT: Self = Self {
        index: 0,
        object: 0,
    };

    /// A number that belongs to this node alone, for the life of the process; 0 is `.shadow/`.
    #[must_use]
    pub fn number(self) -> u64 {
        self.object << INDEX_BITS | u64::from(self.index)
    }

    /// The node with this number, whether or not its object still exists.
    #[must_use]
    pub fn from_number(number: u64) -> Option<Self> {
        let index = number & ((1 << INDEX_BITS) - 1);
        let node = Self {
            index: u8::try_from(index).ok()?,
            object: number >> INDEX_BITS,
        };
        let placed = node.entry().is_some() && (node.object == 0 || node.key() != Some(Key::Set));
        placed.then_some(node)
    }

    /// What the table says of it.
    #[must_use]
    pub fn node(self) -> &'static Node {
        &TABLE[usize::from(self.index)]
    }

    fn entry(self) -> Option<&'static Node> {
        TABLE.get(usize::from(self.index))
    }

    fn key(self) -> Option<Key> {
        let path = self.node().path;
        if path.starts_with("members/<m>") {
            let place = usize::try_from(self.object).ok()?;
            MemberId::new(place).map(Key::Member)
        } else if path.starts_with("bitmaps/<id>") {
            let id = u32::try_from(self.object).ok()?;
            Some(Key::Bitmap(BitmapId(id)))
        } else if path.starts_with("operations/<n>") {
            Some(Key::Operation(OpId(self.object)))
        } else if path == "params/<p>" {
            let place = usize::try_from(self.object).ok()?;
            Param::ALL.get(place).copied().map(Key::Param)
        } else {
            Some(Key::Set)
        }
    }
}

/// Attributes of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attr {
    /// What it is.
    pub kind: Kind,
    /// Its permissions.
    pub mode: u16,
    /// When it changed last.
    pub mtime: SystemTime,
}

/// One name in a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The name.
    pub name: String,
    /// The node.
    pub node: NodeRef,
}

/// What a write came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoreOutcome {
    /// 0, or the errno of a refusal.
    pub errno: i32,
    /// What is read back on the same file.
    pub text: String,
}

/// Called once with what a write came to, often from the control thread: it must not block.
pub type Stored = Box<dyn FnOnce(StoreOutcome) + Send>;

/// `.shadow/` of a running unit.
pub struct Tree {
    unit: Arc<dyn Unit>,
    logbook: Arc<Logbook>,
}

impl std::fmt::Debug for Tree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tree").finish_non_exhaustive()
    }
}

impl Tree {
    /// The tree of a unit; refusals go to `logbook`.
    #[must_use]
    pub fn new(unit: Arc<dyn Unit>, logbook: Arc<Logbook>) -> Self {
        assert!(
            TABLE.len() <= 1 << INDEX_BITS,
            "the table outgrows a node's number"
        );
        Self { unit, logbook }
    }

    /// The node with this name in a directory.
    #[must_use]
    pub fn lookup(&self, dir: NodeRef, name: &str) -> Option<NodeRef> {
        let state = self.unit.state();
        let found = |entry: Entry| (entry.name == name).then_some(entry.node);
        children(&state, dir)?.into_iter().find_map(found)
    }

    /// The names in a directory; `None` when it is gone.
    #[must_use]
    pub fn list(&self, dir: NodeRef) -> Option<Vec<Entry>> {
        children(&self.unit.state(), dir)
    }

    /// The directory that holds a node; `.shadow/` holds itself.
    #[must_use]
    pub fn parent(&self, node: NodeRef) -> NodeRef {
        let Some(path) = node.node().parent() else {
            return NodeRef::ROOT;
        };
        let index = TABLE.iter().position(|n| n.path == path).unwrap_or(0);
        let parent = NodeRef {
            index: u8::try_from(index).unwrap_or(0),
            object: node.object,
        };
        match parent.key() {
            Some(Key::Set) | None => NodeRef {
                object: 0,
                ..parent
            },
            Some(_) => parent,
        }
    }

    /// The attributes of a node; `None` when it is gone.
    #[must_use]
    pub fn attr(&self, node: NodeRef) -> Option<Attr> {
        let state = self.unit.state();
        let changed = changed(&state, node)?;
        let entry = node.node();
        Some(Attr {
            kind: entry.kind,
            mode: entry.mode,
            mtime: SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(changed.0),
        })
    }

    /// The contents of a file or the target of a link; `None` when it is gone.
    #[must_use]
    pub fn show(&self, node: NodeRef) -> Option<Vec<u8>> {
        self.rendered(&self.unit.state(), node)
    }

    /// As [`Tree::show`], with the number of the state that is shown; for poll.
    #[must_use]
    pub fn look(&self, node: NodeRef) -> Option<(u64, Vec<u8>)> {
        let state = self.unit.state();
        Some((state.seq, self.rendered(&state, node)?))
    }

    /// The number of the state that was published last: as long as it is the same, nothing that
    /// poll tells of has changed.
    #[must_use]
    pub fn seq(&self) -> u64 {
        self.unit.state().seq
    }

    /// Takes what one write(2) holds; returns at once, `done` is called with the outcome.
    pub fn store(&self, node: NodeRef, bytes: &[u8], done: Stored) {
        let state = self.unit.state();
        let request = match (node.node().store, object_name(&state, node)) {
            // The kernel keeps writers out, but not those at the socket.
            _ if state.read_only => Err(Refusal::new(
                Code::ReadOnlyImage,
                "the unit is mounted read-only and takes no commands",
            )
            .with_hint("mount it without -o ro")),
            (_, None) => Err(gone(node)),
            (Some(Store::ClearErrors), _) => {
                self.logbook.clear();
                return done(accepted(&Answer {
                    text: "the error log is empty".to_owned(),
                    facts: Vec::new(),
                }));
            }
            (Some(Store::Command), _) => command::parse(bytes),
            (Some(Store::ObjectCommand(verbs)), Some(name)) => {
                command::parse_for(bytes, &name, verbs)
            }
            (Some(Store::Value), Some(name)) => match node.key() {
                Some(Key::Member(_) | Key::Operation(_)) => {
                    let name = format!("{name}.{}", node.node().name());
                    command::parse_value(bytes, &name)
                }
                _ => command::parse_value(bytes, &name),
            },
            (None, _) => Err(Refusal::new(
                Code::NotPermitted,
                format!("{} takes no writes", node.node().path),
            )),
        };
        self.carry_out(answer::echo(bytes), request, done);
    }

    /// Removes a directory: deletes a bitmap, forgets a finished operation.
    pub fn rmdir(&self, dir: NodeRef, name: &str, done: Stored) {
        let request = match self
            .lookup(dir, name)
            .map(|node| (node.node().path, node.key()))
        {
            Some(("bitmaps/<id>", Some(Key::Bitmap(id)))) => Ok(Request::DeleteBitmap(id)),
            Some(("operations/<n>", Some(Key::Operation(id)))) => Ok(Request::Forget(id)),
            Some(("members/<m>", _)) => {
                let text = format!("{name} is a member, which no rmdir gives up");
                let hint = format!("take it out, then `release {name}`");
                Err(Refusal::new(Code::NotPermitted, text).with_hint(hint))
            }
            Some(_) => Err(Refusal::new(
                Code::NotPermitted,
                format!("{name} cannot be removed"),
            )),
            None => Err(Refusal::new(
                Code::NoSuchFile,
                format!("no directory {name}"),
            )),
        };
        self.carry_out(format!("rmdir {name}"), request, done);
    }

    /// Refuses what one write(2) holds, because of who has written it.
    pub fn deny(&self, bytes: &[u8], uid: u32, done: Stored) {
        let text = format!("user {uid} may not give commands to this unit");
        let refusal = Refusal::new(Code::NotPermitted, text);
        done(refused(&self.logbook, &answer::echo(bytes), &refusal));
    }

    fn carry_out(&self, shown: String, request: Result<Request, Refusal>, done: Stored) {
        let logbook = Arc::clone(&self.logbook);
        let finish = move |result: Result<Answer, Refusal>| {
            done(match result {
                Ok(answer) => accepted(&answer),
                Err(refusal) => refused(&logbook, &shown, &refusal),
            });
        };
        match request {
            Ok(request) => self.unit.submit(request, Box::new(finish)),
            Err(refusal) => finish(Err(refusal)),
        }
    }

    fn rendered(&self, state: &Published, node: NodeRef) -> Option<Vec<u8>> {
        let context = Context {
            now: state,
            events: &|| self.unit.events(),
            logbook: &self.logbook,
        };
        render(node.node(), node.key()?, &context)
    }
}

fn accepted(answer: &Answer) -> StoreOutcome {
    StoreOutcome {
        errno: 0,
        text: answer::good(answer),
    }
}

fn refused(logbook: &Logbook, shown: &str, refusal: &Refusal) -> StoreOutcome {
    let text = answer::refused(shown, refusal);
    logbook.note(now(), &text);
    StoreOutcome {
        errno: errno(refusal.code),
        text,
    }
}

fn now() -> Moment {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    Moment(since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)))
}

fn gone(node: NodeRef) -> Refusal {
    let (code, what) = match node.key() {
        Some(Key::Bitmap(id)) => (Code::NoSuchBitmap, format!("bitmap {id}")),
        Some(Key::Operation(id)) => (Code::NoSuchOperation, format!("operation {id}")),
        _ => (Code::NoSuchMember, "this member".to_owned()),
    };
    Refusal::new(code, format!("{what} does not exist any more"))
}

/// The name of a node's object; empty for the set, `None` when the object is gone.
fn object_name(state: &Published, node: NodeRef) -> Option<String> {
    match node.key()? {
        Key::Set => Some(String::new()),
        Key::Member(id) => state.set.members.get(id.index()).map(|m| m.name.clone()),
        Key::Bitmap(id) => state.set.bitmap(id).map(|_| id.to_string()),
        Key::Operation(id) => state.set.operation(id).map(|_| id.to_string()),
        Key::Param(param) => Some(param.name().to_owned()),
    }
}

/// When a node changed last; `None` when it is gone.
fn changed(state: &Published, node: NodeRef) -> Option<Moment> {
    let key = node.key()?;
    object_name(state, node)?;
    if node.node().kind == Kind::Link && !has_link(state, key) {
        return None;
    }
    Some(match (node.node().changes, key) {
        (Changes::Never, _) => state.mounted,
        (Changes::WithObject, Key::Member(id)) => state.set.members.get(id.index())?.since,
        (Changes::WithObject, Key::Operation(id)) => {
            let operation = state.set.operation(id)?;
            operation.finished.unwrap_or(state.time)
        }
        _ => state.time,
    })
}

fn has_link(state: &Published, key: Key) -> bool {
    match key {
        Key::Member(id) => state
            .set
            .members
            .get(id.index())
            .is_some_and(|m| m.bitmap.is_some()),
        _ => false,
    }
}

/// The entries of a directory; `None` when it is gone or no directory.
fn children(state: &Published, dir: NodeRef) -> Option<Vec<Entry>> {
    if dir.node().kind != Kind::Dir {
        return None;
    }
    object_name(state, dir)?;
    let mut entries = Vec::new();
    for (index, node) in TABLE.iter().enumerate() {
        if node.parent() != Some(dir.node().path) {
            continue;
        }
        let index = u8::try_from(index).ok()?;
        let at = |object| NodeRef { index, object };
        if node.name().starts_with('<') {
            let named = |(name, object)| Entry {
                name,
                node: at(object),
            };
            entries.extend(objects(state, node).into_iter().map(named));
        } else if node.kind != Kind::Link || has_link(state, dir.key()?) {
            entries.push(Entry {
                name: node.name().to_owned(),
                node: at(dir.object),
            });
        }
    }
    Some(entries)
}

/// Names and numbers of the objects that have a directory at this place of the table.
fn objects(state: &Published, node: &Node) -> Vec<(String, u64)> {
    let set = &state.set;
    match node.path {
        "members/<m>" => {
            let one = |m: &crate::set::MemberStatus| (m.name.clone(), m.id.index() as u64);
            set.members.iter().map(one).collect()
        }
        "bitmaps/<id>" => {
            let tags = set.bitmaps.iter().filter_map(|b| b.tag);
            tags.map(|t| (t.id.to_string(), u64::from(t.id.0)))
                .collect()
        }
        "params/<p>" => {
            let one = |param: &Param| (param.name().to_owned(), param.index() as u64);
            Param::ALL.iter().map(one).collect()
        }
        _ => set
            .operations
            .iter()
            .map(|o| (o.id.to_string(), o.id.0))
            .collect(),
    }
}

#[cfg(test)]
mod tests;
