//! What a mount would make of one member alone: the election's own answer, for one block.
//!
//! The other members are not looked at, and each of them may know more: the sentence says so.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::own_row;
use super::subject::ImageFacts;
use crate::set::scb::{Scb, ScbError, ScbState, Slot};
use crate::set::{Bytes, Code, Found, ScbFound, assess};

/// The verdict on one block.
#[derive(Debug)]
pub(super) struct Verdict {
    /// The code of the refusal; nothing when a mount would serve the member.
    pub(super) code: Option<Code>,
    /// One or more sentences, separated by semicolons.
    pub(super) sentence: String,
}

impl Verdict {
    /// What a mount would make of the block, whole or not, with the image beside it.
    pub(super) fn of(newest: &Result<(Slot, Scb), ScbError>, image: Option<&ImageFacts>) -> Self {
        match newest {
            Err(error) => Self {
                code: Some(Code::Config),
                sentence: format!(
                    "a mount with this SCB is refused: {error}; only where the other members know \
                     that this one has left is it passed over"
                ),
            },
            Ok((_, scb)) => Self::of_block(scb, image),
        }
    }

    fn of_block(scb: &Scb, image: Option<&ImageFacts>) -> Self {
        if let Some((code, why)) = image.and_then(in_use) {
            let sentence = format!("{why}: a mount is refused until it is free");
            return Self {
                code: Some(code),
                sentence,
            };
        }
        let found = Found {
            name: scb.name.clone(),
            image: image.and_then(|image| image.size).map(Bytes),
            scb: ScbFound::Read(scb.clone()),
        };
        match assess(&[found], &[]) {
            Ok(_) => Self {
                code: None,
                sentence: served(scb),
            },
            Err(refusal) => Self {
                code: Some(refusal.code),
                sentence: format!("a mount of {} alone is refused: {refusal}", scb.name),
            },
        }
    }

    /// For programs.
    pub(super) fn value(&self) -> Value {
        json!({
            "alone": if self.code.is_none() { "source" } else { "refused" },
            "code": self.code.map(Code::name),
            "sentence": self.sentence,
        })
    }
}

/// Who has the image now.
fn in_use(image: &ImageFacts) -> Option<(Code, String)> {
    if image.locked == Some(true) {
        let why = "the image is locked, by a running unit or another program";
        return Some((Code::ImageLocked, why.to_owned()));
    }
    let device = image.loops.first()?;
    Some((
        Code::InUse,
        format!("the image is behind {}", device.display()),
    ))
}

/// What becomes of the member and of the others in its table.
fn served(scb: &Scb) -> String {
    let mut text = format!("a mount of {} alone serves it as the source", scb.name);
    let own = own_row(scb).map(|row| row.member);
    let others: Vec<&str> = scb
        .table
        .iter()
        .filter(|row| Some(row.member) != own && !row.state.has_left())
        .map(|row| row.name.as_str())
        .collect();
    if !others.is_empty() {
        let _ = write!(text, ", without {}", others.join(", "));
    }
    if !scb.clean && scb.table.iter().filter(|r| r.state.claims_data()).count() > 1 {
        text.push_str("; with the other sources a merge follows");
    } else if scb.state == ScbState::Merging {
        text.push_str("; its merge had not ended");
    }
    let generation = scb.generation;
    if scb.table.len() > 1 {
        let _ = write!(
            text,
            "; a member with a higher generation than {generation} would win over it"
        );
    }
    text
}
