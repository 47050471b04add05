//! A unit on temporary images, driven through its handle.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use shadowset::server::params::Param;
use shadowset::server::setup::{
    Durability, IoMode, MemberSetup, Mounting, Protect, Setup, default_scb,
};
use shadowset::server::{Handle, Request, Running, create, start};
use shadowset::set::{Answer, AttachPolicy, Bytes, OpState, Policy, Refusal};

/// A running unit in a temporary directory.
pub(crate) struct Bed {
    pub(crate) setup: Setup,
    running: Option<Running>,
    _dir: tempfile::TempDir,
}

impl Bed {
    /// A new unit of `size` bytes with `members` members, started.
    pub(crate) fn new(members: usize, size: u64) -> Self {
        Self::durable(members, size, Durability::Memory)
    }

    /// As [`Self::new`], with bitmaps that are kept.
    pub(crate) fn durable(members: usize, size: u64, durability: Durability) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let setup = Setup {
            durability,
            ..setup(dir.path(), members)
        };
        create::create(&setup, None, Some(Bytes(size)), false).expect("created");
        let running = Some(start(&setup, &Mounting::default()).expect("started"));
        Self {
            setup,
            running,
            _dir: dir,
        }
    }

    pub(crate) fn handle(&self) -> Handle {
        self.running.as_ref().expect("running").handle()
    }

    pub(crate) fn stop(&mut self) {
        self.running
            .take()
            .expect("running")
            .stop()
            .expect("stopped in order");
    }

    /// A stop that may fail.
    pub(crate) fn try_stop(&mut self) -> Result<(), shadowset::error::Error> {
        self.running.take().expect("running").stop()
    }

    pub(crate) fn start(&mut self) {
        self.running = Some(start(&self.setup, &Mounting::default()).expect("started"));
    }

    /// Starts with a value of a parameter.
    pub(crate) fn start_with(&mut self, param: Param, value: u64) {
        let mut mounting = Mounting::default();
        mounting.params.set(param, value);
        self.running = Some(start(&self.setup, &mounting).expect("started"));
    }

    /// Gives an image these contents behind the set's back. It is never shorter meanwhile: a flush would find it cut.
    pub(crate) fn overwrite(&self, member: usize, contents: &[u8]) {
        let mut image = std::fs::File::options();
        let image = image.write(true).open(self.path(member));
        let written = image.and_then(|image| image.write_all_at(contents, 0));
        written.expect("overwritten");
    }

    pub(crate) fn path(&self, member: usize) -> &Path {
        &self.setup.members[member].path
    }

    pub(crate) fn image(&self, member: usize) -> Vec<u8> {
        std::fs::read(self.path(member)).expect("an image")
    }

    /// Gives a command and waits for its answer.
    pub(crate) fn command(&self, request: Request) -> Result<Answer, Refusal> {
        command(&self.handle(), request)
    }

    pub(crate) fn detach(&self, member: &str, policy: Policy) -> Result<Answer, Refusal> {
        let (member, policy) = (member.to_owned(), Some(policy));
        self.command(Request::Detach { member, policy })
    }

    pub(crate) fn attach(&self, what: &str, policy: AttachPolicy) -> Result<Answer, Refusal> {
        self.command(attach(what, policy))
    }

    /// Waits until no operation is left and gives the bytes that the last one copied.
    pub(crate) fn wait(&self) -> u64 {
        wait(&self.handle())
    }
}

pub(crate) fn attach(what: &str, policy: AttachPolicy) -> Request {
    Request::Attach {
        what: what.to_owned(),
        name: None,
        policy,
        source: None,
        confirm: false,
    }
}

pub(crate) fn command(handle: &Handle, request: Request) -> Result<Answer, Refusal> {
    let (sender, answer) = mpsc::channel();
    handle.submit(
        request,
        Box::new(move |outcome| sender.send(outcome).expect("somebody waits")),
    );
    answer.recv().expect("every command is answered")
}

pub(crate) fn wait(handle: &Handle) -> u64 {
    let (sender, changes) = mpsc::channel();
    handle.on_change(Box::new(move || {
        let _ = sender.send(());
    }));
    loop {
        let state = handle.state();
        if state.set.operations.iter().all(|o| o.state.is_over()) {
            let last = state.set.operations.last();
            assert!(last.is_none_or(|o| o.state == OpState::Done), "{last:?}");
            return last.map_or(0, |o| o.progress.copied_bytes());
        }
        changes.recv().expect("the unit lives");
    }
}

pub(crate) fn setup(dir: &Path, members: usize) -> Setup {
    let member = |n: usize| {
        let path: PathBuf = dir.join(format!("m{}.img", n + 1));
        let name = format!("m{}", n + 1);
        let scb = default_scb(&name, &path, dir);
        MemberSetup {
            name,
            path,
            scb,
            read_cost: 0,
            site: 0,
            timeout: 0,
            io: IoMode::Buffered,
            protect: Protect::None,
        }
    };
    Setup {
        unit: "dsa1".into(),
        label: Some("test".into()),
        region_blocks: 127,
        durability: Durability::Memory,
        state_dir: dir.to_owned(),
        members: (0..members).map(member).collect(),
    }
}
