//! Lines of the log on their way to where it is written: a bounded queue, and a thread that writes them.
//!
//! Who logs never waits (I8). Where nobody takes the lines, as with a pipe that is not read or a file system that hangs,
//! the queue fills up and what comes then is lost; the log says how many lines that were as soon as it takes some again.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tracing_subscriber::fmt::format::Writer as Formatter;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

use crate::io::sys;

/// Most lines that wait.
const MOST: usize = 1024;

/// The way into the log.
#[derive(Clone, Debug, Default)]
pub(super) struct Queue(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    filled: Condvar,
    written: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<Vec<u8>>,
    /// Lines that have come since the queue is full.
    lost: u64,
    /// What was taken last is being written.
    writing: bool,
}

impl Queue {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system's error.
    pub(super) fn start(out: impl Write + Send + 'static) -> io::Result<Self> {
        let queue = Self::default();
        let shared = Arc::clone(&queue.0);
        let run = move || {
            // As all threads of a server, where that may be had: memory must not have to wait for its own I/O.
            let _ = sys::become_io_flusher();
            Writer { out, missed: 0 }.run(&shared);
        };
        thread::Builder::new().name("log".into()).spawn(run)?;
        Ok(queue)
    }

    /// Waits until all lines are written, for so long at most; whether they are.
    pub(super) fn settle(&self, patience: Duration) -> bool {
        let pending = |state: &mut State| state.writing || !state.lines.is_empty();
        let waited = self
            .0
            .written
            .wait_timeout_while(self.0.lock(), patience, pending);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

impl Write for Queue {
    /// Takes a whole line, or several that belong together.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut state = self.0.lock();
        if state.lines.len() < MOST {
            state.lines.push(line.to_vec());
        } else {
            state.lost += 1;
        }
        drop(state);
        self.0.filled.notify_one();
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for lines; gives them with the number of those that were lost behind them. What was taken before is written.
    fn take(&self) -> (Vec<Vec<u8>>, u64) {
        let mut state = self.lock();
        state.writing = false;
        self.written.notify_all();
        let waited = self
            .filled
            .wait_while(state, |state| state.lines.is_empty());
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        state.writing = true;
        let lost = std::mem::take(&mut state.lost);
        (std::mem::take(&mut state.lines), lost)
    }
}

struct Writer<W> {
    out: W,
    /// Lines that are missing at this place of the log, which does not say so yet.
    missed: u64,
}

impl<W: Write> Writer<W> {
    fn run(&mut self, shared: &Shared) {
        loop {
            let (lines, lost) = shared.take();
            for line in lines {
                self.write(&line);
            }
            self.missed += lost;
            self.tell();
        }
    }

    fn write(&mut self, line: &[u8]) {
        self.tell();
        if self.out.write_all(line).is_err() {
            self.missed += 1;
        }
    }

    fn tell(&mut self) {
        if self.missed > 0 && self.out.write_all(told(self.missed).as_bytes()).is_ok() {
            self.missed = 0;
        }
    }
}

/// The line that stands for others.
fn told(missed: u64) -> String {
    let mut time = String::new();
    // Without a time it is a line still.
    let _ = SystemTime.format_time(&mut Formatter::new(&mut time));
    match missed {
        1 => format!("{time}  WARN 1 line was not written\n"),
        _ => format!("{time}  WARN {missed} lines were not written\n"),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixStream;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn nobody_waits_for_a_log_that_is_not_read_and_it_says_what_it_lacks() {
        let (reader, writer) = UnixStream::pair().expect("sockets");
        let mut queue = Queue::start(writer).expect("a thread");
        let all = 10 * MOST;
        for n in 0..all {
            let line = format!("{n:0>1000}\n");
            queue.write_all(line.as_bytes()).expect("it never fails");
        }
        assert!(!queue.settle(Duration::from_millis(1)), "it is full");
        let (mut seen, mut lost) = (0, 0);
        let mut lines = BufReader::new(reader).lines();
        while seen + lost < all {
            let line = lines.next().expect("more lines").expect("UTF-8");
            match line.strip_suffix(" lines were not written") {
                None => {
                    assert_eq!(line, format!("{:0>1000}", seen + lost), "in their order");
                    seen += 1;
                }
                Some(begin) => {
                    let count = begin.rsplit(' ').next().expect("a word");
                    lost += count.parse::<usize>().expect("a number");
                }
            }
        }
        assert!(lost > 0 && seen >= MOST, "{seen} and {lost}");
        assert!(queue.settle(LONG), "all is written");
    }

    /// Takes nothing while it is full.
    struct Disk(Vec<u8>, bool);

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match self.1 {
                true => Err(io::ErrorKind::StorageFull.into()),
                false => self.0.write(bytes),
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_could_not_be_written_are_counted_too() {
        let mut writer = Writer {
            out: Disk(Vec::new(), false),
            missed: 0,
        };
        for (line, full) in [("a", false), ("b", true), ("c", true), ("d", false)] {
            writer.out.1 = full;
            writer.write(format!("{line}\n").as_bytes());
        }
        let text = String::from_utf8(writer.out.0).expect("UTF-8");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((lines[0], lines[2], lines.len()), ("a", "d", 3));
        assert!(lines[1].ends_with("  WARN 2 lines were not written"));
        assert!(told(1).ends_with("  WARN 1 line was not written\n"));
    }
}
