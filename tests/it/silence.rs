//! Control blocks on a file system that does not answer: no command waits for one without an end.
//!
//! In the place of a block stands a pipe that nobody writes: who opens it to read waits as on a server that is gone.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use shadowset::server::Request;
use shadowset::server::setup::{Durability, Protect};
use shadowset::set::{Code, Policy};

use crate::bed::Bed;

const REGION: u64 = 65_024;
/// Longer than all that a command may wait for, one after the other.
const SOON: Duration = Duration::from_secs(30);

/// A block that does not answer, until this is dropped.
struct Silent(PathBuf);

impl Silent {
    fn new(scb: &Path) -> Self {
        std::fs::rename(scb, scb.with_extension("away")).expect("carried away");
        let made = Command::new("mkfifo").arg(scb).status().expect("coreutils");
        assert!(made.success());
        Self(scb.to_owned())
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        // Who waits goes on when it has a writer, and finds that it is no file.
        let mut both = File::options();
        drop(both.read(true).write(true).open(&self.0).expect("a pipe"));
        std::fs::rename(self.0.with_extension("away"), &self.0).expect("brought back");
    }
}

/// Gives a command that has to be answered, whatever the answer.
fn answered(bed: &Bed, request: Request) {
    let (sender, answer) = mpsc::channel();
    let told = move |outcome| drop(sender.send(outcome));
    bed.handle().submit(request, Box::new(told));
    let answer = answer.recv_timeout(SOON);
    println!("{:?}", answer.expect("answered in time"));
}

/// A release read and removed the block on the control thread, and a stamp looked whose it is: on a server that was
/// gone no command was answered any more.
#[test]
fn a_control_block_that_does_not_answer_holds_up_no_command() {
    let mut bed = Bed::durable(3, REGION * 4, Durability::Power);
    let silent = Silent::new(&bed.setup.members[2].scb);
    let (member, policy) = ("m3".to_owned(), Some(Policy::Minicopy));
    answered(&bed, Request::Detach { member, policy });
    let member = "m3".to_owned();
    answered(&bed, Request::Release { member });
    bed.detach("m2", Policy::Minicopy).expect("others go on");
    drop(silent);
    bed.stop();
}

/// What an image looked like was read from its block on the control thread when somebody opened it.
#[test]
fn an_opener_of_an_image_holds_up_no_command_while_its_block_does_not_answer() {
    let mut bed = Bed::durable(3, REGION * 4, Durability::Power);
    bed.stop();
    bed.setup.members[1].protect = Protect::Lease;
    bed.start();
    bed.detach("m2", Policy::Minicopy).expect("detached");
    // From now on only its block has its stamp.
    bed.stop();
    bed.start();
    let silent = Silent::new(&bed.setup.members[1].scb);
    let path = bed.path(1).to_owned();
    let opener = std::thread::spawn(move || File::options().write(true).open(path));
    // Its opener waits as long as the lease is held, and the system lets it go on after 45 seconds.
    let opened = opener.join().expect("no panic");
    opened.expect("opened");
    let member = "m3".to_owned();
    answered(&bed, Request::Release { member });
    drop(silent);
    bed.stop();
}

/// A member that was expelled for being slow is tried for a while. Its image was written when it had been attached
/// and detached meanwhile, by the attach that came of the try (I5).
#[test]
fn who_was_detached_meanwhile_does_not_come_back_by_itself() {
    let mut bed = Bed::durable(2, REGION * 4, Durability::Power);
    bed.detach("m2", Policy::Minicopy).expect("detached");
    let member = "m2".to_owned();
    let refused = bed.command(Request::Return { member });
    assert_eq!(refused.expect_err("it stays").code, Code::StateChanged);
    let state = bed.handle().state();
    assert_eq!(state.member("m2").expect("known").state, "detached");
    bed.stop();
}
