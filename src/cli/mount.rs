//! `mount`: the launcher, which starts a server and waits until the unit can be opened, and the
//! server's side of it.
//!
//! There is no fork: the launcher starts the program anew with `--foreground --ready-pipe`, and the
//! server reports on its standard output with one word, `ready`, warnings before it, or with a code,
//! a sentence and a hint. Everything that can be refused without a server is refused by the launcher.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use serde_json::json;

use super::args::MountArgs;
use super::mount_options::{self, Options};
use super::node::Node;
use super::output::{self, Out};
use super::tree::Tree;
use super::{config, hints, log, members, place, remount, status, system};
use crate::error::{Error, Result};
use crate::fuse::{self, MountOptions};
use crate::io::sys;
use crate::server::setup::{Durability, Setup};
use crate::set::Code;

/// Exit code of mount(8) for a mount that did not come about.
const EXIT_MOUNT: u8 = 32;
/// Exit code of mount(8) for an option that it cannot understand.
pub(super) const EXIT_USAGE: u8 = 1;
/// First word of the server's report when the unit can be opened.
const READY: &str = "ready";
/// Begin of each line before that word: what the operator has to know all the same.
const WARNING: &str = "warning: ";

/// `mount`.
pub(super) fn run(args: &MountArgs, out: Out) -> Result<u8> {
    let told = |error: Error| {
        // What the launcher has found in order may have changed since.
        if args.ready_pipe {
            tell_failure(&error);
        }
        error
    };
    let outcome = match options_of(args) {
        Ok(options) if options.remount => remount::run(args, &options, out),
        Ok(options) => {
            let plan = Plan::of(args, options).map_err(told);
            plan.and_then(|plan| plan.run(args, out))
        }
        Err(error) => Err(told(error)),
    };
    let Err(error) = outcome.map_err(|error| hints::of_mount(error, &args.spec)) else {
        return Ok(0);
    };
    if output::reader_has_gone(&error) {
        return Err(error);
    }
    // A server has told its launcher, who tells the operator.
    if !args.ready_pipe {
        output::report(&error, out.json);
    }
    Ok(if error.code() == Code::Syntax {
        EXIT_USAGE
    } else {
        EXIT_MOUNT
    })
}

/// Everything a mount needs, checked.
struct Plan {
    setup: Setup,
    dir: PathBuf,
    options: Options,
    /// The configuration that it comes from.
    config: Option<PathBuf>,
    /// What holds for all units.
    node: Node,
}

/// The options of the command line; unknown ones are only named where that is wanted.
fn options_of(args: &MountArgs) -> Result<Options> {
    let read = match args.sloppy {
        true => mount_options::parse_known(&args.options),
        false => mount_options::parse(&args.options).map(|options| (options, Vec::new())),
    };
    // What the launcher has found in order the server finds in order too.
    let (mut options, unknown) = read?;
    if !args.ready_pipe {
        let says = |error: &Error| output::warn(&error.to_string());
        unknown.iter().for_each(says);
    }
    options.foreground |= args.foreground;
    if args.log.is_some() {
        options.log.clone_from(&args.log);
    }
    Ok(options)
}

impl Plan {
    fn run(&self, args: &MountArgs, out: Out) -> Result<()> {
        if args.dry_run {
            let (unit, dir) = (&self.setup.unit, self.dir.display());
            system::runtime()?;
            let rehearsed = fuse::rehearse(&self.setup, &self.dir, &self.mount_options()?)
                .map_err(|error| hints::of_mount(error, &args.spec))
                .map_err(|error| output::about(&format!("mount {unit}"), &error))?;
            let told: Vec<_> = rehearsed.iter().map(status::would_be).collect();
            told.iter().for_each(|text| output::warn(text));
            let value = json!({ "ok": true, "dry_run": true, "unit": unit,
                "mountpoint": dir.to_string(), "warnings": told });
            return out.either(&value, &format!("{unit} would be mounted on {dir}"));
        }
        match (args.ready_pipe, self.options.foreground) {
            (true, _) => self.serve_and_report(),
            (false, true) => self.serve(&mut |_| {}),
            (false, false) => self.launch(args, out),
        }
    }

    fn of(args: &MountArgs, mut options: Options) -> Result<Self> {
        let (mut setup, file) = if args.spec == "none" {
            (setup_of_options(&options)?, None)
        } else {
            refuse_members(&options)?;
            let file = place::config_file(&args.spec)?;
            let config = config::load(&file)?;
            options.complete(config.mount);
            options.complete_params(config.params);
            (config.setup, Some(file))
        };
        if let Some(unit) = options.unit.take() {
            setup.unit = unit;
        }
        setup.durability = options.durability.unwrap_or(setup.durability);
        options.log = options
            .log
            .map(std::path::absolute)
            .transpose()
            .map_err(|cause| Error::io("cannot use the path of the log", cause))?;
        let dir = mount_point(&setup.unit, &args.dir)?;
        Ok(Self {
            setup,
            dir,
            options,
            config: file,
            node: Node::load()?,
        })
    }

    /// Starts the server and waits for its report.
    fn launch(&self, args: &MountArgs, out: Out) -> Result<()> {
        let unit = &self.setup.unit;
        system::runtime()?;
        let mut server = self.start(args)?;
        let Some(pipe) = server.stdout.take() else {
            return Err(Error::new(
                Code::Io,
                format!("mount {unit}: no pipe to the server"),
            ));
        };
        match Report::read(pipe) {
            Report::Ready { warnings } => {
                self.warn(&warnings);
                let dir = self.dir.display();
                let value = json!({ "ok": true, "unit": unit, "mountpoint": dir.to_string(),
                    "pid": server.id() });
                if out.json { out.value(&value) } else { Ok(()) }
            }
            Report::Failed {
                code,
                sentence,
                hint,
            } => {
                // The server has nothing left to do but to end.
                let _ = server.wait();
                let hint = match code {
                    Code::Io if hint == code.hint() => log::hint(unit, self.options.log.as_deref()),
                    _ => hint,
                };
                Err(Error::new(
                    code,
                    output::sentence_about(&format!("mount {unit}"), &sentence),
                )
                .with_hint(hint))
            }
            Report::Silence => Err(self.silence(&mut server)),
        }
    }

    /// Says what is not as it should be, though the unit can be used.
    fn warn(&self, of_server: &[String]) {
        of_server.iter().for_each(|text| output::warn(text));
        match Tree::at(&self.dir).status() {
            Ok(status) => status::warnings(&status)
                .iter()
                .for_each(|text| output::warn(text)),
            Err(error) => output::warn(&error.to_string()),
        }
    }

    fn start(&self, args: &MountArgs) -> Result<Child> {
        let unit = &self.setup.unit;
        let failed = |cause| Error::io(format!("mount {unit}: cannot start the server"), cause);
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        let spec = match args.spec.as_str() {
            "none" => PathBuf::from("none"),
            spec => place::config_file(spec)?,
        };
        command
            .arg("mount")
            .arg(spec)
            .arg(&self.dir)
            .args(["--foreground", "--ready-pipe"]);
        for option in &args.options {
            command.arg("-o").arg(option);
        }
        command.args(args.sloppy.then_some("--sloppy"));
        let errors = match &self.options.log {
            Some(log) => {
                command.arg("--log").arg(log);
                Stdio::from(log::open(log)?)
            }
            None => log::standard_error(unit),
        };
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            // A service manager listens to those that it has started, and to no others.
            .env_remove(crate::fuse::NOTIFY_SOCKET);
        // It would hold the lock of a flock(1) that we run under, and its caller's pipes. An old kernel cannot.
        let _ = sys::pass_on_nothing();
        command.spawn().map_err(failed)
    }

    fn silence(&self, server: &mut Child) -> Error {
        let end = match server.wait() {
            Ok(status) => status.to_string(),
            Err(cause) => cause.to_string(),
        };
        let says = format!(
            "mount {}: the server has ended without a word: {end}",
            self.setup.unit
        );
        let hint = log::hint(&self.setup.unit, self.options.log.as_deref());
        Error::new(Code::Io, says).with_hint(hint)
    }

    /// Serves, and tells the launcher how it begins.
    fn serve_and_report(&self) -> Result<()> {
        let mut reported = false;
        let served = system::leave_session().and_then(|()| {
            self.serve(&mut |notes| {
                let warning = |note: &String| format!("{WARNING}{}", one_line(note));
                let mut lines: Vec<_> = notes.iter().map(warning).collect();
                lines.push(READY.to_owned());
                // A launcher that was killed does not end the server that it has started.
                reported = tell(&lines).is_ok();
            })
        });
        match &served {
            Err(error) if !reported => tell_failure(error),
            _ => {}
        }
        // The launcher may have gone long ago, and standard error is the log.
        if self.options.log.is_none() {
            self.log_failure(&served);
        }
        served
    }

    /// Serves until the unit is unmounted.
    fn serve(&self, ready: &mut dyn FnMut(&[String])) -> Result<()> {
        let unit = &self.setup.unit;
        // Files and sockets are there for a moment before they have the permissions that they are to have.
        sys::deny_others_writing();
        log::start(self.options.log.as_deref())?;
        std::env::set_current_dir("/").map_err(|cause| {
            Error::io(format!("mount {unit}: cannot leave the directory"), cause)
        })?;
        let options = self.mount_options()?;
        let mut opened = false;
        let served = fuse::serve(self.setup.clone(), &self.dir, options, &mut |notes| {
            opened = true;
            record(&self.dir);
            ready(notes);
        });
        // What cannot be removed gives way to the next record of this place.
        let _ = system::utab().remove(&self.dir);
        let served = served.and_then(|()| match opened {
            true => Ok(()),
            false => Err(Error::new(
                Code::Io,
                "the server has ended before the unit could be opened",
            )),
        });
        // In the foreground without a file the error is shown where the log is.
        if self.options.log.is_some() {
            self.log_failure(&served);
        }
        served
    }

    fn mount_options(&self) -> Result<MountOptions> {
        Ok(MountOptions {
            allow_other: self.options.allow_other,
            rights: self.options.rights()?,
            mounting: self.options.mounting(),
            config: self.config.clone(),
            log: self.options.log.clone(),
            units_max: self.node.units_max,
            copy_rate_max: self.node.copy_rate_max,
        })
    }

    fn log_failure(&self, served: &Result<()>) {
        if let Err(error) = served {
            let unit = &self.setup.unit;
            tracing::error!(unit = %unit, code = %error.code(), "{error}");
        }
    }
}

/// Has umount(8) look for its helper, which waits. Without the record it still unmounts.
fn record(dir: &Path) {
    if let Err(error) = system::utab().add(dir) {
        tracing::info!(%error, "umount(8) will not wait for the end of the server");
    }
}

/// What the server has said.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Report {
    Ready {
        warnings: Vec<String>,
    },
    Failed {
        code: Code,
        sentence: String,
        hint: String,
    },
    Silence,
}

impl Report {
    fn read(pipe: ChildStdout) -> Self {
        Self::of(BufReader::new(pipe))
    }

    fn of(reader: impl BufRead) -> Self {
        let mut lines = reader.lines().map_while(io::Result::ok);
        let mut warnings = Vec::new();
        let mut first = lines.next().unwrap_or_default();
        while let Some(text) = first.strip_prefix(WARNING) {
            warnings.push(text.to_owned());
            first = lines.next().unwrap_or_default();
        }
        if first == READY {
            return Self::Ready { warnings };
        }
        let Some(code) = first.strip_prefix("error: ").and_then(Code::from_name) else {
            return Self::Silence;
        };
        let sentence = lines.next().unwrap_or_default();
        let hint = lines.next().unwrap_or_else(|| code.hint().to_owned());
        Self::Failed {
            code,
            sentence,
            hint,
        }
    }
}

fn tell(lines: &[String]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all((lines.join("\n") + "\n").as_bytes())?;
    stdout.flush()
}

/// Tells the launcher why the unit cannot be served; when that has gone, nobody is left to tell.
fn tell_failure(error: &Error) {
    let sentence = one_line(&error.to_string());
    let code = format!("error: {}", error.code());
    let _ = tell(&[code, sentence, one_line(error.hint())]);
}

fn one_line(text: &str) -> String {
    text.split('\n')
        .map(str::trim)
        .collect::<Vec<_>>()
        .join(" ")
}

/// The directory that is meant, if a unit can be mounted on it.
fn mount_point(unit: &str, given: &Path) -> Result<PathBuf> {
    // A mount whose server has died has no contents, but its place can be mounted again.
    let stale = |cause: &io::Error| cause.raw_os_error() == Some(libc::ENOTCONN);
    let dir = fs::canonicalize(given).or_else(|cause| match stale(&cause) {
        true => std::path::absolute(given),
        false => Err(cause),
    });
    let dir = dir.map_err(|cause| {
        let says = format!(
            "mount {unit}: cannot use the mount point {}",
            given.display()
        );
        Error::io(says, cause).with_hint("the mount point is an existing directory")
    })?;
    if fs::metadata(&dir).is_ok_and(|m| !m.is_dir()) {
        let says = format!("mount {unit}: {} is not a directory", dir.display());
        return Err(Error::new(Code::Config, says).with_hint("mount on a directory"));
    }
    Ok(dir)
}

fn setup_of_options(options: &Options) -> Result<Setup> {
    if options.members.is_empty() {
        return Err(Error::new(Code::Syntax, "mount none: no members are named")
            .with_hint("-o members=/img/a.raw:/img/b.raw names them"));
    }
    let unit = options.unit.clone().unwrap_or_else(|| "dsa1".to_owned());
    let state_dir = place::state_dir(&unit);
    let named = members::named(&options.members, &state_dir);
    Ok(Setup {
        label: None,
        region_blocks: crate::set::geometry::REGION_BLOCKS_DEFAULT,
        durability: Durability::default(),
        members: config::members_of(&named, &state_dir)?,
        state_dir,
        unit,
    })
}

fn refuse_members(options: &Options) -> Result<()> {
    if options.members.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        Code::Syntax,
        "mount: members are named in the configuration and in -o members",
    )
    .with_hint("use `none` instead of the configuration, or leave out members="))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_one_word_or_three_lines() {
        let ready = |warnings: &[&str]| Report::Ready {
            warnings: warnings.iter().map(|text| (*text).to_owned()).collect(),
        };
        assert_eq!(Report::of(&b"ready\n"[..]), ready(&[]));
        let warned = &b"warning: one\nwarning: two\nready\n"[..];
        assert_eq!(Report::of(warned), ready(&["one", "two"]));
        let failed = Report::Failed {
            code: Code::ImageLocked,
            sentence: "m1 is locked".into(),
            hint: "end it".into(),
        };
        assert_eq!(
            Report::of(&b"error: image-locked\nm1 is locked\nend it\n"[..]),
            failed
        );
        for silence in [
            &b""[..],
            b"error: nonsense\n",
            b"thread panicked\n",
            b"error:\n",
            b"warning: one\n",
        ] {
            assert_eq!(Report::of(silence), Report::Silence, "{silence:?}");
        }
    }

    #[test]
    fn a_report_survives_a_sentence_of_several_lines() {
        assert_eq!(one_line("m1:\n  not there"), "m1: not there");
    }

    #[test]
    fn members_can_come_from_the_options() {
        let options = mount_options::parse(&["members=/a:/b".into(), "unit=dsa9".into()]).unwrap();
        let setup = setup_of_options(&options).expect("valid");
        assert_eq!((setup.unit.as_str(), setup.label), ("dsa9", None));
        let members: Vec<_> = setup
            .members
            .iter()
            .map(|m| (m.name.as_str(), m.path.to_str()))
            .collect();
        assert_eq!(members, [("m1", Some("/a")), ("m2", Some("/b"))]);
        assert_eq!(
            setup_of_options(&Options::default()).unwrap_err().code(),
            Code::Syntax
        );
        let twice = mount_options::parse(&["members=/a:/a".into()]).unwrap();
        assert!(
            setup_of_options(&twice)
                .unwrap_err()
                .to_string()
                .contains("/a is named twice")
        );
    }
}
