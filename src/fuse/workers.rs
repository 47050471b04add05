//! The threads that serve a mount. fuser starts them, one after the other, and tells only of those that it cannot start.

use std::os::fd::BorrowedFd;
use std::time::Duration;
use std::{fs, io, thread};

use crate::io::sys;

/// How fuser names them, with their number behind.
const NAME: &str = "fuser-";
/// How often it is looked whether all run.
const LOOK: Duration = Duration::from_millis(1);

/// How many there are to be: one for each processor, and one that stays free for the control tree. More take turns where
/// fewer would go on (docs/performance.md); what a slow member holds up goes to other threads.
pub(super) fn count() -> usize {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    (processors + 1).clamp(3, 16)
}

/// Waits until all run; not when there are news before, which a bell tells.
pub(super) fn await_all(bell: BorrowedFd<'_>) -> io::Result<bool> {
    while running()? < count() {
        let rung = sys::poll(&[(bell, sys::POLL_IN)], Some(LOOK))?;
        if rung.iter().any(|events| *events != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// How many run.
fn running() -> io::Result<usize> {
    let mut running = 0;
    for thread in fs::read_dir("/proc/self/task")? {
        // One that has ended meanwhile is none of them.
        let name = match fs::read_to_string(thread?.path().join("comm")) {
            Err(error) if is_gone(&error) => continue,
            name => name?,
        };
        running += usize::from(name.starts_with(NAME));
    }
    Ok(running)
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_at_least_three_workers_and_at_most_sixteen() {
        assert!((3..=16).contains(&count()));
    }

    #[test]
    fn those_that_run_are_counted() {
        assert_eq!(running().expect("/proc"), 0);
        let (end, ends) = crossbeam_channel::bounded::<()>(0);
        let work = move || {
            let _ = ends.recv();
        };
        let worker = thread::Builder::new().name("fuser-3".into()).spawn(work);
        while running().expect("/proc") == 0 {
            thread::yield_now();
        }
        drop(end);
        worker.expect("a thread").join().expect("no panic");
    }
}
