//! Waiting for descriptors, and for time.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use libc::c_int;

use super::retry;

/// Data can be read.
pub const POLL_IN: i16 = libc::POLLIN;
/// Data can be written.
pub const POLL_OUT: i16 = libc::POLLOUT;
/// Something exceptional: a watched file of a control tree has changed.
pub const POLL_PRI: i16 = libc::POLLPRI;
/// An error; always watched.
pub const POLL_ERR: i16 = libc::POLLERR;
/// The other side is gone; always watched.
pub const POLL_HUP: i16 = libc::POLLHUP;

/// Waits until one of the descriptors has one of its events; the events of each, in order, all 0
/// when the time is over. `None` waits for ever. With no descriptor it only waits.
///
/// # Errors
/// The system's error. Signals do not end it.
pub fn poll(fds: &[(BorrowedFd<'_>, i16)], timeout: Option<Duration>) -> io::Result<Vec<i16>> {
    let pollfd = |&(fd, events): &(BorrowedFd<'_>, i16)| libc::pollfd {
        fd: fd.as_raw_fd(),
        events,
        revents: 0,
    };
    let mut polled: Vec<_> = fds.iter().map(pollfd).collect();
    let end = timeout.and_then(|t| Instant::now().checked_add(t));
    retry(|| {
        let left = end.map_or(-1, |end| {
            milliseconds(end.saturating_duration_since(Instant::now()))
        });
        // SAFETY: the array has as many entries as are named, and outlives the call; the
        // descriptors are open for as long as they are borrowed.
        unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, left) }
    })?;
    Ok(polled.iter().map(|p| p.revents).collect())
}

/// Rounded up, so that a wait never ends before its time.
fn milliseconds(time: Duration) -> c_int {
    c_int::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(c_int::MAX)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn poll_tells_which_descriptor_is_ready() {
        let (a_read, _a_write) = UnixStream::pair().unwrap();
        let (b_read, mut b_write) = UnixStream::pair().unwrap();
        let fds = [(a_read.as_fd(), POLL_IN), (b_read.as_fd(), POLL_IN)];
        assert_eq!(poll(&fds, Some(Duration::ZERO)).unwrap(), [0, 0]);
        b_write.write_all(b"x").unwrap();
        assert_eq!(poll(&fds, None).unwrap(), [0, POLL_IN]);
    }

    #[test]
    fn poll_waits_its_time() {
        let start = Instant::now();
        assert!(
            poll(&[], Some(Duration::from_micros(20_500)))
                .unwrap()
                .is_empty()
        );
        assert!(start.elapsed() >= Duration::from_micros(20_500));
    }
}
