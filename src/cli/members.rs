//! The names of members that a mount gives by their paths alone: those that the set itself has for them.

use std::fs;
use std::path::{Path, PathBuf};

use crate::io::scb_file::{self, ScbFound};
use crate::server::setup::default_scb;
use crate::set::Scb;

/// Names the members: as an image's own control block says, else as a block of another member says of its path. An image
/// of which nothing is known gets a name that nobody in the set has.
pub(super) fn named(paths: &[PathBuf], state_dir: &Path) -> Vec<(String, PathBuf)> {
    let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
    let paths: Vec<_> = paths.iter().map(absolute).collect();
    let own: Vec<_> = paths.iter().map(|path| beside(path, state_dir)).collect();
    let beside = own.iter().flatten().cloned();
    let blocks: Vec<_> = beside.chain(of_devices(state_dir)).collect();
    let rows: Vec<_> = blocks.iter().flat_map(|block| &block.table).collect();
    let mut names: Vec<String> = Vec::new();
    for (path, own) in paths.iter().zip(own) {
        let row = || rows.iter().find(|row| row.path == *path);
        let said = own.map(|block| block.name);
        let said = said.or_else(|| row().map(|row| row.name.clone()));
        let by_number = || {
            let all = (1..).map(|n| format!("m{n}"));
            all.filter(|name| !rows.iter().any(|row| row.name == *name))
                .find(|name| !names.contains(name))
        };
        // Two that say the same are no members of one set: the server says what they are.
        let name = said.filter(|name| !names.contains(name)).or_else(by_number);
        names.push(name.unwrap_or_default());
    }
    names.into_iter().zip(paths).collect()
}

/// The block beside an image file.
fn beside(path: &Path, state_dir: &Path) -> Option<Scb> {
    let scb = default_scb("", path, state_dir);
    // That of a device is called by the name that is looked for.
    scb.parent().filter(|dir| *dir != state_dir)?;
    block(&scb)
}

/// The blocks in the state directory: those of block devices.
fn of_devices(state_dir: &Path) -> Vec<Scb> {
    let files = fs::read_dir(state_dir).into_iter().flatten().flatten();
    let files = files.map(|file| file.path());
    let files = files.filter(|path| path.extension().is_some_and(|ending| ending == "scb"));
    files.filter_map(|path| block(&path)).collect()
}

/// What cannot be read is refused by the server, with the reason.
fn block(path: &Path) -> Option<Scb> {
    match scb_file::read(path) {
        Ok(ScbFound::Read(scb)) => Some(scb),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::config;
    use crate::server::create;
    use crate::server::setup::Setup;
    use crate::set::Bytes;

    #[test]
    fn members_given_by_path_have_the_names_that_the_set_has() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name);
        let pairs = [("m1", "a"), ("m2", "b"), ("m3", "c")];
        let pairs = pairs.map(|(name, file)| (name.to_owned(), path(file)));
        let state_dir = path("state");
        let setup = Setup {
            unit: "dsa1".to_owned(),
            label: None,
            region_blocks: 127,
            durability: crate::server::setup::Durability::default(),
            members: config::members_of(&pairs, &state_dir).expect("valid"),
            state_dir: state_dir.clone(),
        };
        create::create(&setup, None, Some(Bytes(1 << 20)), false).expect("made");
        let names = |files: &[&str]| -> Vec<String> {
            let paths: Vec<_> = files.iter().map(|file| path(file)).collect();
            let named = named(&paths, &state_dir).into_iter();
            named.map(|(name, _)| name).collect()
        };
        assert_eq!(names(&["a", "c"]), ["m1", "m3"]);
        assert_eq!(names(&["c", "b", "a"]), ["m3", "m2", "m1"]);
        assert_eq!(names(&["a", "new"]), ["m1", "m4"], "nobody's name");
        fs::remove_file(path("c.scb")).expect("there");
        assert_eq!(names(&["a", "c"]), ["m1", "m3"], "the others know it");
        assert_eq!(names(&["x", "y"]), ["m1", "m2"], "nothing is known");
        fs::copy(path("a.scb"), path("b.scb")).expect("there");
        assert_eq!(names(&["a", "b"]), ["m1", "m4"], "two say m1");
    }
}
