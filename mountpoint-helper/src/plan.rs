//! From the command line of mount(8) to what has to be done; touches nothing.
//!
//! mount(8) calls `NAME SPEC DIR [-sfnvr] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]`, umount(8) calls
//! `NAME DIR [-flnrv] [-N NAMESPACE] [-t TYPE]`, flags in any order.

use std::ffi::{OsStr, OsString};
use std::path::Path;

/// Options of mount(8) that say nothing to a file system: for fstab, for systemd, or always in
/// force (`nosuid`, `nodev` and `noexec` are, whatever was asked).
const NOT_OURS: [&str; 20] = [
    "defaults", "auto", "noauto", "nofail", "_netdev", "user", "users", "owner", "group", "nouser",
    "nousers", "noowner", "nogroup", "nosuid", "nodev", "noexec", "suid", "dev", "exec", "async",
];

/// A program that the helper runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Tool {
    /// The program of this package.
    Shadowset,
    /// umount(8).
    Umount,
}

/// One program with its arguments.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Step {
    /// What is run.
    pub(crate) tool: Tool,
    /// Its arguments, without its name.
    pub(crate) args: Vec<OsString>,
    /// Mount namespace to run it in.
    pub(crate) namespace: Option<OsString>,
    /// Whether the command is shown.
    pub(crate) verbose: bool,
}

/// What a command line asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Plan {
    /// Mount the unit, remount it, or only check the command line.
    Mount(Step),
    /// Unmount the unit, and return when its members are marked clean.
    Stop(Step),
    /// Unmount it in a way that only umount(8) knows, and wait for its daemon unless that is lazy.
    Unmount {
        /// The call of umount(8).
        umount: Step,
        /// What is unmounted.
        dir: OsString,
        /// Whether to wait for the daemon.
        wait: bool,
    },
}

/// Why a command line is unusable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Unusable(pub(crate) String);

/// The plan for the program name and the arguments behind it, for root or for another user.
pub(crate) fn plan(
    name: &OsStr,
    args: impl Iterator<Item = OsString>,
    is_root: bool,
) -> Result<Plan, Unusable> {
    let name = Path::new(name)
        .file_name()
        .unwrap_or(name)
        .to_string_lossy();
    let args = Args::parse(args)?;
    if name.starts_with("umount.") {
        plan_unmount(args)
    } else if name.starts_with("mount.") {
        plan_mount(args, is_root)
    } else {
        Err(Unusable(format!("{name}: not a name that mount(8) uses")))
    }
}

fn plan_mount(args: Args, is_root: bool) -> Result<Plan, Unusable> {
    let (fake, sloppy) = (args.has('f'), args.has('s'));
    let (read_only, verbose) = (args.has('r'), args.has('v'));
    let [spec, dir] = <[OsString; 2]>::try_from(args.operands)
        .map_err(|_| Unusable("expected SPEC and DIR, as mount(8) gives them".to_owned()))?;
    refuse_descriptor(&dir)?;
    if !is_root && !fake {
        let why = "only root can mount a unit, also where fstab says `user`";
        return Err(Unusable(why.to_owned()));
    }
    let options = options(&args.options, read_only);
    let mut line = vec!["mount".into()];
    line.extend(fake.then(|| "--dry-run".into()));
    line.extend(sloppy.then(|| "--sloppy".into()));
    if !options.is_empty() {
        line.extend(["-o".into(), options.join(",").into()]);
    }
    line.extend(["--".into(), spec, dir]);
    Ok(Plan::Mount(Step {
        tool: Tool::Shadowset,
        args: line,
        namespace: args.namespace,
        verbose,
    }))
}

/// mount.fuse3 hands over a mount that it has made already, as a descriptor.
fn refuse_descriptor(dir: &OsStr) -> Result<(), Unusable> {
    if !dir.as_encoded_bytes().starts_with(b"/dev/fd/") {
        return Ok(());
    }
    let dir = dir.to_string_lossy();
    Err(Unusable(format!(
        "{dir}: a mount that mount.fuse3 has made cannot be served: use `mount -t shadowset`"
    )))
}

fn plan_unmount(args: Args) -> Result<Plan, Unusable> {
    let (lazy, verbose) = (args.has('l'), args.has('v'));
    let is_plain = !args.flags.iter().any(|flag| "flr".contains(*flag));
    let [dir] = <[OsString; 1]>::try_from(args.operands)
        .map_err(|_| Unusable("expected DIR, as umount(8) gives it".to_owned()))?;
    // The unit is looked up in this namespace, so nothing is waited for in another.
    let wait = !lazy && args.namespace.is_none();
    let namespace = args.namespace;
    let step = |tool, args| Step {
        tool,
        args,
        namespace,
        verbose,
    };
    if is_plain {
        let line = vec!["stop".into(), "--".into(), absolute(dir)];
        return Ok(Plan::Stop(step(Tool::Shadowset, line)));
    }
    // -i: umount(8) must not call this helper again.
    let mut line = vec![OsString::from("-i")];
    for flag in args.flags.iter().filter(|flag| "flnr".contains(**flag)) {
        line.push(format!("-{flag}").into());
    }
    line.extend(["--".into(), dir.clone()]);
    let umount = step(Tool::Umount, line);
    Ok(Plan::Unmount { umount, dir, wait })
}

/// A name without a slash would be taken for that of a unit.
fn absolute(dir: OsString) -> OsString {
    if dir.as_encoded_bytes().contains(&b'/') {
        return dir;
    }
    let mut path = OsString::from("./");
    path.push(dir);
    path
}

/// The options that are for `shadowset mount`.
fn options(text: &str, read_only: bool) -> Vec<&str> {
    // Quotes are no part of a word.
    let plain = |option: &str| option.replace('"', "");
    let is_ours = |option: &&str| {
        let option = plain(option);
        let key = option.split('=').next().unwrap_or_default();
        let private = key.starts_with("x-") || key.starts_with("X-") || key == "comment";
        !option.is_empty() && !private && !NOT_OURS.contains(&key)
    };
    let mut options: Vec<&str> = split(text).into_iter().filter(is_ours).collect();
    if read_only {
        options.push("ro");
    }
    let words: Vec<String> = options.iter().map(|option| plain(option)).collect();
    let remount = words.iter().any(|word| word == "remount");
    let wins = words.iter().rposition(|word| word == "ro" || word == "rw");
    let mut at = 0;
    options.retain(|_| {
        at += 1;
        match words[at - 1].as_str() {
            // A mount can be written anyway, a remount only changes what it is told.
            "rw" => remount && wins == Some(at - 1),
            "ro" => wins == Some(at - 1),
            _ => true,
        }
    });
    options
}

/// Splits at commas outside double quotes, as libmount does.
fn split(options: &str) -> Vec<&str> {
    let mut quoted = false;
    options
        .split(|c| {
            quoted ^= c == '"';
            c == ',' && !quoted
        })
        .collect()
}

/// A command line taken apart.
#[derive(Default)]
struct Args {
    operands: Vec<OsString>,
    flags: Vec<char>,
    options: String,
    namespace: Option<OsString>,
}

impl Args {
    fn has(&self, flag: char) -> bool {
        self.flags.contains(&flag)
    }

    fn parse(mut words: impl Iterator<Item = OsString>) -> Result<Self, Unusable> {
        let mut args = Self::default();
        while let Some(word) = words.next() {
            match word.to_str() {
                Some(flag) if flag.len() > 1 && flag.starts_with('-') => {
                    args.flag(flag, &mut words)?;
                }
                _ => args.operands.push(word),
            }
        }
        Ok(args)
    }

    fn flag(
        &mut self,
        word: &str,
        rest: &mut impl Iterator<Item = OsString>,
    ) -> Result<(), Unusable> {
        let mut value = || {
            rest.next()
                .ok_or_else(|| Unusable(format!("{word}: no value")))
        };
        match word {
            "-o" => {
                let options = value()?.into_string();
                let options = options.map_err(|_| Unusable("-o: not UTF-8".to_owned()))?;
                self.options
                    .push_str(if self.options.is_empty() { "" } else { "," });
                self.options.push_str(&options);
            }
            "-N" => self.namespace = Some(value()?),
            // The type is in the name of the helper.
            "-t" => drop(value()?),
            _ => self.flags(word)?,
        }
        Ok(())
    }

    fn flags(&mut self, word: &str) -> Result<(), Unusable> {
        for flag in word.chars().skip(1) {
            if !"fnsvrlw".contains(flag) {
                return Err(Unusable(format!("{word}: unknown flag")));
            }
            self.flags.push(flag);
        }
        Ok(())
    }
}
