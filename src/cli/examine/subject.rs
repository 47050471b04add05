//! What a path means to `examine`: the file of a block, and the image that goes with it.
//!
//! Files are opened for reading only, devices not at all: looking must leave no trace, not even a time
//! of access where that can be avoided, and must not rewind a tape or wait for a FIFO.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::cli::args::ExamineArgs;
use crate::cli::{output, place, system};
use crate::error::{Error, Result};
use crate::io::scb_file::Slots;
use crate::io::{Identity, sys};
use crate::set::Code;

/// Ending of a block's file beside an image.
const ENDING: &str = "scb";

/// The file of a block and where its image is, as far as the path tells.
#[derive(Debug)]
pub(super) struct Subject {
    /// The file of the block.
    pub(super) scb: PathBuf,
    /// The image, and how it was found; nothing when only the block can tell.
    pub(super) image: Option<(PathBuf, &'static str)>,
}

/// An image as it can be seen from outside.
#[derive(Debug, Default)]
pub(super) struct ImageFacts {
    /// Where it was looked for.
    pub(super) path: PathBuf,
    /// Who said so: the `argument`, the SCB file that lies `beside` it, or its own row in the `block`.
    pub(super) found: &'static str,
    /// `file`, `block-device`, `missing` or `other`.
    pub(super) kind: &'static str,
    /// Its bytes, where they can be told.
    pub(super) size: Option<u64>,
    /// Whether somebody holds a lock on it; that of a block device cannot be told without taking it.
    pub(super) locked: Option<bool>,
    /// Loop devices over it.
    pub(super) loops: Vec<PathBuf>,
    /// Why it cannot be looked at.
    pub(super) problem: Option<String>,
}

/// Finds the file of the block that a path means.
///
/// # Errors
/// `NoSuchFile` when there is none; `NotSupported` for what is neither file nor block device.
pub(super) fn find(args: &ExamineArgs) -> Result<Subject> {
    let path = absolute(&args.path)?;
    if let Some(scb) = &args.scb {
        return Ok(of_image(absolute(scb)?, path));
    }
    let meta = match fs::metadata(&path) {
        Ok(meta) => meta,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return lost(&path, cause),
        Err(cause) => return Err(cannot("be looked at", &path, cause)),
    };
    let kind = meta.file_type();
    if kind.is_block_device() {
        return configured(&path)?.ok_or_else(|| device_without_block(&path));
    }
    if !kind.is_file() {
        let what = kind_of(&meta);
        let says = format!("{} is {what}, no image and no SCB file", path.display());
        return Err(Error::new(Code::NotSupported, says)
            .with_hint("name an image or its SCB file; `shadowset list` shows the units"));
    }
    if is_block(&path)? {
        let image = beside(&path).filter(|image| image.exists());
        let image = image.map(|image| (image, "beside"));
        return Ok(Subject { scb: path, image });
    }
    let scb = default_scb(&path);
    if scb.exists() {
        return Ok(of_image(scb, path));
    }
    // A configuration that names the same file again finds no more.
    let elsewhere = configured(&path)?.filter(|subject| subject.scb != scb);
    elsewhere.ok_or_else(|| without_block(&path, &scb))
}

/// Opens the file of a block.
///
/// # Errors
/// `NoSuchFile`; `NotSupported` when it is no regular file; the system's error.
pub(super) fn open(path: &Path) -> Result<File> {
    let failed = |cause| cannot("be opened", path, cause);
    let meta = fs::metadata(path).map_err(failed)?;
    if !meta.is_file() {
        let says = format!("{} is {}, no SCB file", path.display(), kind_of(&meta));
        return Err(Error::new(Code::NotSupported, says).with_hint("name a regular file"));
    }
    quietly(path).map_err(failed)
}

/// What the first bytes of a file are, in words.
pub(super) fn begins(bytes: &[u8]) -> String {
    let head = &bytes[..bytes.len().min(16)];
    if head.is_empty() {
        return "it is empty".to_owned();
    }
    let hex: Vec<String> = head.iter().map(|b| format!("{b:02x}")).collect();
    let hex = hex.join(" ");
    if bytes.iter().all(|b| *b == 0) {
        return format!("it begins with zeros: {hex}");
    }
    format!("it begins with {hex}, \"{}\"", head.escape_ascii())
}

/// Looks at an image from outside.
pub(super) fn look(path: &Path, found: &'static str) -> ImageFacts {
    let mut facts = ImageFacts {
        path: path.to_owned(),
        found,
        kind: "missing",
        ..ImageFacts::default()
    };
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(cause) => {
            let missing = cause.kind() == io::ErrorKind::NotFound;
            facts.problem = Some(cause.to_string()).filter(|_| !missing);
            return facts;
        }
    };
    if meta.file_type().is_block_device() {
        facts.kind = "block-device";
        facts.size = device_size(meta.rdev());
    } else if meta.is_file() {
        facts.kind = "file";
        facts.size = Some(meta.len());
        let whole = fs::canonicalize(path);
        facts.loops = whole.map_or_else(|_| Vec::new(), |path| system::loops_by_name(&path));
        match quietly(path).and_then(|file| sys::is_locked(file.as_fd())) {
            Ok(locked) => facts.locked = Some(locked),
            Err(cause) => facts.problem = Some(cause.to_string()),
        }
    } else {
        facts.kind = "other";
        facts.problem = Some(format!("it is {}", kind_of(&meta)));
    }
    facts
}

/// Opens a regular file for reading without a trace: its time of access is left alone where the system
/// lets us.
fn quietly(path: &Path) -> io::Result<File> {
    let open = |flags| {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(flags).open(path)
    };
    match open(libc::O_NOATIME | libc::O_NONBLOCK) {
        // Only the owner may.
        Err(cause) if cause.raw_os_error() == Some(libc::EPERM) => open(libc::O_NONBLOCK),
        opened => opened,
    }
}

/// Bytes of a block device, without opening it.
fn device_size(rdev: u64) -> Option<u64> {
    let (major, minor) = (libc::major(rdev), libc::minor(rdev));
    let sectors = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/size")).ok()?;
    sectors.trim().parse::<u64>().ok()?.checked_mul(512)
}

/// Whether a regular file is that of a block: by its content, or by its name when that is damaged.
fn is_block(path: &Path) -> Result<bool> {
    if path.extension().is_some_and(|e| e == ENDING) {
        return Ok(true);
    }
    let failed = |cause| cannot("be read", path, cause);
    let file = quietly(path).map_err(failed)?;
    Ok(Slots::read(&file).map_err(failed)?.is_ours())
}

/// An image that is gone may have left its block.
fn lost(path: &Path, cause: io::Error) -> Result<Subject> {
    let scb = default_scb(path);
    if scb.is_file() {
        return Ok(of_image(scb, path.to_owned()));
    }
    Err(cannot("be looked at", path, cause))
}

/// The block that a configuration names for an image.
fn configured(path: &Path) -> Result<Option<Subject>> {
    let failed = |cause| cannot("be looked at", path, cause);
    let image = Identity::of(path).map_err(failed)?;
    for (_, config) in place::configured() {
        let config = match config {
            Ok(config) => config,
            // It may be the one that names the image: say that it was not asked.
            Err(error) => {
                output::warn(&error.to_string());
                continue;
            }
        };
        let is_meant = |path: &Path| Identity::of(path).is_ok_and(|i| i.is_some() && i == image);
        let mut members = config.setup.members.into_iter();
        if let Some(member) = members.find(|m| is_meant(&m.path)) {
            return Ok(Some(of_image(member.scb, path.to_owned())));
        }
    }
    Ok(None)
}

fn of_image(scb: PathBuf, image: PathBuf) -> Subject {
    Subject {
        scb,
        image: Some((image, "argument")),
    }
}

fn default_scb(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{ENDING}"));
    PathBuf::from(name)
}

/// The image that a block's file lies beside.
fn beside(scb: &Path) -> Option<PathBuf> {
    scb.extension()
        .is_some_and(|e| e == ENDING)
        .then(|| scb.with_extension(""))
}

fn without_block(path: &Path, scb: &Path) -> Error {
    let mut head = vec![0; 16];
    let read = quietly(path).and_then(|file| {
        let have = io::Read::read(&mut &file, &mut head)?;
        head.truncate(have);
        Ok(())
    });
    let content = read.map_or_else(|cause| cause.to_string(), |()| begins(&head));
    let (path, scb) = (path.display(), scb.display());
    let says = format!("{path} is no SCB file, {content}; and {scb}, its SCB, is not there");
    Error::new(Code::NoSuchFile, says)
        .with_hint("the image is no member, or its SCB lies elsewhere: --scb FILE names it")
}

fn device_without_block(path: &Path) -> Error {
    let (path, dir) = (path.display(), place::config_dir());
    let says = format!("no unit in {} has {path} as a member", dir.display());
    Error::new(Code::NoSuchFile, says).with_hint(
        "the SCB of a block device lies in the state directory of its unit: --scb FILE names it",
    )
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|cause| cannot("be used", path, cause))
}

fn cannot(what: &str, path: &Path, cause: io::Error) -> Error {
    Error::io(format!("{} cannot {what}", path.display()), cause)
}

fn kind_of(meta: &Metadata) -> &'static str {
    let kind = meta.file_type();
    match () {
        () if kind.is_dir() => "a directory",
        () if kind.is_block_device() => "a block device",
        () if kind.is_char_device() => "a character device",
        () if kind.is_fifo() => "a FIFO",
        () if kind.is_socket() => "a socket",
        () => "no regular file",
    }
}
