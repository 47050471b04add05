//! What the storage control block of a member that comes back says: whether its image is the one that left.

use super::bitmap::OwnedBitmap;
use super::event::Attach;
use super::geometry::Bytes;
use super::member::{Held, MemberId};
use super::refusal::{Code, Refusal};
use super::scb::{Ancestry, Generation, Lineage, Scb};
use super::shadow::ShadowSet;

/// What the own storage control block of a member that comes back says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Said {
    /// Generation of the last membership that was written into it.
    pub generation: Generation,
    /// Whether it says that the member has left.
    pub has_left: bool,
    /// Size of the unit then.
    pub unit: Bytes,
    /// How it relates to the generations of this set.
    pub ancestry: Ancestry,
}

impl Said {
    /// What a block says to a set with this lineage.
    #[must_use]
    pub fn by(scb: &Scb, lineage: &Lineage) -> Self {
        Self {
            generation: scb.generation,
            has_left: scb.state.has_left(),
            unit: scb.geometry.size(),
            ancestry: lineage.ancestry(scb.generation, &scb.lineage),
        }
    }

    /// Refuses an image that is not the one that left, but an older copy that came with its block.
    ///
    /// `left` is the generation in force when the member left. A block that says so itself is of a later
    /// one. Who was not `told` may have been out of reach: its block then is the last one that it took part in.
    /// That may be of one generation later when its write has seemed to fail.
    pub(super) fn check(self, name: &str, left: u64, told: bool) -> Result<(), Refusal> {
        #[cfg(debug_assertions)]
        if super::planted::is(super::planted::Mistake::OldImage) {
            return Ok(());
        }
        let number = self.generation.number();
        let text = match self.ancestry {
            Ancestry::Ancestor if number > left && self.has_left => return Ok(()),
            Ancestry::Ancestor if !told && (left..=left + 1).contains(&number) => return Ok(()),
            Ancestry::Foreign => format!(
                "the storage control block of {name} has generation {number} of another history of \
                 the set; the member left behind generation {left}"
            ),
            Ancestry::Ancestor | Ancestry::Forgotten => format!(
                "the storage control block of {name} has generation {number}, the member left behind \
                 generation {left}: its image is an older one"
            ),
        };
        Err(Refusal::new(Code::WrongGeneration, text))
    }
}

/// That a member has no bitmap, and why when it may have had one before the mount.
#[must_use]
pub fn has_no_bitmap(name: &str, lost: Option<&str>) -> String {
    match lost {
        Some(why) => format!("{name} has no bitmap: {why}"),
        None => format!("{name} has no bitmap"),
    }
}

impl ShadowSet {
    /// The bitmap of a departed member, when it tells how the image differs from the unit: the image is
    /// the one that left, and nobody has written it since.
    pub(super) fn usable_bitmap(
        &self,
        id: MemberId,
        attach: &Attach,
    ) -> Result<&OwnedBitmap, Refusal> {
        let member = &self.members[id.index()];
        let name = &member.name;
        let departed = member.state.departed();
        let told = departed.is_some_and(|d| d.told);
        if let (Some(tag), Some(said)) = (departed.and_then(|d| d.tag), attach.said) {
            said.check(name, tag.generation, told)?;
        }
        if let Some(change) = &attach.changed {
            let text = format!("the image of {name} was changed outside: {change}");
            return Err(Refusal::new(Code::ImageChanged, text));
        }
        match departed.map(|d| &d.held) {
            Some(Held::Here(map)) => Ok(map),
            _ => {
                let lost = departed.and_then(|d| d.lost.as_deref());
                Err(Refusal::new(Code::NoBitmap, has_no_bitmap(name, lost)))
            }
        }
    }

    /// Whether what a block says is what a departed member has left behind, and a bitmap tells of it.
    #[must_use]
    pub fn is_who_left(&self, id: MemberId, said: Said) -> bool {
        let told = self.members[id.index()].state.departed().map(|d| d.told);
        told.is_some_and(|told| self.fits_departure(id, said, told))
    }

    /// Whether the block tells the image of a member that has left from any other. Where the member left in the same step as
    /// another one, its block may be of the generation in which it left, and say that it has.
    #[must_use]
    pub fn tells_departure(&self, id: MemberId, said: Said) -> bool {
        let bitmap = self.members[id.index()].state.departed();
        let bitmap = bitmap.is_some_and(|d| d.tag.is_some());
        said.has_left && (!bitmap || self.fits_departure(id, said, true))
    }

    fn fits_departure(&self, id: MemberId, said: Said, told: bool) -> bool {
        let member = &self.members[id.index()];
        let tag = member.state.departed().and_then(|d| d.tag);
        tag.is_some_and(|tag| said.check(&member.name, tag.generation, told).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a block is taken for the one of a member that left behind generation 5.
    fn is_taken(generation: u64, has_left: bool, ancestry: Ancestry, told: bool) -> bool {
        let generation = Generation::from_number(generation).expect("in range");
        let said = Said {
            generation,
            has_left,
            unit: Bytes(512),
            ancestry,
        };
        said.check("m1", 5, told).is_ok()
    }

    #[test]
    fn who_was_not_told_may_be_a_generation_later_and_who_was_is_of_a_later_one() {
        let plain = |generation, told| is_taken(generation, false, Ancestry::Ancestor, told);
        assert!(plain(6, false), "its write has seemed to fail");
        assert!(!plain(7, false) && !plain(6, true));
        assert!(!is_taken(5, true, Ancestry::Ancestor, true));
    }

    #[test]
    fn why_there_is_no_bitmap_is_said_where_it_is_known() {
        assert_eq!(has_no_bitmap("m1", None), "m1 has no bitmap");
        let why = has_no_bitmap("m1", Some("the journal was lost"));
        assert_eq!(why, "m1 has no bitmap: the journal was lost");
    }

    #[test]
    fn only_the_block_that_left_is_taken() {
        for told in [true, false] {
            assert!(is_taken(6, true, Ancestry::Ancestor, told));
            assert!(is_taken(9, true, Ancestry::Ancestor, told));
            assert!(
                !is_taken(9, false, Ancestry::Ancestor, told),
                "it came back"
            );
            assert!(
                !is_taken(4, true, Ancestry::Ancestor, told),
                "an older departure"
            );
            assert_eq!(is_taken(5, false, Ancestry::Ancestor, told), !told);
            for strange in [Ancestry::Foreign, Ancestry::Forgotten] {
                assert!(!is_taken(6, true, strange, told));
            }
        }
    }
}
