//! Copying a range of the unit from a source into one member, under the fence; holes stay holes.
//!
//! The copier and reads of what is still to be merged use it. Whose bits are cleared afterwards is
//! theirs to decide: nothing here touches a bitmap.

use std::io;

use super::pipeline::{Fenced, Pipeline, WritePermit};
use crate::io::aligned::AlignedBuf;
use crate::io::{Seek, Storage, Zero};
use crate::set::{ByteRange, MemberId, MemberSet};

/// Why a copy of a range failed.
pub(super) enum Failure {
    /// The target could not be written.
    Target(io::Error),
    /// No source could be read.
    Source(String),
    /// The target takes part no more; the control thread knows.
    Gone,
}

/// What is kept from range to range.
pub(super) struct Scratch {
    buf: AlignedBuf,
    known: Option<Data>,
}

impl Scratch {
    /// Room for so many bytes at once.
    pub(super) fn new(bytes: usize) -> Self {
        Self {
            buf: AlignedBuf::zeroed(bytes),
            known: None,
        }
    }
}

/// Where a source is known to have data. To find the end of data may take time in proportion to its
/// length (tmpfs looks at every page), so one answer serves all the steps inside it. What has become
/// a hole there since is copied as the zeros that it reads as; no hole is ever believed in.
#[derive(Clone, Copy, Debug)]
struct Data {
    source: MemberId,
    start: u64,
    end: u64,
}

/// Copies one range, all of whose bytes are fenced.
pub(super) fn copy_range(
    pipeline: &Pipeline,
    fenced: &Fenced<'_>,
    permit: &WritePermit<'_>,
    (target, range): (MemberId, ByteRange),
    scratch: &mut Scratch,
) -> Result<(), Failure> {
    let mut rest = Some(range);
    while let Some(range) = rest {
        let (part, data, after) = next_part(fenced, target, range, &mut scratch.known);
        rest = after;
        if data {
            copy_data(pipeline, fenced, permit, (target, part), &mut scratch.buf)?;
        } else {
            let hole = target_of(permit, target)?.zero_at(part.start(), part.len(), Zero::Punch);
            hole.map_err(Failure::Target)?;
        }
    }
    Ok(())
}

/// Splits a range where the source changes from hole to data: the part, whether it is data, the rest.
fn next_part(
    fenced: &Fenced<'_>,
    target: MemberId,
    range: ByteRange,
    known: &mut Option<Data>,
) -> (ByteRange, bool, Option<ByteRange>) {
    let live = fenced.live();
    let tried = [target].into_iter().collect::<MemberSet>();
    let planned = live.view().plan_read(range, tried, |_| 0);
    let Some((source, store)) = planned.and_then(|id| Some((id, live.store(id)?))) else {
        return (range, true, None);
    };
    let start = range.start();
    let seek = |what| store.seek(start, what).ok();
    let covers = |d: &Data| d.source == source && (d.start..d.end).contains(&start);
    let (border, data) = match known.filter(covers) {
        Some(found) => (Some(found.end), true),
        None => match seek(Seek::Data) {
            Some(Some(at)) if at <= start => (seek(Seek::Hole).flatten(), true),
            Some(at) => (at.or(Some(range.end())), false),
            None => (None, true),
        },
    };
    if let Some(end) = border.filter(|_| data) {
        *known = Some(Data { source, start, end });
    }
    match border.map(|b| b.saturating_sub(start)) {
        Some(len) if len > 0 => {
            let (part, after) = range.split(len);
            (part, data, after)
        }
        _ => (range, true, None),
    }
}

fn copy_data(
    pipeline: &Pipeline,
    fenced: &Fenced<'_>,
    permit: &WritePermit<'_>,
    (target, range): (MemberId, ByteRange),
    buf: &mut AlignedBuf,
) -> Result<(), Failure> {
    let mut rest = Some(range);
    while let Some(range) = rest {
        let (part, after) = range.split(buf.len() as u64);
        rest = after;
        let bytes = &mut buf[..part.len() as usize];
        pipeline
            .read_from(fenced.live(), part, bytes)
            .map_err(|_| Failure::Source("no source could be read".to_owned()))?;
        target_of(permit, target)?
            .write_at(bytes, part.start())
            .map_err(Failure::Target)?;
    }
    Ok(())
}

fn target_of<'a>(
    permit: &'a WritePermit<'_>,
    target: MemberId,
) -> Result<&'a dyn Storage, Failure> {
    permit.store(target).ok_or(Failure::Gone)
}
