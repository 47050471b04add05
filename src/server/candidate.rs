//! Candidates: images that an attach has opened and looked at, before the set decides.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use uuid::Uuid;

use super::Message;
use super::departure::have_returned;
use super::immutable::Flag;
use super::pipeline::Pipeline;
use super::run::Runner;
use super::setup::{Protect, default_scb};
use crate::error::Error;
use crate::io::{Identity, Image, IoMode, Storage, fingerprint, image, immutable, scb_file};
use crate::set::assess::ScbFound;
use crate::set::scb::{Lineage, PATH_BYTES_MAX, check_name};
use crate::set::{
    Answer, Attach, AttachPolicy, Bytes, CandidateId, Code, Command, Joiner, MemberId, Refusal,
    Said, Scb, Stamp, Ticket, calls_are_out,
};
use crate::sync::thread;

/// How long the look at an image waits for calls that are on their way back.
const CALLS: Duration = Duration::from_secs(2);

/// An attach as it was typed.
#[derive(Clone, Debug)]
pub(super) struct Wish {
    pub(super) what: String,
    pub(super) name: Option<String>,
    pub(super) policy: AttachPolicy,
    pub(super) source: Option<String>,
    pub(super) confirm: bool,
    pub(super) dry_run: bool,
}

/// The attach whose image is being looked at.
#[derive(Debug)]
pub(super) struct Looking {
    ticket: u64,
    wish: Wish,
    /// How many stamps had been noted when that began.
    stamps: u64,
}

/// What the set knows of a member, for a look at an image.
#[derive(Debug)]
struct Known {
    id: MemberId,
    name: String,
    path: PathBuf,
    scb: PathBuf,
    io: IoMode,
    uuid: Uuid,
    /// Whether the set has released it.
    released: bool,
    /// Who its image is, or was.
    identity: Option<Identity>,
    /// What it looked like when it left, if that was since the start.
    stamp: Option<Stamp>,
    /// The end of the unit when it left, if that was in this mount.
    covers: Option<Bytes>,
    /// Whether its image is to be immutable while it is away.
    protected: bool,
    /// The immutable flag of its image.
    flag: Flag,
    /// Calls of its image that may be under way still.
    calls: Option<Weak<dyn Storage>>,
    /// Why it cannot be attached.
    refusal: Option<Refusal>,
}

/// What a look has found out about the image.
struct Seen {
    changed: Option<String>,
    said: Option<Said>,
    foreign: bool,
    /// The end of the unit that the member's bitmap covers.
    covers: Bytes,
}

impl Known {
    /// The stamp that this server took, else the one in the block.
    fn stamp<'a>(&'a self, block: Option<&'a Scb>) -> Option<&'a Stamp> {
        let durable = || block.and_then(|b| b.stamp.as_ref());
        self.stamp.as_ref().or_else(durable)
    }

    /// Opens the image. One that the set has made immutable is made writable first, unless nothing is to
    /// happen to it.
    fn open(&self, block: Option<&Scb>, dry_run: bool) -> Result<Image, Error> {
        let kept = self.stamp(block).is_some_and(|stamp| stamp.kept);
        let member = &self.name;
        if !(kept || self.protected) || !immutable::is_set(&self.path) {
            if kept {
                tracing::warn!(member, "its image is not immutable any more");
            }
            return Image::open(&self.path, self.io);
        }
        if dry_run {
            return Image::glance(&self.path);
        }
        if let Err(error) = self.flag.clear(&self.path, self.identity) {
            tracing::warn!(member, %error, "its image stays immutable");
        }
        Image::open(&self.path, self.io)
    }

    /// Compares the image with what it looked like when it left: what has changed, and whether it is
    /// another image altogether.
    fn compare(&self, block: Option<&Scb>, image: &Image) -> (Option<String>, bool) {
        let other = self.identity.is_some_and(|i| i != image.identity());
        let Some(then) = self.stamp(block) else {
            let text = match (other, block) {
                (true, _) => "another file is at its path",
                (false, None) => "nothing tells what it looked like when it left",
                (false, Some(_)) => return (None, false),
            };
            return (Some(text.to_owned()), other);
        };
        match fingerprint::take(&self.path, self.uuid) {
            Ok(now) => (then.change(&now), then.is_other(&now)),
            Err(error) => (Some(format!("it cannot be read: {error}")), other),
        }
    }
}

/// A look at the image of an attach. It runs on a thread of its own: a device may hang, and the image may
/// lie where the unit's own requests have to be answered first.
#[derive(Debug)]
pub(super) struct Look {
    wish: Wish,
    known: Vec<Known>,
    set: Uuid,
    lineage: Lineage,
    state_dir: PathBuf,
    pipeline: Arc<Pipeline>,
    /// The device number of the unit's own mount.
    mount: Option<u64>,
    /// Size of the unit.
    unit: Bytes,
}

/// An attach that the set can decide on, with the image that it is about, and whether it is a dry run.
pub(crate) type Looked = Result<(Attach, Image, bool), Refusal>;

impl Look {
    /// Looks on a thread of its own and tells the control thread, which knows it by `ticket`.
    pub(super) fn start(self, ticket: u64, runner: &Runner) -> std::io::Result<()> {
        let messages = runner.messages.clone();
        let look = move || {
            let word = self.wish.what.clone();
            let looked = self.look().map_err(|r| match r.word {
                Some(_) => r,
                None => r.at(word),
            });
            let _ = messages.send(Message::Looked(ticket, Box::new(looked)));
        };
        thread::Builder::new()
            .name("look".into())
            .spawn(look)
            .map(drop)
    }

    fn look(self) -> Looked {
        match self.member()? {
            Some(known) => {
                if let Some(refusal) = &known.refusal {
                    return Err(refusal.clone());
                }
                if self.wish.name.as_ref().is_some_and(|n| *n != known.name) {
                    return Err(self.named_otherwise(known));
                }
                self.look_at_member(known)
            }
            None => self.look_at_newcomer(),
        }
    }

    /// The member that is meant, by its name or by a path that leads to its image.
    fn member(&self) -> Result<Option<&Known>, Refusal> {
        let word = &self.wish.what;
        if let Some(known) = self.known.iter().find(|k| k.name == *word) {
            return Ok(Some(known));
        }
        if !word.contains('/') {
            let names: Vec<&str> = self.known.iter().map(|k| k.name.as_str()).collect();
            let text = format!("no member {word}; the members are {}", names.join(", "));
            return Err(Refusal::new(Code::NoSuchMember, text)
                .with_hint("give the path of an image, or the name of a member"));
        }
        let path = checked_path(word)?;
        self.check_recursion(&path)?;
        let identity = Identity::of(&path)
            .map_err(|e| refusal(&Error::io(format!("{word} cannot be looked at"), e)))?;
        let same = |k: &&Known| identity.is_some() && k.identity == identity;
        Ok(self.known.iter().find(same))
    }

    fn named_otherwise(&self, known: &Known) -> Refusal {
        let (word, name) = (&self.wish.what, &known.name);
        let text = format!("{word} is the image of {name} already");
        let hint = format!("attach {name} without a new name, or release it first");
        Refusal::new(Code::AlreadyMember, text).with_hint(hint)
    }

    fn look_at_member(&self, known: &Known) -> Looked {
        self.check_recursion(&known.path)?;
        // The last ones return in a moment, mostly; if they do not, the set refuses.
        let returned = |calls: &Weak<_>| have_returned(&self.pipeline, calls, Some(CALLS));
        if !known.calls.as_ref().is_none_or(returned) {
            return Err(calls_are_out(&known.name));
        }
        let block = self.block(&known.scb)?.filter(|b| b.member == known.uuid);
        let image = known.open(block.as_ref(), self.wish.dry_run);
        let image = image.map_err(|e| refusal(&e))?;
        let (changed, other) = known.compare(block.as_ref(), &image);
        let said = block.as_ref().map(|b| Said::by(b, &self.lineage));
        let seen = Seen {
            changed,
            said,
            foreign: block.is_none() || other || known.released,
            covers: known
                .covers
                .into_iter()
                .chain(said.map(|s| s.unit))
                .min()
                .unwrap_or_default(),
        };
        self.attach(Joiner::Departed(known.id), image, seen)
    }

    fn look_at_newcomer(&self) -> Looked {
        let path = checked_path(&self.wish.what)?;
        let name = match &self.wish.name {
            Some(name) => name.clone(),
            None => self.free_name(),
        };
        check_name(&name).map_err(|e| Refusal::new(Code::Syntax, e.to_string()).at(&name))?;
        let scb = default_scb(&name, &path, &self.state_dir);
        if self.known.iter().any(|k| k.scb == scb) {
            let text = format!("{} is the control block of another member", scb.display());
            return Err(Refusal::new(Code::AlreadyMember, text));
        }
        self.block(&scb)?;
        let image = Image::open(&path, IoMode::Buffered).map_err(|e| refusal(&e))?;
        let (uuid, path) = (Uuid::new_v4(), self.wish.what.clone());
        let seen = Seen {
            changed: None,
            said: None,
            foreign: true,
            covers: self.unit,
        };
        self.attach(Joiner::New { name, uuid, path }, image, seen)
    }

    fn attach(&self, joiner: Joiner, image: Image, seen: Seen) -> Looked {
        // Only consent depends on it, and it may read much.
        let blank = seen.foreign && !self.wish.confirm && is_blank(&image)?;
        let attach = Attach {
            word: self.wish.what.clone(),
            joiner,
            candidate: CandidateId(0),
            size: Bytes(image.size()),
            blank,
            blank_tail: self.has_blank_tail(&image, seen.covers),
            changed: seen.changed,
            said: seen.said,
            foreign: seen.foreign,
            policy: self.wish.policy,
            source: self.wish.source.clone(),
            confirm: self.wish.confirm,
        };
        Ok((attach, image, self.wish.dry_run))
    }

    /// Whether the image holds nothing but zeros behind the end that the unit had. What cannot be read is
    /// taken for data.
    fn has_blank_tail(&self, image: &Image, covers: Bytes) -> bool {
        let to = self.unit.0.min(image.size());
        covers.0 < to && image.is_blank_behind(covers.0, to, image::LOOK_BYTES)
    }

    /// Refuses what lies on the unit itself: its requests would wait for each other (I12).
    fn check_recursion(&self, path: &Path) -> Result<(), Refusal> {
        if self.mount.is_none_or(|mount| !image::lies_on(path, mount)) {
            return Ok(());
        }
        let text = format!("{} lies on the unit itself", path.display());
        let hint = "use an image on another file system";
        Err(Refusal::new(Code::NotSupported, text).with_hint(hint))
    }

    /// The control block of a member of this set; another set's is refused.
    fn block(&self, scb: &Path) -> Result<Option<Scb>, Refusal> {
        let (word, place) = (&self.wish.what, scb.display());
        let found = scb_file::read(scb)
            .map_err(|e| refusal(&Error::io(format!("{place} cannot be read"), e)))?;
        let text = match found {
            ScbFound::None => return Ok(None),
            ScbFound::Read(block) if block.set == self.set => return Ok(Some(block)),
            ScbFound::Read(block) => {
                format!("{word} is member {} of the set {}", block.name, block.set)
            }
            ScbFound::Damaged(what) => format!("{word} has a storage control block: {what}"),
        };
        let hint = format!(
            "release it there, or remove its block if that set is gone; {place} says whose it is"
        );
        Err(Refusal::new(Code::OtherSet, text).with_hint(hint))
    }

    /// The first of m1, m2 and so on that no member has.
    fn free_name(&self) -> String {
        let taken = |name: &String| self.known.iter().any(|k| k.name == *name);
        (1u32..)
            .map(|n| format!("m{n}"))
            .find(|name| !taken(name))
            .unwrap_or_default()
    }
}

impl Runner {
    /// Has the image of an attach looked at; the command goes on when that is done.
    pub(super) fn start_look(&mut self, ticket: &Ticket, wish: Wish) -> Result<(), Refusal> {
        self.give_leases_back();
        let started = self.look(wish.clone()).start(ticket.number(), self);
        started.map_err(|e| Refusal::new(Code::Io, format!("no thread could be started: {e}")))?;
        self.looks += 1;
        self.looking = Some(Looking {
            ticket: ticket.number(),
            wish,
            stamps: self.stamps,
        });
        Ok(())
    }

    /// Goes on with an attach whose image has been looked at, unless that took too long.
    pub(super) fn looked(&mut self, ticket: u64, looked: Looked) {
        self.looks -= 1;
        let Some(looking) = self.looking.take_if(|look| look.ticket == ticket) else {
            // It may have taken a flag away, and its image is open. Another look protects all when it is over.
            drop(looked);
            if self.looking.is_none() {
                self.protect_all();
            }
            return;
        };
        let ticket = Ticket::new(ticket);
        let outdated = looking.stamps != self.stamps;
        match looked {
            // A block may have been read before it said that its member has left, which is known by now.
            Ok(_) if outdated => {
                drop(looked);
                match self.start_look(&ticket, looking.wish) {
                    Ok(()) => return,
                    Err(refusal) => self.reply(&ticket, Err(refusal)),
                }
            }
            Err(refusal) => self.reply(&ticket, Err(refusal)),
            Ok(_) if self.is_undurable() => {
                let refused = self.refuse_undurable().map(|()| Answer::default());
                self.reply(&ticket, refused);
            }
            Ok((mut attach, image, dry_run)) => {
                self.notice_returns();
                attach.candidate = self.keep(image);
                self.give(ticket, Command::Attach(Box::new(attach)), dry_run);
                // A refused image is let go of at once, and its lock with it.
                self.candidates.clear();
            }
        }
        self.protect_all();
    }

    /// Answers a command that the set has not seen yet: its image has not been looked at in time.
    pub(super) fn give_up_look(&mut self, ticket: u64) {
        if self.looking.take_if(|look| look.ticket == ticket).is_some() {
            let refusal = Refusal::new(Code::TimedOut, "the image did not answer in time");
            self.reply(&Ticket::new(ticket), Err(refusal));
            self.protect_all();
        }
    }

    /// What a look at the image of an attach has to know.
    fn look(&self, wish: Wish) -> Look {
        let members = self.set.members().iter().zip(&self.seats).enumerate();
        let known = members.filter_map(|(index, (member, seat))| {
            let id = MemberId::new(index).filter(|_| !seat.vacant)?;
            Some(Known {
                id,
                name: member.name.clone(),
                path: PathBuf::from(&member.path),
                scb: seat.scb.clone(),
                io: seat.io,
                uuid: member.uuid,
                released: seat.released,
                identity: seat.identity,
                stamp: seat.stamp.clone(),
                covers: member.state.departed().and_then(|d| d.covers),
                protected: seat.protect == Protect::Immutable,
                flag: seat.flag.clone(),
                calls: seat.calls.clone(),
                refusal: self.set.attachable(id).err(),
            })
        });
        Look {
            known: known.collect(),
            wish,
            set: self.identity.set,
            lineage: self.identity.lineage.clone(),
            state_dir: self.identity.state_dir.clone(),
            pipeline: Arc::clone(&self.pipeline),
            mount: self.board.mount(),
            unit: self.set.geometry().size(),
        }
    }

    /// Keeps the image until the set has decided.
    fn keep(&mut self, image: Image) -> CandidateId {
        self.last_candidate += 1;
        let candidate = CandidateId(self.last_candidate);
        self.candidates.insert(candidate, image);
        candidate
    }
}

fn is_blank(image: &Image) -> Result<bool, Refusal> {
    image.is_blank(image::LOOK_BYTES).map_err(|e| refusal(&e))
}

/// A path that a control block can remember.
fn checked_path(word: &str) -> Result<PathBuf, Refusal> {
    let path = Path::new(word);
    if !path.is_absolute() {
        let text = format!("{word} is not an absolute path");
        return Err(Refusal::new(Code::Syntax, text).at(word));
    }
    if word.len() > PATH_BYTES_MAX {
        let text = format!(
            "a path of {} bytes is longer than {PATH_BYTES_MAX}",
            word.len()
        );
        return Err(Refusal::new(Code::OutOfRange, text).at(word));
    }
    Ok(path.to_owned())
}

/// An error of the shell as an answer to a command.
pub(super) fn refusal(error: &Error) -> Refusal {
    Refusal::new(error.code(), error.to_string()).with_hint(error.hint().to_owned())
}
