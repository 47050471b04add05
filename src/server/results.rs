//! What came of a request on each member, and what an error says of a member.

use std::io;

use super::lane::Unflushed;
use super::pipeline::Errno;
use crate::set::{MemberId, MemberSet};

/// What came of a request on each member.
#[derive(Debug, Default)]
pub(crate) struct Results {
    pub(super) good: MemberSet,
    pub(super) failed: MemberSet,
    /// Those that failed by an error of their medium.
    pub(super) media: MemberSet,
    /// What those answered, the first one first.
    errors: Vec<(MemberId, io::Error)>,
    /// The failures of flushes among these.
    tickets: Vec<(MemberId, u64)>,
}

impl Results {
    pub(super) fn add(&mut self, id: MemberId, outcome: io::Result<()>) {
        match outcome {
            Ok(()) => self.good.insert(id),
            Err(error) => {
                self.good.remove(id);
                self.failed.insert(id);
                if is_of_medium(&error) {
                    self.media.insert(id);
                }
                self.errors.push((id, error));
            }
        }
    }

    /// A member has failed by what was found of it; one that is out of reach has not shown anything of its medium.
    pub(super) fn blame(&mut self, id: MemberId) {
        let lost = |(member, error): &(_, _)| *member == id && is_out_of_reach(error);
        if !self.errors.iter().any(lost) {
            self.media.insert(id);
        }
    }

    pub(super) fn add_flush(&mut self, id: MemberId, outcome: Result<(), Unflushed>) {
        let outcome = outcome.map_err(|failed| {
            self.tickets.push((id, failed.ticket));
            failed.error
        });
        self.add(id, outcome);
    }

    /// The failures of flushes among these, each with its number.
    pub(super) fn tickets(&self) -> impl Iterator<Item = (MemberId, u64)> + '_ {
        self.tickets.iter().copied()
    }

    /// Takes in what came of a flush of the members that are good so far.
    pub(super) fn add_flushed(&mut self, flushed: Self) {
        for (id, error) in flushed.errors {
            self.add(id, Err(error));
        }
        self.tickets.extend(flushed.tickets);
    }

    pub(super) fn errno(&self) -> Errno {
        Errno(
            self.errors
                .first()
                .and_then(|(_, error)| error.raw_os_error())
                .unwrap_or(libc::EIO),
        )
    }

    /// What the members answered that failed, for people.
    pub(super) fn causes(&self) -> Vec<(MemberId, String)> {
        let errors = self.errors.iter();
        errors.map(|(id, error)| (*id, error.to_string())).collect()
    }
}

/// Whether an error says that a member is out of reach: later it may answer, with all that it has.
pub(super) fn is_out_of_reach(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ENXIO
                | libc::ENODEV
                | libc::ENOMEDIUM
                | libc::ESTALE
                | libc::ENOTCONN
                | libc::ETIMEDOUT
                | libc::EHOSTDOWN
                | libc::EHOSTUNREACH
                | libc::ENETDOWN
                | libc::ENETUNREACH
        )
    )
}

/// What a call comes to that is waited for no longer.
pub(super) fn given_up() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "it is waited for no longer")
}

/// Whether an error says that a medium may hold other bytes than it was given, not that it is out of reach.
pub(super) fn is_of_medium(error: &io::Error) -> bool {
    // An image that was cut short has lost what was behind its end.
    error.kind() == io::ErrorKind::UnexpectedEof
        || matches!(
            error.raw_os_error(),
            Some(
                libc::EIO
                    | libc::EBADMSG
                    | libc::EUCLEAN
                    | libc::ENODATA
                    | libc::EILSEQ
                    | libc::EREMOTEIO
            )
        )
}

pub(super) fn not_open() -> io::Error {
    io::Error::other("the member is not open")
}
