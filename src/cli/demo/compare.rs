//! Compares images byte for byte, passing over what is a hole in all of them.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::io::sys;
use crate::set::Code;

/// Bytes that are compared at a time.
const STEP: usize = 1 << 20;

/// What a comparison has gone through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Compared {
    /// Bytes that were read from each image and are equal.
    pub(super) read: u64,
    /// Bytes that are holes in all images.
    pub(super) holes: u64,
}

/// Compares all images with the first one; `go_on` is asked between steps.
///
/// # Errors
/// The first byte that differs; what `go_on` says.
pub(super) fn images(paths: &[PathBuf], mut go_on: impl FnMut() -> Result<()>) -> Result<Compared> {
    let (files, size) = open(paths)?;
    let mut buffers: Vec<_> = files.iter().map(|_| vec![0; STEP]).collect();
    let (mut at, mut read) = (0, 0);
    while let Some(data) = next_data(&files, paths, at)?.filter(|data| *data < size) {
        go_on()?;
        let len = (size - data).min(STEP as u64);
        for (index, (file, buf)) in files.iter().zip(&mut buffers).enumerate() {
            file.read_exact_at(&mut buf[..len as usize], data)
                .map_err(|e| failed(&paths[index], e))?;
        }
        same(paths, &buffers, data, len as usize)?;
        at = data + len;
        read += len;
    }
    let holes = size - read;
    Ok(Compared { read, holes })
}

fn open(paths: &[PathBuf]) -> Result<(Vec<File>, u64)> {
    let (mut files, mut sizes) = (Vec::new(), Vec::new());
    for path in paths {
        let opened = File::open(path).and_then(|file| Ok((file.metadata()?.len(), file)));
        let (size, file) = opened.map_err(|e| failed(path, e))?;
        files.push(file);
        sizes.push(size);
    }
    let size = sizes.first().copied().unwrap_or(0);
    match sizes.iter().position(|other| *other != size) {
        None => Ok((files, size)),
        Some(index) => {
            let (one, other) = (paths[0].display(), paths[index].display());
            let says = format!("{one} has {size} bytes, {other} has {}", sizes[index]);
            Err(differ(says))
        }
    }
}

/// The next byte that is data in one of the files.
fn next_data(files: &[File], paths: &[PathBuf], at: u64) -> Result<Option<u64>> {
    let mut next: Option<u64> = None;
    for (file, path) in files.iter().zip(paths) {
        let data = match sys::seek_data(file.as_fd(), at) {
            // Where holes are unknown all of it is data.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Some(at),
            other => other.map_err(|e| failed(path, e))?,
        };
        next = match (next, data) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }
    Ok(next)
}

fn same(paths: &[PathBuf], buffers: &[Vec<u8>], at: u64, len: usize) -> Result<()> {
    let Some((first, others)) = buffers.split_first() else {
        return Ok(());
    };
    for (index, other) in others.iter().enumerate() {
        if first[..len] != other[..len] {
            let pairs = first.iter().zip(other);
            let byte = at + pairs.take_while(|(a, b)| a == b).count() as u64;
            let (one, two) = (paths[0].display(), paths[index + 1].display());
            return Err(differ(format!("{one} and {two} differ at byte {byte}")));
        }
    }
    Ok(())
}

fn failed(path: &std::path::Path, cause: std::io::Error) -> Error {
    Error::io(format!("demo: cannot compare {}", path.display()), cause)
}

fn differ(says: String) -> Error {
    Error::new(Code::Io, format!("demo: {says}"))
        .with_hint("this must not happen: please report it with --keep")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 9 << 20;

    fn images_of(dir: &std::path::Path) -> Vec<PathBuf> {
        let paths: Vec<_> = ["a", "b", "c"].iter().map(|name| dir.join(name)).collect();
        for path in &paths {
            let file = File::create(path).expect("a file");
            file.set_len(SIZE).expect("sparse");
            file.write_all_at(b"data", 5 << 20).expect("written");
            file.write_all_at(b"end", SIZE - 3).expect("written");
        }
        paths
    }

    fn put(path: &std::path::Path, bytes: &[u8], at: u64) {
        let file = File::options().write(true).open(path).expect("there");
        file.write_all_at(bytes, at).expect("written");
    }

    #[test]
    fn equal_images_are_equal_whatever_their_holes() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let paths = images_of(dir.path());
        let compared = images(&paths, || Ok(())).expect("equal");
        assert_eq!(compared.read + compared.holes, SIZE);
        assert!(compared.holes >= 5 << 20, "{compared:?}");
        // Zeros that are written in one image, and a hole in the others.
        put(&paths[1], &[0; 4096], 1 << 20);
        let zeros = images(&paths, || Ok(())).expect("equal");
        assert!(zeros.holes < compared.holes);
    }

    #[test]
    fn one_byte_is_found_wherever_it_is_and_in_whichever_image() {
        for (image, at) in [(0, 0), (1, (5 << 20) + 2), (2, SIZE - 1), (0, 3 << 20)] {
            let dir = tempfile::tempdir().expect("temporary directory");
            let paths = images_of(dir.path());
            put(&paths[image], b"X", at);
            let error = images(&paths, || Ok(())).expect_err("a byte differs");
            assert!(
                error.to_string().ends_with(&format!("at byte {at}")),
                "{error}"
            );
        }
    }

    #[test]
    fn sizes_count_and_an_end_is_an_end() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let paths = images_of(dir.path());
        let stop = images(&paths, || Err(Error::new(Code::TimedOut, "no more")));
        assert_eq!(stop.map_err(|e| e.code()), Err(Code::TimedOut));
        let file = File::options().write(true).open(&paths[2]).expect("there");
        file.set_len(SIZE + 512).expect("longer");
        images(&paths, || Ok(())).expect_err("sizes differ");
    }
}
