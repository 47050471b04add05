//! Bytes from outside, as a fuzzer makes them: the bodies of all targets in one table.
//!
//! A body stands beside the reader that it tries and says what has to hold for any bytes. Two run it: cargo-fuzz,
//! whose crate is in `tests/fuzz/`, and the tests below, with the seeds there and changes of them.

#![allow(clippy::expect_used, reason = "a test ends at the first surprise")]

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use crate::set::Code;

/// What has to hold for any bytes.
type Body = fn(&[u8]);

/// What is tried: its name, which its seeds have too, and its body.
pub const TARGETS: [(&str, Body); 8] = [
    ("command", crate::control::fuzz::command),
    ("socket", crate::socket::fuzz::socket),
    ("configuration", crate::cli::fuzz::configuration),
    ("options", crate::cli::fuzz::options),
    ("scb", crate::io::fuzz::scb),
    ("journal", crate::io::journal::fuzz::journal),
    ("history", crate::io::journal::fuzz::history),
    ("records", records),
];

/// The small files, each of which takes the same bytes.
fn records(bytes: &[u8]) {
    crate::io::fuzz::records(bytes);
    crate::server::fuzz::events(bytes);
    crate::cli::fuzz::records(bytes);
}

/// Runs the target of this name.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|target| target.0 == name);
    target.expect("a target has this name").1(bytes);
}

/// Bytes that decide something, taken from the front; zeros behind their end.
pub(crate) struct Input<'a>(pub(crate) &'a [u8]);

impl Input<'_> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    /// A number below `most`.
    pub(crate) fn below(&mut self, most: usize) -> usize {
        let number = [(); 3].map(|()| usize::from(self.byte()));
        (number[0] | number[1] << 8 | number[2] << 16) % most
    }
}

/// Flips one bit.
pub(crate) fn flip(bytes: &mut [u8], bit: usize) {
    bytes[bit / 8] ^= 1 << (bit % 8);
}

/// Whoever refuses something says why in one line, and what to do about it.
pub(crate) fn refused(code: Code, text: &str, hint: &str) {
    assert!(!text.trim().is_empty(), "{code:?} and no word more");
    assert!(!hint.trim().is_empty(), "{text}: no hint");
}

/// A directory that goes with this value.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        let thread = format!("{:?}", std::thread::current().id());
        let number: String = thread.chars().filter(char::is_ascii_digit).collect();
        let name = format!("shadowset-fuzz-{}-{number}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir).expect("a directory");
        Self(dir)
    }

    /// A file with these bytes.
    pub(crate) fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        let mut file = File::create(&path).expect("a file");
        file.write_all(bytes).expect("written");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left over is in the way of nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use proptest::prelude::*;
    use proptest::sample::Index;
    use proptest::test_runner::{Config, TestRunner};

    use super::*;

    fn folder(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
    }

    /// The seeds of a target: those that a fuzzer begins with, and what once failed.
    fn seeds(name: &str) -> Vec<Vec<u8>> {
        let mut folders = vec![folder("tests/fuzz/seeds").join(name)];
        if name == "scb" {
            folders.push(folder("tests/formats/v1"));
        }
        let files = folders.into_iter().flat_map(|dir| {
            let files = fs::read_dir(dir).expect("seeds");
            files.map(|file| file.expect("a seed").path())
        });
        let mut files: Vec<PathBuf> = files.collect();
        files.sort();
        let seeds = files.iter().map(|file| fs::read(file).expect("a seed"));
        seeds.collect()
    }

    /// The words of a language, one a line, as libFuzzer reads them; none for what is no text.
    fn words(name: &str) -> Vec<Vec<u8>> {
        let path = folder("tests/fuzz/words").join(name);
        let text = fs::read_to_string(path).unwrap_or_default();
        let words = text.lines().filter_map(|line| {
            let word = line.strip_prefix('"')?.strip_suffix('"')?;
            Some(
                word.replace("\\\"", "\"")
                    .replace("\\\\", "\\")
                    .into_bytes(),
            )
        });
        words.collect()
    }

    /// One change of a seed.
    #[derive(Clone, Debug)]
    enum Edit {
        Set(Index, u8),
        Flip(Index, u8),
        Insert(Index, Index),
        Repeat(Index, Index),
        Cut(Index),
        Append(Vec<u8>),
    }

    fn edit() -> impl Strategy<Value = Edit> {
        let at = any::<Index>;
        prop_oneof![
            (at(), any::<u8>()).prop_map(|(at, byte)| Edit::Set(at, byte)),
            (at(), 0..8_u8).prop_map(|(at, bit)| Edit::Flip(at, bit)),
            (at(), at()).prop_map(|(at, word)| Edit::Insert(at, word)),
            (at(), at()).prop_map(|(from, to)| Edit::Repeat(from, to)),
            at().prop_map(Edit::Cut),
            prop::collection::vec(any::<u8>(), 1..40).prop_map(Edit::Append),
        ]
    }

    impl Edit {
        fn apply(&self, bytes: &mut Vec<u8>, words: &[Vec<u8>]) {
            let len = bytes.len();
            match self {
                Self::Set(at, byte) if len > 0 => bytes[at.index(len)] = *byte,
                Self::Flip(at, bit) if len > 0 => bytes[at.index(len)] ^= 1 << bit,
                Self::Insert(at, word) if !words.is_empty() => {
                    let word = words[word.index(words.len())].clone();
                    let at = at.index(len + 1);
                    bytes.splice(at..at, word);
                }
                Self::Repeat(from, to) if len > 0 => {
                    let from = from.index(len);
                    let part = bytes[from..(from + 40).min(len)].to_vec();
                    let to = to.index(len + 1);
                    bytes.splice(to..to, part);
                }
                Self::Cut(at) => bytes.truncate(at.index(len + 1)),
                Self::Append(more) => bytes.extend(more),
                _ => {}
            }
        }
    }

    /// Every seed, then changes of them.
    fn twin(name: &str) {
        let (seeds, words) = (seeds(name), words(name));
        seeds.iter().for_each(|seed| run(name, seed));
        let config = Config {
            cases: std::env::var("SHADOWSET_FUZZ_CASES")
                .ok()
                .and_then(|cases| cases.parse().ok())
                .unwrap_or(300),
            failure_persistence: None,
            ..Config::default()
        };
        let changes = (any::<Index>(), prop::collection::vec(edit(), 0..8));
        let tried = TestRunner::new(config).run(&changes, |(seed, edits)| {
            let mut bytes = seeds[seed.index(seeds.len())].clone();
            edits.iter().for_each(|edit| edit.apply(&mut bytes, &words));
            run(name, &bytes);
            Ok(())
        });
        if let Err(why) = tried {
            panic!("{name}: {why}");
        }
    }

    #[test]
    fn any_command_is_understood_or_refused() {
        twin("command");
    }

    #[test]
    fn any_line_at_the_socket_is_answered() {
        twin("socket");
    }

    #[test]
    fn any_configuration_is_understood_or_refused() {
        twin("configuration");
    }

    #[test]
    fn any_options_of_a_mount_are_understood_or_refused() {
        twin("options");
    }

    #[test]
    fn any_control_block_is_whole_or_damaged() {
        twin("scb");
    }

    #[test]
    fn any_journal_is_whole_or_damaged() {
        twin("journal");
    }

    #[test]
    fn a_journal_that_was_damaged_forgets_nothing_unsaid() {
        twin("history");
    }

    #[test]
    fn any_small_file_is_survived() {
        twin("records");
    }

    #[test]
    fn every_target_has_seeds_and_a_program() {
        for (name, _) in TARGETS {
            assert!(!seeds(name).is_empty(), "{name}: no seeds");
            let program = folder("tests/fuzz/fuzz_targets").join(format!("{name}.rs"));
            let text = fs::read_to_string(program).expect("a program");
            assert!(text.contains(&format!("run(\"{name}\", ")), "{name}");
        }
        let programs = fs::read_dir(folder("tests/fuzz/fuzz_targets")).expect("there");
        assert_eq!(programs.count(), TARGETS.len());
    }
}
