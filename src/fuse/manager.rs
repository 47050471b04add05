//! What the service manager is told, as sd_notify(3) has it: when the unit can be opened, how it is
//! doing, and that it is ending.
//!
//! Nothing that serves waits for the manager: what it does not take at once it is not told, but that the unit can be
//! opened, without which it would end the service: it is given time for that, and told again. It is never told that
//! all is well (a watchdog): no thread here could prove that.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::server::handle::Published;
use crate::set::{Operation, SetState, SetStatus};

/// How long the manager may take to hear that the unit can be opened, before it has to wait for the next change.
const READY_MAX: Duration = Duration::from_secs(5);

/// What the end may take from the moment on when nobody uses the unit any more.
const END_MAX: Duration = Duration::from_secs(300);

/// The manager of this service, if there is one.
#[derive(Debug)]
pub(super) struct Manager {
    unit: String,
    socket: Option<UnixDatagram>,
    /// What was said last, so that nothing is said twice.
    last: Mutex<String>,
    /// Whether it has yet to be told that the unit can be opened.
    is_owed: AtomicBool,
}

impl Manager {
    /// The one that the environment names.
    pub(super) fn from_env(unit: &str) -> Self {
        let named = std::env::var_os(super::NOTIFY_SOCKET).filter(|name| !name.is_empty());
        let socket = named.and_then(|name| match connect(name.as_bytes()) {
            Ok(socket) => Some(socket),
            Err(error) => {
                tracing::warn!(unit, %error, "the service manager cannot be told anything");
                None
            }
        });
        Self {
            unit: unit.to_owned(),
            socket,
            last: Mutex::default(),
            is_owed: AtomicBool::new(false),
        }
    }

    /// The unit can be opened.
    pub(super) fn ready(&self, state: &Published) {
        let Some(socket) = &self.socket else {
            return;
        };
        // When that cannot be, it does not wait.
        let _ = socket.set_write_timeout(Some(READY_MAX));
        let _ = socket.set_nonblocking(false);
        self.is_owed.store(true, Ordering::SeqCst);
        self.tell(&summary(&state.set));
        let _ = socket.set_nonblocking(true);
    }

    /// Something may have changed.
    pub(super) fn changed(&self, state: &Published) {
        if self.socket.is_some() {
            self.tell(&summary(&state.set));
        }
    }

    /// Tells how the unit is doing, and that it can be opened if that is owed.
    fn tell(&self, says: &str) {
        let status = self.status(says);
        if !self.is_owed.load(Ordering::SeqCst) {
            self.send(&status);
        } else if self.send(&format!("READY=1\n{status}")) {
            self.is_owed.store(false, Ordering::SeqCst);
        }
    }

    /// A signal has asked for an end that cannot be now.
    pub(super) fn in_use(&self) {
        self.send(&self.status("in use, so it is served on; a second signal takes it away"));
    }

    /// Nobody uses the unit any more.
    pub(super) fn stopping(&self) {
        let status = self.status("members are being marked clean");
        let most = END_MAX.as_micros();
        self.send(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={most}\n{status}"));
    }

    fn status(&self, says: &str) -> String {
        format!("STATUS={}: {says}", self.unit)
    }

    /// Whether it has been told now, or nothing is new.
    fn send(&self, message: &str) -> bool {
        let Some(socket) = &self.socket else {
            return true;
        };
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if *last == message {
            return true;
        }
        if let Err(error) = socket.send(message.as_bytes()) {
            tracing::debug!(unit = self.unit, %error, "the service manager was not told");
            return false;
        }
        message.clone_into(&mut last);
        true
    }
}

/// A name that begins with `@` is in the abstract name space of the kernel.
fn connect(name: &[u8]) -> io::Result<UnixDatagram> {
    let address = match name {
        [b'@', abstract_name @ ..] => SocketAddr::from_abstract_name(abstract_name)?,
        path => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path))?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect_addr(&address)?;
    Ok(socket)
}

/// The set in a few words: `2 members, m3 detached, minicopy m2 41%`.
fn summary(set: &SetStatus) -> String {
    let (sources, others): (Vec<_>, Vec<_>) = set.members.iter().partition(|m| m.state == "source");
    let plural = if sources.len() == 1 { "" } else { "s" };
    let mut parts = vec![format!("{} member{plural}", sources.len())];
    if matches!(set.state, SetState::MountVerify | SetState::Failed) {
        parts.push(set.state.name().to_owned());
    }
    let away = others.iter().filter(|m| m.departed);
    parts.extend(away.map(|m| format!("{} {}", m.name, m.state)));
    let running = set.operations.iter().filter(|op| !op.state.is_over());
    parts.extend(running.map(|op| operation(set, op)));
    parts.join(", ")
}

fn operation(set: &SetStatus, op: &Operation) -> String {
    let (done, total) = (op.progress.done_bytes(), op.progress.total_bytes());
    let percent = done.saturating_mul(100).checked_div(total).unwrap_or(0);
    let target = op.target().map_or("", |target| set.name(target));
    let blank = if target.is_empty() { "" } else { " " };
    format!("{}{blank}{target} {}%", op.kind(), percent.min(100))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manager(name: &[u8]) -> Manager {
        Manager {
            unit: "dsa1".to_owned(),
            socket: Some(connect(name).expect("somebody listens")),
            last: Mutex::default(),
            is_owed: AtomicBool::new(false),
        }
    }

    fn heard(socket: &UnixDatagram) -> Option<String> {
        socket.set_nonblocking(true).expect("possible");
        let mut buffer = [0; 4096];
        let bytes = socket.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..bytes]).into_owned())
    }

    #[test]
    fn a_socket_with_a_path_hears_each_thing_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("notify");
        let listener = UnixDatagram::bind(&path).expect("bound");
        let manager = manager(path.as_os_str().as_bytes());
        manager.in_use();
        manager.in_use();
        let says = "STATUS=dsa1: in use, so it is served on; a second signal takes it away";
        assert_eq!(heard(&listener).as_deref(), Some(says));
        assert_eq!(heard(&listener), None);
        manager.stopping();
        let says = "STOPPING=1\nEXTEND_TIMEOUT_USEC=300000000\nSTATUS=dsa1: members are being marked clean";
        assert_eq!(heard(&listener).as_deref(), Some(says));
    }

    #[test]
    fn an_abstract_socket_hears_too() {
        let name = format!("shadowset-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let listener = UnixDatagram::bind_addr(&address).expect("bound");
        manager(format!("@{name}").as_bytes()).in_use();
        assert!(heard(&listener).is_some());
    }

    #[test]
    fn what_the_manager_was_too_busy_to_hear_it_is_told_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("notify");
        let listener = UnixDatagram::bind(&path).expect("bound");
        let manager = manager(path.as_os_str().as_bytes());
        manager.is_owed.store(true, Ordering::SeqCst);
        while manager.send(&format!("STATUS={:?}", std::time::Instant::now())) {}
        manager.tell("2 members");
        while heard(&listener).is_some() {}
        manager.tell("3 members");
        manager.tell("1 member");
        let says = "READY=1\nSTATUS=dsa1: 3 members";
        assert_eq!(heard(&listener).as_deref(), Some(says));
        assert_eq!(heard(&listener).as_deref(), Some("STATUS=dsa1: 1 member"));
    }

    #[test]
    fn a_manager_that_does_not_listen_holds_nothing_up() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("notify");
        let listener = UnixDatagram::bind(&path).expect("bound");
        let manager = manager(path.as_os_str().as_bytes());
        for number in 0..10_000 {
            manager.send(&format!("STATUS={number}"));
        }
        drop(listener);
        manager.in_use();
        connect(b"/nowhere").expect_err("nobody is there");
    }
}
