//! The life of a mount: claim, start, mount, serve, unmount, stop.
//!
//! One thread decides and serves no request; it hears of signals and of what the other threads tell.
//! A unit in use is not taken away by a first signal: a disk that vanishes under a file system is
//! worse than a slow stop.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, unbounded};
use fuser::{Config, INodeNo, Session, SessionACL};

use super::dissolver::Dissolver;
use super::face::Face;
use super::handles::Handles;
use super::inode::{self, Owner};
use super::manager::Manager;
use super::news::{News, Teller};
use super::notifier::Notifier;
use super::overflow::{Gate, OnEnd, Overflow};
use super::parked::Parked;
use super::unit::Unit;
use super::workers;
use super::{MountOptions, Rights};
use crate::control::Tree;
use crate::control::logbook::Logbook;
use crate::error::{Error, Result};
use crate::io::mountpoint::{self, mount_fuse, mounted, stale, unmount_unit};
use crate::io::node_rate::NodeRate;
use crate::io::pressure::Fitness;
use crate::io::runtime::{Runtime, RuntimeDir};
use crate::io::sys::{self, Signals};
use crate::server::setup::{Mounting, Setup};
use crate::server::{self, Handle, Running};
use crate::set::Code;
use crate::socket::{Access, Socket};

/// How long the other workers may take to end when one has ended and the mount is still there.
const LAST_WORKERS: Duration = Duration::from_secs(5);
/// How often it is looked whether members hold the workers that have not ended.
const LOOK: Duration = Duration::from_secs(1);
/// How long a unit that was dissolved is still served: who gave the command reads its answer, and who reads another file
/// of the control tree must not hold the server for ever.
const LAST_READERS: Duration = Duration::from_secs(5);
/// Bytes from which on memory is got from the system for itself, as the bitmaps of all but small units are.
const LARGE_ALLOCATION: i32 = 256 << 10;

/// As the function of the same name of the module above.
pub(super) fn serve(
    setup: &Setup,
    dir: &Path,
    options: &MountOptions,
    ready: &mut dyn FnMut(&[String]),
) -> Result<()> {
    let unit = setup.unit.as_str();
    let failed = |e| Error::io(format!("{unit} cannot be mounted on {}", dir.display()), e);
    let runtime = Runtime::from_env()?;
    let claimed = runtime.claim(unit)?;
    // This one lives already.
    refuse_more(&runtime, 0, options.units_max)?;
    if let Some(config) = &options.config {
        claimed.set_config(config)?;
    }
    let others = others(&runtime, options);
    for place in claimed.left_mountpoint().into_iter().chain([dir]) {
        setup.check_apart(&place.join(unit), &others)?;
    }
    let mut notes = clear_left(unit, claimed.left_mountpoint());
    notes.extend(clear(unit, dir)?);
    let dir = dir.canonicalize().map_err(failed)?;
    setup.check_outside(&dir, &others)?;
    sys::map_large_allocations(LARGE_ALLOCATION);
    let signals = Signals::collect().map_err(failed)?;
    match Fitness::get().told() {
        (says, true) => tracing::warn!(unit, "{says}"),
        (says, false) => tracing::info!(unit, "{says}"),
    }
    let mounting = Mounting {
        node_rate: shared_rate(&runtime, options.copy_rate_max)?,
        ..options.mounting.clone()
    };
    let running = server::start(setup, &mounting)?;
    let manager = Arc::new(Manager::from_env(unit));
    let mut mount = match Mount::begin(unit, dir, options, &running.handle(), &manager) {
        Ok(mount) => mount,
        Err(error) => return stop_after(Err(error), running),
    };
    let served = mount.serve(&signals, &claimed, &mut || ready(&notes));
    manager.stopping();
    let ended = if mount.is_quiet {
        stop_after(served, running)
    } else {
        // Requests may still run: the members are not clean, and the next mount will see that.
        give_up(unit, &mount.dir);
        served
    };
    tell_failure(&claimed, ended)
}

/// Files that the server needs beside those of its setup.
pub(super) fn others(runtime: &Runtime, options: &MountOptions) -> Vec<(&'static str, PathBuf)> {
    let mut others = vec![("the runtime directory", runtime.base().to_owned())];
    let config = options.config.clone();
    others.extend(config.map(|path| ("the configuration", path)));
    others.extend(options.log.clone().map(|path| ("the log", path)));
    // Where the program cannot tell its own path it is not looked at.
    let program = std::env::current_exe().ok();
    others.extend(program.map(|path| ("the program", path)));
    others
}

/// Refuses units beyond those that the node serves: so `many` more than live.
pub(super) fn refuse_more(runtime: &Runtime, many: usize, most: usize) -> Result<()> {
    let units = runtime.list()?;
    let served = units.iter().filter(|unit| unit.alive).count() + many;
    if served <= most {
        return Ok(());
    }
    let noun = if most == 1 { "unit" } else { "units" };
    let text = format!("this node serves at most {most} {noun}");
    let hint = "stop another unit first, or raise max_units in node.toml";
    Err(Error::new(Code::TooManyUnits, text).with_hint(hint))
}

/// The rate that copies share with those of the other units here.
fn shared_rate(runtime: &Runtime, most: Option<u64>) -> Result<Option<NodeRate>> {
    let open = |rate| {
        let base = runtime.base();
        NodeRate::open(base, rate).map_err(|cause| {
            let says = format!("copies cannot share a rate by a file in {}", base.display());
            Error::io(says, cause).with_hint("leave copy_rate_max out of node.toml")
        })
    };
    most.map(open).transpose()
}

/// Leaves the sentence of a bad end to those who stop the unit.
fn tell_failure(claimed: &RuntimeDir, ended: Result<()>) -> Result<()> {
    let told = match &ended {
        Ok(()) => Ok(()),
        Err(error) => claimed.set_failed(&error.to_string()),
    };
    if let Err(error) = told {
        tracing::warn!(%error, "those who stop the unit are not told how it has ended");
    }
    ended
}

/// Marks the members clean; the first error is the one that is told.
fn stop_after(served: Result<()>, running: Running) -> Result<()> {
    let stopped = running.stop();
    served.and(stopped)
}

/// Makes `dir` free of units: dead mounts are taken away, a live one is a refusal. Two units on one
/// directory would hide one, and a command for it would go to the other. Tells what it has done.
fn clear(unit: &str, dir: &Path) -> Result<Vec<String>> {
    let failed = |e| Error::io(format!("{} cannot be looked at", dir.display()), e);
    let mut notes = Vec::new();
    while let Some(dead) = stale(dir).map_err(failed)? {
        let note = take_dead_away(&dead.to_string_lossy(), dir)?;
        tracing::warn!(unit, "{note}");
        notes.push(note);
    }
    refuse_occupied(unit, dir).map(|()| notes)
}

pub(super) fn refuse_occupied(unit: &str, dir: &Path) -> Result<()> {
    let failed = |e| Error::io(format!("{} cannot be looked at", dir.display()), e);
    match mounted(dir).map_err(failed)? {
        Some(on) if on.fstype == mountpoint::FSTYPE => {
            let (other, dir) = (on.source.to_string_lossy(), dir.display());
            let text = format!("{unit} cannot be mounted on {dir}: {other} is mounted there");
            let hint = format!("`shadowset stop {other}` unmounts it, or use another directory");
            Err(Error::new(Code::InUse, text).with_hint(hint))
        }
        _ => Ok(()),
    }
}

/// Takes away what a killed server of this unit has left in the directory that it had. It hinders
/// nobody who mounts in another one, so a failure is told and no more.
fn clear_left(unit: &str, left: Option<&Path>) -> Vec<String> {
    let Some(dir) = left else {
        return Vec::new();
    };
    let cleared = match stale(dir) {
        Ok(Some(dead)) if dead == unit => take_dead_away(unit, dir).map(Some),
        Ok(_) => Ok(None),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(
            format!("{} cannot be looked at", dir.display()),
            e,
        )),
    };
    let note = cleared.unwrap_or_else(|error| Some(error.to_string()));
    if let Some(note) = &note {
        tracing::warn!(unit, "{note}");
    }
    note.into_iter().collect()
}

/// Takes away a mount whose server has died; lazily only when somebody still uses it.
fn take_dead_away(dead: &str, dir: &Path) -> Result<String> {
    let place = dir.display();
    match unmount_unit(dead, dir, false) {
        Ok(()) => Ok(format!("the dead mount of {dead} on {place} is taken away")),
        Err(error) if error.code() == Code::InUse => {
            unmount_unit(dead, dir, true)?;
            Ok(format!(
                "the dead mount of {dead} on {place} is taken away lazily: it is still in use"
            ))
        }
        Err(error) => Err(error),
    }
}

/// Takes the mount away, whoever uses it: the unit cannot be served. Says whether that could be done.
fn give_up(unit: &str, dir: &Path) -> bool {
    let taken = unmount_unit(unit, dir, true);
    if let Err(error) = &taken {
        tracing::warn!(%error, "cannot be unmounted");
    }
    taken.is_ok()
}

/// A mount and the threads that serve it.
struct Mount {
    unit: String,
    dir: PathBuf,
    handle: Handle,
    manager: Arc<Manager>,
    news: Receiver<News>,
    bell: UnixStream,
    /// A descriptor for the unmount, where there are no others.
    spare: Option<UnixStream>,
    /// How often a signal has asked for an end.
    asked: u32,
    /// When the other workers must have ended.
    deadline: Option<Instant>,
    /// Whether a worker has ended.
    is_ending: bool,
    /// Whether the set was closed by a command.
    is_dissolved: bool,
    /// Whether no request is left.
    is_quiet: bool,
    tree: Arc<Tree>,
    access: Access,
    /// For those who cannot reach the mount.
    socket: Option<Socket>,
    /// Wakes those who poll, until it is dropped.
    _notifier: Notifier,
}

impl Mount {
    /// Mounts and starts to answer.
    fn begin(
        unit: &str,
        dir: PathBuf,
        options: &MountOptions,
        handle: &Handle,
        manager: &Arc<Manager>,
    ) -> Result<Self> {
        let failed = |e| Error::io(format!("{unit} cannot be served"), e);
        let (news_tx, news) = unbounded();
        let (bell, bell_tx) = UnixStream::pair().map_err(failed)?;
        let spare = bell.try_clone().map_err(failed)?;
        let teller = Teller {
            news: news_tx,
            bell: Arc::new(bell_tx),
        };
        let (face, notifier) =
            face((unit, options.rights), handle, &teller, manager).map_err(failed)?;
        let tree = Arc::clone(&face.tree);
        let to_end = teller.clone();
        let end = move || to_end.tell(News::Dissolved);
        handle.ends_with(Box::new(Dissolver::new(&face.unit, end)));
        let access = Access {
            gid: face.owner.control_gid(),
            mode: options.rights.control_mode.into(),
        };
        let mount_options = mountpoint::MountOptions {
            allow_other: options.allow_other,
            read_only: options.mounting.read_only,
        };
        let fd = mount_fuse(unit, &dir, mount_options)?;
        if let Err(error) = start_session(face, fd, teller) {
            give_up(unit, &dir);
            return Err(failed(error));
        }
        Ok(Self {
            unit: unit.to_owned(),
            dir,
            handle: handle.clone(),
            manager: Arc::clone(manager),
            news,
            spare: Some(spare),
            bell,
            asked: 0,
            deadline: None,
            is_ending: false,
            is_dissolved: false,
            is_quiet: false,
            tree,
            access,
            socket: None,
            _notifier: notifier,
        })
    }

    /// Decides until the last request is answered, or a worker is lost.
    fn serve(
        &mut self,
        signals: &Signals,
        claimed: &RuntimeDir,
        ready: &mut dyn FnMut(),
    ) -> Result<()> {
        let outcome = self.begun(claimed, ready);
        loop {
            let heard = self.next(signals);
            let heard = heard.map_err(|e| Error::io("signals cannot be heard", e))?;
            match heard {
                Some(News::WorkerEnded) => {
                    self.is_ending = true;
                    if self.is_mounted() || self.has_only_lost() {
                        self.end_by(LAST_WORKERS);
                    }
                }
                Some(News::Dissolved) => {
                    give_up(&self.unit, &self.dir);
                    self.is_dissolved = true;
                    self.end_by(LAST_READERS);
                }
                Some(News::Ended(end)) => return outcome.and(self.end(end)),
                None if self.is_late() && self.is_dissolved => {
                    let unit = &self.unit;
                    tracing::info!(unit, "readers of the control tree are left behind");
                    self.is_quiet = true;
                    return outcome;
                }
                None if self.is_late() && self.has_only_lost() => {
                    tracing::warn!(
                        unit = self.unit,
                        "members hold threads: they are left behind"
                    );
                    self.is_quiet = true;
                    return outcome;
                }
                None if self.is_late() => {
                    let text = format!("a worker of {} has failed; see the log", self.unit);
                    return outcome.and(Err(Error::new(Code::Io, text)));
                }
                // It may be expelled only now that holds a worker.
                None if self.is_ending && self.has_only_lost() => self.end_by(LAST_WORKERS),
                None => {}
            }
        }
    }

    /// Sets the deadline, if there is none yet.
    fn end_by(&mut self, time: Duration) {
        let deadline = Instant::now() + time;
        self.deadline.get_or_insert(deadline);
    }

    /// Tells of the mount when all workers run, or gives it up.
    fn begun(&mut self, claimed: &RuntimeDir, ready: &mut dyn FnMut()) -> Result<()> {
        let failed = |e| Error::io(format!("{} cannot be served", self.unit), e);
        let outcome = match workers::await_all(self.bell.as_fd()).map_err(failed) {
            Ok(true) => self.opened(claimed, ready).map(|()| true),
            // Why, the news say.
            outcome => outcome,
        };
        if !matches!(outcome, Ok(true)) {
            self.give_up();
        }
        outcome.map(drop)
    }

    /// As the function of that name, with all that this program has. Where even that fails nobody waits for the workers
    /// for long: the kernel ends what has no server any more.
    fn give_up(&mut self) {
        self.spare = None;
        if !give_up(&self.unit, &self.dir) {
            self.deadline = Some(Instant::now() + LAST_WORKERS);
        }
    }

    /// Waits for news or a signal; a signal is dealt with here.
    fn next(&mut self, signals: &Signals) -> io::Result<Option<News>> {
        if let Ok(news) = self.news.try_recv() {
            return Ok(Some(news));
        }
        let left = self
            .deadline
            .map(|at| at.saturating_duration_since(Instant::now()));
        let left = left.or(self.is_ending.then_some(LOOK));
        let fds = [
            (signals.as_fd(), sys::POLL_IN),
            (self.bell.as_fd(), sys::POLL_IN),
        ];
        let events = sys::poll(&fds, left)?;
        let is_set = |index: usize| events.get(index).is_some_and(|e| *e != 0);
        let (signal, news) = (is_set(0), is_set(1));
        if news {
            // The bytes only wake; what has happened is in the channel.
            let _ = self.bell.read(&mut [0; 64])?;
        }
        if signal {
            self.signalled(signals.next()?);
        }
        Ok(None)
    }

    /// Who opens the unit from now on is answered. The server itself must not look: a thread that waits for its own
    /// process could not be killed, and would keep it and its locks (I14).
    fn opened(&mut self, claimed: &RuntimeDir, ready: &mut dyn FnMut()) -> Result<()> {
        let failed = |e| Error::io(format!("{} cannot be opened", self.unit), e);
        let found = mounted(&self.dir).map_err(failed)?;
        let found = found.filter(|mounted| mounted.is_unit(&self.unit));
        let found = found.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        // Before anybody is told of the mount: what lies on it must never become a member (I12).
        self.handle.mounted_on(found.device);
        claimed.set_mountpoint(&self.dir)?;
        self.listen(claimed.path());
        tracing::info!(unit = self.unit, dir = %self.dir.display(), "mounted");
        ready();
        self.manager.ready(&self.handle.state());
        Ok(())
    }

    /// Without the socket the unit can be used all the same.
    fn listen(&mut self, dir: &Path) {
        match Socket::listen(dir, Arc::clone(&self.tree), self.access) {
            Ok(socket) => {
                self.handle.on_change(Box::new(socket.on_change()));
                self.socket = Some(socket);
            }
            Err(error) => tracing::warn!(unit = self.unit, %error, "there is no control socket"),
        }
    }

    fn signalled(&mut self, signal: i32) {
        let unit = &self.unit;
        if signal == libc::SIGHUP {
            tracing::info!(unit, "SIGHUP: there is nothing to read anew");
            return;
        }
        self.asked += 1;
        let lazy = self.asked > 1;
        match unmount_unit(unit, &self.dir, lazy) {
            Ok(()) => {
                tracing::info!(unit, lazy, "unmounted by a signal");
                // Who still uses the unit must come to an end.
                self.handle.end_stall();
            }
            Err(error) if error.code() == Code::InUse => {
                tracing::warn!(
                    unit,
                    "in use, so it is served on; a second signal takes it away"
                );
                self.manager.in_use();
            }
            Err(error) => tracing::warn!(unit, %error, "cannot be unmounted"),
        }
    }

    /// Whether the other workers should have ended by now.
    fn is_late(&self) -> bool {
        self.deadline.is_some_and(|at| Instant::now() >= at)
    }

    /// Whether the mount has ended, and the workers that have not are held by members. All requests are answered
    /// then: the kernel has none left.
    fn has_only_lost(&self) -> bool {
        !self.is_mounted() && self.handle.pipeline().has_lost_threads()
    }

    /// Whether the kernel still lists our mount; when it cannot be asked, it may.
    fn is_mounted(&self) -> bool {
        match mounted(&self.dir) {
            Ok(Some(on)) => on.is_unit(&self.unit),
            Ok(None) => false,
            Err(_) => true,
        }
    }

    fn end(&mut self, end: io::Result<()>) -> Result<()> {
        // A panic of one worker is told before the others have ended.
        let is_left = self.is_mounted();
        self.is_quiet = end.is_ok() || !is_left;
        tracing::info!(unit = self.unit, "the mount has ended");
        if is_overtaken(&end, is_left) {
            return Ok(());
        }
        end.map_err(|e| Error::io(format!("{} was not served to its end", self.unit), e))?;
        if !is_left {
            return Ok(());
        }
        // The connection was aborted: nobody can serve what is still mounted.
        give_up(&self.unit, &self.dir);
        let text = format!("the mount of {} was aborted", self.unit);
        Err(Error::new(Code::Io, text)
            .with_hint("programs that used it have got errors; mount it again"))
    }
}

/// Whether a worker had just taken a request, such as the close of the last file, when the unmount overtook it: the kernel
/// then ends the request by itself, and says that the connection was aborted where it else says that it has ended.
fn is_overtaken(end: &io::Result<()>, is_left: bool) -> bool {
    let aborted = |e: &io::Error| e.raw_os_error() == Some(libc::ECONNABORTED);
    !is_left && end.as_ref().is_err_and(aborted)
}

/// The face of a unit, and the thread that wakes those who poll its files.
fn face(
    (name, rights): (&str, Rights),
    handle: &Handle,
    teller: &Teller,
    manager: &Arc<Manager>,
) -> io::Result<(Face, Notifier)> {
    let logbook = Arc::new(Logbook::default());
    let tree = Arc::new(Tree::new(Arc::new(handle.clone()), logbook));
    let handles = Arc::new(Handles::default());
    let teller = teller.clone();
    let (state, manager) = (handle.clone(), Arc::clone(manager));
    let to_manager = move || manager.changed(&state.state());
    let notifier = Notifier::start(Arc::clone(&handles), Arc::clone(&tree), to_manager)?;
    let (bell, change) = (notifier.bell.clone(), notifier.bell.clone());
    handle.on_change(Box::new(move || change.ring()));
    let ended: OnEnd = Arc::new(move || teller.tell(News::WorkerEnded));
    let unit = Arc::new(Unit::new(handle.clone()));
    let overflow = Arc::new(Overflow::new(Arc::clone(&ended)));
    let face = Face {
        mounted: unit.mtime(),
        parked: parked(&unit, &overflow)?,
        overflow,
        unit,
        gate: Gate::new(workers::count()),
        ended,
        name: name.to_owned(),
        tree,
        handles,
        bell,
        owner: Owner {
            uid: sys::effective_uid(),
            gid: sys::effective_gid(),
            rights,
        },
    };
    Ok((face, notifier))
}

/// Where changes wait for the end of a stall; it looks whenever something has changed.
fn parked(unit: &Arc<Unit>, overflow: &Arc<Overflow>) -> io::Result<Parked> {
    let of = Arc::clone(unit);
    let parked = Parked::start(Arc::clone(overflow), move || of.is_stalled())?;
    let room = parked.room();
    unit.on_change(move || room.look());
    Ok(parked)
}

/// Shakes hands with the kernel, then serves on threads of its own.
fn start_session(face: Face, fd: OwnedFd, teller: Teller) -> io::Result<()> {
    let mut config = Config::default();
    config.n_threads = Some(workers::count());
    // Each worker reads from a descriptor of its own.
    config.clone_fd = true;
    // The kernel checks who may enter: allow_other is an option of the mount.
    let grown = Arc::clone(&face.unit);
    let session = Session::from_fd(face, fd, SessionACL::All, config)?;
    let kernel = session.notifier();
    // It believes the size for long: told before a resize is answered. A negative offset names no data.
    grown.on_growth(move || {
        if let Err(error) = kernel.inval_inode(INodeNo(inode::UNIT), -1, 0) {
            tracing::warn!(%error, "the kernel may believe the old size for an hour");
        }
    });
    thread::Builder::new()
        .name("session".into())
        .spawn(move || teller.tell(News::Ended(session.run())))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unmount_may_overtake_the_last_request_and_an_abort_is_none() {
        let ended = |errno| Err(io::Error::from_raw_os_error(errno));
        assert!(is_overtaken(&ended(libc::ECONNABORTED), false));
        assert!(!is_overtaken(&ended(libc::ECONNABORTED), true));
        assert!(!is_overtaken(&ended(libc::EIO), false));
        assert!(!is_overtaken(&Ok(()), false));
    }
}
