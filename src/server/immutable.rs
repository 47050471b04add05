//! The immutable flag on images of members that are away, for `protect = "immutable"`.
//!
//! Set before the stamp is taken, taken away before the image is opened to be attached, and when its member is
//! released. It must not decide anything, and nothing fails with it: without the flag the stamp protects alone.
//!
//! What the flag does to the ctime is why a stamp knows whether it was there (`Stamp::kept`). A crash between
//! taking the flag away and the attach therefore costs nothing.

use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::thread;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use super::run::Runner;
use super::seat::Seat;
use super::setup::Protect;
use crate::io::{Identity, immutable, scb_file};
use crate::set::assess::ScbFound;
use crate::set::{MemberId, MemberState, Stamp};

/// The flag of one member's image. Threads that hang may come late: each looks whether the member is still away,
/// one after the other, so that an image that has come back does not get the flag.
#[derive(Clone, Debug, Default)]
pub(super) struct Flag(Arc<State>);

#[derive(Debug, Default)]
struct State {
    away: AtomicBool,
    turn: Mutex<()>,
}

impl Flag {
    /// Notes whether the image may get the flag. Never waits.
    pub(super) fn away(&self, away: bool) {
        self.0.away.store(away, Ordering::SeqCst);
    }

    /// Sets the flag if the member is still away; tells whether it is there now.
    pub(super) fn set(&self, path: &Path, identity: Identity) -> io::Result<bool> {
        let _turn = self.0.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.0.away.load(Ordering::SeqCst) {
            return Ok(false);
        }
        immutable::set(path, identity).map(|_| true)
    }

    /// Takes the flag away, if it is there. The caller has noted that the member is not away.
    pub(super) fn clear(&self, path: &Path, identity: Option<Identity>) -> io::Result<bool> {
        let _turn = self.0.turn.lock().unwrap_or_else(PoisonError::into_inner);
        immutable::clear(path, identity)
    }
}

impl Seat {
    /// Who its image is, if that is to be immutable while it is away.
    pub(super) fn immutable(&self) -> Option<Identity> {
        let wanted = self.protect == Protect::Immutable && !self.vacant;
        self.identity.filter(|_| wanted)
    }
}

impl Runner {
    /// Notes that the set itself is about to open an image: until that is decided none gets the flag.
    pub(super) fn hold_flags(&self) {
        self.seats.iter().for_each(|seat| seat.flag.away(false));
    }

    /// Sets the flags that are missing: after a start, and after an attach that was refused.
    pub(super) fn set_flags(&self) {
        for (member, seat) in self.set.members().iter().zip(&self.seats) {
            let Some(identity) = seat.immutable().filter(|_| is_away(&member.state)) else {
                continue;
            };
            seat.flag.away(true);
            let (flag, path) = (seat.flag.clone(), PathBuf::from(&member.path));
            let (stamp, scb, uuid) = (seat.stamp.clone(), seat.scb.clone(), member.uuid);
            let name = member.name.clone();
            let set = move || {
                // The ctime of an image that was stamped without the flag is evidence.
                let stamp = stamp.or_else(|| stamp_in(&scb, uuid));
                if stamp.is_none_or(|stamp| stamp.kept) {
                    warn(&name, flag.set(&path, identity).map(drop));
                }
            };
            let thread = thread::Builder::new().name("immutable".into());
            warn(&member.name, thread.spawn(set).map(drop));
        }
    }

    /// Takes the flag away from the image of a member that is none any more, if the set has set it. For a thread of
    /// its own.
    pub(super) fn give_up_flag(&self, id: MemberId) -> impl FnOnce() + Send + use<> {
        let (member, seat) = (&self.set.members()[id.index()], &self.seats[id.index()]);
        let (flag, path, identity) = (
            seat.flag.clone(),
            PathBuf::from(&member.path),
            seat.identity,
        );
        let (stamp, scb, uuid) = (seat.stamp.clone(), seat.scb.clone(), member.uuid);
        let (name, wanted) = (member.name.clone(), seat.protect == Protect::Immutable);
        flag.away(false);
        move || {
            let stamp = stamp.or_else(|| stamp_in(&scb, uuid));
            if !wanted && !stamp.is_some_and(|stamp| stamp.kept) {
                return;
            }
            if let Err(error) = flag.clear(&path, identity) {
                let (member, path) = (name, path.display());
                tracing::warn!(member, %error, "its image may still be immutable; chattr -i {path}");
            }
        }
    }
}

fn is_away(state: &MemberState) -> bool {
    matches!(state, MemberState::Detached(_) | MemberState::Expelled(_))
}

/// The stamp in the block of a member.
pub(super) fn stamp_in(scb: &Path, member: uuid::Uuid) -> Option<Stamp> {
    match scb_file::read(scb) {
        Ok(ScbFound::Read(scb)) if scb.member == member => scb.stamp,
        _ => None,
    }
}

/// Says that an image is not immutable; one that is not there cannot be changed either.
pub(super) fn warn(member: &str, outcome: io::Result<()>) {
    match outcome {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            tracing::warn!(member, %error, "its image is not immutable: its stamp protects it alone");
        }
    }
}
