//! Looks at the images of members from outside.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;

use super::Unit;

impl Unit {
    /// Checksum of a member's image.
    pub(crate) fn checksum(&self, member: &str) -> u32 {
        let mut file = File::open(self.image(member)).expect("the image");
        let (mut sum, mut buffer) = (0, vec![0; 1 << 20]);
        loop {
            match file.read(&mut buffer).expect("the image") {
                0 => return sum,
                length => sum = crc32c::crc32c_append(sum, &buffer[..length]),
            }
        }
    }

    /// Bytes that a member's image takes on its disk.
    pub(crate) fn allocated(&self, member: &str) -> u64 {
        let meta = std::fs::metadata(self.image(member)).expect("the image");
        meta.blocks() * 512
    }

    /// The contents of a member's image.
    pub(crate) fn contents(&self, member: &str) -> Vec<u8> {
        std::fs::read(self.image(member)).expect("the image")
    }
}
