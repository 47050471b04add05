//! `demo`: the whole story of a shadow set on temporary images, with the numbers of this machine.
//!
//! It does what an operator would do, by the same verbs, on images in a directory of its own and with
//! a runtime directory of its own. Whatever ends it, an error and a signal too, it takes down what it
//! has set up, and says what it could not. It must never touch a unit, a device or a file that it has
//! not made itself.

mod compare;
mod measure;
mod pieces;
mod shell;
mod site;
mod story;
mod tell;
mod writer;

use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;

use clap::Args as ClapArgs;
use serde_json::json;

use self::pieces::Layout;
use self::shell::Shell;
use self::site::{Site, Undo};
use self::tell::Tell;
use super::output::Out;
use super::size::{human, parse_size};
use super::system;
use crate::error::{Error, Result};
use crate::io::sys;
use crate::set::Code;
use crate::set::geometry::Bytes;

/// `demo`.
#[derive(ClapArgs, Debug)]
pub(super) struct DemoArgs {
    /// Size of the virtual unit; the images are sparse.
    #[arg(long, value_parser = parse_size, default_value = "1G")]
    size: Bytes,
    /// Directory for the images; the system's one for temporary files unless given.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Leave the images where they are.
    #[arg(long)]
    keep: bool,
}

/// Smallest unit that leaves room for a file system and its journal.
const SIZE_MIN: u64 = 64 << 20;
/// Images that can be full at once.
const IMAGES: u64 = 3;

/// One run of the demonstration.
struct Demo {
    site: Site,
    shell: Shell,
    tell: Tell,
    layout: Layout,
    size: u64,
}

/// `demo`.
pub(super) fn run(args: &DemoArgs, out: Out) -> Result<u8> {
    may_run()?;
    let size = args.size.0;
    if size < SIZE_MIN || size % 512 != 0 {
        let says = format!("demo: --size {size} is not a multiple of 512 of at least {SIZE_MIN}");
        return Err(Error::new(Code::OutOfRange, says).with_hint("leave it out for 1G"));
    }
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    has_room(&parent, size)?;
    // Signals are collected before anything is there that they could leave behind.
    let shell = Shell::new()?;
    let site = Site::new(&parent)?;
    let mut demo = Demo {
        shell: shell.at(&site),
        tell: Tell::new(out),
        layout: Layout::of(size),
        site,
        size,
    };
    if !args.keep {
        demo.site.undo.push(Undo::Directory);
    }
    demo.play(args.keep, out)?;
    Ok(0)
}

impl Demo {
    fn play(&mut self, keep: bool, out: Out) -> Result<()> {
        self.tell.begin(&self.site, self.size)?;
        let story = self.story()?;
        let table = self.measure()?;
        self.tell.table(&table)?;
        let left = self.take_down();
        if keep {
            let dir = self.site.dir.display().to_string();
            self.tell.line(&format!("The images are left in {dir}"))?;
        }
        if let Some(says) = left.first() {
            return Err(Error::new(Code::InUse, format!("demo: {says}")));
        }
        if !out.json {
            return Ok(());
        }
        let images = keep.then(|| self.site.dir.display().to_string());
        out.value(&json!({
            "ok": true, "size": self.size, "images": images, "story": story,
            "full_copy": table.full_value(), "minicopy": table.lines_value(),
        }))
    }

    /// Undoes what is still to undo, newest first; what could not be, in words.
    fn take_down(&mut self) -> Vec<String> {
        let mut left = Vec::new();
        while let Some(undo) = self.site.undo.pop() {
            if let Err(error) = self.site.take_down(&undo, &self.shell) {
                left.push(format!("{undo} is left: {error}"));
            }
        }
        left
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        for says in self.take_down() {
            eprintln!("shadowset: demo: {says}");
        }
    }
}

/// What the demonstration cannot do without.
fn may_run() -> Result<()> {
    if !system::is_root() {
        return Err(Error::new(
            Code::NotPermitted,
            "demo: only root may mount file systems and set up loop devices",
        )
        .with_hint("run it as root: sudo shadowset demo"));
    }
    let fuse = File::options().read(true).write(true).open("/dev/fuse");
    fuse.map(drop).map_err(|cause| {
        Error::new(Code::NotSupported, "demo: /dev/fuse cannot be opened")
            .caused_by(cause)
            .with_hint("load the kernel module fuse; a container needs --device /dev/fuse")
    })
}

fn has_room(parent: &std::path::Path, size: u64) -> Result<()> {
    let failed = |cause| Error::io(format!("demo: cannot use {}", parent.display()), cause);
    let free = File::open(parent)
        .and_then(|dir| sys::free_bytes(dir.as_fd()))
        .map_err(failed)?;
    let needed = size.saturating_mul(IMAGES);
    if free >= needed {
        return Ok(());
    }
    let says = format!(
        "demo: {} has {} free, {} are needed",
        parent.display(),
        human(free),
        human(needed)
    );
    Err(Error::new(Code::BitmapNoSpace, says)
        .with_hint("--dir names another directory, --size a smaller unit"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_without_room_is_refused_before_anything_is_made() {
        let dir = tempfile::tempdir().expect("temporary directory");
        has_room(dir.path(), 1 << 20).expect("three MiB");
        let error = has_room(dir.path(), u64::MAX).expect_err("more than there is");
        assert!(error.to_string().contains("are needed"), "{error}");
        assert!(error.hint().contains("--dir"));
        let error = has_room(&dir.path().join("none"), 1).expect_err("no directory");
        assert_eq!(error.exit_code(), 3);
        assert_eq!(dir.path().read_dir().expect("list").count(), 0);
    }
}
