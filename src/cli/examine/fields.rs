//! What a block says, line by line: a list of [`Field`]s, each for people and for programs.
//!
//! A new field of the block is one more entry in [`of_block`], and in [`of_header`] when it has a fixed
//! place that can be read without the rest.

use serde_json::{Value, json};

use crate::cli::output::plain;
use crate::cli::size::human;
use crate::set::Stamp;
use crate::set::scb::{Generation, Header, Scb, ScbState};
use crate::set::stamp::Facts;

/// Mounts of a lineage that people are shown; programs get them all.
const MOUNTS_SHOWN: usize = 8;

/// One line for people, and what programs get for it.
pub(super) struct Field {
    /// What the line begins with, at most eight characters.
    pub(super) title: &'static str,
    /// The rest of the line.
    pub(super) text: String,
    /// Keys and values of the JSON object.
    pub(super) values: Vec<(&'static str, Value)>,
}

/// What a block says, line by line; the table of members comes after.
pub(super) fn of_block(scb: &Scb) -> Vec<Field> {
    let geometry = scb.geometry;
    let size = (geometry.size().0, geometry.region_blocks());
    let mut fields = vec![
        set_field(&scb.set.to_string(), &scb.label),
        member_field(&scb.name, &scb.member.to_string()),
        state_field(
            Some(scb.state),
            scb.generation.number(),
            Some(scb.clean),
            scb.sequence,
        ),
        unit_field(size),
        lineage_field(scb),
    ];
    fields.extend(scb.stamp.as_ref().map(stamp_field));
    fields
}

/// What stands at the fixed places of a slot that is no block.
pub(super) fn of_header(header: &Header) -> Vec<Field> {
    vec![
        set_field(&header.set.to_string(), &header.label),
        member_field(&header.name, &header.member.to_string()),
        state_field(
            header.state,
            header.generation,
            header.clean,
            header.sequence,
        ),
        unit_field((header.size, header.region_blocks)),
    ]
}

fn set_field(uuid: &str, label: &str) -> Field {
    Field {
        title: "set",
        text: format!("{uuid} \"{}\"", plain(label)),
        values: vec![("uuid", json!(uuid)), ("label", json!(label))],
    }
}

fn member_field(name: &str, uuid: &str) -> Field {
    Field {
        title: "member",
        text: format!("{}, {uuid}", plain(name)),
        values: vec![("member", json!(name)), ("member_uuid", json!(uuid))],
    }
}

fn state_field(
    state: Option<ScbState>,
    generation: u64,
    clean: Option<bool>,
    sequence: u64,
) -> Field {
    let state = state.map(word);
    let stop = match clean {
        Some(true) => "clean",
        Some(false) => "not clean",
        None => "clean or not cannot be told",
    };
    let known = state.unwrap_or("of no known state");
    Field {
        title: "state",
        text: format!("{known}, {stop}, generation {generation}, sequence {sequence}"),
        values: vec![
            ("state", json!(state)),
            ("generation", json!(generation)),
            ("clean", json!(clean)),
            ("sequence", json!(sequence)),
        ],
    }
}

fn unit_field((size, region_blocks): (u64, u32)) -> Field {
    let blocks = size / 512;
    Field {
        title: "unit",
        text: format!(
            "{} ({blocks} blocks), regions of {region_blocks} blocks",
            human(size)
        ),
        values: vec![
            ("size", json!(size)),
            ("region_blocks", json!(region_blocks)),
        ],
    }
}

/// The mounts, the newest first. The creation stands at the end until 64 mounts have pushed it out.
fn lineage_field(scb: &Scb) -> Field {
    let entries = scb.lineage.mounts();
    let is_creation = |generation: Generation| generation == Generation::FIRST;
    let mounts: Vec<u64> = entries
        .iter()
        .rev()
        .filter(|(generation, _)| !is_creation(*generation))
        .map(|(generation, _)| generation.number())
        .collect();
    // The mark is a random number of 64 bits: more than a JSON number is good for.
    let value = |(generation, mark): &(Generation, u64)| {
        json!({
            "generation": generation.number(),
            "mark": format!("{mark:016x}"),
            "creation": is_creation(*generation),
        })
    };
    Field {
        title: "lineage",
        text: mounts_text(&mounts, mounts.len() < entries.len()),
        values: vec![
            ("mounts", json!(mounts.len())),
            ("lineage", entries.iter().rev().map(value).collect()),
        ],
    }
}

fn mounts_text(mounts: &[u64], from_creation: bool) -> String {
    let since = if from_creation {
        "since the creation"
    } else {
        "remembered"
    };
    let count = match mounts.len() {
        0 => return "created, never mounted".to_owned(),
        1 => "1 mount".to_owned(),
        n => format!("{n} mounts"),
    };
    let shown: Vec<String> = mounts
        .iter()
        .take(MOUNTS_SHOWN)
        .map(u64::to_string)
        .collect();
    let older = match mounts.len() - shown.len() {
        0 => String::new(),
        older => format!(" and {older} older"),
    };
    let first = shown.join(", ");
    format!("{count} {since}, newest first, from generation {first}{older}")
}

/// What the image looked like when its member left.
fn stamp_field(stamp: &Stamp) -> Field {
    let (size, samples) = (human(stamp.size), stamp.samples.len());
    let (what, facts) = match &stamp.facts {
        Facts::File(f) => (
            format!("file, inode {}", f.inode),
            json!({
                "inode": f.inode, "device": f.device, "blocks": f.blocks,
                "mtime": [f.mtime.0, f.mtime.1], "ctime": [f.ctime.0, f.ctime.1],
            }),
        ),
        Facts::Device(d) => (
            format!(
                "block device, disk {}, {} sectors written",
                d.diskseq, d.written
            ),
            json!({ "diskseq": d.diskseq, "boot": d.boot.to_string(), "written": d.written }),
        ),
    };
    let notes = [
        (stamp.kept, ", immutable"),
        (stamp.opened, ", opened by somebody since"),
    ];
    let notes = notes.iter().filter(|(is, _)| *is);
    let notes: String = notes.map(|(_, text)| *text).collect();
    Field {
        title: "stamp",
        text: format!("{size} {what}, {samples} places hashed{notes}"),
        values: vec![(
            "stamp",
            json!({
                "size": stamp.size, "facts": facts, "samples": samples,
                "immutable": stamp.kept, "opened": stamp.opened,
            }),
        )],
    }
}

/// The state in the words of the control tree.
pub(super) fn word(state: ScbState) -> &'static str {
    match state {
        ScbState::Source => "source",
        ScbState::Target => "copy-target",
        ScbState::Merging => "merging",
        ScbState::Detached => "detached",
        ScbState::Expelled => "expelled",
    }
}
