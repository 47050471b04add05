//! Letting go of a member's image, and the evidence of what it looked like then.
//!
//! A stamp is read on a thread of its own: a device that does not answer must not stop the control
//! thread. It must not decide anything: without a stamp a departure is as good, only without evidence.

use std::path::PathBuf;
use std::time::Duration;

use crossbeam_channel::bounded;

use super::Message;
use super::run::Runner;
use crate::io::fingerprint;
use crate::set::{MemberId, MemberState, Stamp};

/// How long the answer to a detach waits for the stamp; the member was flushed just before.
const PATIENCE: Duration = Duration::from_secs(5);

impl Runner {
    /// Lets go of a member's storage. Who left on purpose is stamped before the answer and while its image
    /// is still locked; who was expelled may not answer, and is stamped when it does.
    pub(super) fn close(&mut self, id: MemberId) {
        let store = self.stores[id.index()].take();
        let member = &self.set.members()[id.index()];
        let detached = matches!(member.state, MemberState::Detached(_));
        let (path, uuid) = (PathBuf::from(&member.path), member.uuid);
        let seat = &mut self.seats[id.index()];
        seat.stamp = None;
        // An open file would keep a disk from being carried away.
        seat.file = None;
        seat.turns += 1;
        let (turn, messages) = (seat.turns, self.messages.clone());
        let (sender, answer) = bounded(1);
        let look = move || {
            // The lock of one that was expelled must not keep it out.
            let held = store.filter(|_| detached);
            let stamp = fingerprint::take(&path, uuid).map_err(|e| e.to_string());
            drop(held);
            match detached {
                true => drop(sender.send(stamp)),
                false => drop(messages.send(Message::Stamped(id, turn, stamp))),
            }
        };
        let started = std::thread::Builder::new().name("stamp".into()).spawn(look);
        let stamp = match started {
            Err(error) => Err(error.to_string()),
            Ok(_) if !detached => return,
            Ok(_) => answer
                .recv_timeout(PATIENCE)
                .unwrap_or_else(|e| Err(e.to_string())),
        };
        self.keep_stamp(id, stamp);
    }

    /// The image of a member that was expelled has answered, if it has not come back since.
    pub(super) fn stamped(&mut self, id: MemberId, turn: u64, stamp: Result<Stamp, String>) {
        let expelled = matches!(
            self.set.members()[id.index()].state,
            MemberState::Expelled(_)
        );
        if expelled && self.seats[id.index()].turns == turn {
            self.keep_stamp(id, stamp);
        }
    }

    fn keep_stamp(&mut self, id: MemberId, stamp: Result<Stamp, String>) {
        let member = self.set.members()[id.index()].name.clone();
        let stamp = match stamp {
            Ok(stamp) => stamp,
            Err(error) => return tracing::warn!(member, error, "its image could not be stamped"),
        };
        self.seats[id.index()].stamp = Some(stamp.clone());
        // No block may be newer than those of the members that take part (I3).
        if self.is_undurable() {
            return tracing::warn!(member, "the stamp of its image is not durable");
        }
        if let Err(error) = self.write_stamp(id, stamp) {
            tracing::warn!(member, %error, "the stamp of its image is not durable");
        }
        self.seats[id.index()].file = None;
    }
}
