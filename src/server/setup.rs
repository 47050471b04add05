//! What a unit is made of, as checked values: the border between configuration and server.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use super::params::Values;
use crate::error::{Error, Result};
pub use crate::io::IoMode;
use crate::io::image::lies_over;
use crate::io::node_rate::NodeRate;
use crate::set::{Code, Policy};

/// How long bitmaps and the write-intent bitmap live.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Durability {
    /// They survive a loss of power.
    #[default]
    Power,
    /// They survive the end of the process, not that of the machine.
    Crash,
    /// With the process, as OpenVMS has it.
    Memory,
}

impl Durability {
    /// Every durability, the strongest first.
    pub const ALL: [Self; 3] = [Self::Power, Self::Crash, Self::Memory];

    /// The word of the configuration and of the control tree.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Power => "power",
            Self::Crash => "crash",
            Self::Memory => "memory",
        }
    }

    /// The durability of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|d| d.name() == name)
    }
}

/// What one mount is told beside the configuration.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Mounting {
    /// The unit takes no writes.
    pub read_only: bool,
    /// What is wanted of bitmaps for members that are absent.
    pub policy: Policy,
    /// Refuse when a member of the set is not there.
    pub require_members: bool,
    /// Bring in members that the control blocks name and the configuration does not.
    pub include: bool,
    /// Refuse when a member would have to be copied.
    pub nocopy: bool,
    /// The parameters that the unit begins with.
    pub params: Values,
    /// What the copies of all units of the node may do together; none for no limit.
    pub node_rate: Option<NodeRate>,
}

/// What is done for the image of a member that is away, beside its stamp.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Protect {
    /// Nothing: its disk can be unmounted and carried away.
    #[default]
    None,
    /// A lease: who opens it for writing is noticed at once. Its file system stays busy.
    Lease,
    /// The immutable flag: nobody can write it, where its file system has the flag.
    Immutable,
}

impl Protect {
    /// Every protection.
    pub const ALL: [Self; 3] = [Self::None, Self::Lease, Self::Immutable];

    /// The word of the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Lease => "lease",
            Self::Immutable => "immutable",
        }
    }

    /// The protection of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.name() == name)
    }
}

/// One member as the configuration names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemberSetup {
    /// Name in the set: 1 to 32 of `a-z A-Z 0-9 . _ -`, first a letter or digit.
    pub name: String,
    /// File or block device.
    pub path: PathBuf,
    /// Where its storage control block is kept.
    pub scb: PathBuf,
    /// Cost of a read, lower is preferred.
    pub read_cost: u32,
    /// Site of the member.
    pub site: u32,
    /// Seconds that it may leave requests unanswered; 0 for `member_timeout`.
    pub timeout: u32,
    /// How the image is read and written.
    pub io: IoMode,
    /// What is done for its image while the member is away.
    pub protect: Protect,
}

/// A unit as the configuration describes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Setup {
    /// Name of the unit: the file name under the mount point.
    pub unit: String,
    /// Label of the set, at most 64 bytes; `None` when none is given: a new set is then called as the
    /// unit, and that of an existing one is not checked.
    pub label: Option<String>,
    /// Blocks per region, used when the set is created.
    pub region_blocks: u32,
    /// How long bitmaps live.
    pub durability: Durability,
    /// Directory for what belongs to the unit and to no member.
    pub state_dir: PathBuf,
    /// One to six members in the order of the configuration.
    pub members: Vec<MemberSetup>,
}

impl Setup {
    /// The label of a set that is made of this.
    #[must_use]
    pub fn label_of_new(&self) -> &str {
        self.label.as_deref().unwrap_or(&self.unit)
    }

    /// What the server of the unit has to reach, with what it is; `others` beside what the setup names.
    fn places<'a>(
        &'a self,
        others: &'a [(&str, PathBuf)],
    ) -> impl Iterator<Item = (String, &'a Path)> {
        let of_members = self.members.iter().flat_map(|m| {
            let scb = format!("the storage control block of {}", m.name);
            [
                (format!("the image of {}", m.name), m.path.as_path()),
                (scb, m.scb.as_path()),
            ]
        });
        let state = ("the state directory".to_owned(), self.state_dir.as_path());
        let others = others
            .iter()
            .map(|(what, path)| ((*what).to_owned(), path.as_path()));
        of_members.chain([state]).chain(others)
    }

    /// Looks for files that the mount on `dir`, a canonical path, would hide: later requests for them would
    /// come to the unit itself (I12).
    ///
    /// # Errors
    /// [`Code::NotSupported`] for an image, a control block, the state directory or one of `others` below `dir`.
    pub fn check_outside(&self, dir: &Path, others: &[(&str, PathBuf)]) -> Result<()> {
        for (what, path) in self.places(others) {
            if resolved(path).starts_with(dir) {
                let (path, dir) = (path.display(), dir.display());
                let text = format!("{what} lies in the mount point {dir} itself: {path}");
                let hint = "mount on an empty directory that holds nothing of the unit";
                return Err(Error::new(Code::NotSupported, text).with_hint(hint));
            }
        }
        Ok(())
    }

    /// Looks for files on a loop device over `file`, the unit of a server that has died. What can still be read of
    /// them is what the kernel remembers, and nothing of it can be written.
    ///
    /// # Errors
    /// [`Code::NotSupported`] as for [`Self::check_outside`].
    pub fn check_apart(&self, file: &Path, others: &[(&str, PathBuf)]) -> Result<()> {
        for (what, path) in self.places(others) {
            if lies_over(path, file) {
                let path = path.display();
                let text = format!("{what} lies on a loop device over the unit itself: {path}");
                let hint =
                    "the server needs it while it serves the unit: keep it on another file system";
                return Err(Error::new(Code::NotSupported, text).with_hint(hint));
            }
        }
        Ok(())
    }

    /// Compares the label, where one is given, with that of the set that was found.
    ///
    /// # Errors
    /// [`Code::WrongLabel`]: the images are those of another set than the one that was meant.
    pub fn check_label(&self, found: &str) -> Result<()> {
        let Some(label) = self.label.as_deref().filter(|label| *label != found) else {
            return Ok(());
        };
        let text = format!("the set has the label \"{found}\", the configuration \"{label}\"");
        let hint = "check the members' paths; if they are right, change or leave out the label";
        Err(Error::new(Code::WrongLabel, text).with_hint(hint))
    }
}

/// The path without links, as far as it exists.
fn resolved(path: &Path) -> PathBuf {
    let real = path.ancestors().find_map(|above| {
        let real = std::fs::canonicalize(above).ok()?;
        Some(real.join(path.strip_prefix(above).ok()?))
    });
    real.unwrap_or_else(|| path.to_owned())
}

/// The usual place of a member's storage control block: beside a file, in the state directory for a
/// device, since what lies in `/dev` is gone at the next start of the machine.
#[must_use]
pub fn default_scb(name: &str, path: &Path, state_dir: &Path) -> PathBuf {
    let meta = std::fs::metadata(path);
    let is_device = meta.is_ok_and(|m| m.file_type().is_block_device());
    usual_scb(name, (path, is_device), state_dir)
}

/// As [`default_scb`], where it is known whether the path leads to a device.
pub(super) fn usual_scb(name: &str, (path, is_device): (&Path, bool), state_dir: &Path) -> PathBuf {
    if is_device || path.starts_with("/dev") {
        return state_dir.join(format!("{name}.scb"));
    }
    let mut name = path.as_os_str().to_owned();
    name.push(".scb");
    PathBuf::from(name)
}
