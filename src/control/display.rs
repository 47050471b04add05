//! `show`: the whole state for people, in the manner of SHOW SHADOW and SHOW DEVICE/BITMAP.

use std::fmt::Write as _;

use super::render::Context;
use super::show::{Counters, bitmap_state};
use super::text::{human, line, maybe, moment, percent};
use crate::server::Published;
use crate::server::params::Param;
use crate::server::setup::Durability;
use crate::set::{BitmapStatus, Operation};

/// The whole state for people.
pub(super) fn display(c: &Context<'_>) -> String {
    let (now, set) = (c.now, &c.now.set);
    let size = set.geometry.size().0;
    let mut out = format!(
        "Virtual unit {}, label {}, {}\n  \
         state {}, generation {}, {} ({size} bytes), regions of {} blocks\n  \
         {}\n\n",
        line(&now.unit),
        line(&now.label),
        now.uuid,
        now.state_word(),
        set.generation.number(),
        human(size),
        set.geometry.region_blocks(),
        bitmaps_live(now),
    );
    if let Some(until) = now.stalled {
        let _ = writeln!(
            out,
            "  writes are stalled until {} at most\n",
            moment(until)
        );
    }
    if let Some(why) = &set.lost {
        let _ = writeln!(out, "  bitmaps of the last mount are lost: {}\n", line(why));
    }
    display_settings(now, &mut out);
    display_members(c, &mut out);
    display_bitmaps(c, &mut out);
    display_operations(c, &mut out);
    out
}

fn bitmaps_live(now: &Published) -> String {
    let text = match now.durability_now() {
        Durability::Power => "bitmaps survive a crash and a loss of power",
        Durability::Crash => "bitmaps survive a crash of the daemon, not a loss of power",
        Durability::Memory => "bitmaps live in memory and end with this mount",
    };
    match &now.set.homeless {
        Some(why) => format!("who leaves gets no bitmap: {}", line(why)),
        None => text.to_owned(),
    }
}

fn display_members(c: &Context<'_>, out: &mut String) {
    let members = &c.now.set.members;
    let longest = members.iter().map(|m| m.name.chars().count()).max();
    let width = longest.unwrap_or(0).max("Member".len());
    let _ = writeln!(
        out,
        "  {:width$}  {:11}  {:>6}  {:>4}  {:>4}  {:8}  Image",
        "Member", "State", "Errors", "Cost", "Site", "Bitmap"
    );
    for m in members {
        let _ = writeln!(
            out,
            "  {:width$}  {:11}  {:>6}  {:>4}  {:>4}  {:8}  {}",
            line(&m.name),
            m.state,
            m.errors,
            m.read_cost,
            m.site,
            maybe(m.bitmap),
            line(&m.path),
        );
        if m.id == c.now.set.master {
            let _ = writeln!(out, "  {:width$}  master member", "");
        }
        if !m.answers {
            let _ = writeln!(out, "  {:width$}  does not answer", "");
        }
        if !m.reason.is_empty() {
            let _ = writeln!(
                out,
                "  {:width$}  since {}: {}",
                "",
                moment(m.since),
                line(&m.reason)
            );
        }
    }
}

/// The fields of SHOW SHADOW that are settings, and the write-intent bitmap.
fn display_settings(now: &Published, out: &mut String) {
    let value = |param: Param| param.spec().write(now.params.get(param));
    let _ = writeln!(
        out,
        "  unit timeout {} s, member timeout {} s, site {}, read policy {}\n  \
         copy and merge priority {}, at most {} copies, recovery delay {} s\n  \
         minimerge enabled: {} of {} regions marked by write intent, reset above {} blocks\n",
        value(Param::Mvtimeout),
        value(Param::MemberTimeout),
        value(Param::SiteId),
        value(Param::ReadPolicy),
        value(Param::Priority),
        value(Param::MaxCopies),
        value(Param::RecDly),
        now.set.intent_bits,
        now.set.geometry.regions(),
        value(Param::HbmmResetThreshold),
    );
}

/// The columns of SHOW DEVICE/BITMAP.
fn display_bitmaps(c: &Context<'_>, out: &mut String) {
    let tagged = |b: &&BitmapStatus| b.tag.is_some();
    let mut bitmaps = c.now.set.bitmaps.iter().filter(tagged).peekable();
    if bitmaps.peek().is_none() {
        out.push_str("\n  no write bitmaps\n");
        return;
    }
    let _ = writeln!(
        out,
        "\n  Bitmap    Member            Bytes  Populated  Type      Active  Stale      Created"
    );
    for bitmap in bitmaps {
        let Some(tag) = bitmap.tag else { continue };
        let (map, regions) = (&bitmap.map, bitmap.map.geometry().regions());
        let member = maybe(bitmap.member.map(|id| c.member_name(id)));
        let active = match bitmap_state(bitmap) {
            "active" => "yes",
            other => other,
        };
        let _ = writeln!(
            out,
            "  {}  {member:12}  {:>9}  {:>7} %  minicopy  {active:6}  {:9}  {}",
            tag.id,
            map.memory_bytes(),
            percent(map.count(), regions),
            human(map.stale_bytes()),
            moment(tag.created),
        );
    }
}

fn display_operations(c: &Context<'_>, out: &mut String) {
    for o in &c.now.set.operations {
        let (n, rate) = (Counters::of(c.now, o), c.now.rate(o.id));
        let _ = write!(
            out,
            "\n  Operation {} {}, {}: {} % of {}",
            o.id,
            title(c, o),
            o.state.name(),
            n.percent(o.state),
            human(n.total),
        );
        if let Some(rate) = rate.bytes_per_second {
            let _ = write!(out, ", {}/s", human(rate));
        }
        if let Some(eta) = rate.eta_s {
            let _ = write!(out, ", {eta} s to go");
        }
        if let Some(verify) = o.verify() {
            let differing = verify.findings.counts().differing;
            let differ = if differing == 1 {
                "block differs"
            } else {
                "blocks differ"
            };
            let _ = write!(out, ", {differing} {differ}");
        }
        out.push('\n');
    }
}

/// What an operation does, with whom.
fn title(c: &Context<'_>, o: &Operation) -> String {
    match (o.source(), o.target()) {
        (Some(source), Some(target)) => {
            let (source, target) = (c.member_name(source), c.member_name(target));
            format!("{} {source} -> {target}", o.kind())
        }
        _ => o.kind().to_owned(),
    }
}
