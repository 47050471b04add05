//! The story: a set is created, used, detached from, backed up and attached to, and its members
//! compared. Each step is a method that does it and tells what it measured.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Demo;
use super::pieces::{self, PIECE, Place, Span};
use super::shell::{find, typed};
use super::site::{CONFIG, FILES, LOOK, MEMBERS, MOUNT, UNIT, Undo, image_name};
use super::tell::{rate, time};
use super::writer::Writer;
use crate::cli::size::human;
use crate::error::{Error, Result};
use crate::io::{loopdev, mountpoint, sys};
use crate::set::Code;

/// Type of the file system on the unit.
const FILESYSTEM: &str = "ext4";
/// Pieces that the writer has written before the member leaves, and writes while it is away.
const WARM: u64 = 32;

/// What the application writes to.
struct Ground {
    /// The loop device over the unit, where there are loop devices.
    device: Option<PathBuf>,
    place: Place,
}

impl Ground {
    fn has_files(&self) -> bool {
        matches!(self.place, Place::Files(_))
    }
}

impl Demo {
    /// Plays the story; its numbers.
    pub(super) fn story(&mut self) -> Result<Value> {
        self.create()?;
        self.tell.step("Mount it")?;
        self.mount()?;
        self.tell
            .fact(&format!("the unit is the file {MOUNT}/{UNIT}"))?;
        let ground = self.ground()?;
        self.write_still(&ground)?;
        let writer = Writer::start(ground.place.clone(), self.layout)?;
        let (span, frozen) = self.detach(&writer, &ground)?;
        self.examine(&writer, &ground, span)?;
        let minicopy = self.attach(&writer)?;
        let compared = self.finish(writer, &ground)?;
        Ok(
            json!({ "files": ground.has_files(), "frozen_seconds": frozen, "minicopy": minicopy,
            "compared_bytes": compared, "equal": true }),
        )
    }

    /// Runs a verb and shows it as it is typed.
    pub(super) fn shown(&self, words: &[&OsStr]) -> Result<Value> {
        self.tell.command(&typed("shadowset", words))?;
        self.shell.verb(words)
    }

    fn create(&mut self) -> Result<()> {
        self.tell.step("Create a shadow set")?;
        let size = size_word(self.size);
        let mut words: Vec<OsString> = vec!["create".into(), CONFIG.into()];

        words.extend(["--size", &size, "--state-dir", "state"].map(OsString::from));
        for member in MEMBERS {
            words.push("--member".into());
            words.push(format!("{member}={}", image_name(member)).into());
        }
        let words: Vec<&OsStr> = words.iter().map(|word| word.as_os_str()).collect();
        let begun = Instant::now();
        self.shown(&words)?;
        let took = time(begun.elapsed().as_secs_f64());
        self.tell.fact(&format!(
            "three sparse images of {}; nothing to copy, {took}",
            human(self.size)
        ))
    }

    /// Mounts the unit.
    pub(super) fn mount(&mut self) -> Result<()> {
        self.site.undo.push(Undo::Unit);
        self.shown(&["mount", CONFIG, MOUNT, "--log", "log"].map(OsStr::new))
            .map(drop)
    }

    /// A loop device and a file system on it, as far as this machine has them.
    fn ground(&mut self) -> Result<Ground> {
        self.tell.step("Make it a block device")?;
        let answer = match self.shown(&["loop".as_ref(), "attach".as_ref(), UNIT.as_ref()]) {
            Err(error) if error.code() == Code::NotSupported => {
                self.tell
                    .fact("no loop devices here: the unit itself is written")?;
                let place = Place::Disk(self.site.unit());
                return Ok(Ground {
                    device: None,
                    place,
                });
            }
            other => other?,
        };
        let device = answer["device"].as_str().map(PathBuf::from);
        let device = device.ok_or_else(|| Error::new(Code::Io, "demo: loop names no device"))?;
        self.site.undo.push(Undo::Loop(device.clone()));
        let how = if answer["direct_io"] == true {
            "direct I/O"
        } else {
            "buffered"
        };
        self.tell.fact(&format!("{}, {how}", device.display()))?;
        let place = match self.file_system(&device)? {
            true => Place::Files(self.site.files()),
            false => Place::Disk(device.clone()),
        };
        Ok(Ground {
            device: Some(device),
            place,
        })
    }

    /// Makes and mounts a file system; false where the tools or the kernel lack it.
    fn file_system(&mut self, device: &Path) -> Result<bool> {
        self.tell.step("Put a file system on it")?;
        let (Some(mkfs), Some(_)) = (find("mkfs.ext4"), find("e2fsck")) else {
            self.tell
                .fact("no ext4 tools here: pieces of the disk are written instead of files")?;
            return Ok(false);
        };
        let words = ["-q".as_ref(), "-F".as_ref(), device.as_os_str()];
        self.tell.command(&typed("mkfs.ext4", &words))?;
        let begun = Instant::now();
        self.shell.tool(&mkfs, &words)?;
        let took = time(begun.elapsed().as_secs_f64());
        let dir = self.site.files();
        let words = [device.as_os_str(), FILES.as_ref()];
        self.tell.command(&typed("mount", &words))?;
        // Tables that the kernel initialises later would be writes of nobody.
        match mountpoint::mount_disk(device, &dir, FILESYSTEM, "noinit_itable", false) {
            Ok(()) => {}
            Err(error) if error.code() == Code::NotSupported => {
                self.tell
                    .fact("no ext4 in this kernel: pieces of the disk are written instead")?;
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
        self.site.undo.push(Undo::Mount(dir));
        self.tell.fact(&format!("made in {took}, mounted"))?;
        Ok(true)
    }

    fn write_still(&mut self, ground: &Ground) -> Result<()> {
        self.tell.step("Write to it")?;
        let mut buf = vec![0; PIECE];
        let begun = Instant::now();
        for slot in 0..self.layout.still {
            self.shell.check()?;
            pieces::make(slot, 0, &mut buf);
            let written = ground.place.write(slot, &buf);
            written.map_err(|e| Error::io("demo: cannot write to the unit", e))?;
        }
        let seconds = begun.elapsed().as_secs_f64();
        let bytes = self.layout.still * PIECE as u64;
        self.tell.fact(&format!(
            "{} {} of {}, each flushed, at {}",
            self.layout.still,
            ground.place.noun(),
            human(PIECE as u64),
            rate(bytes, seconds)
        ))?;
        self.tell
            .fact("an application starts to write more of them, and goes on until it is ended")
    }

    /// Detaches m3 while the file system stands still: the writer's pieces at the cut, the time.
    fn detach(&mut self, writer: &Writer, ground: &Ground) -> Result<(Span, Option<f64>)> {
        self.tell.step("Detach m3, with a write bitmap")?;
        writer.reach(WARM, &self.shell)?;
        let files = self.site.files();
        let frozen = match ground.has_files() {
            true => {
                self.tell
                    .command(&typed("fsfreeze", &["-f", FILES].map(OsStr::new)))?;
                Some(Frozen::of(&files)?)
            }
            false => None,
        };
        let before = writer.written();
        let begun = Instant::now();
        let words = ["detach", UNIT, "m3", "--policy", "minicopy"].map(OsStr::new);
        self.shown(&words)?;
        let took = begun.elapsed().as_secs_f64();
        let after = writer.written();
        let stood = frozen.map(Frozen::thaw).transpose()?;
        if let Some(stood) = stood {
            self.tell
                .command(&typed("fsfreeze", &["-u", FILES].map(OsStr::new)))?;
            let (all, took) = (time(stood.as_secs_f64()), time(took));
            self.tell.fact(&format!(
                "the file system stood still for {all}, {took} of them for the command"
            ))?;
        } else {
            let took = time(took);
            self.tell.fact(&format!(
                "detached in {took}, without a pause for the writer"
            ))?;
        }
        self.tell.fact(&format!(
            "{before} pieces of the application were acknowledged before it"
        ))?;
        Ok((Span { before, after }, stood.map(|d| d.as_secs_f64())))
    }

    /// Examines the detached image while the writer goes on.
    fn examine(&mut self, writer: &Writer, ground: &Ground, span: Span) -> Result<()> {
        self.tell
            .step("Read the detached image; the application goes on")?;
        let image = self.site.image("m3");
        let stamp = stamp(&image)?;
        let before = writer.written();
        let begun = Instant::now();
        if let Some(e2fsck) = find("e2fsck").filter(|_| ground.has_files()) {
            let name = image_name("m3");
            let words = ["-fn", &name].map(OsStr::new);
            self.tell.command(&typed("e2fsck", &words))?;
            let says = self.shell.tool(&e2fsck, &words)?;
            let last = says.trim().lines().last().unwrap_or_default();
            self.tell.fact(&format!("clean: {last}"))?;
        }
        let count = self.look("m3", ground, span)?;
        writer.reach(before + WARM, &self.shell)?;
        let written = writer.written() - before;
        let seconds = begun.elapsed().as_secs_f64();
        self.tell.fact(&format!(
            "{count} {} read back, every byte as it was written before the detach",
            ground.place.noun()
        ))?;
        self.tell.fact(&format!(
            "meanwhile the application has written {written} more, {}",
            rate(written * PIECE as u64, seconds)
        ))?;
        if stamp != self::stamp(&image)? {
            let says = format!("demo: {} has changed while detached", image.display());
            return Err(Error::new(Code::ImageChanged, says));
        }
        self.tell.fact("the image has not changed")
    }

    /// Reads all pieces from one member's image, without writing to it; how many there are.
    fn look(&mut self, member: &str, ground: &Ground, span: Span) -> Result<u64> {
        let image = self.site.image(member);
        if !ground.has_files() {
            return Place::Disk(image).check(self.layout, span);
        }
        let dir = self.site.look();
        let name = image_name(member);
        let words = ["-o", "ro,noload,loop", &name, LOOK].map(OsStr::new);
        self.tell.command(&typed("mount", &words))?;
        let device = loopdev::attach_read_only(&image)?;
        let bound = Undo::Loop(device.clone());
        self.site.undo.push(bound.clone());
        mountpoint::mount_disk(&device, &dir, FILESYSTEM, "noload", true)?;
        let mounted = Undo::Mount(dir.clone());
        self.site.undo.push(mounted.clone());
        let count = Place::Files(dir).check(self.layout, span)?;
        self.site.undo(&mounted, &self.shell)?;
        self.site.undo(&bound, &self.shell)?;
        Ok(count)
    }

    /// Attaches m3 under the load of the writer; the numbers of the minicopy.
    fn attach(&mut self, writer: &Writer) -> Result<Value> {
        self.tell
            .step("Attach m3 again, by minicopy, under that load")?;
        let bitmap = self.shown(&["bitmap", "show", UNIT, "m3"].map(OsStr::new))?;
        let number = |value: &Value, key: &str| value[key].as_u64();
        let (set, all) = (number(&bitmap, "set_bits"), number(&bitmap, "bits"));
        if let (Some(set), Some(all)) = (set, all) {
            self.tell
                .fact(&format!("{set} of {all} regions have been written since"))?;
        }
        let before = writer.written();
        let begun = Instant::now();
        let words = ["attach", UNIT, "m3", "--policy", "minicopy", "--wait"].map(OsStr::new);
        let answer = self.shown(&words)?;
        let seconds = begun.elapsed().as_secs_f64();
        let written = writer.written() - before;
        let kind = answer["operation"]["kind"].as_str().unwrap_or("no copy");
        let Some(bytes) =
            number(&answer["operation"], "copied_bytes").filter(|_| kind == "minicopy")
        else {
            let says = format!("demo: m3 came back by {kind}, not by a minicopy");
            return Err(
                Error::new(Code::Io, says).with_hint("this must not happen: please report it")
            );
        };
        self.tell.fact(&format!(
            "minicopy: {} of {} copied in {}",
            human(bytes),
            human(self.size),
            time(seconds)
        ))?;
        let load = rate(written * PIECE as u64, seconds);
        self.tell.fact(&format!(
            "meanwhile the application has written {written} more, {load}"
        ))?;
        Ok(json!({ "bytes": bytes, "seconds": seconds, "regions": set }))
    }

    /// Ends the writer and takes everything down in the right order; the members must be equal.
    fn finish(&mut self, writer: Writer, ground: &Ground) -> Result<u64> {
        self.tell
            .step("End the application, unmount, stop the unit")?;
        let written = writer.end()?;
        let span = Span {
            before: written,
            after: written,
        };
        let count = ground.place.check(self.layout, span)?;
        self.tell.fact(&format!(
            "the application wrote {written}; all {count} {} are as written",
            ground.place.noun()
        ))?;
        if ground.has_files() {
            let files = self.site.files();
            self.tell.command(&typed("umount", &[FILES.as_ref()]))?;
            self.site.undo(&Undo::Mount(files), &self.shell)?;
        }
        if let Some(device) = &ground.device {
            self.shown(&["loop", "detach", UNIT].map(OsStr::new))?;
            self.site.undo.retain(|u| *u != Undo::Loop(device.clone()));
        }
        self.stop()?;
        self.tell.step("Compare the members")?;
        let compared = self.compare(&MEMBERS)?;
        let count = self.look("m3", ground, span)?;
        self.tell
            .fact(&format!("m3 alone has all {count} {}", ground.place.noun()))?;
        Ok(compared.read)
    }
}

/// A file system that stands still until this goes.
struct Frozen {
    file: File,
    since: Instant,
}

impl Frozen {
    fn of(dir: &Path) -> Result<Self> {
        let failed = |e| Error::io(format!("demo: cannot freeze {}", dir.display()), e);
        let file = File::open(dir).map_err(failed)?;
        let since = Instant::now();
        sys::freeze(file.as_fd()).map_err(failed)?;
        Ok(Self { file, since })
    }

    /// Lets it go on; how long it stood still.
    fn thaw(self) -> Result<Duration> {
        let thawed = sys::thaw(self.file.as_fd());
        thawed.map_err(|e| Error::io("demo: cannot thaw the file system", e))?;
        Ok(self.since.elapsed())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // Thawed already when all went well: that error says nothing.
        let _ = sys::thaw(self.file.as_fd());
    }
}

/// A size as it is typed.
fn size_word(bytes: u64) -> String {
    match bytes {
        b if b % (1 << 30) == 0 => format!("{}G", b >> 30),
        b if b % (1 << 20) == 0 => format!("{}M", b >> 20),
        b => b.to_string(),
    }
}

/// What changes with every write to a file.
fn stamp(image: &Path) -> Result<[i64; 4]> {
    let meta = fs::metadata(image)
        .map_err(|e| Error::io(format!("demo: cannot examine {}", image.display()), e))?;
    let size = i64::try_from(meta.size()).unwrap_or(i64::MAX);
    Ok([size, meta.mtime(), meta.mtime_nsec(), meta.ctime_nsec()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_shown_as_they_are_typed() {
        let table = [
            (1 << 30, "1G"),
            (3 << 29, "1536M"),
            ((1 << 30) + 512, "1073742336"),
        ];
        for (bytes, word) in table {
            assert_eq!(size_word(bytes), word);
            let read = crate::cli::size::parse_size(word);
            assert_eq!(read.map(|b| b.0), Ok(bytes));
        }
    }

    #[test]
    fn a_write_changes_the_stamp_and_reading_does_not() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("image");
        fs::write(&path, b"one").expect("written");
        let before = stamp(&path).expect("there");
        fs::read(&path).expect("read");
        assert_eq!(stamp(&path).expect("there"), before);
        fs::write(&path, b"four").expect("written");
        assert_ne!(stamp(&path).expect("there"), before);
    }
}
