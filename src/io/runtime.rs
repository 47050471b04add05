//! Runtime directory: which units are served on this machine, by whom and where.
//!
//! `<base>/<unit>/` holds `lock`, `pid`, `mountpoint` and `config`, and `failed` after a bad end. The lock decides who serves the unit, the
//! other files only tell about it: they must not be believed when nobody holds the lock.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Result};
use crate::set::Code;

use super::sys;

/// How often the directory may vanish under a claim, each time because somebody stopped serving.
const ATTEMPTS: usize = 100;

/// Who can read the lock's file can hold a read lock, which would keep every server out.
const LOCK_MODE: u32 = 0o600;

/// File with the path of the configuration that the unit is mounted from.
const CONFIG: &str = "config";

/// File with the sentence of a server that has not ended well.
const FAILED: &str = "failed";

/// Where the runtime directories of all units are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Runtime {
    base: PathBuf,
}

/// A unit in the runtime directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Name of the unit.
    pub unit: String,
    /// Process that serves it, or did.
    pub pid: Option<u32>,
    /// Where it is mounted, or was.
    pub mountpoint: Option<PathBuf>,
    /// Whether it is being served: the lock is held. Who may not ask for the lock is told whether
    /// the process exists.
    pub alive: bool,
}

/// The right to serve a unit, and its directory. Both end with this value.
#[derive(Debug)]
pub struct RuntimeDir {
    dir: PathBuf,
    /// Where a killed server had mounted the unit.
    left: Option<PathBuf>,
    /// Open as long as the unit is served.
    _lock: File,
}

impl Runtime {
    /// `$SHADOWSET_RUNTIME_DIR`, or else `/run/shadowset` for root and
    /// `$XDG_RUNTIME_DIR/shadowset` for others.
    ///
    /// # Errors
    /// `Config` when an ordinary user has neither variable.
    pub fn from_env() -> Result<Self> {
        Self::choose(|name| std::env::var_os(name), sys::effective_uid())
    }

    /// Directories under `base`.
    #[must_use]
    pub fn at(base: impl Into<PathBuf>) -> Self {
        Self { base: base.into() }
    }

    fn choose(variable: impl Fn(&str) -> Option<OsString>, uid: u32) -> Result<Self> {
        let set = |name| {
            variable(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        if let Some(base) = set("SHADOWSET_RUNTIME_DIR") {
            return Ok(Self::at(base));
        }
        if uid == 0 {
            return Ok(Self::at("/run/shadowset"));
        }
        let base = set("XDG_RUNTIME_DIR").map(|base| Self::at(base.join("shadowset")));
        base.ok_or_else(|| {
            Error::new(
                Code::Config,
                "there is no directory for files of running units",
            )
            .with_hint("set XDG_RUNTIME_DIR or SHADOWSET_RUNTIME_DIR")
        })
    }

    /// The directory that holds those of the units.
    #[must_use]
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// Takes the right to serve `unit`. What a killed server left is taken over.
    ///
    /// # Errors
    /// `InUse` with the process that serves it; `Syntax` when the name cannot name a directory; the
    /// system's error.
    pub fn claim(&self, unit: &str) -> Result<RuntimeDir> {
        let dir = self.dir(unit)?;
        let failed = |e| Error::io(format!("{} cannot be claimed", dir.display()), e);
        for _ in 0..ATTEMPTS {
            make_dir(&dir).map_err(failed)?;
            let Some(lock) = open_lock(&dir).map_err(failed)? else {
                continue;
            };
            if !sys::try_lock(lock.as_fd()).map_err(failed)? {
                let pid = read_pid(&dir).map_err(failed)?;
                return Err(served_by(unit, pid, read_mountpoint(&dir).map_err(failed)?));
            }
            if is_at(&lock, &dir.join("lock")).map_err(failed)? {
                let claimed = RuntimeDir {
                    left: read_mountpoint(&dir).map_err(failed)?,
                    dir: dir.clone(),
                    _lock: lock,
                };
                claimed.start().map_err(failed)?;
                return Ok(claimed);
            }
        }
        Err(Error::new(
            Code::InUse,
            format!("unit {unit} is being started and stopped again"),
        ))
    }

    /// Whether [`Self::claim`] would find that nobody serves `unit`; nothing is taken.
    ///
    /// # Errors
    /// As [`Self::claim`].
    pub fn expect_free(&self, unit: &str) -> Result<()> {
        match self.find(unit)? {
            Some(entry) if entry.alive => Err(served_by(unit, entry.pid, entry.mountpoint)),
            _ => Ok(()),
        }
    }

    /// The units of this machine, those that a killed server left among them, in alphabetical order.
    ///
    /// # Errors
    /// The system's error.
    pub fn list(&self) -> Result<Vec<Entry>> {
        let failed = |e| Error::io(format!("{} cannot be read", self.base.display()), e);
        let dirs = match fs::read_dir(&self.base) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(failed)?,
        };
        let mut entries = Vec::new();
        for dir in dirs {
            let dir = dir.map_err(failed)?;
            // No unit has such a name, so it is not ours.
            let Ok(unit) = dir.file_name().into_string() else {
                continue;
            };
            match entry(&dir.path(), unit) {
                // Another user's, and closed to us.
                Err(e) if e.kind() == ErrorKind::PermissionDenied => {}
                other => entries.extend(other.map_err(failed)?),
            }
        }
        entries.sort_by(|a, b| a.unit.cmp(&b.unit));
        Ok(entries)
    }

    /// The entry of `unit`.
    ///
    /// # Errors
    /// `Syntax` when the name cannot name a directory; the system's error.
    pub fn find(&self, unit: &str) -> Result<Option<Entry>> {
        let dir = self.dir(unit)?;
        let failed = |e| Error::io(format!("{} cannot be read", dir.display()), e);
        entry(&dir, unit.to_owned()).map_err(failed)
    }

    /// Why the last server of `unit` has not ended well; `None` when it has, or has said nothing.
    ///
    /// # Errors
    /// `Syntax` when the name cannot name a directory; the system's error.
    pub fn failed(&self, unit: &str) -> Result<Option<String>> {
        let dir = self.dir(unit)?;
        let sentence = read(&dir, FAILED)
            .map_err(|e| Error::io(format!("{} cannot be read", dir.display()), e))?;
        Ok(sentence.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// The configuration that `unit` is mounted from; `None` when it is mounted without one, or not at all.
    ///
    /// # Errors
    /// `Syntax` when the name cannot name a directory; the system's error.
    pub fn config(&self, unit: &str) -> Result<Option<PathBuf>> {
        let dir = self.dir(unit)?;
        let path = read(&dir, CONFIG)
            .map_err(|e| Error::io(format!("{} cannot be read", dir.display()), e))?;
        Ok(path.map(|bytes| PathBuf::from(OsString::from_vec(bytes))))
    }

    fn dir(&self, unit: &str) -> Result<PathBuf> {
        let mut parts = Path::new(unit).components();
        match (parts.next(), parts.next()) {
            (Some(Component::Normal(name)), None) if name == unit && !unit.contains('\0') => {
                Ok(self.base.join(unit))
            }
            _ => Err(Error::new(
                Code::Syntax,
                format!("{unit:?} cannot be the name of a unit"),
            )),
        }
    }
}

impl RuntimeDir {
    /// The directory, for other files of the running unit. They go with it.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Where the unit was mounted by a server that was killed; its mount may still be there.
    #[must_use]
    pub fn left_mountpoint(&self) -> Option<&Path> {
        self.left.as_deref()
    }

    /// Tells where the unit is mounted.
    ///
    /// # Errors
    /// The system's error.
    pub fn set_mountpoint(&self, mountpoint: &Path) -> Result<()> {
        replace(&self.dir, "mountpoint", mountpoint.as_os_str().as_bytes())
            .map_err(|e| Error::io(format!("{} cannot be written", self.dir.display()), e))
    }

    /// Tells which configuration the unit is mounted from.
    ///
    /// # Errors
    /// The system's error.
    pub fn set_config(&self, config: &Path) -> Result<()> {
        replace(&self.dir, CONFIG, config.as_os_str().as_bytes())
            .map_err(|e| Error::io(format!("{} cannot be written", self.dir.display()), e))
    }

    /// Clears what a killed server left and tells who serves the unit now.
    fn start(&self) -> io::Result<()> {
        self.remove_files(&["lock"])?;
        replace(&self.dir, "pid", std::process::id().to_string().as_bytes())
    }

    /// Tells those who stop the unit why its members are not clean. It stays when the unit has
    /// ended, until the next claim.
    ///
    /// # Errors
    /// The system's error.
    pub fn set_failed(&self, sentence: &str) -> Result<()> {
        replace(&self.dir, FAILED, sentence.as_bytes())
            .map_err(|e| Error::io(format!("{} cannot be written", self.dir.display()), e))
    }

    /// Removes all files but these.
    fn remove_files(&self, kept: &[&str]) -> io::Result<()> {
        for file in fs::read_dir(&self.dir)? {
            let file = file?;
            if !kept.iter().any(|name| file.file_name() == *name) {
                fs::remove_file(file.path())?;
            }
        }
        Ok(())
    }
}

impl Drop for RuntimeDir {
    /// The lock's file goes while the lock is held: whoever locks it later sees that it has no name.
    /// What cannot be removed is taken over by the next claim.
    fn drop(&mut self) {
        let _ = self.remove_files(&["lock", FAILED]);
        let _ = fs::remove_file(self.dir.join("lock"));
        let _ = fs::remove_dir(&self.dir);
    }
}

/// Readable for everybody, whatever the umask: any user may list the units.
fn make_dir(dir: &Path) -> io::Result<()> {
    if let Some(base) = dir.parent() {
        if let Some(above) = base.parent() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(above)?;
        }
        make_readable_dir(base)?;
    }
    make_readable_dir(dir)
}

/// Leaves a directory that exists as it is.
fn make_readable_dir(dir: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o755).create(dir) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => return Ok(()),
        other => other?,
    }
    match fs::set_permissions(dir, Permissions::from_mode(0o755)) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// `None` when the directory has vanished again.
fn open_lock(dir: &Path) -> io::Result<Option<File>> {
    let mut options = File::options();
    match options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(LOCK_MODE)
        .open(dir.join("lock"))
    {
        Ok(file) => {
            // One that an older server left may be open to all.
            file.set_permissions(Permissions::from_mode(LOCK_MODE))?;
            Ok(Some(file))
        }
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Whether the open file still has this name.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let open = file.metadata()?;
    match fs::metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (open.dev(), open.ino())),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// `None` when there is no unit's directory, or it has just vanished.
fn entry(dir: &Path, unit: String) -> io::Result<Option<Entry>> {
    let lock = match File::open(dir.join("lock")) {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(e) if e.kind() == ErrorKind::PermissionDenied => None,
        other => Some(other?),
    };
    let pid = read_pid(dir)?;
    let alive = match lock {
        Some(lock) => sys::is_locked(lock.as_fd())?,
        None => pid.is_some_and(|pid| Path::new("/proc").join(pid.to_string()).exists()),
    };
    Ok(Some(Entry {
        unit,
        pid,
        mountpoint: read_mountpoint(dir)?,
        alive,
    }))
}

fn read_mountpoint(dir: &Path) -> io::Result<Option<PathBuf>> {
    let path = read(dir, "mountpoint")?;
    Ok(path.map(|path| PathBuf::from(OsString::from_vec(path))))
}

fn read_pid(dir: &Path) -> io::Result<Option<u32>> {
    let text = read(dir, "pid")?;
    Ok(text.and_then(|text| std::str::from_utf8(&text).ok()?.parse().ok()))
}

/// The content without its line end; `None` when there is no such file.
fn read(dir: &Path, name: &str) -> io::Result<Option<Vec<u8>>> {
    match fs::read(dir.join(name)) {
        Ok(mut bytes) => {
            if bytes.last() == Some(&b'\n') {
                bytes.pop();
            }
            Ok(Some(bytes))
        }
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Writes a line at once, so that no reader sees half of it.
fn replace(dir: &Path, name: &str, line: &[u8]) -> io::Result<()> {
    let new = dir.join(format!(".{name}.new"));
    fs::write(&new, [line, b"\n"].concat())?;
    fs::set_permissions(&new, Permissions::from_mode(0o644))?;
    fs::rename(new, dir.join(name))
}

fn served_by(unit: &str, pid: Option<u32>, mountpoint: Option<PathBuf>) -> Error {
    let server = pid.map_or("another process".to_owned(), |pid| format!("process {pid}"));
    let on = mountpoint.map(|dir| format!(", and mounted on {}", dir.display()));
    let text = format!(
        "unit {unit} is served by {server}{}",
        on.unwrap_or_default()
    );
    Error::new(Code::InUse, text).with_hint(format!("`shadowset stop {unit}` ends it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime() -> (tempfile::TempDir, Runtime) {
        let dir = tempfile::tempdir().unwrap();
        let runtime = Runtime::at(dir.path().join("run"));
        (dir, runtime)
    }

    #[test]
    fn a_unit_is_served_by_one() {
        let (_dir, runtime) = runtime();
        assert_eq!(runtime.list().unwrap(), []);
        assert_eq!(runtime.find("dsa1").unwrap(), None);
        let claimed = runtime.claim("dsa1").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!(
            (mode(claimed.path()), mode(&claimed.path().join("pid"))),
            (0o755, 0o644)
        );
        assert_eq!(mode(&claimed.path().join("lock")), 0o600);
        assert_eq!(mode(runtime.base()), 0o755);
        let e = runtime.claim("dsa1").unwrap_err();
        assert_eq!(e.code(), Code::InUse);
        assert_eq!(
            e.to_string(),
            format!("unit dsa1 is served by process {}", std::process::id())
        );
        let pid = Some(std::process::id());
        let mut expected = Entry {
            unit: "dsa1".into(),
            pid,
            mountpoint: None,
            alive: true,
        };
        assert_eq!(runtime.find("dsa1").unwrap().as_ref(), Some(&expected));
        let odd = Path::new("/srv/with blank\n");
        claimed.set_mountpoint(odd).unwrap();
        expected.mountpoint = Some(odd.into());
        let other = runtime.claim("dsa0").unwrap();
        let listed = runtime.list().unwrap();
        assert_eq!(
            listed.iter().map(|e| &*e.unit).collect::<Vec<_>>(),
            ["dsa0", "dsa1"]
        );
        assert_eq!(listed[1], expected);
        drop((claimed, other));
        assert_eq!(runtime.list().unwrap(), []);
        assert_eq!(
            fs::read_dir(runtime.base()).unwrap().count(),
            0,
            "nothing is left"
        );
        runtime.claim("dsa1").unwrap();
    }

    #[test]
    fn what_a_killed_server_left_is_taken_over() {
        let (_dir, runtime) = runtime();
        let dir = runtime.base().join("dsa1");
        fs::create_dir_all(&dir).unwrap();
        for (name, content) in [
            ("lock", ""),
            ("pid", "4242\n"),
            ("mountpoint", "/srv/old\n"),
        ] {
            fs::write(dir.join(name), content).unwrap();
        }
        let left = runtime.find("dsa1").unwrap().unwrap();
        assert_eq!((left.pid, left.alive), (Some(4242), false));
        assert_eq!(left.mountpoint, Some("/srv/old".into()));
        let claimed = runtime.claim("dsa1").unwrap();
        assert_eq!(claimed.left_mountpoint(), Some(Path::new("/srv/old")));
        let now = runtime.find("dsa1").unwrap().unwrap();
        assert_eq!(
            (now.pid, now.mountpoint, now.alive),
            (Some(std::process::id()), None, true)
        );
        drop(claimed);
        assert!(!dir.exists());
    }

    #[test]
    fn a_bad_end_is_told_until_the_next_claim() {
        let (_dir, runtime) = runtime();
        let claimed = runtime.claim("dsa1").unwrap();
        assert_eq!(runtime.failed("dsa1").unwrap(), None);
        claimed.set_failed("m1 cannot be written").unwrap();
        drop(claimed);
        let told = runtime.failed("dsa1").unwrap();
        assert_eq!(told.as_deref(), Some("m1 cannot be written"));
        assert_eq!(runtime.list().unwrap(), [], "nobody serves it");
        drop(runtime.claim("dsa1").unwrap());
        assert_eq!(runtime.failed("dsa1").unwrap(), None);
    }

    /// Claims and ends that run into each other: never two at once, and no claim fails but by
    /// meeting another.
    #[test]
    fn claims_exclude_each_other_under_contention() {
        let (_dir, runtime) = runtime();
        let served = std::sync::Mutex::new(());
        let claims = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        match runtime.claim("dsa1") {
                            Ok(claimed) => {
                                let alone = served.try_lock().expect("two serve the unit");
                                claims.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                                drop(alone);
                                drop(claimed);
                            }
                            Err(e) => assert_eq!(e.code(), Code::InUse, "{e}"),
                        }
                    }
                });
            }
        });
        assert!(claims.into_inner() >= 4);
        assert_eq!(runtime.list().unwrap(), []);
    }

    #[test]
    fn a_unit_is_one_directory() {
        let (_dir, runtime) = runtime();
        for unit in ["", ".", "..", "a/b", "/a", "a/", "./a", "a\0"] {
            assert_eq!(
                runtime.claim(unit).unwrap_err().code(),
                Code::Syntax,
                "{unit:?}"
            );
            assert_eq!(
                runtime.find(unit).unwrap_err().code(),
                Code::Syntax,
                "{unit:?}"
            );
        }
        assert!(!runtime.base().exists());
    }

    #[test]
    fn what_is_no_unit_is_not_listed() {
        let (_dir, runtime) = runtime();
        fs::create_dir_all(runtime.base().join("empty")).unwrap();
        fs::write(runtime.base().join("file"), "").unwrap();
        assert_eq!(runtime.list().unwrap(), []);
    }

    #[test]
    fn the_environment_chooses_the_base() {
        let base = |set: &[(&str, &str)], uid| {
            let variable = |name: &str| {
                set.iter()
                    .find(|(known, _)| *known == name)
                    .map(|(_, value)| (*value).into())
            };
            Runtime::choose(variable, uid).map(|runtime| runtime.base().to_owned())
        };
        let (own, xdg) = (
            ("SHADOWSET_RUNTIME_DIR", "/x"),
            ("XDG_RUNTIME_DIR", "/run/user/7"),
        );
        assert_eq!(base(&[own, xdg], 0).unwrap(), Path::new("/x"));
        assert_eq!(base(&[xdg], 0).unwrap(), Path::new("/run/shadowset"));
        assert_eq!(base(&[xdg], 7).unwrap(), Path::new("/run/user/7/shadowset"));
        assert_eq!(base(&[own], 7).unwrap(), Path::new("/x"));
        assert_eq!(
            base(&[("XDG_RUNTIME_DIR", "")], 7).unwrap_err().code(),
            Code::Config
        );
    }
}
