//! A log that nobody reads: a pipe as standard error of a server in the foreground.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStderr, Stdio};

use crate::bed::{MIB, Plan, Thing, Unit, eventually};
use crate::hang::start_for;

/// Commands that are logged: more than a pipe and what is kept in memory can hold.
const COMMANDS: usize = 4000;

/// A server in the foreground whose log comes to nobody.
struct Unread<'a> {
    unit: &'a Unit,
    server: Child,
    log: ChildStderr,
}

impl<'a> Unread<'a> {
    fn start(unit: &'a Unit) -> Self {
        let mut command = unit.prepared("shadowset");
        command.args(["mount", "--foreground", "dsa1"]);
        command.arg(unit.path("mnt"));
        unit.keep(Thing::Mount(unit.path("mnt")));
        let started = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn();
        let mut server = started.expect("it starts");
        let log = server.stderr.take().expect("a pipe");
        eventually("it is mounted", || unit.path("mnt/.shadow/state").exists());
        Self { unit, server, log }
    }

    /// Gives commands until the log holds no more; each is answered.
    fn fill(&self) {
        let script = format!(
            "for ((n = 0; n < {COMMANDS}; n++)); do echo set member_timeout $((20 + n % 2)) > $C; done"
        );
        let mut commands = start_for(self.unit, 300, &script);
        let ended = commands.wait().expect("a child");
        assert!(ended.success(), "all are answered: {ended}");
    }

    fn ask_to_end(&self) {
        self.unit.sh(&format!("kill -TERM {}", self.server.id()));
    }

    fn ends(&mut self) {
        let (unit, pid) = (self.unit, self.server.id());
        eventually("it ends", || {
            self.server.try_wait().expect("a child").is_some()
        });
        assert!(self.server.wait().expect("ended").success(), "{pid}");
        unit.forget_thing(&Thing::Mount(unit.path("mnt")));
    }
}

/// A unit whose m2 has room for no more than a mebibyte.
fn with_little_room() -> Unit {
    let unit = Plan::new(2, 16 * MIB).create();
    unit.mount_device("tmpfs", "small", "-t tmpfs -o size=1M");
    unit.sh("cp --sparse=always $I/m2.img $D/small; ln -sf $D/small/m2.img $I/m2.img");
    unit
}

#[test]
fn a_log_that_is_not_read_holds_up_nothing_and_says_what_it_lacks() {
    let unit = with_little_room();
    let mut service = Unread::start(&unit);
    service.fill();
    unit.sh("dd if=/dev/urandom of=$U bs=64k count=64 oflag=direct conv=notrunc status=none");
    assert_eq!(unit.state_of("m2"), "expelled");
    let (mut seen, mut lost) = (0, 0);
    for line in BufReader::new(&mut service.log).lines() {
        let line = line.expect("UTF-8");
        match line.strip_suffix(" lines were not written") {
            None => seen += usize::from(line.contains("parameter-set")),
            Some(begin) => {
                let count = begin.rsplit(' ').next().expect("a word");
                lost = count.parse().expect("a number");
                break;
            }
        }
    }
    assert!(lost > 0 && seen + lost >= COMMANDS, "{seen} and {lost}");
    service.ask_to_end();
    service.ends();
}

#[test]
fn a_log_that_is_not_read_does_not_hold_up_the_end() {
    let unit = Plan::new(2, 16 * MIB).create();
    let mut service = Unread::start(&unit);
    service.fill();
    service.ask_to_end();
    service.ends();
    unit.assert_equal();
}
