//! A small seeded generator: the same seed gives the same numbers on every machine, for ever.
//!
//! It can also follow a [`Path`]: then nothing is random, and who asks learns how many ways there were.

use std::collections::BTreeMap;

/// Numbers of this size are drawn to be compared with a rate: no choice, what is rare does not happen.
const RATES: u64 = 1000;

/// Splitmix64, or a path.
#[derive(Clone, Debug)]
pub struct Rng {
    state: u64,
    path: Option<Path>,
}

/// Choices: the first ones are given, all later ones are the first of each kind.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Path {
    /// What is chosen.
    pub choices: Vec<u8>,
    /// Of how many, for those that were made.
    pub widths: Vec<u8>,
    /// Whether as much as possible is done at once, else as little.
    pub bursts: bool,
    /// Members that there are.
    pub members: u64,
}

impl Path {
    fn choose(&mut self, end: u64) -> u64 {
        if end <= 1 {
            return 0;
        }
        assert!(end <= u64::from(u8::MAX), "there are few ways to go on");
        let at = self.widths.len();
        self.widths.push(u8::try_from(end).unwrap_or(u8::MAX));
        if at == self.choices.len() {
            self.choices.push(0);
        }
        u64::from(self.choices[at])
    }

    /// The next of all paths through the choices that were made; false behind the last.
    #[must_use]
    pub fn advance(&mut self) -> bool {
        let widths = std::mem::take(&mut self.widths);
        let free = |(choice, width): (&u8, &u8)| choice + 1 < *width;
        let Some(last) = self.choices.iter().zip(&widths).rposition(free) else {
            return false;
        };
        self.choices.truncate(last + 1);
        self.choices[last] += 1;
        true
    }
}

impl Rng {
    /// A generator that is decided by its seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            state: seed,
            path: None,
        }
    }

    /// One that follows a path.
    #[must_use]
    pub fn along(path: Path) -> Self {
        Self {
            state: 0,
            path: Some(path),
        }
    }

    /// The path, where it follows one.
    pub fn path(&mut self) -> Option<&mut Path> {
        self.path.as_mut()
    }

    /// The next number.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        assert!(end > 0, "there is no number below zero");
        match &mut self.path {
            Some(_) if end >= RATES => end - 1,
            Some(path) => path.choose(end),
            None => self.bits() % end,
        }
    }

    /// A number below `end` that says how much is done at once. On a path that is all or as little as can be.
    pub fn burst(&mut self, end: u64) -> u64 {
        match &self.path {
            Some(path) => u64::from(path.bursts) * u64::from(u32::MAX),
            None => self.below(end),
        }
    }

    /// A place in a list whose entries are alike. On a path it is always the last.
    pub fn any(&mut self, len: usize) -> usize {
        match self.path {
            Some(_) => len - 1,
            None => self.place(len),
        }
    }

    /// A place in one of many lists. On a path all lists of one length that share `drawn` have one place.
    pub fn alike(&mut self, drawn: &mut BTreeMap<usize, usize>, len: usize) -> usize {
        match (&self.path, drawn.get(&len)) {
            (Some(_), Some(place)) => *place,
            _ => {
                let place = self.place(len);
                drawn.insert(len, place);
                place
            }
        }
    }

    /// The place of a member, whether it is there or not.
    pub fn member(&mut self) -> u64 {
        match &mut self.path {
            Some(path) => path.choose(path.members),
            None => self.below(6),
        }
    }

    /// A place in a list of `len` entries.
    #[allow(clippy::cast_possible_truncation, reason = "smaller than len")]
    pub fn place(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// A number in `first ..= last`.
    pub fn between(&mut self, first: u64, last: u64) -> u64 {
        first + self.below(last - first + 1)
    }

    /// True `per_mille` times in a thousand.
    pub fn chance(&mut self, per_mille: u64) -> bool {
        match &mut self.path {
            Some(_) if per_mille == 0 || per_mille >= RATES => per_mille > 0,
            Some(path) => path.choose(2) == 1,
            None => self.below(RATES) < per_mille,
        }
    }

    /// An index, drawn with the given weights; `None` when all are zero.
    pub fn weighted(&mut self, weights: &[u64]) -> Option<usize> {
        let sum: u64 = weights.iter().sum();
        if sum == 0 {
            return None;
        }
        let mut left = self.below(sum);
        weights.iter().position(|weight| {
            let hit = left < *weight;
            left = left.saturating_sub(*weight);
            hit
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_decides_everything() {
        let draw = |seed| {
            let mut rng = Rng::new(seed);
            (0..100).map(|_| rng.between(3, 9)).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        assert!(draw(7).iter().all(|n| (3..=9).contains(n)));
    }

    #[test]
    fn a_path_goes_every_way_once() {
        let (mut path, mut ways) = (Path::default(), Vec::new());
        loop {
            let mut rng = Rng::along(path);
            let first = rng.below(2);
            let second = if first == 1 { rng.place(3) } else { 0 };
            ways.push((first, second, rng.chance(0), rng.chance(1)));
            path = rng.path.expect("it follows one");
            if !path.advance() {
                break;
            }
        }
        let all = [(0, 0), (1, 0), (1, 1), (1, 2)];
        let all = all
            .iter()
            .flat_map(|(a, b)| [false, true].map(|c| (*a, *b, false, c)));
        assert_eq!(ways, all.collect::<Vec<_>>());
    }

    #[test]
    fn weights_of_zero_are_never_drawn() {
        let mut rng = Rng::new(1);
        let mut hits = [0; 4];
        for _ in 0..1000 {
            hits[rng.weighted(&[0, 1, 3, 0]).expect("not all zero")] += 1;
        }
        assert!(hits[0] == 0 && hits[3] == 0 && hits[1] > 150 && hits[2] > hits[1]);
        assert_eq!(rng.weighted(&[0, 0]), None);
    }
}
