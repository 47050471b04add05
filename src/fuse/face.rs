//! What the mount of a unit is made of, and what the requests of the kernel mean to it.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{
    Errno, FileHandle, FileType, INodeNo, OpenAccMode, OpenFlags, PollEvents, PollNotifier,
    ReplyWrite, Request,
};

use super::handles::{Bell, Handles, Name, Open, OpenFile};
use super::inode::{self, CONTROL_NAME, Inode, LONG, NOT_AT_ALL, Owner};
use super::unit::Unit;
use crate::control::{Attr, Kind, NodeRef, StoreOutcome, Stored, Tree};

/// The mount of one unit.
#[derive(Debug)]
pub(super) struct Face {
    pub(super) unit: Unit,
    pub(super) name: String,
    pub(super) tree: Arc<Tree>,
    pub(super) handles: Arc<Handles>,
    pub(super) bell: Bell,
    pub(super) owner: Owner,
    pub(super) mounted: SystemTime,
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
            Inode::Control(node) => Some(self.owner.attr(inode.number(), self.tree.attr(node)?)),
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
        req.uid() == 0 || req.uid() == self.owner.uid
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
        Ok(self.handles.insert(Open::File(Arc::new(file))))
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

    /// Whether an inode may be given this size. Nothing is ever resized, but a size that says
    /// nothing new is no change, and shells truncate control files before they write.
    pub(super) fn may_resize(
        &self,
        req: &Request,
        inode: Inode,
        size: u64,
        by_handle: bool,
    ) -> bool {
        match inode {
            Inode::Unit => self.unit.may_resize(size, req.pid(), by_handle),
            Inode::Control(_) => size == 0,
            Inode::Root => false,
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
