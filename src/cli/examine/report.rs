//! What `examine` shows, for people and for programs.
//!
//! Texts from a file go through [`plain`], since a foreign one may hold anything.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::fields::{Field, of_block, of_header, word};
use super::subject::{self, ImageFacts};
use super::verdict::Verdict;
use crate::cli::output::{Out, Tone, plain, table};
use crate::cli::size::human;
use crate::io::scb_file::Slots;
use crate::set::scb::{Claims, Content, Scb, ScbError, ScbRow, ScbState, Slot, claims};

/// What was found.
#[derive(Debug)]
pub(super) struct Report {
    /// The path as it was given.
    pub(super) path: PathBuf,
    /// The file of the block.
    pub(super) scb: PathBuf,
    /// Its bytes.
    pub(super) slots: Slots,
    /// The block that counts, or why there is none.
    pub(super) newest: Result<(Slot, Scb), ScbError>,
    /// The image that goes with it.
    pub(super) image: Option<ImageFacts>,
    /// What a mount would make of it.
    pub(super) verdict: Verdict,
}

/// A slot as it is shown.
struct SlotLine {
    slot: Slot,
    bytes: usize,
    block: Result<Scb, ScbError>,
    claims: Option<Claims>,
    begins: String,
    is_newest: bool,
}

impl Report {
    /// For programs.
    pub(super) fn value(&self) -> Value {
        let block = self.newest.as_ref().ok();
        json!({
            "path": self.path.display().to_string(),
            "scb": self.scb.display().to_string(),
            "condition": self.condition(),
            "slot": block.map(|(slot, _)| name_of(*slot)),
            "format": self.format().map(|c| format_value(&c)),
            "block": block.map(|(_, scb)| block_value(scb)),
            "slots": self.slots().iter().map(SlotLine::value).collect::<Vec<_>>(),
            "image": self.image.as_ref().map(|image| image_value(image, self.unit_size())),
            "verdict": self.verdict.value(),
        })
    }

    /// For people.
    pub(super) fn text(&self, out: Out) -> String {
        let mut text = String::new();
        let mut line = |title: &str, content: &str| {
            let _ = writeln!(text, "{title:>8}: {content}");
        };
        line(
            "scb",
            &format!("{}, {}", shown(&self.scb), self.condition_text(out)),
        );
        if let Some(claims) = self.format() {
            line("format", &format_text(&claims));
        }
        if let Ok((_, scb)) = &self.newest {
            for field in of_block(scb) {
                line(field.title, &field.text);
            }
        }
        if let Some(image) = &self.image {
            line("image", &image_text(image, self.unit_size()));
        }
        text.push('\n');
        text.push_str(&slots_text(&self.slots(), out));
        match &self.newest {
            Ok((_, scb)) => {
                let _ = write!(text, "\n{}", members_text(scb, out));
            }
            Err(_) => text.push_str(&self.unchecked_text(out)),
        }
        let _ = writeln!(text, "\nverdict: {}", plain(&self.verdict.sentence));
        text
    }

    fn slots(&self) -> [SlotLine; 2] {
        let newest = self.newest.as_ref().ok().map(|(slot, _)| *slot);
        [Slot::A, Slot::B].map(|slot| SlotLine {
            slot,
            bytes: self.slots.bytes(slot).len(),
            block: self.slots.block(slot),
            claims: claims(self.slots.bytes(slot)),
            begins: subject::begins(self.slots.bytes(slot)),
            is_newest: newest == Some(slot),
        })
    }

    /// `whole`, `torn` (one slot is damaged, the block is not lost), `newer` or `damaged`.
    fn condition(&self) -> &'static str {
        match &self.newest {
            Ok(_) if self.slots().iter().any(SlotLine::is_damaged) => "torn",
            Ok(_) => "whole",
            Err(error) if error.is_from_newer_program() => "newer",
            Err(_) => "damaged",
        }
    }

    fn condition_text(&self, out: Out) -> String {
        match self.condition() {
            "torn" => out.paint(Tone::Busy, "whole in one slot, the other is damaged"),
            "newer" => out.paint(Tone::Bad, "of a newer format than this program knows"),
            "damaged" => out.paint(Tone::Bad, "damaged"),
            whole => out.paint(Tone::Good, whole),
        }
    }

    /// Version and features: of the block that counts, else of the slot that stands in its way.
    fn format(&self) -> Option<Claims> {
        let newer = |line: &SlotLine| {
            line.block
                .as_ref()
                .is_err_and(ScbError::is_from_newer_program)
        };
        let lines = self.slots();
        let at = lines.iter().position(|line| line.is_newest);
        let at = at.or_else(|| lines.iter().position(newer));
        at.and_then(|at| lines.into_iter().nth(at)?.claims)
    }

    fn unit_size(&self) -> Option<u64> {
        let block = self.newest.as_ref().ok();
        block.map(|(_, scb)| scb.geometry.size().0)
    }

    /// What the slots of a damaged block claim.
    fn unchecked_text(&self, out: Out) -> String {
        let mut text = String::new();
        for line in self.slots() {
            let Some(claims) = &line.claims else {
                continue;
            };
            let (fields, rows) = match &claims.content {
                Content::Block(scb) => (of_block(scb), members_text(scb, out)),
                Content::Header(header) => (of_header(header), String::new()),
                Content::Unknown => continue,
            };
            let _ = writeln!(text, "\nslot {} says, unchecked:", name_of(line.slot));
            let _ = writeln!(text, "{:>8}: {}", "format", format_text(claims));
            for field in fields {
                let _ = writeln!(text, "{:>8}: {}", field.title, field.text);
            }
            if !rows.is_empty() {
                let _ = write!(text, "\n{rows}");
            }
        }
        text
    }
}

impl SlotLine {
    /// A second slot that was never written is no damage.
    fn is_damaged(&self) -> bool {
        self.block.is_err() && self.bytes > 0
    }

    /// What is wrong with it, or which one it is.
    fn remark(&self) -> String {
        match &self.block {
            Ok(_) if self.is_newest => "the newest".to_owned(),
            Ok(_) => String::new(),
            Err(_) if self.bytes == 0 => "not written yet".to_owned(),
            Err(ScbError::NoMagic) => format!("damaged: no SCB, {}", self.begins),
            Err(error) if error.is_from_newer_program() => error.to_string(),
            Err(error) => format!("damaged: {error}"),
        }
    }

    fn value(&self) -> Value {
        let block = self.block.as_ref().ok();
        let unchecked = self.claims.as_ref().filter(|_| block.is_none());
        json!({
            "slot": name_of(self.slot),
            "bytes": self.bytes,
            "ok": block.is_some(),
            "newest": self.is_newest,
            "reason": block.is_none().then(|| self.remark()),
            "sequence": block.map(|b| b.sequence),
            "generation": block.map(|b| b.generation.number()),
            "state": block.map(|b| word(b.state)),
            "clean": block.map(|b| b.clean),
            "format": self.claims.as_ref().map(format_value),
            "unchecked": unchecked.and_then(unchecked_value),
        })
    }
}

fn block_value(scb: &Scb) -> Value {
    let mut value = object(of_block(scb));
    value.insert("members".into(), scb.table.iter().map(row_value).collect());
    Value::Object(value)
}

fn unchecked_value(claims: &Claims) -> Option<Value> {
    match &claims.content {
        Content::Block(scb) => Some(block_value(scb)),
        Content::Header(header) => Some(Value::Object(object(of_header(header)))),
        Content::Unknown => None,
    }
}

fn object(fields: Vec<Field>) -> Map<String, Value> {
    let values = fields.into_iter().flat_map(|field| field.values);
    values.map(|(key, value)| (key.to_owned(), value)).collect()
}

fn row_value(row: &ScbRow) -> Value {
    json!({
        "name": row.name,
        "state": word(row.state),
        "uuid": row.member.to_string(),
        "path": row.path.display().to_string(),
    })
}

fn members_text(scb: &Scb, out: Out) -> String {
    let head = ["MEMBER", "STATE", "UUID", "PATH"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for row in &scb.table {
        let own = if row.member == scb.member {
            " (this)"
        } else {
            ""
        };
        rows.push(vec![
            format!("{}{own}", row.name),
            out.paint(tone(row.state), word(row.state)),
            row.member.to_string(),
            shown(&row.path),
        ]);
    }
    table(&rows)
}

fn slots_text(lines: &[SlotLine], out: Out) -> String {
    let head = ["SLOT", "SEQUENCE", "GENERATION", "STATE", "CLEAN", ""];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for line in lines {
        let block = line.block.as_ref().ok();
        let cell = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let remark = line.remark();
        rows.push(vec![
            name_of(line.slot).to_owned(),
            cell(block.map(|b| b.sequence.to_string())),
            cell(block.map(|b| b.generation.to_string())),
            cell(block.map(|b| word(b.state).to_owned())),
            cell(block.map(|b| if b.clean { "yes" } else { "no" }.to_owned())),
            if line.is_damaged() {
                out.paint(Tone::Bad, &remark)
            } else {
                remark
            },
        ]);
    }
    table(&rows)
}

fn format_value(claims: &Claims) -> Value {
    // Bits, 64 of them: more than a JSON number is good for.
    json!({
        "version": claims.version,
        "incompatible": format!("{:#x}", claims.incompatible),
        "compatible": format!("{:#x}", claims.compatible),
    })
}

fn format_text(claims: &Claims) -> String {
    format!(
        "version {}, features {:#x} incompatible, {:#x} compatible",
        claims.version, claims.incompatible, claims.compatible
    )
}

fn image_value(image: &ImageFacts, unit: Option<u64>) -> Value {
    let loops: Vec<_> = image
        .loops
        .iter()
        .map(|l| l.display().to_string())
        .collect();
    json!({
        "path": image.path.display().to_string(),
        "found": image.found,
        "kind": image.kind,
        "exists": image.kind != "missing",
        "size": image.size,
        "large_enough": enough(image, unit),
        "locked": image.locked,
        "loop_devices": loops,
        "problem": image.problem,
    })
}

fn image_text(image: &ImageFacts, unit: Option<u64>) -> String {
    let mut text = shown(&image.path);
    if image.found == "block" {
        text.push_str(" (where the SCB has it)");
    }
    let mut add = |what: &str| {
        let _ = write!(text, ", {what}");
    };
    if image.kind == "missing" && image.problem.is_none() {
        add("which is not there");
        return text;
    }
    if let Some(size) = image.size {
        add(&human(size));
    }
    match enough(image, unit) {
        Some(true) => add("large enough"),
        Some(false) => add("too small"),
        None => {}
    }
    match image.locked {
        Some(true) => add("locked now"),
        Some(false) => add("not locked"),
        None => {}
    }
    for device in &image.loops {
        add(&format!("behind {}", device.display()));
    }
    if let Some(problem) = &image.problem {
        add(problem);
    }
    text
}

fn enough(image: &ImageFacts, unit: Option<u64>) -> Option<bool> {
    Some(image.size? >= unit?)
}

fn tone(state: ScbState) -> Tone {
    match state {
        ScbState::Source => Tone::Good,
        ScbState::Expelled => Tone::Bad,
        ScbState::Target | ScbState::Merging | ScbState::Detached => Tone::Busy,
    }
}

fn name_of(slot: Slot) -> &'static str {
    match slot {
        Slot::A => "A",
        Slot::B => "B",
    }
}

fn shown(path: &Path) -> String {
    plain(&path.to_string_lossy())
}
