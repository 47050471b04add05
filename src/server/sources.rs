//! From whom a copy reads: who answers, who is waited for, and who is mended.

use std::io;

use super::Message;
use super::mend::mend;
use super::results::is_out_of_reach;
use super::step::{Hold, Stop};
use super::watch::Time;
use crate::set::{ByteRange, Event, MemberId, MemberSet};

/// From whom a range is copied.
pub(super) struct Sources {
    targets: MemberSet,
    tried: MemberSet,
    named: Option<MemberId>,
    /// Who is out of reach, and since when.
    lost: Option<(MemberId, Time)>,
    /// What the last one could not read.
    unread: Option<ByteRange>,
    /// Where the last part ends that was mended: each is mended once.
    mended: u64,
}

impl Sources {
    /// All but the targets, one of them first.
    pub(super) fn but(targets: MemberSet, named: Option<MemberId>) -> Self {
        Self {
            targets,
            tried: targets,
            named,
            lost: None,
            unread: None,
            mended: 0,
        }
    }

    /// One of them has been read.
    pub(super) fn answered(&mut self) {
        self.lost = None;
    }

    /// The one that was named, else a source that answers, if there is one; waits for one that is out of reach, and mends
    /// those that cannot read.
    pub(super) fn next(&mut self, hold: &mut Hold<'_>, range: ByteRange) -> Result<MemberId, Stop> {
        loop {
            if let Some(source) = self.choose(hold, range)? {
                return Ok(source);
            }
            match self.lost {
                Some(lost) if hold.pipeline().waits_for(lost.0) => {
                    hold.wait_for(lost)?;
                    self.tried.remove(lost.0);
                }
                Some(_) => return Err(Stop::Unreadable),
                None => self.mend(hold)?,
            }
        }
    }

    /// All of them have failed by errors of their own: they are given what they cannot read, and tried again.
    fn mend(&mut self, hold: &mut Hold<'_>) -> Result<(), Stop> {
        let part = self.unread.take();
        let part = part.filter(|part| part.start() >= self.mended);
        let part = part.ok_or(Stop::Unreadable)?;
        let sources = self.tried.without(self.targets);
        mend(hold, (sources, self.targets), part)?;
        self.tried = self.targets;
        self.mended = part.end();
        Ok(())
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
        self.unread = Some(part);
        let (member, at) = (hold.pipeline().name(source), part.start());
        tracing::warn!(member, at, %error, "a copy could not read");
        let readers = hold
            .permit()
            .map(|permit| permit.live().view().readers(part));
        let failed = match readers {
            Ok(readers) if readers.len() > 1 => Message::ReadFailed(source, part),
            // A read repair would find nobody to read from.
            _ => Message::Event(Event::ReadFailed(source)),
        };
        let _ = hold.pipeline().messages.send(failed);
    }
}
