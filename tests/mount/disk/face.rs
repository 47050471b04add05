//! The disk as a mounted file system.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow,
    WriteFlags,
};

use super::store::{Content, Node, Store, Times};
use super::{Kind, Shared};

/// Nothing is cached by the kernel.
const NEVER: Duration = Duration::ZERO;
const NO_GENERATION: Generation = Generation(0);

/// Who answers the kernel, one request after the other.
pub(super) struct Face(pub(super) Arc<Shared>);

impl Face {
    /// Counts a request, and lets it pass or not.
    fn with<T>(
        &self,
        request: &Request,
        kind: Kind,
        work: impl FnOnce(&mut Store) -> Option<T>,
    ) -> Result<T, Errno> {
        let mut state = self.0.lock();
        if let Some(errno) = self.0.strike(&mut state, kind, request.pid()) {
            return Err(Errno::from_i32(errno));
        }
        work(&mut state.store).ok_or(Errno::ENOENT)
    }
}

fn attr(store: &Store, inode: u64) -> Option<FileAttr> {
    let (kind, size, mode, times) = match store.node(inode)? {
        Node::File(Content {
            bytes, mode, times, ..
        }) => (FileType::RegularFile, bytes.len() as u64, *mode, *times),
        Node::Dir(_) => {
            let begin = SystemTime::UNIX_EPOCH;
            let times = Times {
                changed: begin,
                modified: begin,
            };
            (FileType::Directory, 0, 0o755, times)
        }
    };
    Some(FileAttr {
        ino: INodeNo(inode),
        size,
        blocks: size.div_ceil(512),
        atime: times.modified,
        mtime: times.modified,
        ctime: times.changed,
        crtime: times.changed,
        kind,
        perm: mode,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    })
}

impl Filesystem for Face {
    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = |store: &mut Store| {
            let inode = store.look_up(parent.0, name)?;
            attr(store, inode)
        };
        match self.with(req, Kind::Look, found) {
            Ok(attr) => reply.entry(&NEVER, &attr, NO_GENERATION),
            Err(errno) => reply.error(errno),
        }
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.with(req, Kind::Look, |store| attr(store, ino.0)) {
            Ok(attr) => reply.attr(&NEVER, &attr),
            Err(errno) => reply.error(errno),
        }
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = |store: &mut Store| {
            if let Some(file) = store.file(ino.0) {
                size.into_iter().for_each(|size| file.resize(size));
                let mode = mode.and_then(|mode| u16::try_from(mode & 0o7777).ok());
                file.mode = mode.unwrap_or(file.mode);
            }
            attr(store, ino.0)
        };
        match self.with(req, Kind::Space, set) {
            Ok(attr) => reply.attr(&NEVER, &attr),
            Err(errno) => reply.error(errno),
        }
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let make = |store: &mut Store| {
            let inode = store.make(parent.0, name, None);
            attr(store, inode)
        };
        match self.with(req, Kind::Name, make) {
            Ok(attr) => reply.entry(&NEVER, &attr, NO_GENERATION),
            Err(errno) => reply.error(errno),
        }
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let remove = |store: &mut Store| {
            store.remove(parent.0, name);
            Some(())
        };
        finish(self.with(req, Kind::Name, remove), reply);
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let remove = |store: &mut Store| {
            let inode = store.look_up(parent.0, name)?;
            let empty = store.names(inode)?.is_empty();
            empty.then(|| store.remove(parent.0, name))
        };
        finish(self.with(req, Kind::Name, remove), reply);
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (from, to) = ((parent.0, name), (newparent.0, newname));
        let rename = |store: &mut Store| store.rename(from, to).then_some(());
        finish(self.with(req, Kind::Name, rename), reply);
    }

    fn open(&self, req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.with(req, Kind::Open, |store| store.file(ino.0).map(drop)) {
            Ok(()) => reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO),
            Err(errno) => reply.error(errno),
        }
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let make = |store: &mut Store| {
            let mode = u16::try_from(mode & !umask & 0o7777).ok()?;
            let inode = store.make(parent.0, name, Some(mode));
            attr(store, inode)
        };
        match self.with(req, Kind::Name, make) {
            Ok(attr) => {
                let direct = FopenFlags::FOPEN_DIRECT_IO;
                reply.created(&NEVER, &attr, NO_GENERATION, FileHandle(0), direct);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let read = |store: &mut Store| {
            let file = store.file(ino.0)?;
            Some(file.read(offset, size as usize).to_vec())
        };
        match self.with(req, Kind::Read, read) {
            Ok(bytes) => reply.data(&bytes),
            Err(errno) => reply.error(errno),
        }
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let write = |store: &mut Store| {
            store.file(ino.0)?.write(offset, data);
            u32::try_from(data.len()).ok()
        };
        match self.with(req, Kind::Write, write) {
            Ok(written) => reply.written(written),
            Err(errno) => reply.error(errno),
        }
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let zeros = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE;
        let allocate = |store: &mut Store| {
            let file = store.file(ino.0)?;
            let end = offset + length;
            if mode & zeros != 0 {
                file.zero(offset, length);
            }
            if mode & libc::FALLOC_FL_KEEP_SIZE == 0 && end > file.bytes.len() as u64 {
                file.resize(end);
            }
            Some(())
        };
        finish(self.with(req, Kind::Space, allocate), reply);
    }

    fn fsync(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        let sync = |store: &mut Store| {
            store.file(ino.0)?.sync(datasync);
            Some(())
        };
        finish(self.with(req, Kind::Sync, sync), reply);
    }

    fn fsyncdir(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        let sync = |store: &mut Store| {
            store.sync_names(ino.0);
            Some(())
        };
        finish(self.with(req, Kind::Sync, sync), reply);
    }

    fn readdir(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let list = |store: &mut Store| {
            let names = store.names(ino.0)?.iter();
            let kind = |inode: &u64| match store.node(*inode) {
                Some(Node::Dir(_)) => FileType::Directory,
                _ => FileType::RegularFile,
            };
            let list = names.map(|(name, inode)| (name.clone(), *inode, kind(inode)));
            Some(list.collect::<Vec<_>>())
        };
        match self.with(req, Kind::Look, list) {
            Ok(list) => {
                for (next, (name, inode, kind)) in (1..).zip(list).skip(offset as usize) {
                    if reply.add(INodeNo(inode), next, kind, name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        const MANY: u64 = 1 << 30;
        reply.statfs(MANY, MANY, MANY, MANY, MANY, 4096, 255, 4096);
    }
}

fn finish(done: Result<(), Errno>, reply: ReplyEmpty) {
    match done {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}
