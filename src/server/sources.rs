//! From whom a copy reads: who answers, and who is waited for.

use std::io;

use super::Message;
use super::results::is_out_of_reach;
use super::step::{Hold, Stop};
use super::watch::Time;
use crate::set::{ByteRange, MemberId, MemberSet};

/// From whom a range is copied.
pub(super) struct Sources {
    tried: MemberSet,
    named: Option<MemberId>,
    /// Who is out of reach, and since when.
    lost: Option<(MemberId, Time)>,
}

impl Sources {
    /// All but these, one of them first.
    pub(super) fn but(tried: MemberSet, named: Option<MemberId>) -> Self {
        Self {
            tried,
            named,
            lost: None,
        }
    }

    /// One of them has been read.
    pub(super) fn answered(&mut self) {
        self.lost = None;
    }

    /// The one that was named, else a source that answers, if there is one; waits for one that is out of reach.
    pub(super) fn next(&mut self, hold: &mut Hold<'_>, range: ByteRange) -> Result<MemberId, Stop> {
        loop {
            if let Some(source) = self.choose(hold, range)? {
                return Ok(source);
            }
            let lost = self.lost.filter(|lost| hold.pipeline().waits_for(lost.0));
            let lost = lost.ok_or(Stop::Unreadable)?;
            hold.wait_for(lost)?;
            self.tried.remove(lost.0);
        }
    }

    fn choose(&self, hold: &Hold<'_>, range: ByteRange) -> Result<Option<MemberId>, Stop> {
        let (view, tried) = (hold.permit()?.live().view(), self.tried);
        let silent = hold.pipeline().silent_members();
        let can = view.readers(range).without(tried).without(silent);
        if let Some(named) = self.named.filter(|named| can.contains(*named)) {
            return Ok(Some(named));
        }
        let planned = view.plan_read(range, tried.or(silent), |_| 0);
        let gone = hold.pipeline().gone();
        Ok(planned.or_else(|| view.plan_read(range, tried.or(gone), |_| 0)))
    }

    /// A source could not be read since it is out of reach, or by an error of its own.
    pub(super) fn failed(
        &mut self,
        hold: &Hold<'_>,
        (source, since): (MemberId, Time),
        part: ByteRange,
        error: &io::Error,
    ) {
        self.tried.insert(source);
        if is_out_of_reach(error) {
            let before = self.lost.filter(|lost| lost.0 == source);
            self.lost = before.or(Some((source, since)));
            return;
        }
        let (member, at) = (hold.pipeline().name(source), part.start());
        tracing::warn!(member, at, %error, "a copy could not read");
        let failed = Message::ReadFailed(source, part);
        let _ = hold.pipeline().messages.send(failed);
    }
}
