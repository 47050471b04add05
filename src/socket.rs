//! Face 1: `control.sock` in the runtime directory of a unit, for programs that cannot reach its mount.
//!
//! The language is that of `.shadow/control`, one line for a command, and two words more: `read <path>` gives a file
//! or the names in a directory below `.shadow/`, `wait <number>` waits until the state has another number than this
//! one. Each answer is a line `<errno> <bytes> <number>` and so many bytes of text: errno 0 means well, and the
//! number is that of the state. It decides nothing.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::bounded;

use crate::control::command::COMMAND_BYTES;
use crate::control::{Kind, NodeRef, StoreOutcome, Tree};
use crate::io::sys;

/// Name of the socket in the runtime directory.
pub const NAME: &str = "control.sock";
/// Programs that are served at once.
const CLIENTS: usize = 16;
/// How often it is looked whether a program that waits is still there: the state of a steady unit never changes.
const LOOK: Duration = Duration::from_secs(1);

/// The socket of a running unit; it ends with this value.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    shared: Arc<Shared>,
    listener: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    tree: Arc<Tree>,
    clients: Mutex<Clients>,
    ended: AtomicBool,
    /// Held by who looks at the number of the state and waits for another one.
    looking: Mutex<()>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Clients {
    last: u64,
    streams: HashMap<u64, UnixStream>,
}

/// Who may connect, beside root and the owner of the socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// The group of the socket.
    pub gid: u32,
    /// Its permissions; who may write to it may connect.
    pub mode: u32,
}

impl Socket {
    /// Begins to listen in a directory that belongs to this unit alone.
    ///
    /// # Errors
    /// The system's error.
    pub fn listen(dir: &Path, tree: Arc<Tree>, access: Access) -> io::Result<Self> {
        let path = dir.join(NAME);
        let listener = bind(dir, &path, access)?;
        let shared = Arc::new(Shared::of(tree));
        let served = Arc::clone(&shared);
        let thread = thread::Builder::new().name("socket".into());
        let thread = thread.spawn(move || served.accept(&listener))?;
        Ok(Self {
            path,
            shared,
            listener: Some(thread),
        })
    }

    /// What is to be called after every change of the state; it does not block.
    pub fn on_change(&self) -> impl Fn() + Send + Sync + 'static {
        let shared = Arc::clone(&self.shared);
        move || {
            // Who has looked before this change waits by now.
            drop(lock(&shared.looking));
            shared.changed.notify_all();
        }
    }
}

/// A socket appears under its name when it has the permissions that it is to have.
fn bind(dir: &Path, path: &Path, access: Access) -> io::Result<UnixListener> {
    let new = dir.join("control.new");
    let listener = UnixListener::bind(&new)?;
    std::os::unix::fs::lchown(&new, None, Some(access.gid))?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(access.mode))?;
    std::fs::rename(&new, path)?;
    Ok(listener)
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        // Wakes the thread that accepts; who is served already is told by the end of the stream.
        let woken = UnixStream::connect(&self.path);
        for stream in lock(&self.shared.clients).streams.values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        drop(lock(&self.shared.looking));
        self.shared.changed.notify_all();
        let _ = std::fs::remove_file(&self.path);
        if let (Ok(_), Some(listener)) = (woken, self.listener.take()) {
            let _ = listener.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn of(tree: Arc<Tree>) -> Self {
        Self {
            tree,
            looking: Mutex::default(),
            clients: Mutex::default(),
            ended: AtomicBool::new(false),
            changed: Condvar::new(),
        }
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    fn accept(self: &Arc<Self>, listener: &UnixListener) {
        for stream in listener.incoming() {
            if self.has_ended() {
                return;
            }
            match stream.and_then(|stream| self.admit(stream)) {
                Ok(()) => {}
                Err(error) => {
                    tracing::warn!(%error, "a program at the control socket is not served");
                }
            }
        }
    }

    /// Serves a program on a thread of its own: a command may take long.
    fn admit(self: &Arc<Self>, stream: UnixStream) -> io::Result<()> {
        let known = stream.try_clone()?;
        let id = {
            let mut clients = lock(&self.clients);
            if clients.streams.len() == CLIENTS {
                return answer(
                    &stream,
                    libc::EAGAIN,
                    0,
                    "too many programs are served already\n",
                );
            }
            clients.last += 1;
            let id = clients.last;
            clients.streams.insert(id, known);
            id
        };
        let shared = Arc::clone(self);
        let thread = thread::Builder::new().name("client".into());
        let started = thread.spawn(move || {
            // A program that goes away in the middle is no error.
            let _ = shared.serve(&stream);
            lock(&shared.clients).streams.remove(&id);
        });
        if started.is_err() {
            lock(&self.clients).streams.remove(&id);
        }
        started.map(drop)
    }

    fn serve(&self, stream: &UnixStream) -> io::Result<()> {
        let mut lines = BufReader::new(stream);
        while !self.has_ended() {
            let mut line = Vec::new();
            // One byte more than fits, so that a line that is too long is told from one that just fits.
            let most = COMMAND_BYTES as u64 + 2;
            let read = lines.by_ref().take(most).read_until(b'\n', &mut line)?;
            if read == 0 {
                return Ok(());
            }
            let is_whole = line.last() == Some(&b'\n');
            let (seq, told) = match is_whole || line.len() > COMMAND_BYTES {
                true => self.obey(stream, &line),
                // Who died in the middle of a word may have meant another member.
                false => (
                    self.tree.seq(),
                    failed(
                        libc::EINVAL,
                        "the line has no end, so it is not carried out",
                    ),
                ),
            };
            answer(stream, told.errno, seq, &told.text)?;
            if !is_whole {
                return Ok(());
            }
        }
        Ok(())
    }

    /// What came of a line, and the number of the state that it tells of.
    fn obey(&self, stream: &UnixStream, line: &[u8]) -> (u64, StoreOutcome) {
        let text = std::str::from_utf8(line).map(str::trim_end);
        let words = text.ok().and_then(|text| text.split_once(' '));
        let told = match words {
            Some(("read", path)) => return self.read(path),
            Some(("wait", number)) => self.wait(stream, number),
            _ => self.command(line),
        };
        (self.tree.seq(), told)
    }

    fn command(&self, line: &[u8]) -> StoreOutcome {
        let (done, outcome) = bounded(1);
        let control = self.find("control").unwrap_or(NodeRef::ROOT);
        let tell = move |told| drop(done.send(told));
        self.tree.store(control, line, Box::new(tell));
        outcome
            .recv()
            .unwrap_or_else(|_| failed(libc::EIO, "the unit has ended"))
    }

    fn find(&self, path: &str) -> Option<NodeRef> {
        let mut node = NodeRef::ROOT;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            node = self.tree.lookup(node, name)?;
        }
        Some(node)
    }

    /// A file, the target of a link, or the names in a directory. The number is of a state that is not newer than the
    /// text: who waits for the next one would miss a change between the two.
    fn read(&self, path: &str) -> (u64, StoreOutcome) {
        let seq = self.tree.seq();
        let Some(node) = self.find(path) else {
            return (seq, failed(libc::ENOENT, "no such file"));
        };
        let text = match node.node().kind {
            Kind::Dir => self.tree.list(node).map(|entries| {
                let names = entries.iter().map(|entry| format!("{}\n", entry.name));
                names.collect()
            }),
            // Raw bits are no text.
            _ => self
                .tree
                .show(node)
                .and_then(|bytes| String::from_utf8(bytes).ok()),
        };
        let told = match text {
            Some(text) => StoreOutcome { errno: 0, text },
            None => failed(libc::ENOENT, "it has no text, or is there no more"),
        };
        (seq, told)
    }

    /// Waits until the number of the state is another one, or nobody is there any more who could be told.
    fn wait(&self, stream: &UnixStream, number: &str) -> StoreOutcome {
        let Ok(number) = number.parse::<u64>() else {
            return failed(libc::EINVAL, "wait needs the number of a state");
        };
        let same = |(): &mut ()| self.tree.seq() == number && !self.has_ended();
        let mut looking = lock(&self.looking);
        while same(&mut looking) && !is_gone(stream) {
            let waited = self.changed.wait_timeout_while(looking, LOOK, same);
            looking = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        StoreOutcome {
            errno: 0,
            text: String::new(),
        }
    }
}

/// Whether the program at the other end has closed it.
fn is_gone(stream: &UnixStream) -> bool {
    let events = sys::poll(&[(stream.as_fd(), sys::POLL_HUP)], Some(Duration::ZERO));
    events.is_ok_and(|events| events.first().is_some_and(|e| e & sys::POLL_HUP != 0))
}

fn failed(errno: i32, text: &str) -> StoreOutcome {
    StoreOutcome {
        errno,
        text: format!("{text}\n"),
    }
}

fn answer(mut stream: &UnixStream, errno: i32, seq: u64, text: &str) -> io::Result<()> {
    let whole = format!("{errno} {} {seq}\n{text}", text.len());
    stream.write_all(whole.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::logbook::Logbook;
    use crate::control::testing::Fake;

    const OWNER: Access = Access {
        gid: u32::MAX,
        mode: 0o600,
    };

    struct Bed {
        unit: Arc<Fake>,
        socket: Socket,
        dir: tempfile::TempDir,
    }

    impl Bed {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("a directory");
            let unit = Fake::new();
            let tree = Tree::new(Arc::<Fake>::clone(&unit), Arc::<Logbook>::default());
            let socket = Socket::listen(dir.path(), Arc::new(tree), OWNER).expect("listens");
            Self { unit, socket, dir }
        }

        fn client(&self) -> BufReader<UnixStream> {
            let path = self.dir.path().join(NAME);
            BufReader::new(UnixStream::connect(path).expect("connects"))
        }
    }

    fn ask(client: &mut BufReader<UnixStream>, line: &str) -> (i32, u64, String) {
        client.get_mut().write_all(line.as_bytes()).expect("asked");
        let mut head = String::new();
        client.read_line(&mut head).expect("answered");
        let numbers: Vec<u64> = head
            .split_whitespace()
            .map(|n| n.parse().expect("a number"))
            .collect();
        let mut text = vec![0; numbers[1] as usize];
        client.read_exact(&mut text).expect("the text");
        (
            numbers[0] as i32,
            numbers[2],
            String::from_utf8(text).expect("text"),
        )
    }

    #[test]
    fn commands_and_files_are_those_of_the_tree() {
        let bed = Bed::new();
        let mut client = bed.client();
        let (errno, _, text) = ask(&mut client, "detach m3\n");
        assert_eq!(
            (errno, text.as_str()),
            (0, "ok: it is done\nbitmap 00000007\n")
        );
        let (errno, _, text) = ask(&mut client, "expel m1\n");
        assert_eq!(errno, libc::EBUSY);
        assert!(text.starts_with("error: last-source EBUSY\n"), "{text}");
        assert_eq!(ask(&mut client, "read name\n").2, "dsa1\n");
        assert_eq!(ask(&mut client, "read members\n").2, "m1\nm2\nm3\n");
        assert_eq!(ask(&mut client, "read members/m3/state\n").2, "detached\n");
        for nowhere in [
            "read gone\n",
            "read members/m9/state\n",
            "read bitmaps/00000007/map\n",
        ] {
            let (errno, _, _) = ask(&mut client, nowhere);
            assert!(
                errno == libc::ENOENT || nowhere.ends_with("map\n"),
                "{nowhere}"
            );
        }
        assert_eq!(ask(&mut client, "wait soon\n").0, libc::EINVAL);
        assert_eq!(bed.unit.requests.lock().expect("not poisoned").len(), 2);
    }

    #[test]
    fn a_line_without_an_end_is_not_carried_out() {
        let bed = Bed::new();
        let mut client = bed.client();
        client.get_mut().write_all(b"expel m2").expect("asked");
        let end = client.get_ref().shutdown(Shutdown::Write);
        end.expect("no more is said");
        let mut told = String::new();
        client.read_to_string(&mut told).expect("answered");
        assert!(told.starts_with("22 ") && told.contains("no end"), "{told}");
        assert!(bed.unit.requests.lock().expect("not poisoned").is_empty());
    }

    #[test]
    fn a_line_that_is_too_long_is_refused_and_ends_the_connection() {
        let bed = Bed::new();
        let mut client = bed.client();
        let (errno, _, _) = ask(&mut client, &format!("detach {}\n", "m".repeat(5000)));
        assert_eq!(errno, libc::E2BIG);
        let mut rest = Vec::new();
        // What was not read makes it a reset.
        let _ = client.read_to_end(&mut rest);
        assert_eq!(rest, b"");
        assert!(bed.unit.requests.lock().expect("not poisoned").is_empty());
    }

    /// Lets time pass, of which the socket makes use.
    fn pass(time: Duration) {
        crate::io::sys::poll(&[], Some(time)).expect("poll");
    }

    #[test]
    fn a_change_right_behind_the_reading_is_not_missed() {
        let bed = Bed::new();
        // It changes at each look, behind the one who reads as well.
        let tree = Tree::new(
            Arc::new(fuzz::Restless(Arc::clone(&bed.unit))),
            Arc::default(),
        );
        let (number, told) = Shared::of(Arc::new(tree)).read("label");
        let shown: u64 = told.text.trim().parse().expect("a number");
        assert!(number <= shown, "a change behind {shown} counts as seen");
    }

    #[test]
    fn who_waited_and_went_away_takes_no_place() {
        let bed = Bed::new();
        let seq = ask(&mut bed.client(), "read state\n").1;
        let wait = || {
            let mut client = bed.client();
            let asked = format!("wait {seq}\n");
            let _ = client.get_mut().write_all(asked.as_bytes());
            client
        };
        let clients: Vec<_> = (0..CLIENTS).map(|_| wait()).collect();
        // They wait by then, or go away before they are served: either way they take no place.
        pass(LOOK / 4);
        drop(clients);
        let served = || {
            let (mut client, mut head) = (bed.client(), String::new());
            // Who is not served may be told so before it has asked.
            let _ = client.get_mut().write_all(b"read state\n");
            client
                .read_line(&mut head)
                .is_ok_and(|_| head.starts_with("0 "))
        };
        let begun = std::time::Instant::now();
        while !served() {
            assert!(begun.elapsed() < 20 * LOOK, "nothing has changed meanwhile");
            pass(LOOK / 10);
        }
    }

    #[test]
    fn who_waits_is_woken_by_a_change_and_by_the_end() {
        let bed = Bed::new();
        let mut client = bed.client();
        let seq = ask(&mut client, "read state\n").1;
        let change = bed.socket.on_change();
        let waiter = thread::spawn(move || {
            let woken = ask(&mut client, &format!("wait {seq}\n"));
            (client, woken)
        });
        bed.unit.change(|state| state.seq += 1);
        change();
        let (mut client, (errno, now, _)) = waiter.join().expect("woken");
        assert_eq!((errno, now > seq), (0, true));
        let ender = thread::spawn(move || {
            let _ = client
                .get_mut()
                .write_all(format!("wait {now}\n").as_bytes());
            let mut rest = Vec::new();
            let _ = client.read_to_end(&mut rest);
        });
        let path = bed.dir.path().join(NAME);
        drop(bed.socket);
        ender.join().expect("it has ended");
        assert!(!path.exists());
    }
}
