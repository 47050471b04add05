//! Members that were expelled since they did not answer, or were too slow: they come back by minicopy when their
//! images are well again, where that is wanted. It is an attach like any other, refused for the same reasons; a
//! refusal changes nothing, and the next try waits longer.

use crate::sync::Instant;
use crate::sync::thread;
use std::fs::File;
use std::io::{Seek as _, SeekFrom};
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Message;
use super::handle::{Done, Request};
use super::run::Runner;
use crate::io::aligned::AlignedBuf;
use crate::io::sys;
use crate::set::member::MEMBERS_MAX;
use crate::set::{AttachPolicy, Code, MemberId, MemberState, Refusal, Returns};

/// The first try comes so long after a member has left.
const FIRST: Duration = Duration::from_secs(5);
/// The longest time between two tries.
const LONGEST: Duration = Duration::from_secs(300);
/// Reads by which it is tried how fast an image is, and their length.
const PROBES: u32 = 8;
const PROBE_BYTES: u64 = 4096;
/// Who has been a source for so long starts anew.
const FORGIVEN: Duration = Duration::from_secs(600);

/// When each member is tried next, and how long the pause behind that is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Attempts([Option<Attempt>; MEMBERS_MAX]);

#[derive(Clone, Copy, Debug)]
struct Attempt {
    next: Instant,
    pause: Duration,
}

impl Attempts {
    /// Whether a member that is away is due; plans the try behind this one.
    fn is_due(&mut self, id: MemberId, now: Instant) -> bool {
        let attempt = self.0[id.index()].get_or_insert(Attempt {
            next: now + FIRST,
            pause: FIRST,
        });
        let due = now >= attempt.next;
        if due {
            attempt.pause = (attempt.pause * 2).min(LONGEST);
            attempt.next = now + attempt.pause;
        }
        due
    }

    /// A member takes part: the next time that it leaves comes soon or late.
    fn takes_part(&mut self, id: MemberId, now: Instant) {
        let attempt = &mut self.0[id.index()];
        if attempt.is_some_and(|a| now >= a.next + FORGIVEN) {
            *attempt = None;
        }
    }
}

impl Runner {
    /// Tries to bring back who may come back by itself.
    pub(super) fn return_members(&mut self, now: Instant) {
        for id in (0..self.set.members().len()).filter_map(MemberId::new) {
            let member = &self.set.members()[id.index()];
            if matches!(member.state, MemberState::Source) {
                self.attempts.takes_part(id, now);
            }
            let Some(returns) = self.returns(&member.state) else {
                continue;
            };
            if !self.attempts.is_due(id, now) {
                continue;
            }
            let (name, path) = (member.name.clone(), PathBuf::from(&member.path));
            match (returns, self.params.max_latency()) {
                (Returns::WhenFast, Some(most)) => self.bring_back_if_fast(name, path, most),
                _ => self.queue.push_back(comeback(name)),
            }
        }
    }

    /// Whether a member comes back by itself, and when.
    fn returns(&self, state: &MemberState) -> Option<Returns> {
        let MemberState::Expelled(departed) = state else {
            return None;
        };
        let wanted = match departed.returns {
            Returns::Never => false,
            Returns::IfWanted => self.params.auto_return(),
            Returns::WhenFast => true,
        };
        wanted.then_some(departed.returns)
    }

    /// Refuses the return of a member that has been attached meanwhile, and may have been detached since: its image
    /// is somebody else's to read, and is not written (I5).
    pub(super) fn refuse_return(&self, name: &str) -> Result<(), Refusal> {
        let mut members = self.set.members().iter();
        let member = members.find(|member| member.name == name);
        if member.is_some_and(|member| self.returns(&member.state).is_some()) {
            return Ok(());
        }
        let text = format!("{name} does not come back by itself any more");
        Err(Refusal::new(Code::StateChanged, text))
    }

    /// Tries how fast an image answers, on a thread of its own, and brings the member back if that will do.
    fn bring_back_if_fast(&self, member: String, path: PathBuf, most: Duration) {
        let messages = self.messages.clone();
        let probe = move || match probe(&path) {
            Ok(mean) if mean <= most / 2 => {
                let (request, done) = comeback(member);
                let _ = messages.send(Message::Request(request, done));
            }
            Ok(mean) => tracing::info!(member, ?mean, "it is too slow still"),
            Err(error) => tracing::info!(member, %error, "it does not come back yet"),
        };
        if let Err(error) = thread::Builder::new().name("probe".into()).spawn(probe) {
            tracing::warn!(%error, "no thread to try how fast a member is");
        }
    }
}

/// The attach by which a member returns.
pub(super) fn attach(member: String) -> Request {
    Request::Attach {
        what: member,
        name: None,
        source: None,
        policy: AttachPolicy::Minicopy,
        confirm: false,
    }
}

/// The return of a member, as a command that nobody has given.
fn comeback(member: String) -> (Request, Done) {
    let request = Request::Return {
        member: member.clone(),
    };
    let done = move |outcome: Result<_, Refusal>| match outcome {
        Ok(_) => tracing::info!(member, "it comes back by itself"),
        Err(refusal) => tracing::info!(member, why = refusal.text, "it does not come back yet"),
    };
    (request, Box::new(done))
}

/// The time that a read past the page cache takes, on average of some places.
fn probe(path: &Path) -> std::io::Result<Duration> {
    let mut file = File::open(path)?;
    // A device has no length in its metadata.
    let len = file.seek(SeekFrom::End(0))?.max(PROBE_BYTES);
    let mut buf = AlignedBuf::zeroed(PROBE_BYTES as usize);
    let begun = Instant::now();
    for place in 0..PROBES {
        let at = (len - PROBE_BYTES) / u64::from(PROBES) * u64::from(place);
        sys::drop_cache(file.as_fd(), at, PROBE_BYTES);
        file.read_at(&mut buf, at)?;
    }
    Ok(begun.elapsed() / PROBES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_come_more_and_more_seldom() {
        let (mut attempts, id) = (Attempts::default(), MemberId::new(2).expect("a place"));
        let begun = Instant::now();
        let mut tries = Vec::new();
        for second in 0..2000 {
            if attempts.is_due(id, begun + Duration::from_secs(second)) {
                tries.push(second);
            }
        }
        assert_eq!(tries, [5, 15, 35, 75, 155, 315, 615, 915, 1215, 1515, 1815]);
        attempts.takes_part(id, begun + Duration::from_secs(2000));
        assert!(attempts.0[2].is_some(), "it may leave again");
        attempts.takes_part(id, begun + Duration::from_secs(3000));
        assert!(attempts.0[2].is_none());
    }
}
