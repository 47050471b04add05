//! What the mount of a unit is made of, and what the requests of the kernel mean to it.

use std::cell::OnceCell;
use std::ffi::OsStr;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{
    Errno, FileHandle, FileType, INodeNo, OpenAccMode, OpenFlags, PollEvents, PollNotifier,
    ReplyWrite, Request,
};

use super::handles::{Bell, Handles, Name, OpenFile};
use super::inode::{self, CONTROL_NAME, Inode, LONG, NOT_AT_ALL, Owner};
use super::overflow::{Busy, Gate, OnEnd, Overflow};
use super::parked::Parked;
use super::unit::{Through, Unit};
use crate::control::{Attr, Kind, NodeRef, StoreOutcome, Stored, Tree};
use crate::io::aligned::AlignedBuf;
use crate::io::sys;
use crate::server;

/// Tells when its thread ends, which drops it.
struct Ended(OnEnd);

impl Drop for Ended {
    fn drop(&mut self) {
        (self.0)();
    }
}

thread_local! {
    static WORKER: OnceCell<Ended> = const { OnceCell::new() };
}

/// The mount of one unit.
pub(super) struct Face {
    pub(super) unit: Arc<Unit>,
    /// Which workers may carry out data requests themselves.
    pub(super) gate: Gate,
    /// Where changes wait for the end of a stall; it ends before those who carry them out.
    pub(super) parked: Parked,
    /// Who carries out the others; it ends before the unit.
    pub(super) overflow: Arc<Overflow>,
    /// Called when a worker ends.
    pub(super) ended: OnEnd,
    pub(super) name: String,
    pub(super) tree: Arc<Tree>,
    pub(super) handles: Arc<Handles>,
    pub(super) bell: Bell,
    pub(super) owner: Owner,
    pub(super) mounted: SystemTime,
}

impl std::fmt::Debug for Face {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Face")
            .field("unit", &self.unit)
            .finish_non_exhaustive()
    }
}

/// The errno of the server as FUSE has it.
pub(super) fn errno(error: server::Errno) -> Errno {
    Errno::from_i32(error.0)
}

/// Answers a request that writes.
pub(super) fn written(reply: ReplyWrite, result: Result<u32, server::Errno>) {
    match result {
        Ok(bytes) => reply.written(bytes),
        Err(error) => reply.error(errno(error)),
    }
}

impl Face {
    pub(super) fn attr(&self, inode: Inode) -> Option<fuser::FileAttr> {
        let root = Attr {
            kind: Kind::Dir,
            mode: 0o755,
            mtime: self.mounted,
        };
        match inode {
            Inode::Root => Some(self.owner.attr(inode::ROOT, root)),
            Inode::Unit => Some(self.owner.unit(self.unit.size(), self.unit.mtime())),
            Inode::Control(node) => {
                let attr = self.tree.attr(node)?;
                Some(self.owner.control(inode.number(), node, attr))
            }
        }
    }

    /// How long the kernel may believe the attributes.
    pub(super) fn ttl(inode: Inode) -> std::time::Duration {
        match inode {
            Inode::Control(_) => NOT_AT_ALL,
            Inode::Root | Inode::Unit => LONG,
        }
    }

    pub(super) fn find(&self, parent: INodeNo, name: &OsStr) -> Option<Inode> {
        match Inode::of(parent)? {
            Inode::Root if name == CONTROL_NAME => Some(Inode::Control(NodeRef::ROOT)),
            Inode::Root if name == OsStr::new(&self.name) => Some(Inode::Unit),
            Inode::Control(node) => self.tree.lookup(node, name.to_str()?).map(Inode::Control),
            Inode::Root | Inode::Unit => None,
        }
    }

    /// The names of a directory; `None` when it is gone.
    pub(super) fn names(&self, inode: Inode) -> Option<Vec<Name>> {
        let name = |name: &str, inode: Inode, kind| Name {
            name: name.to_owned(),
            ino: inode.number(),
            kind,
        };
        let dir = FileType::Directory;
        let (parent, rest) = match inode {
            Inode::Unit => return None,
            Inode::Root => {
                let unit = name(&self.name, Inode::Unit, FileType::RegularFile);
                let control = Inode::Control(NodeRef::ROOT);
                (Inode::Root, vec![unit, name(CONTROL_NAME, control, dir)])
            }
            Inode::Control(node) => {
                let parent = match node {
                    NodeRef::ROOT => Inode::Root,
                    node => Inode::Control(self.tree.parent(node)),
                };
                let entries = self.tree.list(node)?.into_iter();
                let one = |entry: crate::control::Entry| Name {
                    kind: inode::file_type(entry.node.node().kind),
                    ino: Inode::Control(entry.node).number(),
                    name: entry.name,
                };
                (parent, entries.map(one).collect())
            }
        };
        let mut names = vec![name(".", inode, dir), name("..", parent, dir)];
        names.extend(rest);
        Some(names)
    }

    /// The kernel has checked the mode of the file; this is the daemon's own check.
    pub(super) fn may_write(&self, req: &Request) -> bool {
        let owner = req.uid() == 0 || req.uid() == self.owner.uid;
        let gid = self.owner.control_gid();
        let group = || req.gid() == gid || sys::is_in_group(req.pid(), gid);
        owner || self.owner.rights.control_mode & 0o020 != 0 && group()
    }

    /// Opens a file of the control tree.
    pub(super) fn open_node(
        &self,
        req: &Request,
        node: NodeRef,
        flags: OpenFlags,
    ) -> Result<u64, Errno> {
        if flags.acc_mode() != OpenAccMode::O_RDONLY {
            if !node.node().is_writable() {
                return Err(Errno::EACCES);
            }
            if !self.may_write(req) {
                return Err(Errno::EPERM);
            }
        }
        let file = OpenFile::new(&self.tree, node).ok_or(Errno::ENOENT)?;
        self.handles.insert_file(file).ok_or(Errno::ENOMEM)
    }

    /// Takes a command; the reply goes out when it has been carried out.
    pub(super) fn store(&self, req: &Request, file: Arc<OpenFile>, data: &[u8], reply: ReplyWrite) {
        let (node, bell) = (file.node, self.bell.clone());
        let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let done: Stored = Box::new(move |outcome: StoreOutcome| {
            file.answer(outcome.text);
            bell.ring();
            match outcome.errno {
                0 => reply.written(len),
                number => reply.error(Errno::from_i32(number)),
            }
        });
        if self.may_write(req) {
            self.tree.store(node, data, done);
        } else {
            self.tree.deny(data, req.uid(), done);
        }
    }

    /// Has the end of the calling worker told, whatever ends it.
    pub(super) fn attend(&self) {
        WORKER.with(|worker| {
            worker.get_or_init(|| Ended(Arc::clone(&self.ended)));
        });
    }

    /// Carries out a request that may take as long as a member likes. What it is answered by has to let go of
    /// the token, if it gets one: a member may hold the thread, and another one answer.
    pub(super) fn in_time(&self, job: impl FnOnce(&Arc<Unit>, Option<Busy>) + Send + 'static) {
        match self.gate.enter() {
            Some(_inside) => job(&self.unit, None),
            None => self.elsewhere(job),
        }
    }

    /// Has a request carried out by another thread.
    fn elsewhere(&self, job: impl FnOnce(&Arc<Unit>, Option<Busy>) + Send + 'static) {
        let unit = Arc::clone(&self.unit);
        self.overflow
            .run(Box::new(move |busy| job(&unit, Some(busy))));
    }

    /// As [`Self::elsewhere`], of a change: it waits for the end of a stall.
    pub(super) fn change_elsewhere(
        &self,
        job: impl FnOnce(&Arc<Unit>, Option<Busy>) + Send + 'static,
    ) {
        let unit = Arc::clone(&self.unit);
        self.parked
            .run(Box::new(move |busy| job(&unit, Some(busy))));
    }

    /// Writes to the unit; `through` is the handle that wants the bytes durable.
    pub(super) fn write_unit(&self, at: u64, data: &[u8], through: Option<u64>, reply: ReplyWrite) {
        let inside = match self.unit.is_stalled() {
            true => None,
            false => self.gate.enter(),
        };
        let through = |may_wait| through.map(|handle| Through { handle, may_wait });
        if let Some(_inside) = inside {
            // Other threads than workers have the completions of members to see to.
            let through = through(|| WORKER.with(|worker| worker.get().is_some()));
            let answer = |result| written(reply, result);
            return self.unit.write(at, data, through, answer);
        }
        // The bytes are in the buffer of this worker, which goes on to its next request; only here
        // they have to be copied.
        let mut copy = AlignedBuf::zeroed(data.len());
        copy.copy_from_slice(data);
        let through = through(|| false);
        self.change_elsewhere(move |unit, busy| {
            unit.write(at, &copy, through, move |result| {
                drop(busy);
                written(reply, result);
            });
        });
    }

    /// Whether an inode may be given this size. Nothing is ever resized, but a size that says
    /// nothing new is no change, and shells truncate control files before they write.
    pub(super) fn resize(
        &self,
        req: &Request,
        inode: Inode,
        size: u64,
        by_handle: bool,
    ) -> Result<(), Errno> {
        match inode {
            Inode::Unit => {
                let resized = self.unit.resize(size, req.pid(), by_handle);
                resized.map_err(errno)
            }
            Inode::Control(_) if size == 0 => Ok(()),
            Inode::Control(_) | Inode::Root => Err(Errno::EPERM),
        }
    }

    /// The events that hold for a file now.
    pub(super) fn poll_events(&self, fh: FileHandle, notifier: Option<PollNotifier>) -> PollEvents {
        let always = PollEvents::POLLIN | PollEvents::POLLOUT;
        let Some(file) = self.handles.file(fh.0).filter(|f| f.node.node().polls) else {
            return always;
        };
        // Registered before it is looked at: a change in between is not missed.
        if let Some(notifier) = notifier {
            file.wait(notifier);
        }
        if file.has_changed(&self.tree) {
            always | PollEvents::POLLPRI | PollEvents::POLLERR
        } else {
            always
        }
    }
}
