//! Members that fail, by third parties: nbdkit behind nbdfuse for errors of reads, writes and flushes, a full tmpfs for
//! ENOSPC, truncate(1) for an image that is cut short. A program writes and checks all the time. docs/testing.md
//! has the table that these tests fill.

use std::process::Child;

use crate::bed::{MIB, Plan, Thing, Unit, eventually};
use crate::hang::start;

/// Bytes of a unit here, and of the part that the checking program uses.
pub(crate) const SIZE: u64 = 16 * MIB;

/// Writes at random and reads back what it wrote, past the page cache, until `$D/stop` is there. It tells how far it
/// is in `$D/ops`, and leaves in `$D/expected` what the unit must hold. Any error and any wrong byte ends it.
const CHECKER: &str = "
import mmap, os, random, sys
D = os.environ['D']; U = os.environ['U']
SIZE = 8 << 20
rng = random.Random(5)
f = os.open(U, os.O_RDWR | os.O_DIRECT)
buf = mmap.mmap(-1, 1 << 16)
know = bytearray(SIZE)
for at in range(0, SIZE, 1 << 16):
    assert os.preadv(f, [buf], at) == 1 << 16
    know[at:at + (1 << 16)] = buf[:]
ops = 0
while not os.path.exists(D + '/stop'):
    n = 4096 * rng.randint(1, 16)
    at = 4096 * rng.randint(0, (SIZE - n) // 4096)
    part = memoryview(buf)[:n]
    if rng.random() < 0.5:
        part[:] = rng.randbytes(n)
        assert os.pwritev(f, [part], at) == n
        know[at:at + n] = part
    else:
        assert os.preadv(f, [part], at) == n
        if part != know[at:at + n]: sys.exit('wrong bytes at %d' % at)
    if ops % 40 == 0: os.fsync(f)
    ops += 1
    if ops % 20 == 0:
        with open(D + '/ops.new', 'w') as o: o.write(str(ops))
        os.rename(D + '/ops.new', D + '/ops')
with open(D + '/expected', 'wb') as e: e.write(know)
";

/// The program at work.
pub(crate) struct Checker<'a> {
    unit: &'a Unit,
    child: Child,
}

impl<'a> Checker<'a> {
    pub(crate) fn start(unit: &'a Unit) -> Self {
        unit.sh("rm -f $D/stop $D/ops");
        std::fs::write(unit.path("checker.py"), CHECKER).expect("the program");
        let child = start(unit, "exec python3 $D/checker.py 2> $D/checker.err");
        let mut checker = Self { unit, child };
        checker.go_on();
        checker
    }

    fn done(&self) -> u64 {
        let ops = std::fs::read_to_string(self.unit.path("ops"));
        ops.ok().and_then(|ops| ops.parse().ok()).unwrap_or(0)
    }

    /// Waits for some more of its requests.
    pub(crate) fn go_on(&mut self) {
        let before = self.done();
        eventually("the program goes on", || {
            let ended = self.child.try_wait().expect("a child");
            assert!(ended.is_none(), "{ended:?}: {}", self.said());
            self.done() >= before + 100
        });
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.unit.path("checker.err")).unwrap_or_default()
    }

    /// Ends it; the unit holds what it should.
    pub(crate) fn stop(mut self) {
        self.go_on();
        self.unit.sh("touch $D/stop");
        let ended = self.child.wait().expect("ended");
        assert!(ended.success(), "{}", self.said());
        self.unit.sh("cmp -n 8M $D/expected $U");
    }
}

/// What the last member can be made to fail at: behind nbdkit, or for want of room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    Read,
    Write,
    Flush,
    Space,
    /// Its server is stopped: no request is answered.
    Hang,
}

impl Fault {
    /// It fails as long as this file is there.
    fn switch(self) -> &'static str {
        match self {
            Self::Read => "$D/bad-read",
            Self::Write => "$D/bad-write",
            Self::Flush => "$D/bad-flush",
            Self::Space => "$D/nbd/filler",
            Self::Hang => "$D/hangs",
        }
    }

    pub(crate) fn begin(self, unit: &Unit) {
        match self {
            Self::Hang => unit.sh("touch $D/hangs; kill -STOP $(cat $D/nbdkit.pid)"),
            // Then a write to a place that has no room yet.
            Self::Space => unit.sh(
                "! cat /dev/zero 2> $D/full > $D/nbd/filler
                dd if=/dev/urandom of=$U bs=64k seek=14M oflag=seek_bytes,direct count=2 conv=notrunc status=none",
            ),
            fault => unit.sh(&format!("touch {}", fault.switch())),
        };
    }

    pub(crate) fn end(self, unit: &Unit) {
        if self == Self::Hang {
            unit.sh("kill -CONT $(cat $D/nbdkit.pid)");
        }
        unit.sh(&format!("rm {}", self.switch()));
    }

    /// What is said of a member that it has expelled.
    fn reason(self) -> &'static str {
        match self {
            Self::Write => "a write failed: Input/output error",
            Self::Flush => "a flush failed: Input/output error",
            Self::Space => "a write failed: No space left on device",
            Self::Read => "failed",
            Self::Hang => "answer",
        }
    }

    /// How a member that it has expelled comes back: what its medium did with other bytes is not known.
    fn kind(self) -> &'static str {
        match self {
            Self::Space | Self::Hang => "minicopy",
            Self::Read | Self::Write | Self::Flush => "compare-copy",
        }
    }
}

/// Serves `$D/back.img` as a file; its reads and writes fail while the switches are there.
const FAULTY: &str = "exec nbdfuse $D/nbd/image --command nbdkit -s -P $D/nbdkit.pid --filter=error file $D/back.img \
    error-pread=EIO error-pread-rate=100% error-pread-file=$D/bad-read \
    error-pwrite=EIO error-pwrite-rate=100% error-pwrite-file=$D/bad-write";

/// As [`FAULTY`], for flushes, which the filter leaves alone: a program for each request.
const FAULTY_FLUSH: &str = "exec nbdfuse $D/nbd/image --command nbdkit -s eval \
    get_size='stat -c %s $D/back.img' can_write='exit 0' can_flush='exit 0' \
    pread='dd if=$D/back.img iflag=skip_bytes,count_bytes skip=$4 count=$3 status=none' \
    pwrite='dd of=$D/back.img oflag=seek_bytes conv=notrunc seek=$4 status=none' \
    flush='if [ -e $D/bad-flush ]; then echo EIO flush >&2; exit 1; fi'";

/// A unit whose last member is such a file, or is on a small tmpfs.
pub(crate) fn unit(members: usize, fault: Fault) -> (Unit, String) {
    let mut unit = Plan::new(members, SIZE).direct().create();
    let last = format!("m{members}");
    unit.sh(&format!(
        "mkdir $D/nbd; mv $I/{last}.img $D/back.img; ln -s $D/nbd/image $I/{last}.img"
    ));
    match fault {
        Fault::Flush => serve(&unit, FAULTY_FLUSH),
        Fault::Read | Fault::Write | Fault::Hang => serve(&unit, FAULTY),
        Fault::Space => {
            unit.mount_device("none", "nbd", "-t tmpfs -o size=15M");
            unit.sh("cp --sparse=always $D/back.img $D/nbd/image");
        }
    }
    unit.mount();
    // Programs read it, not another one.
    unit.accepted(&format!("set {last}.read_cost 1"));
    unit.accepted(&format!("set {last}.timeout 3"));
    (unit, last)
}

/// Has nbdkit serve the image.
pub(crate) fn serve(unit: &Unit, served: &str) {
    let mut command = unit.prepared("bash");
    command.args(["-c", &format!("{served} 2> $D/nbd.err")]);
    // It ends when its mount is taken away.
    let mut server = command.spawn().expect("bash starts");
    unit.keep(Thing::Mount(unit.path("nbd")));
    eventually("nbdkit serves the image", || {
        let ended = server.try_wait().expect("a child");
        assert!(ended.is_none(), "nbdfuse: {ended:?}");
        unit.try_sh(&format!("[ $(stat -c %s $D/nbd/image) = {SIZE} ]"))
            .code
            == 0
    });
}

pub(crate) fn errors(unit: &Unit, member: &str) -> u64 {
    let text = unit.read(&format!("members/{member}/errors"));
    text.trim().parse().expect("a number")
}

/// Waits until a fault has shown: what cannot be read is answered by others, and the member leaves when it does not
/// give back what it is given anew; what cannot be written or flushed must be missed by nobody.
fn has_shown(unit: &Unit, fault: Fault, member: &str) {
    if fault == Fault::Read {
        eventually("a read fails", || errors(unit, member) > 0);
    }
    eventually("it is expelled", || unit.state_of(member) == "expelled");
    eventually("its bitmap has bits", || {
        unit.bitmap(member, "set_bits") > 0
    });
}

/// Brings the member back and waits for it.
pub(crate) fn bring_back(unit: &Unit, member: &str, kind: &str) {
    let attach = format!("attach {member}");
    let mut answer = Err(());
    eventually("it has answered what it was asked", || {
        answer = unit.command(attach.as_bytes()).map_err(|refused| {
            assert_eq!(refused.errno, libc::EBUSY, "{refused:?}");
        });
        answer.is_ok()
    });
    let answer = answer.expect("it is back");
    let why = || unit.read(&format!("members/{member}/reason"));
    assert_eq!(answer.text("kind"), kind, "{}: {}", answer.0, why());
    unit.finished(answer.number("operation"));
}

/// The unit is stopped, its members are equal and hold what was written.
pub(crate) fn end(mut unit: Unit) {
    assert_eq!(unit.read("state"), "steady\n");
    unit.stop_and_compare();
    unit.sh("cmp -n 8M $D/expected $I/m1.img");
}

/// In steady state, with another source left.
fn in_steady_state(fault: Fault) {
    for members in [2, 3] {
        let (unit, bad) = unit(members, fault);
        let mut checker = Checker::start(&unit);
        fault.begin(&unit);
        has_shown(&unit, fault, &bad);
        let reason = unit.read(&format!("members/{bad}/reason"));
        assert!(reason.contains(fault.reason()), "{reason}");
        checker.go_on();
        fault.end(&unit);
        bring_back(&unit, &bad, fault.kind());
        checker.stop();
        end(unit);
    }
}

#[test]
fn a_member_that_cannot_be_read_leaves_and_comes_back() {
    in_steady_state(Fault::Read);
}

#[test]
fn a_member_that_cannot_be_written_leaves_and_comes_back() {
    in_steady_state(Fault::Write);
}

#[test]
fn a_member_that_cannot_be_flushed_leaves_and_comes_back() {
    in_steady_state(Fault::Flush);
}

#[test]
fn a_member_that_does_not_answer_leaves_and_comes_back() {
    in_steady_state(Fault::Hang);
}

#[test]
fn a_member_that_does_not_answer_disturbs_no_copy_of_another() {
    meanwhile(Fault::Hang);
}

/// The system tells of lost writes once: when a flush of the server's own heard of it, the next `fsync` of the program once
/// succeeded.
#[test]
fn a_flush_that_failed_unasked_fails_the_next_one_of_the_program() {
    let (mut unit, _) = unit(1, Fault::Flush);
    let write = "dd if=/dev/zero of=$U bs=64k count=1 conv=notrunc,fsync status=none";
    unit.sh(write);
    Fault::Flush.begin(&unit);
    let refused = unit.command(b"stall 1");
    assert!(refused.is_err(), "{refused:?}");
    Fault::Flush.end(&unit);
    let ran = unit.try_sh(write);
    assert!(
        ran.code == 1 && ran.err.contains("Input/output error"),
        "{ran:?}"
    );
    unit.sh(write);
    unit.stop();
}

/// What a flush has lost was read from the cache, and copied, until it was evicted. The image is on a file system without
/// a journal, which goes on behind a flush that fails.
#[test]
fn what_a_flush_has_lost_is_in_no_cache() {
    let mut unit = Plan::new(1, SIZE / 2).create();
    unit.sh(&format!("mkdir $D/nbd; truncate -s {SIZE} $D/back.img"));
    serve(&unit, FAULTY_FLUSH);
    let device = unit.sh("losetup -f --show $D/nbd/image");
    unit.keep(Thing::Loop(device.clone()));
    unit.sh(&format!("mkfs.ext4 -q -O ^has_journal {device}"));
    unit.mount_device(&device, "ext4", "");
    unit.sh("mv $I/m1.img $D/ext4; ln -s $D/ext4/m1.img $I/m1.img");
    unit.mount();
    let write = "dd if=/dev/urandom of=$U bs=64k count=16 conv=notrunc,fsync status=none";
    unit.sh(write);
    let cached = || unit.sh("fincore --bytes --noheadings --output RES $D/ext4/m1.img");
    assert_ne!(cached().trim(), "0");
    Fault::Flush.begin(&unit);
    assert_eq!(unit.try_sh(write).code, 1, "it fails");
    assert_eq!(cached().trim(), "0");
    Fault::Flush.end(&unit);
    unit.sh(&format!("{write} || {write}"));
    unit.stop();
}

/// Several programs that have the unit open, one of them only to read. The first one flushes while that fails.
const TOLD: &str = "
import errno, os
D, U = os.environ['D'], os.environ['U']
def is_told(file):
    try: os.fsync(file)
    except OSError as error: return error.errno == errno.EIO
    return False
first, second, reader = os.open(U, os.O_RDWR), os.open(U, os.O_RDWR), os.open(U, os.O_RDONLY)
os.pwrite(first, b'x' * 4096, 0)
open(D + '/bad-flush', 'w').close()
assert is_told(first), 'the flush has not failed'
os.unlink(D + '/bad-flush')
assert is_told(second) and is_told(reader), 'not everybody is told'
later = os.open(U, os.O_RDWR)
assert not any([is_told(file) for file in (first, second, reader, later)]), 'somebody is told twice'
";

/// Only who had asked for the flush that failed was told once: a loop device beside a program was not.
#[test]
fn every_open_file_is_told_once_that_writes_are_lost() {
    let (mut unit, _) = unit(1, Fault::Flush);
    // No flush of the server's own meanwhile.
    unit.accepted("set hbmm_rtc 65535");
    std::fs::write(unit.path("told.py"), TOLD).expect("the program");
    unit.sh("python3 $D/told.py");
    unit.stop();
}

#[test]
fn with_one_member_the_program_gets_the_error_and_nobody_leaves() {
    for fault in [Fault::Read, Fault::Write, Fault::Flush] {
        let (mut unit, bad) = unit(1, fault);
        unit.sh("head -c 8M /dev/urandom > $D/expected
            dd if=$D/expected of=$U bs=1M conv=notrunc,fsync status=none");
        let request = match fault {
            Fault::Read => "dd if=$U of=$D/read bs=64k count=1 iflag=direct status=none",
            Fault::Write => {
                "dd if=$D/expected of=$U bs=64k count=1 conv=notrunc oflag=direct status=none"
            }
            Fault::Flush | Fault::Space | Fault::Hang => {
                "dd if=$D/expected of=$U bs=64k count=1 conv=notrunc,fsync status=none"
            }
        };
        unit.sh(request);
        fault.begin(&unit);
        let ran = unit.try_sh(request);
        let failed = ran.code == 1 && ran.err.contains("Input/output error");
        assert!(failed, "{fault:?}: {ran:?}");
        assert_eq!(unit.state_of(&bad), "source", "{fault:?}");
        fault.end(&unit);
        // A flush of the server's own may have failed since, of which the next request is told.
        let _ = unit.try_sh(request);
        unit.sh(request);
        unit.sh("cmp -n 8M $D/expected $U");
        unit.stop();
        unit.sh("cmp -n 8M $D/expected $I/m1.img");
    }
}

/// What m2 of three members is doing when the third one fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Meanwhile {
    Detach,
    Minicopy,
    FullCopy,
    Merge,
}

impl Meanwhile {
    const ALL: [Self; 4] = [Self::Detach, Self::Minicopy, Self::FullCopy, Self::Merge];

    /// Begins it; a copy is under way when this returns, and held so that it stays.
    fn begin(self, unit: &Unit) -> Option<u64> {
        let command = match self {
            Self::Detach => return None,
            Self::Minicopy => "attach m2 policy=minicopy",
            Self::FullCopy => "attach m2 policy=full",
            Self::Merge => "merge full",
        };
        if self != Self::Merge {
            unit.detach("m2");
            unit.sh("dd if=/dev/urandom of=$U bs=1M seek=8 count=4 conv=notrunc status=none");
        }
        unit.accepted("set copy_rate_max 2M");
        let answer = unit.accepted(command);
        let first = |key| answer.text(key).split(' ').next().map(str::to_owned);
        let op = match self {
            Self::Merge => first("operations"),
            _ => first("operation"),
        };
        let op: u64 = op.and_then(|op| op.parse().ok()).expect("a number");
        let progress = || unit.read(&format!("operations/{op}/progress"));
        eventually("it has begun", || !progress().starts_with("done_bytes 0\n"));
        Some(op)
    }

    /// Has it end.
    fn end(self, unit: &Unit, op: Option<u64>) {
        let Some(op) = op else {
            unit.detach("m2");
            unit.minicopy("m2");
            return;
        };
        unit.accepted("set copy_rate_max max");
        unit.finished(op);
    }
}

fn meanwhile(fault: Fault) {
    for what in Meanwhile::ALL {
        let (unit, bad) = unit(3, fault);
        let mut checker = Checker::start(&unit);
        let op = what.begin(&unit);
        fault.begin(&unit);
        if what == Meanwhile::Detach {
            // The departure and the fault meet: whichever is first, the other is carried out.
            unit.detach("m2");
        }
        has_shown(&unit, fault, &bad);
        checker.go_on();
        if what == Meanwhile::Detach {
            unit.minicopy("m2");
        } else {
            what.end(&unit, op);
        }
        assert_eq!(unit.state_of("m2"), "source", "{what:?}");
        fault.end(&unit);
        bring_back(&unit, &bad, fault.kind());
        checker.stop();
        eventually("all rests", || unit.read("state") == "steady\n");
        end(unit);
    }
}

#[test]
fn a_member_that_cannot_be_read_disturbs_no_copy_of_another() {
    meanwhile(Fault::Read);
}

#[test]
fn a_member_that_cannot_be_written_disturbs_no_copy_of_another() {
    meanwhile(Fault::Write);
}

#[test]
fn a_copy_target_that_cannot_be_written_is_expelled_and_comes_back() {
    for policy in ["minicopy", "full", "compare"] {
        let (unit, bad) = unit(2, Fault::Write);
        let mut checker = Checker::start(&unit);
        unit.detach(&bad);
        checker.go_on();
        // Held, so that none is over before it fails: without a program that asks, the first steps are large.
        unit.accepted("set max_copies 0");
        let answer = unit.accepted(&format!("attach {bad} policy={policy}"));
        Fault::Write.begin(&unit);
        unit.accepted("set max_copies 4");
        let op = answer.number("operation");
        eventually("the copy has failed", || {
            unit.read(&format!("operations/{op}/state")) == "failed\n"
        });
        assert_eq!(unit.state_of(&bad), "expelled", "{policy}");
        checker.go_on();
        Fault::Write.end(&unit);
        bring_back(&unit, &bad, "compare-copy");
        checker.stop();
        end(unit);
    }
}

#[test]
fn a_member_that_cannot_be_flushed_disturbs_no_copy_of_another() {
    meanwhile(Fault::Flush);
}

#[test]
fn a_member_without_room_disturbs_no_copy_of_another() {
    meanwhile(Fault::Space);
}
