//! The names of members that a mount gives by their paths alone: those that the set itself has for them.

use std::fs;
use std::path::{Path, PathBuf};

use crate::io::Identity;
use crate::io::scb_file::{self, ScbFound};
use crate::server::setup::default_scb;
use crate::set::Scb;

/// Names the members: as an image's own control block says, else as a block of another member says of its path. A disk of
/// which nothing is known gets the name of a disk that is not there, since it may be called otherwise now, and anything else
/// a name that nobody in the set has.
pub(super) fn named(paths: &[PathBuf], state_dir: &Path) -> Vec<(String, PathBuf)> {
    let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
    let paths: Vec<_> = paths.iter().map(absolute).collect();
    let own: Vec<_> = paths.iter().map(|path| beside(path, state_dir)).collect();
    let disks = of_disks(state_dir);
    let blocks: Vec<_> = own.iter().flatten().chain(&disks).collect();
    let rows: Vec<_> = blocks.iter().flat_map(|block| &block.table).collect();
    let mut names: Vec<Option<String>> = Vec::new();
    for (path, own) in paths.iter().zip(&own) {
        let row = || rows.iter().find(|row| is_same(&row.path, path));
        let said = own.as_ref().map(|block| &block.name);
        let said = said.or_else(|| row().map(|row| &row.name)).cloned();
        // Two that say the same are no members of one set: the server says what they are.
        let said = said.filter(|name| !names.iter().flatten().any(|other| other == name));
        names.push(said);
    }
    for (place, path) in paths.iter().enumerate() {
        if names[place].is_some() {
            continue;
        }
        let is_free = |name: &String| !names.iter().flatten().any(|other| other == name);
        let disk = disks.iter().filter(|_| is_disk(path, state_dir));
        let disk = disk.map(|block| block.name.clone()).find(is_free);
        let strange = |name: &String| !rows.iter().any(|row| row.name == *name);
        let by_number = || {
            let mut all = (1..).map(|n| format!("m{n}")).filter(strange);
            all.find(is_free)
        };
        names[place] = disk.or_else(by_number);
    }
    let names = names.into_iter().map(Option::unwrap_or_default);
    names.zip(paths).collect()
}

/// Whether two paths lead to one image.
fn is_same(one: &Path, other: &Path) -> bool {
    let identity = |path| Identity::of(path).ok().flatten();
    one == other || identity(one).is_some_and(|id| identity(other) == Some(id))
}

/// Whether the control block of an image is in the state directory, under its name.
fn is_disk(path: &Path, state_dir: &Path) -> bool {
    default_scb("", path, state_dir).parent() == Some(state_dir)
}

/// The block beside an image file.
fn beside(path: &Path, state_dir: &Path) -> Option<Scb> {
    // That of a disk is called by the name that is looked for.
    let is_file = !is_disk(path, state_dir);
    is_file
        .then(|| default_scb("", path, state_dir))
        .and_then(|scb| block(&scb))
}

/// The blocks in the state directory: those of block devices, in the order of their names.
fn of_disks(state_dir: &Path) -> Vec<Scb> {
    let files = fs::read_dir(state_dir).into_iter().flatten().flatten();
    let files = files.map(|file| file.path());
    let files = files.filter(|path| path.extension().is_some_and(|ending| ending == "scb"));
    let mut blocks: Vec<_> = files.filter_map(|path| block(&path)).collect();
    blocks.sort_by(|one, other| one.name.cmp(&other.name));
    blocks
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
        std::os::unix::fs::symlink(path("c"), path("link")).expect("made");
        assert_eq!(names(&["a", "link"]), ["m1", "m3"], "another way to it");
        let disk = Path::new("/dev/that-is-called-otherwise-now");
        let both =
            |names: Vec<(String, PathBuf)>| names.into_iter().map(|(name, _)| name).collect();
        fs::create_dir_all(&state_dir).expect("made");
        fs::rename(path("b.scb"), state_dir.join("m1.scb")).expect("there");
        let disks: Vec<String> = both(named(&[disk.to_owned(), path("c")], &state_dir));
        assert_eq!(disks, ["m1", "m3"], "the disk that is not there");
    }
}
