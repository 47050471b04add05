//! Options of `mount -o`: words to checked values. An unknown word is an error that names it.

use std::ffi::OsString;
use std::path::PathBuf;

use super::config::{self, Mount};
use super::rights::Said;
use crate::error::{Error, Result};
use crate::fuse::Rights;
use crate::server::params::{Param, Values};
use crate::server::setup::{Durability, Mounting};
use crate::set::{Code, Policy};

/// The options with a meaning here, beside the parameters, as messages and the manual page name them.
const OPTIONS: [&str; 17] = [
    "ro",
    "rw",
    "remount",
    "allow_other",
    "control_gid=",
    "control_mode=",
    "unit_gid=",
    "unit_mode=",
    "foreground",
    "log=",
    "unit=",
    "members=",
    "durability=",
    "policy=",
    "require_members",
    "include",
    "nocopy",
];

/// Words that mount(8) passes on and that change nothing here: what our mounts have anyway, and
/// what only fstab and init systems read.
const ACCEPTED: [&str; 22] = [
    "defaults",
    "nosuid",
    "nodev",
    "noexec",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "nousers",
    "owner",
    "noowner",
    "group",
    "nogroup",
    "nofail",
    "_netdev",
    "default_permissions",
    "noatime",
    "relatime",
    "strictatime",
    "diratime",
    "nodiratime",
];

/// What the kernel shows of a mount of ours, which a remount gets back.
const OF_THE_KERNEL: [&str; 4] = ["user_id", "group_id", "max_read", "blksize"];

/// The options of one mount.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Options {
    /// Other users may use the mount.
    pub(super) allow_other: bool,
    /// What they may do there.
    pub(super) said: Said,
    /// The unit cannot be written.
    pub(super) read_only: bool,
    /// The unit can be written: said, and not only left open.
    pub(super) read_write: bool,
    /// Change the mount that is there.
    pub(super) remount: bool,
    /// Serve in this process.
    pub(super) foreground: bool,
    /// Where the log goes.
    pub(super) log: Option<PathBuf>,
    /// Another name for the unit.
    pub(super) unit: Option<String>,
    /// Images, for a unit without a configuration.
    pub(super) members: Vec<PathBuf>,
    /// Another durability than that of the configuration.
    pub(super) durability: Option<Durability>,
    /// What is wanted of bitmaps for members that are absent.
    pub(super) policy: Option<Policy>,
    /// Every member of the set must be there.
    pub(super) require_members: bool,
    /// Members that only the control blocks name take part.
    pub(super) include: bool,
    /// No member may have to be copied.
    pub(super) nocopy: bool,
    /// Parameters, the later one of two in force.
    pub(super) params: Vec<(Param, u64)>,
}

/// Reads lists of options, each as it stands behind a `-o`.
pub(super) fn parse(lists: &[OsString]) -> Result<Options> {
    let (options, mut wrong) = parse_known(lists)?;
    match wrong.is_empty() {
        true => Ok(options),
        false => Err(wrong.remove(0)),
    }
}

/// Reads lists of options too, and gives back what is wrong with words that are not understood.
pub(super) fn parse_known(lists: &[OsString]) -> Result<(Options, Vec<Error>)> {
    let mut options = Options::default();
    let mut wrong = Vec::new();
    for list in lists {
        let text = list.to_str().ok_or_else(|| {
            let says = format!("mount: the option {} is not UTF-8", list.to_string_lossy());
            Error::new(Code::Syntax, says)
        })?;
        let read = |word: String| options.read(&word).err();
        wrong.extend(split(text)?.into_iter().filter_map(read));
    }
    Ok((options, wrong))
}

/// Splits at commas outside double quotes, and takes the quotes away.
fn split(list: &str) -> Result<Vec<String>> {
    let mut quoted = false;
    let mut words = Vec::new();
    let mut word = String::new();
    for c in list.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => words.push(std::mem::take(&mut word)),
            _ => word.push(c),
        }
    }
    if quoted {
        let says = format!("mount: a double quote is not closed in the options {list}");
        return Err(Error::new(Code::Syntax, says));
    }
    words.push(word);
    Ok(words)
}

impl Options {
    /// Takes what is said once for all mounts, where this mount says nothing else.
    pub(super) fn complete(&mut self, mount: Mount) {
        self.allow_other |= mount.allow_other;
        self.read_only |= mount.ro && !self.read_write;
        self.require_members |= mount.require_members;
        self.include |= mount.include;
        self.nocopy |= mount.nocopy;
        self.policy = self.policy.or(mount.policy);
        self.said = std::mem::take(&mut self.said).or(mount.rights());
        self.log = self.log.take().or(mount.log);
    }

    /// Takes the parameters of the configuration, where this mount says nothing else.
    pub(super) fn complete_params(&mut self, of_file: Vec<(Param, u64)>) {
        self.params.splice(0..0, of_file);
    }

    /// What others than the owner may do.
    ///
    /// # Errors
    /// A group that does not exist, or a mode that is too wide.
    pub(super) fn rights(&self) -> Result<Rights> {
        let rights = self.said.rights();
        rights.map_err(|(key, says)| Error::new(Code::Config, format!("mount: {key}: {says}")))
    }

    /// What the server is told of this mount.
    pub(super) fn mounting(&self) -> Mounting {
        Mounting {
            read_only: self.read_only,
            policy: self.policy.unwrap_or_default(),
            require_members: self.require_members,
            include: self.include,
            nocopy: self.nocopy,
            params: self.values(),
            node_rate: None,
        }
    }

    fn values(&self) -> Values {
        let mut values = Values::default();
        for (param, value) in &self.params {
            values.set(*param, *value);
        }
        values
    }

    fn read(&mut self, word: &str) -> Result<()> {
        match word.split_once('=') {
            None => self.read_flag(word),
            Some((key, value)) => self.read_value(key, value),
        }
    }

    fn read_flag(&mut self, word: &str) -> Result<()> {
        match word {
            "" => {}
            "ro" | "rw" => {
                self.read_only = word == "ro";
                self.read_write = word == "rw";
            }
            "remount" => self.remount = true,
            "allow_other" => self.allow_other = true,
            "foreground" => self.foreground = true,
            "require_members" => self.require_members = true,
            "include" => self.include = true,
            "nocopy" => self.nocopy = true,
            _ if ACCEPTED.contains(&word) || is_for_others(word) => {}
            _ => return Err(unknown(word)),
        }
        Ok(())
    }

    fn read_value(&mut self, key: &str, value: &str) -> Result<()> {
        let wrong = |says: String| Error::new(Code::Syntax, format!("mount: {key}: {says}"));
        if let Some(read) = self.said.read(key, value) {
            return read.map_err(wrong);
        }
        match key {
            "log" if !value.is_empty() => self.log = Some(PathBuf::from(value)),
            "unit" if config::valid_unit(value) => self.unit = Some(value.to_owned()),
            "unit" => return Err(wrong(format!("\"{value}\" cannot be the name of a unit"))),
            "members" => self.members = split_members(value),
            "durability" => self.durability = Some(config::durability(value).map_err(wrong)?),
            "policy" => self.policy = Some(config::policy(value).map_err(wrong)?),
            "log" => return Err(wrong("the path is empty".to_owned())),
            _ if is_for_others(key) || OF_THE_KERNEL.contains(&key) => {}
            _ => {
                let param = Param::from_name(key).ok_or_else(|| unknown(key))?;
                let read = param.spec().read(value);
                let wrong =
                    |text| wrong(text).with_hint("shadowset-control(7) describes the parameters");
                self.params.push((param, read.map_err(|e| wrong(e.text))?));
            }
        }
        Ok(())
    }
}

/// Words for programs that read fstab.
fn is_for_others(word: &str) -> bool {
    word.starts_with("x-") || word.starts_with("X-") || word == "comment"
}

fn unknown(word: &str) -> Error {
    let known = OPTIONS.join(" ");
    let hint = format!("options: {known}, and any parameter; mount.shadowset(8) explains them");
    Error::new(Code::Syntax, format!("mount: unknown option `{word}`")).with_hint(hint)
}

/// Splits at colons; `\:` is a colon in a path.
fn split_members(value: &str) -> Vec<PathBuf> {
    let mut paths = vec![String::new()];
    let mut chars = value.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, paths.last_mut()) {
            (':', _) => paths.push(String::new()),
            ('\\', Some(path)) if chars.peek() == Some(&':') => path.extend(chars.next()),
            (_, Some(path)) => path.push(c),
            (_, None) => {}
        }
    }
    paths.retain(|path| !path.is_empty());
    paths.into_iter().map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Options> {
        parse(&[line.into()])
    }

    #[test]
    fn every_option_is_read() {
        let options = read(
            "ro,allow_other,unit_mode=0660,foreground,log=/l,unit=dsa2,members=/a:/b\\:c:/d,durability=crash,\
             policy=minicopy,require_members,include,nocopy,max_copies=2,\
             default_detach_policy=minicopy",
        );
        let mut said = Said::default();
        said.read("unit_mode", "0660")
            .expect("known")
            .expect("valid");
        let expected = Options {
            said,
            allow_other: true,
            read_only: true,
            read_write: false,
            remount: false,
            foreground: true,
            log: Some("/l".into()),
            unit: Some("dsa2".into()),
            members: vec!["/a".into(), "/b:c".into(), "/d".into()],
            durability: Some(Durability::Crash),
            policy: Some(Policy::Minicopy),
            require_members: true,
            include: true,
            nocopy: true,
            params: vec![(Param::MaxCopies, 2), (Param::DefaultDetachPolicy, 0)],
        };
        assert_eq!(options.expect("valid"), expected);
    }

    #[test]
    fn a_comma_in_double_quotes_belongs_to_the_value() {
        let options = read("ro,members=\"/a,b:/c\",unit=\"dsa2\"").expect("valid");
        assert!(options.read_only);
        assert_eq!(options.members, [PathBuf::from("/a,b"), "/c".into()]);
        assert_eq!(options.unit.as_deref(), Some("dsa2"));
        let error = read("ro,members=\"/a,/b").expect_err("half a quote");
        assert!(error.to_string().contains("is not closed"), "{error}");
        assert_eq!(error.code(), Code::Syntax);
    }

    #[test]
    fn words_of_mount_8_change_nothing() {
        let options = read(
            "noatime,relatime,nodiratime,nosuid,nodev,noexec,_netdev,user,nofail,x-systemd.requires=y,x-z,",
        );
        assert_eq!(options.expect("valid"), Options::default());
    }

    #[test]
    fn what_is_not_there_is_refused_by_name() {
        for (line, says) in [
            ("rw,colour", "unknown option `colour`"),
            ("loop", "unknown option `loop`"),
            ("rate=3", "unknown option `rate`"),
            ("unit=a/b", "\"a/b\" cannot be the name of a unit"),
            ("log=", "log: the path is empty"),
            (
                "durability=disk",
                "durability is \"power\", \"crash\" or \"memory\", not \"disk\"",
            ),
            (
                "policy=full",
                "policy: the policy of a mount is \"minicopy\" or \"minicopy=optional\", not \"full\"",
            ),
            ("nocopy=yes", "unknown option `nocopy`"),
            ("policy", "unknown option `policy`"),
            ("max_copies=x", "max_copies: takes 0 to 200 copies, not x"),
            ("max_copies", "unknown option `max_copies`"),
            ("unit_mode=0777", "unit_mode: takes an octal mode from 0600"),
        ] {
            let error = read(line).expect_err(line);
            assert!(error.to_string().contains(says), "{error}");
            assert_eq!(error.code(), Code::Syntax);
        }
    }

    #[test]
    fn who_has_a_wrong_value_for_a_parameter_is_led_to_its_page() {
        let error = read("max_copies=999").expect_err("too many");
        assert!(error.hint().contains("shadowset-control(7)"), "{error}");
    }

    #[test]
    fn the_last_of_ro_and_rw_is_meant() {
        let meant = |line| read(line).map(|o| (o.read_only, o.read_write));
        assert_eq!(meant("rw,ro").expect("valid"), (true, false));
        assert_eq!(meant("ro,rw").expect("valid"), (false, true));
        assert_eq!(meant("remount").expect("valid"), (false, false));
        // As mount(8) passes them for a remount: what the kernel shows of the mount is among them.
        let shown = "ro,remount,nosuid,nodev,noexec,noatime,user_id=0,group_id=0,\
                     default_permissions,allow_other,max_read=1048576";
        let options = read(shown).expect("valid");
        assert!(options.remount && options.read_only && options.allow_other);
    }

    #[test]
    fn who_is_sloppy_hears_what_was_not_understood() {
        let lists = ["ro,colour,unit=dsa2".into(), "rate=3".into()];
        let (options, wrong) = parse_known(&lists).expect("the rest is understood");
        assert!(options.read_only);
        assert_eq!(options.unit.as_deref(), Some("dsa2"));
        let wrong: Vec<_> = wrong.iter().map(ToString::to_string).collect();
        let expected = [
            "mount: unknown option `colour`",
            "mount: unknown option `rate`",
        ];
        assert_eq!(wrong, expected);
        parse_known(&["members=\"/a".into()]).expect_err("what cannot be split");
    }

    #[test]
    fn every_option_stands_in_the_manual_page_and_no_other() {
        let page = include_str!("../../man/mount.shadowset.8").replace("\\-", "-");
        let section = page.split(".Sh ").find(|s| s.starts_with("OPTIONS"));
        let items = section.expect("a section").lines();
        let items = items.filter_map(|line| line.strip_prefix(".It Cm "));
        let named: Vec<&str> = items.filter_map(|item| item.split(' ').next()).collect();
        let missing: Vec<_> = OPTIONS.iter().filter(|o| !named.contains(o)).collect();
        assert!(missing.is_empty(), "missing in the page: {missing:?}");
        let known = |name: &&&str| OPTIONS.contains(name) || is_ignored(name);
        let invented: Vec<_> = named.iter().filter(|name| !known(name)).collect();
        assert!(invented.is_empty(), "only in the page: {invented:?}");
        let ignored = ACCEPTED.iter().filter(|word| !named.contains(word));
        let ignored: Vec<_> = ignored.collect();
        assert!(
            ignored.is_empty(),
            "ignored, and not in the page: {ignored:?}"
        );
    }

    /// Options that are understood and change nothing.
    fn is_ignored(name: &str) -> bool {
        ACCEPTED.contains(&name) || is_for_others(name)
    }

    #[test]
    fn every_option_that_is_named_is_understood() {
        for option in OPTIONS {
            let line = match option {
                "durability=" => "durability=crash",
                "policy=" => "policy=minicopy",
                "unit=" => "unit=u",
                "log=" => "log=/l",
                "control_gid=" => "control_gid=0",
                "unit_gid=" => "unit_gid=root",
                "control_mode=" => "control_mode=0660",
                "unit_mode=" => "unit_mode=0644",
                other => other,
            };
            assert!(read(line).is_ok(), "{option}");
        }
    }

    #[test]
    fn the_configuration_completes_what_the_mount_says() {
        let of_file = Mount {
            ro: true,
            policy: Some(Policy::Minicopy),
            include: true,
            log: Some("/file".into()),
            ..Mount::default()
        };
        let mut silent = Options::default();
        assert_eq!(silent.mounting(), Mounting::default());
        silent.complete(of_file.clone());
        let expected = Mounting {
            read_only: true,
            policy: Policy::Minicopy,
            require_members: false,
            include: true,
            nocopy: false,
            params: Values::default(),
            node_rate: None,
        };
        assert_eq!(silent.mounting(), expected);
        let mut loud =
            read("policy=minicopy=optional,require_members,nocopy,log=/l").expect("valid");
        loud.complete(of_file);
        let expected = Mounting {
            policy: Policy::MinicopyOptional,
            require_members: true,
            nocopy: true,
            ..expected
        };
        assert_eq!(loud.mounting(), expected);
        assert_eq!(loud.log.as_deref(), Some(std::path::Path::new("/l")));
    }

    /// A configuration that said ro could not be said otherwise.
    #[test]
    fn rw_stands_over_a_configuration_that_says_ro() {
        let of_file = Mount {
            ro: true,
            ..Mount::default()
        };
        for (line, read_only) in [("", true), ("rw", false), ("ro,rw", false), ("rw,ro", true)] {
            let mut options = read(line).expect("valid");
            options.complete(of_file.clone());
            assert_eq!(options.mounting().read_only, read_only, "{line}");
        }
    }

    #[test]
    fn a_parameter_of_the_mount_stands_over_that_of_the_configuration() {
        let mut options = read("max_copies=2,max_copies=3").expect("valid");
        options.complete_params(vec![(Param::MaxCopies, 9), (Param::Priority, 0)]);
        let params = options.mounting().params;
        let timeout = Values::default().get(Param::CommandTimeout);
        let values = [Param::MaxCopies, Param::Priority, Param::CommandTimeout];
        assert_eq!(values.map(|param| params.get(param)), [3, 0, timeout]);
    }

    #[test]
    fn no_parameter_has_the_name_of_an_option() {
        for param in Param::ALL {
            let option = read(&format!("{}=", param.name())).expect_err("nothing");
            let says = format!("mount: {}: takes", param.name());
            assert!(option.to_string().starts_with(&says), "{option}");
            assert!(read(param.name()).is_err(), "{}", param.name());
        }
    }
}
