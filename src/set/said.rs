//! What the storage control block of a member that comes back says: whether its image is the one that left.

use super::refusal::{Code, Refusal};
use super::scb::{Ancestry, Generation, Lineage, Scb};

/// What the own storage control block of a member that comes back says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Said {
    /// Generation of the last membership that was written into it.
    pub generation: Generation,
    /// Whether it says that the member has left.
    pub has_left: bool,
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
            ancestry: lineage.ancestry(scb.generation, &scb.lineage),
        }
    }

    /// Refuses an image that is not the one that left, but an older copy that came with its block.
    ///
    /// `left` is the generation in force when the member left. A block that says so itself is of a later
    /// one. Who was expelled or absent may have been out of reach: its block then is the last one that it
    /// took part in. Who was detached was `told`.
    pub(super) fn check(self, name: &str, left: u64, told: bool) -> Result<(), Refusal> {
        #[cfg(debug_assertions)]
        if super::planted::is(super::planted::Mistake::OldImage) {
            return Ok(());
        }
        let number = self.generation.number();
        let text = match self.ancestry {
            Ancestry::Ancestor if number > left && self.has_left => return Ok(()),
            Ancestry::Ancestor if number == left && !told => return Ok(()),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a block is taken for the one of a member that left behind generation 5.
    fn is_taken(generation: u64, has_left: bool, ancestry: Ancestry, told: bool) -> bool {
        let generation = Generation::from_number(generation).expect("in range");
        let said = Said {
            generation,
            has_left,
            ancestry,
        };
        said.check("m1", 5, told).is_ok()
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
