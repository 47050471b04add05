//! Memory on a page border, as direct I/O wants it.

use std::ops::{Deref, DerefMut};

/// The strictest alignment that direct I/O on Linux asks of memory.
pub const PAGE: usize = 4096;

/// Zeroed bytes that begin on a multiple of [`PAGE`]. Never grows, so its address never changes.
pub struct AlignedBuf {
    raw: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuf {
    /// `len` zeros.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        let raw = vec![0; len + PAGE];
        let start = raw.as_ptr().align_offset(PAGE);
        assert!(start < PAGE, "there is a page border in every page");
        Self { raw, start, len }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.raw[self.start..][..self.len]
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.raw[self.start..][..self.len]
    }
}

impl std::fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AlignedBuf")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn begins_on_a_page_border_wherever_it_is_moved() {
        let mut bufs: Vec<_> = [0, 1, 512, 5000, 1 << 20].map(AlignedBuf::zeroed).into();
        bufs.reverse();
        for buf in &mut bufs {
            assert_eq!(buf.as_ptr() as usize % PAGE, 0);
            assert!(buf.iter().all(|&b| b == 0));
            buf.fill(7);
            assert!(buf.iter().all(|&b| b == 7));
        }
        assert_eq!(
            bufs.iter().map(|b| b.len()).collect::<Vec<_>>(),
            [1 << 20, 5000, 512, 1, 0]
        );
    }
}
