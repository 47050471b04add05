//! The requests of the kernel, each handed to the unit or to the control tree.
//!
//! Glue only: every handler answers at once, but for commands, which are answered from the control
//! thread, and for what waits for members. One worker never does; see [`super::overflow`]. What is not overridden here must not exist: no inode is ever created or renamed.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::time::SystemTime;

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, PollEvents,
    PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::face::{Face, errno, written};
use super::handles::Open;
use super::inode::{Inode, UNIT};
use super::unit::REQUEST_BYTES;
use crate::control::{Kind, StoreOutcome, Stored};
use crate::server;

/// Requests that may be in flight without anybody waiting for each.
const MAX_BACKGROUND: u16 = 256;
/// From here on the kernel takes the unit for congested.
const CONGESTION: u16 = 192;
/// Bytes that the kernel may read ahead: only mappings read ahead, the rest is direct.
const READAHEAD: u32 = 128 << 10;
/// Block size that programs see, and the grain of discards on a loop device.
const BLOCK: u32 = 4096;

/// The same for every open: one cached open would make all writes wait for each other.
const UNIT_FLAGS: FopenFlags =
    FopenFlags::FOPEN_DIRECT_IO.union(FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES);

fn empty(reply: ReplyEmpty, result: Result<(), server::Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(error)),
    }
}

impl Filesystem for Face {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = [
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
            InitFlags::FUSE_PARALLEL_DIROPS,
        ];
        for capability in wanted {
            if config.add_capabilities(capability).is_err() {
                tracing::info!(?capability, "the kernel does not have it");
            }
        }
        let refused = |_| io::Error::from_raw_os_error(libc::EINVAL);
        config.set_max_write(REQUEST_BYTES).map_err(refused)?;
        // The kernel may allow less; then it stays as it is.
        let _ = config.set_max_readahead(READAHEAD);
        let refused = |_| io::Error::from_raw_os_error(libc::EINVAL);
        config.set_max_background(MAX_BACKGROUND).map_err(refused)?;
        config
            .set_congestion_threshold(CONGESTION)
            .map_err(refused)?;
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.attend();
        let found = self.find(parent, name);
        match found.and_then(|inode| Some((inode, self.attr(inode)?))) {
            Some((inode, attr)) => reply.entry(&Self::ttl(inode), &attr, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.attend();
        let inode = Inode::of(ino);
        match inode.and_then(|inode| Some((inode, self.attr(inode)?))) {
            Some((inode, attr)) => reply.attr(&Self::ttl(inode), &attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    /// Times are taken and forgotten.
    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.attend();
        let found = Inode::of(ino).and_then(|inode| Some((inode, self.attr(inode)?)));
        let Some((inode, attr)) = found else {
            return reply.error(Errno::ENOENT);
        };
        let rights = mode.is_some() || uid.is_some() || gid.is_some();
        let resized = size.map_or(Ok(()), |size| self.resize(req, inode, size, fh.is_some()));
        match resized {
            Ok(()) if rights => reply.error(Errno::EPERM),
            Ok(()) => reply.attr(&Self::ttl(inode), &attr),
            Err(error) => reply.error(error),
        }
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        self.attend();
        let target = match Inode::of(ino) {
            Some(Inode::Control(node)) if node.node().kind == Kind::Link => self.tree.show(node),
            _ => return reply.error(Errno::EINVAL),
        };
        match target {
            Some(target) => reply.data(&target),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.attend();
        match Inode::of(ino) {
            Some(Inode::Unit) => {
                let writes = flags.acc_mode() != OpenAccMode::O_RDONLY;
                match self.unit.open(req.pid(), writes) {
                    Some(number) => reply.opened(FileHandle(number), UNIT_FLAGS),
                    // The set is being dissolved.
                    None => reply.error(Errno::ENODEV),
                }
            }
            Some(Inode::Control(node)) => match self.open_node(req, node, flags) {
                Ok(number) => reply.opened(FileHandle(number), FopenFlags::FOPEN_DIRECT_IO),
                Err(error) => reply.error(error),
            },
            Some(Inode::Root) => reply.error(Errno::EISDIR),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.attend();
        if ino.0 == UNIT {
            self.unit.used(fh.0);
            return self.in_time(move |unit, busy| {
                unit.read(offset, size, |read| {
                    drop(busy);
                    match read {
                        Ok(bytes) => reply.data(bytes),
                        Err(error) => reply.error(errno(error)),
                    }
                });
            });
        }
        match self.handles.file(fh.0) {
            Some(file) => reply.data(&file.read(&self.tree, offset, size as usize)),
            None => reply.error(Errno::EBADF),
        }
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.attend();
        if ino.0 == UNIT {
            self.unit.used(fh.0);
            let through = flags.0 & libc::O_DSYNC != 0;
            return self.write_unit(offset, data, through.then_some(fh.0), reply);
        }
        match self.handles.file(fh.0) {
            Some(file) => self.store(req, file, data, reply),
            None => reply.error(Errno::EBADF),
        }
    }

    /// A close is no barrier, and a shell flushes before it writes.
    fn flush(&self, _: &Request, ino: INodeNo, fh: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        self.attend();
        if ino.0 == UNIT {
            self.unit.used(fh.0);
        }
        reply.ok();
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.attend();
        match ino.0 {
            UNIT => self.unit.close(fh.0),
            _ => self.handles.remove(fh.0),
        }
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.attend();
        if ino.0 == UNIT {
            return self.in_time(move |unit, busy| {
                unit.flush(fh.0, move |flushed| {
                    drop(busy);
                    empty(reply, flushed);
                });
            });
        }
        reply.ok();
    }

    fn fallocate(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.attend();
        if ino.0 == UNIT {
            return self.change_elsewhere(move |unit, busy| {
                unit.fallocate((offset, length, mode), |result| {
                    drop(busy);
                    empty(reply, result);
                });
            });
        }
        reply.error(Errno::EOPNOTSUPP);
    }

    fn lseek(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.attend();
        if ino.0 != UNIT {
            return reply.error(Errno::ENXIO);
        }
        self.in_time(move |unit, busy| {
            unit.seek(offset, whence, |sought| {
                drop(busy);
                match sought {
                    Ok(found) => reply.offset(found),
                    Err(error) => reply.error(errno(error)),
                }
            });
        });
    }

    fn copy_file_range(
        &self,
        _req: &Request,
        ino_in: INodeNo,
        _fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.attend();
        if (ino_in.0, ino_out.0) != (UNIT, UNIT) {
            return reply.error(Errno::EXDEV);
        }
        self.change_elsewhere(move |unit, busy| {
            unit.copy((offset_in, offset_out, len), |result| {
                drop(busy);
                written(reply, result);
            });
        });
    }

    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        ph: PollNotifier,
        _events: PollEvents,
        flags: PollFlags,
        reply: ReplyPoll,
    ) {
        self.attend();
        let waits = flags.contains(PollFlags::FUSE_POLL_SCHEDULE_NOTIFY);
        reply.poll(self.poll_events(fh, waits.then_some(ph)));
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.attend();
        match Inode::of(ino).and_then(|inode| self.names(inode)) {
            Some(names) => {
                let number = self.handles.insert(Open::Dir(names.into()));
                reply.opened(FileHandle(number), FopenFlags::empty());
            }
            None => reply.error(Errno::ENOENT),
        }
    }

    fn readdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.attend();
        let Some(names) = self.handles.dir(fh.0) else {
            return reply.error(Errno::EBADF);
        };
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        for (name, next) in names.iter().zip(1..).skip(skip) {
            if reply.add(INodeNo(name.ino), next, name.kind, &name.name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.attend();
        self.handles.remove(fh.0);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.attend();
        let blocks = self.unit.size() / u64::from(BLOCK);
        reply.statfs(blocks, 0, 0, 0, 0, BLOCK, 255, BLOCK);
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.attend();
        let (Some(Inode::Control(dir)), Some(name), true) =
            (Inode::of(parent), name.to_str(), self.may_write(req))
        else {
            return reply.error(Errno::EPERM);
        };
        let done: Stored = Box::new(move |outcome: StoreOutcome| match outcome.errno {
            0 => reply.ok(),
            number => reply.error(Errno::from_i32(number)),
        });
        self.tree.rmdir(dir, name, done);
    }

    fn mknod(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EPERM);
    }

    fn mkdir(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EPERM);
    }

    fn create(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        reply.error(Errno::EPERM);
    }

    fn unlink(&self, _req: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn rename(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _newparent: INodeNo,
        _newname: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EPERM);
    }

    /// No file here is a device or a terminal, though programs ask.
    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    // ENOSYS is right for extended attributes: the kernel does not ask again.

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _req: &Request, _ino: INodeNo, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn setxattr(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _name: &OsStr,
        _value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn removexattr(&self, _req: &Request, _ino: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }
}
