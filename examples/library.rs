//! A shadow set without a mount: a program writes to the unit, one image leaves and comes back.
//!
//! ```sh
//! cargo run --example library
//! ```
//!
//! Needs no privilege. The library is the program's own; before 1.0 its functions may change.

use std::error::Error;
use std::path::Path;
use std::sync::mpsc;

use shadowset::server::setup::{
    Durability, IoMode, MemberSetup, Mounting, Protect, Setup, default_scb,
};
use shadowset::server::{Errno, Handle, Request, create, start};
use shadowset::set::{Answer, AttachPolicy, Bytes, Policy};

const SIZE: u64 = 16 << 20;

// The tests call the story by itself.
#[allow(dead_code, reason = "the program begins here")]
fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::temp_dir().join(format!("shadowset-library-{}", std::process::id()));
    std::fs::create_dir(&dir)?;
    let told = story(&dir);
    std::fs::remove_dir_all(&dir)?;
    println!("{}", told?);
    Ok(())
}

/// Makes a set of two images in a directory, and gives what the return of the second one has told.
pub(crate) fn story(dir: &Path) -> Result<String, Box<dyn Error>> {
    let setup = Setup {
        unit: "dsa1".to_owned(),
        label: None,
        region_blocks: 127,
        durability: Durability::Power,
        state_dir: dir.to_owned(),
        members: vec![member(dir, "m1"), member(dir, "m2")],
    };
    create::create(&setup, None, Some(Bytes(SIZE)), false)?;
    let running = start(&setup, &Mounting::default())?;
    let handle = running.handle();
    let unit = handle.pipeline();
    unit.write(0, &[1; 4096]).map_err(of_system)?;

    // From here on m2 is quiet, and its image may be read by anybody.
    let (member, policy) = ("m2".to_owned(), Some(Policy::Minicopy));
    command(&handle, Request::Detach { member, policy })?;
    unit.write(8 << 20, b"written while m2 is away")
        .map_err(of_system)?;
    unit.flush().map_err(of_system)?;

    let answer = command(
        &handle,
        Request::Attach {
            what: "m2".to_owned(),
            name: None,
            policy: AttachPolicy::Minicopy,
            confirm: false,
            source: None,
        },
    )?;
    wait(&handle)?;
    running.stop()?;
    match std::fs::read(dir.join("m1.img"))? == std::fs::read(dir.join("m2.img"))? {
        true => Ok(answer.text),
        false => Err("the images differ".into()),
    }
}

fn of_system(errno: Errno) -> std::io::Error {
    std::io::Error::from_raw_os_error(errno.0)
}

fn member(dir: &Path, name: &str) -> MemberSetup {
    let path = dir.join(format!("{name}.img"));
    MemberSetup {
        name: name.to_owned(),
        scb: default_scb(name, &path, dir),
        path,
        read_cost: 2,
        site: 0,
        timeout: 0,
        io: IoMode::Buffered,
        protect: Protect::None,
    }
}

/// Gives a command and waits for its answer.
fn command(handle: &Handle, request: Request) -> Result<Answer, Box<dyn Error>> {
    let (sender, answer) = mpsc::channel();
    let done = move |outcome| {
        // Nobody waits any more when the program gives up first.
        let _ = sender.send(outcome);
    };
    handle.submit(request, Box::new(done));
    Ok(answer.recv()??)
}

/// Waits until no copy runs.
fn wait(handle: &Handle) -> Result<(), Box<dyn Error>> {
    let (sender, changes) = mpsc::channel();
    handle.on_change(Box::new(move || {
        let _ = sender.send(());
    }));
    while !handle
        .state()
        .set
        .operations
        .iter()
        .all(|op| op.state.is_over())
    {
        changes.recv()?;
    }
    Ok(())
}
