//! Takes the stamp of an image: what the system knows of it, and hashes of a few places.
//!
//! Opens the image for reading only and with no lock of its own: the lock of an open file (`F_OFD_SETLK`)
//! and the claim of a device (`O_EXCL`) that the set may hold stay untouched when this handle is closed.
//! It must not change what it looks at. A device may hang, so no thread that others wait for calls this.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use uuid::Uuid;

use crate::set::geometry::{BLOCK_BYTES, Lbn};
use crate::set::stamp::{DeviceFacts, Facts, FileFacts, SAMPLE_BYTES, Sample, Stamp};

use super::sys;

/// The stamp of the image at `path`, whose places `member` decides.
///
/// What is not on the disk yet is written back first: what a loss of power takes away from a stamped image
/// would look like a change, and sectors of a device are counted when they reach it.
///
/// # Errors
/// The system's error; `InvalidInput` when it is neither file nor block device.
pub fn take(path: &Path, member: Uuid) -> io::Result<Stamp> {
    // Whatever is at the path by now, the open does not wait for a writer or a carrier.
    let mut options = File::options();
    options.read(true).custom_flags(libc::O_NONBLOCK);
    let file = options.open(path)?;
    file.sync_all()?;
    let meta = file.metadata()?;
    let kind = meta.file_type();
    let (size, is_device) = match () {
        () if kind.is_file() => (meta.len(), false),
        () if kind.is_block_device() => (sys::device_size(file.as_fd())?, true),
        () => return Err(io::Error::from(io::ErrorKind::InvalidInput)),
    };
    let samples = samples(&file, member, size)?;
    let facts = match is_device {
        false => Facts::File(file_facts(&meta)),
        true => Facts::Device(device_facts(meta.rdev())),
    };
    Ok(Stamp {
        size,
        facts,
        samples,
        opened: false,
        kept: false,
    })
}

fn file_facts(meta: &Metadata) -> FileFacts {
    let nanos = |n: i64| u32::try_from(n).unwrap_or(0);
    FileFacts {
        device: meta.dev(),
        inode: meta.ino(),
        mtime: (meta.mtime(), nanos(meta.mtime_nsec())),
        ctime: (meta.ctime(), nanos(meta.ctime_nsec())),
        blocks: meta.blocks(),
    }
}

/// What cannot be read counts as 0: then the contents have to tell alone.
fn device_facts(rdev: u64) -> DeviceFacts {
    let (major, minor) = (libc::major(rdev), libc::minor(rdev));
    let dir = format!("/sys/dev/block/{major}:{minor}");
    let read = |name: &str| fs::read_to_string(format!("{dir}/{name}")).unwrap_or_default();
    let number = |text: &str| text.trim().parse().unwrap_or(0);
    // A partition has none of its own.
    let diskseq = match number(&read("diskseq")) {
        0 => number(&read("../diskseq")),
        own => own,
    };
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    DeviceFacts {
        diskseq,
        boot: boot.trim().parse().unwrap_or_default(),
        written: sectors_changed(&read("stat")),
    }
}

/// Sectors written and discarded, of the kernel's line about a block device.
fn sectors_changed(stat: &str) -> u64 {
    let field = |n: usize| {
        stat.split_ascii_whitespace()
            .nth(n - 1)?
            .parse::<u64>()
            .ok()
    };
    let (written, discarded) = (field(7), field(14));
    written.unwrap_or(0).wrapping_add(discarded.unwrap_or(0))
}

fn samples(file: &File, member: Uuid, size: u64) -> io::Result<Vec<Sample>> {
    let mut page = [0; SAMPLE_BYTES as usize];
    let sample = |at: Lbn| {
        let start = at.0 * BLOCK_BYTES;
        let bytes = &mut page[..SAMPLE_BYTES.min(size - start) as usize];
        file.read_exact_at(bytes, start)?;
        let hash = hash(bytes);
        Ok(Sample { at, hash })
    };
    Stamp::places(member, size)
        .into_iter()
        .map(sample)
        .collect()
}

/// Two checksums, one of each half: what a hash of 64 bits has to do here, from a library that is there.
fn hash(bytes: &[u8]) -> u64 {
    let (first, second) = bytes.split_at(bytes.len() / 2);
    u64::from(crc32c::crc32c(second)) << 32 | u64::from(crc32c::crc32c(first))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Loop, direct_dir, sparse};
    use super::*;

    fn member() -> Uuid {
        Uuid::from_u128(5)
    }

    fn change(then: &Stamp, path: &Path) -> String {
        let now = take(path, member()).expect("a stamp");
        then.change(&now).unwrap_or_default()
    }

    #[test]
    fn a_file_is_what_it_was_until_it_is_written() {
        let dir = direct_dir();
        let path = dir.path().join("m1.img");
        sparse(&path, (1 << 20) + 700);
        let file = File::options().write(true).open(&path).expect("opens");
        file.write_all_at(&[7; 5000], 8000).expect("writes");
        let then = take(&path, member()).expect("a stamp");
        assert_eq!((then.size, then.samples.len()), ((1 << 20) + 700, 16));
        fs::read(&path).expect("reads");
        assert_eq!(change(&then, &path), "", "reading is no change");
        file.write_all_at(&[7], 8000).expect("writes");
        assert_eq!(change(&then, &path), "it was written");
        file.set_len(512).expect("cuts");
        assert_eq!(change(&then, &path), "its size is another");
        fs::remove_file(&path).expect("removes");
        assert!(take(&path, member()).is_err());
        assert!(take(dir.path(), member()).is_err());
    }

    #[test]
    fn a_device_is_what_it_was_until_it_is_written() {
        let dir = direct_dir();
        let path = dir.path().join("m1.img");
        sparse(&path, 1 << 20);
        let held = Loop::new(&path);
        let device = &held.device;
        let then = take(device, member()).expect("a stamp");
        let Facts::Device(facts) = then.facts else {
            panic!("a device");
        };
        assert!(facts.diskseq != 0 && !facts.boot.is_nil(), "{facts:?}");
        fs::read(device).expect("reads");
        assert_eq!(change(&then, device), "", "reading is no change");
        let file = File::options().write(true).open(device).expect("opens");
        file.write_all_at(&[0; 512], 4096).expect("writes");
        // Not written back yet, and not where a sample lies.
        assert_eq!(change(&then, device), "it was written");
    }

    #[test]
    fn a_change_of_a_sampled_place_changes_its_hash() {
        let whole = [3; 4096];
        for at in [0, 2047, 2048, 4095] {
            let mut other = whole;
            other[at] ^= 1;
            assert_ne!(hash(&whole), hash(&other), "byte {at}");
        }
        assert_ne!(hash(&[0; 4096]), hash(&[0; 4095]));
        assert_eq!(hash(&[]), 0);
    }

    #[test]
    fn the_kernels_line_is_read() {
        assert_eq!(
            sectors_changed("1 2 3 4 5 6 700 8 9 10 11 12 13 14 15 16 17"),
            714
        );
        assert_eq!(sectors_changed("1 2 3 4 5 6 700 8 9 10 11"), 700);
        assert_eq!(sectors_changed(""), 0);
    }
}
