//! Stamp: what an image looked like when its member left, as a value.
//!
//! Kept in the member's storage control block, and compared when the member comes back: whatever wrote
//! the image in between, its write bitmap does not know of it (I1). Accident is the enemy, not malice.
//!
//! It looks at nothing itself: facts and samples come from outside.

use uuid::Uuid;

use super::geometry::{BLOCK_BYTES, Lbn};

/// Most samples of a stamp.
pub const SAMPLES_MAX: usize = 16;
/// Bytes of a sample; the last one of an image may be shorter.
pub const SAMPLE_BYTES: u64 = 4096;

/// A time of a file system: seconds since 1970, nanoseconds under 10^9.
pub type FileTime = (i64, u32);

/// What the system knows of an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Facts {
    /// Of a regular file.
    File(FileFacts),
    /// Of a block device.
    Device(DeviceFacts),
}

/// What the system knows of a regular file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FileFacts {
    /// Number of its file system's device.
    pub device: u64,
    /// Its number in the file system.
    pub inode: u64,
    /// When its bytes were changed last, as far as programs have not set it.
    pub mtime: FileTime,
    /// When its inode was changed last; no program can set it.
    pub ctime: FileTime,
    /// Blocks of 512 bytes that the file system has allocated.
    pub blocks: u64,
}

/// What the system knows of a block device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DeviceFacts {
    /// The system's number for this appearance of the disk; 0 when it gives none.
    pub diskseq: u64,
    /// This run of the system; the other two numbers say nothing in another one.
    pub boot: Uuid,
    /// Sectors of 512 bytes written or discarded since the disk appeared.
    pub written: u64,
}

/// The hash of one place of an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sample {
    /// First block.
    pub at: Lbn,
    /// Hash of up to [`SAMPLE_BYTES`] bytes.
    pub hash: u64,
}

/// What an image looked like when its member left.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stamp {
    /// Length of the image in bytes.
    pub size: u64,
    /// What the system knows.
    pub facts: Facts,
    /// At most [`SAMPLES_MAX`], by rising place.
    pub samples: Vec<Sample>,
    /// Another program has opened the image for writing since: told by a lease.
    pub opened: bool,
    /// The image had been made immutable by the set itself, which changes its ctime again when it ends that:
    /// then the ctime tells nothing, and nobody could write.
    pub kept: bool,
}

impl Stamp {
    /// What the contents looked like, for people: the size, and a hash over those of the samples. Images of one
    /// member with the same bytes have the same, wherever they lie.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
        const PRIME: u64 = 0x0100_0000_01b3;
        let fold = |hash: u64, sample: &Sample| (hash ^ sample.hash).wrapping_mul(PRIME);
        let hash = self.samples.iter().fold(BASIS, fold);
        format!("{}-{hash:016x}", self.size)
    }

    /// Where the samples of an image of `size` bytes lie: evenly spread, the first and the last ones at
    /// the ends, the others moved by an amount that `member` decides.
    #[must_use]
    pub fn places(member: Uuid, size: u64) -> Vec<Lbn> {
        let wide = SAMPLE_BYTES / BLOCK_BYTES;
        let pages = size.div_ceil(SAMPLE_BYTES);
        let most = (SAMPLES_MAX as u64).min(pages);
        let mut random = member.as_u64_pair().0 ^ member.as_u64_pair().1;
        let place = |n: u64| {
            let (from, to) = (share(pages, n, most), share(pages, n + 1, most));
            // One step of a linear congruential generator: any fixed rule would do.
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let page = match n {
                0 => 0,
                n if n + 1 == most => pages - 1,
                _ => from + (random >> 33) % (to - from),
            };
            Lbn(page * wide)
        };
        (0..most).map(place).collect()
    }

    /// What has changed since this stamp was taken, in words; the first cause that is found.
    ///
    /// The device's number and the allocated blocks count for nothing alone: a disk that was carried away
    /// comes back under another number, and a file system may move and pack what it holds by itself.
    #[must_use]
    pub fn change(&self, now: &Self) -> Option<String> {
        let text = if self.is_other(now) {
            "another file is at its path"
        } else if self.size != now.size {
            "its size is another"
        } else if let Some(text) = self.facts.change(&now.facts, self.kept) {
            text
        } else if self.samples != now.samples {
            "its contents are others"
        } else if self.opened {
            "another program has opened it for writing"
        } else {
            return None;
        };
        Some(text.to_owned())
    }

    /// Whether another image is where this one was: nothing tells whose it is.
    #[must_use]
    pub fn is_other(&self, now: &Self) -> bool {
        match (self.facts, now.facts) {
            (Facts::File(then), Facts::File(now)) => {
                let touched = match self.kept {
                    true => then.mtime != now.mtime,
                    false => then.ctime != now.ctime,
                };
                then.inode != now.inode || then.device != now.device && touched
            }
            (Facts::Device(_), Facts::Device(_)) => false,
            _ => true,
        }
    }
}

impl Facts {
    fn change(&self, now: &Self, kept: bool) -> Option<&'static str> {
        match (self, now) {
            (Self::File(then), Self::File(now)) => match () {
                () if then.mtime != now.mtime => Some("it was written"),
                () if !kept && then.ctime != now.ctime => Some("its inode was changed"),
                () => None,
            },
            (Self::Device(then), Self::Device(now)) => match () {
                () if then.boot != now.boot => None,
                () if then.diskseq != now.diskseq => Some("its disk was taken away and came back"),
                () if then.written != now.written => Some("it was written"),
                () => None,
            },
            _ => Some("another file is at its path"),
        }
    }
}

/// The `n`th of `parts` borders in `whole`, without overflow for any size.
fn share(whole: u64, n: u64, parts: u64) -> u64 {
    let (each, left) = (whole / parts, whole % parts);
    each * n + left.min(n)
}

#[cfg(test)]
mod tests;
