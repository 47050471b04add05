//! What must hold in every state, and what must happen in some.

use stateright::Property;

use crate::Model;
use crate::state::{Disk, Start0, State, Told, Writes};

type Named = (&'static str, fn(&Model, &State) -> bool);

/// What must never be otherwise.
const ALWAYS: [Named; 6] = [
    ("the master has every promised write", |_, s| {
        elected(s, has_all)
    }),
    ("diverged copies are not taken for one set", |_, s| {
        elected(s, no_split)
    }),
    ("no source is behind", |_, s| elected(s, sources_equal)),
    ("what differs is known to be stale", |_, s| {
        elected(s, stale_is_known)
    }),
    ("a generation only grows", |_, s| !s.shrunk),
    ("a set that has not parted can be mounted", |_, s| {
        s.parted || !is_refused(s)
    }),
];

/// What must come about somewhere, so that the model is not empty.
const SOMETIMES: [Named; 8] = [
    ("split brain is refused", |_, s| {
        matches!(s.told, Some(Told::Refused { split: true, .. }))
    }),
    ("a mount without the newest data is refused", |_, s| {
        matches!(s.told, Some(Told::Refused { split: false, .. }))
    }),
    ("a mount without a member serves", |_, s| {
        starts(s).any(|start| matches!(start, Start0::Missing(_)))
    }),
    ("a member is merged", |_, s| {
        starts(s).any(|start| start == Start0::Merging)
    }),
    ("a member is still to be merged", |_, s| {
        starts(s).any(|start| start == Start0::StillMerging)
    }),
    ("a copy goes on", |_, s| {
        starts(s).any(|start| start == Start0::Copy(true))
    }),
    ("a member behind is copied", |_, s| {
        starts(s).any(|start| start == Start0::Copy(false))
    }),
    ("bitmaps are not believed", |_, s| {
        s.mounts > 1
            && matches!(
                s.told,
                Some(Told::Elected {
                    believed: false,
                    ..
                })
            )
    }),
];

pub(crate) fn all() -> Vec<Property<Model>> {
    let always = ALWAYS.map(|(name, holds)| Property::always(name, holds));
    let sometimes = SOMETIMES.map(|(name, holds)| Property::sometimes(name, holds));
    always.into_iter().chain(sometimes).collect()
}

pub(crate) fn must_hold(name: &str) -> bool {
    ALWAYS.iter().any(|(known, _)| *known == name)
}

pub(crate) fn must_happen() -> impl Iterator<Item = &'static str> {
    SOMETIMES.iter().map(|(name, _)| *name)
}

fn starts(state: &State) -> impl Iterator<Item = Start0> {
    let starts = match &state.told {
        Some(Told::Elected { starts, .. }) => starts.clone(),
        _ => Vec::new(),
    };
    starts.into_iter()
}

fn is_refused(state: &State) -> bool {
    matches!(state.told, Some(Told::Refused { .. }))
}

/// A mount that has just elected its members.
struct Election<'a> {
    state: &'a State,
    host: usize,
    visible: u8,
    starts: &'a [Start0],
    master: &'a Disk,
    believed: bool,
    doubt: bool,
    own: &'a [Option<bool>],
}

fn elected(state: &State, holds: fn(&Election<'_>) -> bool) -> bool {
    let Some(Told::Elected {
        host,
        visible,
        starts,
        believed,
        clean,
        doubt,
        own,
    }) = &state.told
    else {
        return true;
    };
    let master = starts.iter().position(|start| *start == Start0::Source);
    let Some(master) = master else { return false };
    // Of a master that was to be merged itself its bitmap tells what the others may lack.
    let doubt = match believed {
        true => *doubt || own[master] == Some(true),
        false => !clean,
    };
    holds(&Election {
        state,
        host: *host,
        visible: *visible,
        starts,
        master: &state.disks[master],
        believed: *believed,
        doubt,
        own,
    })
}

/// A promised write that the master lacks was known to nobody who was asked.
fn has_all(e: &Election<'_>) -> bool {
    let lacks: Writes = e.state.promised & !e.master.shown;
    let seen = e
        .state
        .claiming(e.visible)
        .fold(0, |seen, disk| seen | disk.shown);
    lacks & (seen | e.state.known[e.host]) == 0
}

/// Of two members that claim the data none has a promised write that the other lacks and the other way round.
fn no_split(e: &Election<'_>) -> bool {
    let promised = |disk: &Disk| disk.shown & e.state.promised;
    let all: Vec<Writes> = e.state.claiming(e.visible).map(promised).collect();
    all.iter()
        .all(|a| all.iter().all(|b| a & b == *a || a & b == *b))
}

fn sources_equal(e: &Election<'_>) -> bool {
    let source =
        |(disk, start): (&Disk, &Start0)| *start != Start0::Source || disk.shown == e.master.shown;
    e.state.disks.iter().zip(e.starts).all(source)
}

/// I1: where a member may differ its stale set says so, or everything is copied.
fn stale_is_known(e: &Election<'_>) -> bool {
    let members = e.state.disks.iter().zip(e.starts).zip(e.own);
    let line = e
        .state
        .run
        .as_ref()
        .map(|run| &run.mounts[..])
        .unwrap_or_default();
    // Who was written in another line is told by its block when it comes back.
    let ours = |disk: &Disk| {
        disk.block
            .as_ref()
            .is_some_and(|b| b.mounts.iter().all(|m| line.contains(m)))
    };
    let members = members.filter(|((disk, _), _)| ours(disk));
    members.into_iter().all(|((disk, start), own)| {
        let own_set = own.filter(|_| e.believed);
        let stale = match start {
            Start0::Source => false,
            Start0::Merging => !e.believed || e.doubt || own_set == Some(true),
            Start0::StillMerging | Start0::Copy(true) | Start0::Detached | Start0::Expelled => {
                e.doubt || own_set != Some(false)
            }
            Start0::Copy(false) => true,
            Start0::Missing(equal) => {
                let certain = e.believed || !e.doubt;
                e.doubt || own_set == Some(true) || !(own_set.is_some() || certain && *equal)
            }
        };
        stale || disk.shown == e.master.shown
    })
}
