//! What people are told of write bitmaps: who has heard all of it knows which there are, and which a copy drains.

use shadowset::set::{BitmapChange, BitmapId, MemberState};

use crate::world::{Checked, World, ensure};

impl World {
    /// Hears what has become of a bitmap.
    pub(crate) fn hear(&mut self, id: BitmapId, member: &str, change: BitmapChange) -> Checked {
        let known = self.told.get(&id).copied();
        let (expected, now) = match change {
            BitmapChange::Started(_) => (None, Some(false)),
            BitmapChange::Taken(_) => (Some(false), Some(true)),
            BitmapChange::Returned(_) => (Some(true), Some(false)),
            BitmapChange::Deleted(_) => (known.or(Some(false)), None),
        };
        let new = self.beginning;
        ensure!(
            new || known == expected,
            "bitmap {id} is told to be {change:?}, it was {known:?}"
        );
        ensure!(!member.is_empty(), "bitmap {id} is told to be nobody's");
        match now {
            Some(in_use) => self.told.insert(id, in_use),
            None => self.told.remove(&id),
        };
        Ok(())
    }

    /// The bitmaps that there are, by number, and whether a copy drains each.
    fn bitmaps(&self) -> impl Iterator<Item = (BitmapId, bool)> {
        self.ids().filter_map(|id| match self.state(id) {
            MemberState::Target { op, .. } => {
                let operation = self.set.operations().iter().find(|o| o.id == *op);
                Some((operation?.tag()?.id, true))
            }
            state => Some((state.departed()?.tag?.id, false)),
        })
    }

    /// A mount goes on with bitmaps that it does not tell of; those that it tells of are there.
    pub(crate) fn begin_told(&mut self) -> Checked {
        let all = self.bitmaps().collect();
        let told = std::mem::replace(&mut self.told, all);
        for id in told.keys() {
            ensure!(self.told.contains_key(id), "bitmap {id} is told of in vain");
        }
        Ok(())
    }

    pub(crate) fn check_told(&self) -> Checked {
        let told = self.told.iter().map(|(id, in_use)| (*id, *in_use));
        let (told, are) = (told.collect::<Vec<_>>(), self.bitmaps());
        let mut are: Vec<_> = are.collect();
        are.sort_unstable();
        ensure!(told == are, "bitmaps {are:?} are told to be {told:?}");
        Ok(())
    }
}
