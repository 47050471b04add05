//! Client of `control.sock`: the same questions for a unit whose mount cannot be reached.

use std::cell::RefCell;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::socket::NAME;

/// A connection; one question at a time.
#[derive(Debug)]
pub(super) struct Line {
    stream: RefCell<BufReader<UnixStream>>,
}

/// An answer.
pub(super) struct Told {
    /// 0, or the errno of a refusal.
    pub(super) errno: i32,
    /// The number of the state.
    pub(super) seq: u64,
    /// What it says.
    pub(super) text: String,
}

impl Line {
    /// Connects to the server of a unit by its runtime directory.
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(dir.join(NAME))?;
        Ok(Self {
            stream: RefCell::new(BufReader::new(stream)),
        })
    }

    /// Waits for each piece of an answer for this long at most.
    pub(super) fn limit(&self, time: Duration) -> io::Result<()> {
        self.stream.borrow().get_ref().set_read_timeout(Some(time))
    }

    /// Asks one question and reads the answer to it.
    pub(super) fn ask(&self, question: &str) -> io::Result<Told> {
        let mut stream = self.stream.borrow_mut();
        let question = format!("{question}\n");
        // A server that has ended, or that serves no more programs, does not wait for the question; what it has said
        // is still there.
        let _ = stream.get_mut().write_all(question.as_bytes());
        let mut head = String::new();
        if stream.read_line(&mut head)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut numbers = head.split_whitespace().map(str::parse::<u64>);
        let mut number = || {
            numbers
                .next()
                .and_then(Result::ok)
                .ok_or(io::ErrorKind::InvalidData)
        };
        let (errno, bytes, seq) = (number()?, number()?, number()?);
        let mut text = Vec::new();
        (&mut *stream).take(bytes).read_to_end(&mut text)?;
        Ok(Told {
            errno: i32::try_from(errno).unwrap_or(libc::EIO),
            seq,
            text: String::from_utf8(text).map_err(io::Error::other)?,
        })
    }

    /// Waits until the state has another number; false when the deadline came first. The connection is of no use
    /// behind a deadline.
    pub(super) fn wait(&self, seq: u64, deadline: Option<Instant>) -> io::Result<bool> {
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(false);
        }
        self.stream.borrow().get_ref().set_read_timeout(left)?;
        match self.ask(&format!("wait {seq}")) {
            Err(e) if is_late(&e) => Ok(false),
            // Its end is a change.
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => Ok(true),
            told => told.map(|_| true),
        }
    }
}

/// Whether the time for an answer was over.
pub(super) fn is_late(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}
