//! System calls that std lacks, as small safe functions.
//!
//! This folder alone has `unsafe`. Each function is one call: it checks nothing but its own arguments,
//! decides nothing and keeps no state. What a call means for a member is told by its callers. Beside them
//! stand [`lend`], for who may not come back from a call, and [`uring`].
#![allow(unsafe_code)]

mod devices;
mod files;
mod loan;
mod locks;
mod loops;
mod mounts;
mod poll;
mod process;
mod signals;
pub mod uring;

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use libc::{c_int, off64_t};

pub use devices::*;
pub use files::*;
pub use loan::*;
pub use locks::*;
pub use loops::*;
pub use mounts::*;
pub use poll::*;
pub use process::*;
pub use signals::*;

fn check(ret: c_int) -> io::Result<c_int> {
    if ret < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(ret)
    }
}

/// Repeats a call that a signal interrupted.
fn retry(mut call: impl FnMut() -> c_int) -> io::Result<c_int> {
    loop {
        match check(call()) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

fn owned(fd: RawFd) -> io::Result<OwnedFd> {
    let fd = check(fd)?;
    // SAFETY: the kernel has just made this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn offset(bytes: u64) -> io::Result<off64_t> {
    off64_t::try_from(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))
}
