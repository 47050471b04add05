//! Candidates: images that an attach has opened and looked at, before the set decides.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use uuid::Uuid;

use super::run::Runner;
use crate::error::Error;
use crate::io::{Identity, Image, IoMode, scb_file};
use crate::server::setup::default_scb;
use crate::set::assess::ScbFound;
use crate::set::scb::check_name;
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

impl Runner {
    /// Opens the image that an attach names and describes it for the set.
    pub(super) fn look_at(&mut self, wish: Wish) -> Result<Attach, Refusal> {
        let (joiner, path) = self.find_joiner(&wish)?;
        let mode = match &joiner {
            Joiner::Departed(id) => self.seats[id.index()].io,
            Joiner::New { .. } => IoMode::Buffered,
        };
        let before = Fingerprint::take(&path);
        let image = Image::open(&path, mode).map_err(|e| refusal(&e).at(&wish.what))?;
        let changed = match &joiner {
            Joiner::Departed(id) => self.seats[id.index()]
                .fingerprint
                .and_then(|then| then.change(before)),
            Joiner::New { .. } => {
                self.check_foreign(&path, &wish.what)?;
                None
            }
        };
        let blank = image.is_blank().map_err(|e| refusal(&e).at(&wish.what))?;
        let (candidate, size) = (self.keep(image), Bytes(0));
        let size = self
            .candidates
            .get(&candidate)
            .map_or(size, |i| Bytes(i.size()));
        let Wish {
            what: word,
            policy,
            confirm,
            dry_run,
            ..
        } = wish;
        Ok(Attach {
            word,
            joiner,
            candidate,
            size,
            blank,
            changed,
            policy,
            confirm,
            dry_run,
        })
    }

    fn keep(&mut self, image: Image) -> CandidateId {
        self.last_candidate += 1;
        let candidate = CandidateId(self.last_candidate);
        self.candidates.insert(candidate, image);
        candidate
    }

    /// Who is meant: a member by name, a member by the path of its image, or a new image.
    fn find_joiner(&self, wish: &Wish) -> Result<(Joiner, std::path::PathBuf), Refusal> {
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
        let path = Path::new(&wish.what);
        if !path.is_absolute() {
            let text = format!("{} is not an absolute path", wish.what);
            return Err(Refusal::new(Code::Syntax, text).at(&wish.what));
        }
        let identity = Identity::of(path).map_err(|e| {
            refusal(&Error::io(format!("{} cannot be looked at", wish.what), e)).at(&wish.what)
        })?;
        if let Some(id) = identity.and_then(|i| self.member_of(i)) {
            self.set.attachable(id).map_err(|r| {
                let text = format!("{} is the image of {}", wish.what, self.name(id));
                let code = if r.code == Code::IsCopyTarget {
                    Code::AlreadyMember
                } else {
                    r.code
                };
                Refusal::new(code, text).at(&wish.what)
            })?;
            return Ok((Joiner::Departed(id), path.to_owned()));
        }
        Ok((self.newcomer(wish)?, path.to_owned()))
    }

    fn newcomer(&self, wish: &Wish) -> Result<Joiner, Refusal> {
        let name = match &wish.name {
            Some(name) => name.clone(),
            None => self.free_name(),
        };
        check_name(&name).map_err(|e| Refusal::new(Code::Syntax, e.to_string()).at(&name))?;
        Ok(Joiner::New {
            name,
            uuid: Uuid::new_v4(),
            path: wish.what.clone(),
        })
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

    /// Refuses an image that another set knows.
    fn check_foreign(&self, path: &Path, word: &str) -> Result<(), Refusal> {
        let scb = default_scb(path);
        let found = scb_file::read(&scb)
            .map_err(|e| refusal(&Error::io(format!("{} cannot be read", scb.display()), e)))?;
        let text = match found {
            ScbFound::None => return Ok(()),
            ScbFound::Read(block) if block.set == self.identity.set => return Ok(()),
            ScbFound::Read(block) => {
                format!("{word} is member {} of the set {}", block.name, block.set)
            }
            ScbFound::Damaged(what) => format!("{word} has a storage control block: {what}"),
        };
        let hint = format!("remove {} if that set is gone", scb.display());
        Err(Refusal::new(Code::OtherSet, text).at(word).with_hint(hint))
    }
}

/// An error of the shell as an answer to a command.
pub(super) fn refusal(error: &Error) -> Refusal {
    Refusal::new(error.code(), error.to_string()).with_hint(error.hint().to_owned())
}
