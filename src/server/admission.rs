//! What a mount was asked to insist on: every member there, no copy, a bitmap for who is absent.

use super::setup::{Durability, Mounting};
use crate::error::{Error, Result};
use crate::set::assess::{Assembly, Found, Start};
use crate::set::{Code, MemberStatus, Policy, SetStatus, has_no_bitmap};

/// Checks what can be told from the election.
///
/// # Errors
/// A refusal that names the members.
pub(super) fn check(found: &[Found], assembly: &Assembly, mounting: &Mounting) -> Result<()> {
    let names = |wanted: fn(Start) -> bool| {
        let all = found.iter().zip(&assembly.starts);
        let names = all
            .filter(|(_, s)| wanted(**s))
            .map(|(f, _)| f.name.as_str());
        names.collect::<Vec<_>>().join(", ")
    };
    let missing = names(|s| matches!(s, Start::Missing { .. }));
    if mounting.require_members && !missing.is_empty() {
        let text = format!("{missing}: not there, and require_members was given");
        return Err(Error::new(Code::NoSuchFile, text)
            .with_hint("bring the images back, or leave out require_members"));
    }
    // Who was missing at an earlier mount has missed writes: since then it counts as expelled.
    let expelled = names(|s| s == Start::Expelled);
    if mounting.require_members && !expelled.is_empty() {
        let text = format!("{expelled}: expelled, and require_members was given");
        return Err(Error::new(Code::NoSuchFile, text)
            .with_hint("mount without require_members, and attach what was expelled"));
    }
    let copied = names(|s| matches!(s, Start::Copy { .. }));
    if mounting.nocopy && !copied.is_empty() {
        let text = format!("{copied}: would have to be copied, and nocopy was given");
        return Err(Error::new(Code::NeedsCopy, text).with_hint("leave out nocopy"));
    }
    if mounting.policy != Policy::Minicopy || missing.is_empty() {
        return Ok(());
    }
    check_minicopy(assembly, &missing)
}

/// A mount minus members that insists on bitmaps: the manual's conditions, each with its own refusal. That
/// the set is mounted nowhere else was found when its images were locked.
fn check_minicopy(assembly: &Assembly, missing: &str) -> Result<()> {
    let hint = "use policy=minicopy=optional to mount without";
    if !assembly.clean {
        let text = format!(
            "the unit was not stopped in order, so {missing} cannot be promised a minicopy"
        );
        return Err(Error::new(Code::MergePending, text).with_hint(hint));
    }
    if assembly.table.len() < 2 {
        let text = format!("{missing}: the set never had a second member");
        return Err(Error::new(Code::NoSuchMember, text).with_hint(hint));
    }
    Ok(())
}

/// Checks what can be told when the set is assembled: absent members have their bitmaps.
///
/// # Errors
/// A refusal that names the member.
pub(super) fn check_bitmaps(
    set: &SetStatus,
    home: &std::result::Result<(), crate::set::Refusal>,
    mounting: &Mounting,
    durability: Durability,
) -> Result<()> {
    if mounting.policy != Policy::Minicopy {
        return Ok(());
    }
    // Whose bitmaps end with the mount does not miss them at the next.
    let kept = durability != Durability::Memory;
    let lacks = |m: &&MemberStatus| {
        m.bitmap.is_none() && (m.state == "missing" || kept && m.lost.is_some())
    };
    let Some(member) = set.members.iter().find(lacks) else {
        return Ok(());
    };
    if let (Err(why), None) = (home, &member.lost) {
        return Err(Error::from(why.clone()));
    }
    let name = &member.name;
    let text = match &member.lost {
        Some(why) => has_no_bitmap(name, Some(why)),
        None => format!(
            "{name} was no source member when the set was mounted last, so no bitmap can tell what it \
             lacks"
        ),
    };
    Err(Error::new(Code::NoBitmap, text).with_hint("use policy=minicopy=optional to mount without"))
}
