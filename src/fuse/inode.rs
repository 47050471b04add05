//! Inodes: the mount's root, the unit, and the control tree behind them.

use std::time::{Duration, SystemTime};

use fuser::{FileAttr, FileType, INodeNo};

use super::Rights;
use crate::control::{Attr, Kind, NodeRef};

/// The mount's root directory.
pub(super) const ROOT: u64 = 1;
/// The unit.
pub(super) const UNIT: u64 = 2;
/// `.shadow/`; the nodes of the control tree follow by their numbers.
const CONTROL: u64 = 3;
/// Name of the control tree in the root.
pub(super) const CONTROL_NAME: &str = ".shadow";

/// How long the kernel may believe what it was told of the root and the unit: nothing but requests
/// that pass through it changes them.
pub(super) const LONG: Duration = Duration::from_secs(3600);
/// How long it may believe what it was told of the control tree.
pub(super) const NOT_AT_ALL: Duration = Duration::ZERO;

/// What an inode number stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Inode {
    Root,
    Unit,
    Control(NodeRef),
}

impl Inode {
    /// What the number stands for; `None` for one that was never given out.
    pub(super) fn of(number: INodeNo) -> Option<Self> {
        match number.0 {
            ROOT => Some(Self::Root),
            UNIT => Some(Self::Unit),
            number => NodeRef::from_number(number.checked_sub(CONTROL)?).map(Self::Control),
        }
    }

    /// Its number.
    pub(super) fn number(self) -> u64 {
        match self {
            Self::Root => ROOT,
            Self::Unit => UNIT,
            Self::Control(node) => CONTROL + node.number(),
        }
    }
}

/// The FUSE word for a kind of node.
pub(super) fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Dir => FileType::Directory,
        Kind::File => FileType::RegularFile,
        Kind::Link => FileType::Symlink,
    }
}

/// Whom all files belong to, who has mounted the unit, and what others may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Owner {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) rights: Rights,
}

impl Owner {
    /// Attributes of the unit.
    pub(super) fn unit(self, size: u64, mtime: SystemTime) -> FileAttr {
        let attr = Attr {
            kind: Kind::File,
            mode: self.rights.unit_mode,
            mtime,
        };
        FileAttr {
            size,
            blocks: size.div_ceil(512),
            gid: self.rights.unit_gid.unwrap_or(self.gid),
            ..self.attr(UNIT, attr)
        }
    }

    /// Attributes of a node of the control tree.
    pub(super) fn control(self, number: u64, node: NodeRef, attr: Attr) -> FileAttr {
        if !node.node().is_writable() {
            return self.attr(number, attr);
        }
        let attr = Attr {
            mode: self.rights.control_mode,
            ..attr
        };
        FileAttr {
            gid: self.control_gid(),
            ..self.attr(number, attr)
        }
    }

    /// The group of the files that take commands.
    pub(super) fn control_gid(self) -> u32 {
        self.rights.control_gid.unwrap_or(self.gid)
    }

    /// Attributes of any other inode: size 0, whatever a read will give.
    pub(super) fn attr(self, number: u64, attr: Attr) -> FileAttr {
        FileAttr {
            ino: INodeNo(number),
            size: 0,
            blocks: 0,
            atime: attr.mtime,
            mtime: attr.mtime,
            ctime: attr.mtime,
            crtime: attr.mtime,
            kind: file_type(attr.kind),
            perm: attr.mode,
            nlink: if attr.kind == Kind::Dir { 2 } else { 1 },
            uid: self.uid,
            gid: self.gid,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_inodes_are_the_same_thing() {
        for number in [1, 2, 3, 4, 11] {
            let inode = Inode::of(INodeNo(number)).expect("given out");
            assert_eq!(inode.number(), number);
        }
        assert_eq!(Inode::of(INodeNo(3)), Some(Inode::Control(NodeRef::ROOT)));
        assert_eq!(Inode::of(INodeNo(0)), None);
        assert_eq!(Inode::of(INodeNo(3 + 255)), None);
    }
}
