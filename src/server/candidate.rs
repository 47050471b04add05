//! Candidates: images that an attach has opened and looked at, before the set decides.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::Message;
use super::run::Runner;
use super::setup::default_scb;
use crate::error::Error;
use crate::io::{Identity, Image, IoMode, image, scb_file};
use crate::set::assess::ScbFound;
use crate::set::scb::{PATH_BYTES_MAX, check_name};
use crate::set::{Attach, AttachPolicy, Bytes, CandidateId, Code, Joiner, MemberId, Refusal};

/// What an image looked like when its member left; a change shows that somebody wrote it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Fingerprint {
    identity: Identity,
    size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl Fingerprint {
    /// Takes the fingerprint of a file; a block device has none of its own.
    pub(super) fn take(path: &Path) -> Option<Self> {
        let meta = std::fs::metadata(path).ok()?;
        let identity = Identity::of(path).ok()??;
        Some(Self {
            identity,
            size: meta.len(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            ctime: (meta.ctime(), meta.ctime_nsec()),
        })
    }

    /// What has changed, in words.
    fn change(&self, now: Option<Self>) -> Option<String> {
        let Some(now) = now else {
            return Some("it cannot be looked at".into());
        };
        let text = if self.identity != now.identity {
            "another file is at its path"
        } else if matches!(self.identity, Identity::Device { .. }) {
            return None;
        } else if self.size != now.size {
            "its size is another"
        } else if self.mtime != now.mtime {
            "it was written"
        } else if self.ctime != now.ctime {
            "its inode was changed"
        } else {
            return None;
        };
        Some(text.to_owned())
    }
}

/// An attach as it was typed.
#[derive(Debug)]
pub(super) struct Wish {
    pub(super) what: String,
    pub(super) name: Option<String>,
    pub(super) policy: AttachPolicy,
    pub(super) confirm: bool,
    pub(super) dry_run: bool,
}

/// What a look at an image needs to know; it runs on a thread of its own, since a device may hang.
#[derive(Debug)]
pub(super) struct Look {
    wish: Wish,
    joiner: Joiner,
    path: PathBuf,
    scb: PathBuf,
    io: IoMode,
    set: Uuid,
    /// The member's identity in its block; `None` for a new image.
    member: Option<Uuid>,
    /// Who the member's image was.
    identity: Option<Identity>,
    /// What it looked like when it left.
    fingerprint: Option<Fingerprint>,
    /// The device number of the unit's own mount.
    mount: Option<u64>,
}

/// An attach that the set can decide on, with the image that it is about.
pub(crate) type Looked = Result<(Attach, Image), Refusal>;

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
        std::thread::Builder::new()
            .name("look".into())
            .spawn(look)
            .map(drop)
    }

    fn look(self) -> Looked {
        self.check_recursion()?;
        let ours = self.is_ours()?;
        let image = Image::open(&self.path, self.io).map_err(|e| refusal(&e))?;
        let now = Fingerprint::take(&self.path);
        let other = self
            .identity
            .is_some_and(|identity| identity != image.identity());
        let changed = match &self.fingerprint {
            Some(then) => then.change(now),
            None if other => Some("another file is at its path".to_owned()),
            None => None,
        };
        let foreign = !ours || other;
        // Only consent depends on it, and it may read much.
        let blank = foreign && !self.wish.confirm && is_blank(&image)?;
        let size = Bytes(image.size());
        let Wish {
            what: word,
            policy,
            confirm,
            dry_run,
            ..
        } = self.wish;
        let attach = Attach {
            word,
            joiner: self.joiner,
            candidate: CandidateId(0),
            size,
            blank,
            changed,
            foreign,
            policy,
            confirm,
            dry_run,
        };
        Ok((attach, image))
    }

    /// Refuses what lies on the unit itself: its requests would wait for each other (I12).
    fn check_recursion(&self) -> Result<(), Refusal> {
        let Some(mount) = self.mount else {
            return Ok(());
        };
        if image::lies_on(&self.path, mount) {
            let text = format!("{} lies on the unit itself", self.path.display());
            return Err(Refusal::new(Code::NotSupported, text)
                .with_hint("use an image on another file system"));
        }
        Ok(())
    }

    /// Whether the control block shows the image to be this member; another set's is refused.
    fn is_ours(&self) -> Result<bool, Refusal> {
        let (word, scb) = (&self.wish.what, self.scb.display());
        let found = scb_file::read(&self.scb)
            .map_err(|e| refusal(&Error::io(format!("{scb} cannot be read"), e)))?;
        let text = match found {
            ScbFound::None => return Ok(false),
            ScbFound::Read(block) if block.set == self.set => {
                return Ok(self.member == Some(block.member));
            }
            ScbFound::Read(block) => {
                format!("{word} is member {} of the set {}", block.name, block.set)
            }
            ScbFound::Damaged(what) => format!("{word} has a storage control block: {what}"),
        };
        let hint = format!("remove {scb} if that set is gone");
        Err(Refusal::new(Code::OtherSet, text).with_hint(hint))
    }
}

impl Runner {
    /// What a look at the image of an attach has to know.
    pub(super) fn look(&self, wish: Wish) -> Result<Look, Refusal> {
        let (joiner, path) = self.find_joiner(&wish)?;
        let mut look = Look {
            scb: PathBuf::new(),
            io: IoMode::Buffered,
            set: self.identity.set,
            member: None,
            identity: None,
            fingerprint: None,
            mount: self.board.mount(),
            wish,
            joiner,
            path,
        };
        if let Joiner::Departed(id) = look.joiner {
            let seat = &self.seats[id.index()];
            (look.scb, look.io) = (seat.scb.clone(), seat.io);
            look.member = Some(self.set.members()[id.index()].uuid);
            (look.identity, look.fingerprint) = (seat.identity, seat.fingerprint);
        } else if let Joiner::New { name, .. } = &look.joiner {
            look.scb = default_scb(name, &look.path, &self.identity.state_dir);
        }
        let new = matches!(look.joiner, Joiner::New { .. });
        if new && self.seats.iter().any(|seat| seat.scb == look.scb) {
            let text = format!(
                "{} is the control block of another member",
                look.scb.display()
            );
            return Err(Refusal::new(Code::AlreadyMember, text).at(&look.wish.what));
        }
        Ok(look)
    }

    /// Keeps the image until the set has decided.
    pub(super) fn keep(&mut self, image: Image) -> CandidateId {
        self.last_candidate += 1;
        let candidate = CandidateId(self.last_candidate);
        self.candidates.insert(candidate, image);
        candidate
    }

    /// Who is meant: a member by name, a member by the path of its image, or a new image.
    fn find_joiner(&self, wish: &Wish) -> Result<(Joiner, PathBuf), Refusal> {
        if let Some(id) = self.member_named(&wish.what) {
            self.set.attachable(id).map_err(|r| r.at(&wish.what))?;
            let path = self.set.members()[id.index()].path.clone();
            return Ok((Joiner::Departed(id), path.into()));
        }
        if !wish.what.contains('/') {
            let names: Vec<&str> = self.set.members().iter().map(|m| m.name.as_str()).collect();
            let text = format!(
                "no member {}; the members are {}",
                wish.what,
                names.join(", ")
            );
            return Err(Refusal::new(Code::NoSuchMember, text)
                .at(&wish.what)
                .with_hint("give the path of an image, or the name of a member"));
        }
        let path = checked_path(&wish.what)?;
        let identity = Identity::of(&path).map_err(|e| {
            refusal(&Error::io(format!("{} cannot be looked at", wish.what), e)).at(&wish.what)
        })?;
        let Some(id) = identity.and_then(|i| self.member_of(i)) else {
            return Ok((self.newcomer(wish)?, path));
        };
        self.set.attachable(id).map_err(|r| {
            let text = format!("{} is the image of {}", wish.what, self.name(id));
            let code = match r.code {
                Code::IsCopyTarget => Code::AlreadyMember,
                code => code,
            };
            Refusal::new(code, text).at(&wish.what)
        })?;
        Ok((Joiner::Departed(id), path))
    }

    fn newcomer(&self, wish: &Wish) -> Result<Joiner, Refusal> {
        let name = match &wish.name {
            Some(name) => name.clone(),
            None => self.free_name(),
        };
        check_name(&name).map_err(|e| Refusal::new(Code::Syntax, e.to_string()).at(&name))?;
        let (uuid, path) = (Uuid::new_v4(), wish.what.clone());
        Ok(Joiner::New { name, uuid, path })
    }

    /// The first of m1, m2 and so on that no member has.
    fn free_name(&self) -> String {
        let taken = |name: &String| self.member_named(name).is_some();
        (1u32..)
            .map(|n| format!("m{n}"))
            .find(|name| !taken(name))
            .unwrap_or_default()
    }

    fn member_named(&self, name: &str) -> Option<MemberId> {
        let index = self.set.members().iter().position(|m| m.name == name)?;
        MemberId::new(index)
    }

    fn member_of(&self, identity: Identity) -> Option<MemberId> {
        let index = self
            .seats
            .iter()
            .position(|s| s.identity == Some(identity))?;
        MemberId::new(index)
    }

    fn name(&self, id: MemberId) -> &str {
        &self.set.members()[id.index()].name
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
