//! From the command line of mount(8) to what has to be done; touches nothing.
//!
//! mount(8) calls `NAME SPEC DIR [-sfnvr] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]`, umount(8) calls
//! `NAME DIR [-flnrv] [-N NAMESPACE] [-t TYPE]`, flags in any order.

use std::ffi::{OsStr, OsString};
use std::path::Path;

/// Options of mount(8) that say nothing to a file system: for fstab, for systemd, or always in
/// force (`nosuid`, `nodev` and `noexec` are, whatever was asked).
const NOT_OURS: [&str; 20] = [
    "rw", "defaults", "auto", "noauto", "nofail", "_netdev", "user", "users", "owner", "group",
    "nouser", "nousers", "noowner", "nogroup", "nosuid", "nodev", "noexec", "suid", "dev", "async",
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
    /// `mount --fake`: the command line was understood, and that is all.
    Nothing,
    /// Understood, and not possible.
    Refuse(String),
    /// Mount the unit.
    Mount(Step),
    /// Unmount it, and wait for its daemon unless the unmount is lazy.
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

/// The plan for the program name and the arguments behind it.
pub(crate) fn plan(name: &OsStr, args: impl Iterator<Item = OsString>) -> Result<Plan, Unusable> {
    let name = Path::new(name)
        .file_name()
        .unwrap_or(name)
        .to_string_lossy();
    let args = Args::parse(args)?;
    if name.starts_with("umount.") {
        plan_unmount(args)
    } else if name.starts_with("mount.") {
        plan_mount(args)
    } else {
        Err(Unusable(format!("{name}: not a name that mount(8) uses")))
    }
}

fn plan_mount(args: Args) -> Result<Plan, Unusable> {
    let [spec, dir] = <[OsString; 2]>::try_from(args.operands)
        .map_err(|_| Unusable("expected SPEC and DIR, as mount(8) gives them".to_owned()))?;
    let mut options = ours(&args.options);
    if options.contains(&"remount") {
        return Ok(Plan::Refuse(format!(
            "{}: cannot be remounted",
            dir.to_string_lossy()
        )));
    }
    if args.flags.contains(&'f') {
        return Ok(Plan::Nothing);
    }
    if args.flags.contains(&'r') && !options.contains(&"ro") {
        options.insert(0, "ro");
    }
    let mut line = vec!["mount".into()];
    if !options.is_empty() {
        line.extend(["-o".into(), options.join(",").into()]);
    }
    line.extend(["--".into(), spec, dir]);
    Ok(Plan::Mount(Step {
        tool: Tool::Shadowset,
        args: line,
        namespace: args.namespace,
        verbose: args.flags.contains(&'v'),
    }))
}

fn plan_unmount(args: Args) -> Result<Plan, Unusable> {
    let [dir] = <[OsString; 1]>::try_from(args.operands)
        .map_err(|_| Unusable("expected DIR, as umount(8) gives it".to_owned()))?;
    // -i: umount(8) must not call this helper again.
    let mut line = vec![OsString::from("-i")];
    for flag in args.flags.iter().filter(|flag| "flnr".contains(**flag)) {
        line.push(format!("-{flag}").into());
    }
    line.extend(["--".into(), dir.clone()]);
    // The unit is looked up in this namespace, so nothing is waited for in another.
    let wait = !args.flags.contains(&'l') && args.namespace.is_none();
    let verbose = args.flags.contains(&'v');
    let umount = Step {
        tool: Tool::Umount,
        args: line,
        namespace: args.namespace,
        verbose,
    };
    Ok(Plan::Unmount { umount, dir, wait })
}

/// The options that are for `shadowset mount`.
fn ours(options: &str) -> Vec<&str> {
    let is_ours = |option: &&str| {
        let (key, _) = option.split_once('=').unwrap_or((option, ""));
        let private = key.starts_with("x-") || key.starts_with("X-") || key == "comment";
        !option.is_empty() && !private && !NOT_OURS.contains(&key)
    };
    split(options).into_iter().filter(is_ours).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(line: &str) -> Result<Plan, Unusable> {
        let mut words = line.split(' ').map(OsString::from);
        let name = words.next().expect("a name");
        plan(&name, words)
    }

    /// The command of `shadowset` for a line of mount(8).
    fn mounted(line: &str) -> String {
        match planned(line).expect("usable") {
            Plan::Mount(step) => {
                assert_eq!(step.tool, Tool::Shadowset);
                step.args
                    .join(OsStr::new(" "))
                    .into_string()
                    .expect("UTF-8")
            }
            other => panic!("{line}: {other:?}"),
        }
    }

    fn unmounted(line: &str) -> (String, bool) {
        match planned(line).expect("usable") {
            Plan::Unmount { umount, wait, .. } => {
                assert_eq!(umount.tool, Tool::Umount);
                (
                    umount
                        .args
                        .join(OsStr::new(" "))
                        .into_string()
                        .expect("UTF-8"),
                    wait,
                )
            }
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn plain_mount() {
        assert_eq!(
            mounted("/sbin/mount.shadowset dsa1 /srv -o rw"),
            "mount -- dsa1 /srv"
        );
        assert_eq!(
            mounted("mount.fuse.shadowset dsa1 /srv -s -n"),
            "mount -- dsa1 /srv"
        );
    }

    #[test]
    fn options_for_fstab_and_systemd_are_left_out() {
        let line = "mount.shadowset none /srv -s -v -o \
                    ro,nosuid,nodev,noexec,members=a:b,allow_other,_netdev,user,nofail";
        assert_eq!(
            mounted(line),
            "mount -o ro,members=a:b,allow_other -- none /srv"
        );
        let line = "mount.shadowset c.toml /srv -o defaults,noauto,x-systemd.requires=a,comment=b";
        assert_eq!(mounted(line), "mount -- c.toml /srv");
        assert_eq!(
            mounted("mount.shadowset c /srv -o rw,noexec,nosuid,nodev,user"),
            "mount -- c /srv"
        );
        assert_eq!(
            mounted("mount.shadowset c /srv -o rw,dev,suid"),
            "mount -- c /srv"
        );
    }

    #[test]
    fn an_unknown_option_reaches_shadowset_which_names_it() {
        assert_eq!(
            mounted("mount.shadowset c /srv -o rw,polcy=full"),
            "mount -o polcy=full -- c /srv"
        );
    }

    #[test]
    fn the_words_of_the_program_reach_it() {
        let words = "durability=crash,policy=minicopy=optional,require_members,include,nocopy";
        assert_eq!(
            mounted(&format!("mount.shadowset c /srv -o rw,{words}")),
            format!("mount -o {words} -- c /srv")
        );
    }

    #[test]
    fn a_comma_in_quotes_belongs_to_the_value() {
        let line = "mount.shadowset none /srv -o ro,members=\"a,b:c\",nofail";
        assert_eq!(mounted(line), "mount -o ro,members=\"a,b:c\" -- none /srv");
    }

    #[test]
    fn several_option_lists_are_joined() {
        assert_eq!(
            mounted("mount.shadowset c /srv -o ro -o log=f"),
            "mount -o ro,log=f -- c /srv"
        );
        assert_eq!(
            mounted("mount.shadowset c /srv -r -o rw"),
            "mount -o ro -- c /srv"
        );
    }

    #[test]
    fn fake_mounts_nothing() {
        assert_eq!(
            planned("mount.shadowset dsa1 /srv -f -n -o rw"),
            Ok(Plan::Nothing)
        );
        assert_eq!(
            planned("mount.fuse.shadowset dsa1 /srv -sfnv -o rw"),
            Ok(Plan::Nothing)
        );
    }

    #[test]
    fn remount_is_refused_with_a_text() {
        let plan = planned("mount.shadowset dsa1 /srv -o ro,remount,allow_other");
        assert_eq!(
            plan,
            Ok(Plan::Refuse("/srv: cannot be remounted".to_owned()))
        );
    }

    #[test]
    fn the_type_is_ignored() {
        assert_eq!(
            mounted("mount.shadowset dsa1 /srv -o rw -t shadowset.sub"),
            "mount -- dsa1 /srv"
        );
    }

    #[test]
    fn the_namespace_is_kept() {
        let Ok(Plan::Mount(step)) = planned("mount.shadowset dsa1 srv -o rw -N /proc/9/fd/4")
        else {
            panic!("a mount was asked for");
        };
        assert_eq!(step.namespace, Some("/proc/9/fd/4".into()));
    }

    #[test]
    fn an_unmount_waits_unless_it_is_lazy() {
        assert_eq!(
            unmounted("umount.fuse.shadowset /srv"),
            ("-i -- /srv".to_owned(), true)
        );
        assert_eq!(
            unmounted("umount.fuse.shadowset /srv -l -v"),
            ("-i -l -- /srv".to_owned(), false)
        );
        assert_eq!(
            unmounted("umount.fuse /srv -f -n -r -t fuse.shadowset"),
            ("-i -f -n -r -- /srv".to_owned(), true)
        );
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (line, word) in [
            ("mount.shadowset dsa1", "SPEC and DIR"),
            ("mount.shadowset dsa1 /srv extra", "SPEC and DIR"),
            ("mount.shadowset dsa1 /srv -o", "-o: no value"),
            ("mount.shadowset dsa1 /srv -q", "-q: unknown flag"),
            ("umount.fuse.shadowset", "DIR"),
            ("helper dsa1 /srv", "helper"),
        ] {
            let Err(Unusable(why)) = planned(line) else {
                panic!("{line} was accepted")
            };
            assert!(why.contains(word), "{line}: {why}");
        }
    }
}
