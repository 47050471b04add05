//! Rules on any text of the tree: words, characters, links, dependencies.

use crate::Finding;
use crate::source::{Source, is_word, words};

/// Words that this project has other words for.
const BANNED: [&str; 13] = [
    "volume",
    "replica",
    "leg",
    "plex",
    "mirror half",
    "in-sync",
    "resync",
    "rebuild",
    "dirty log",
    "chunk",
    "superblock",
    "kick",
    "re-add",
];
/// Endings under which a banned word is still that word.
const ENDINGS: [&str; 8] = ["", "s", "es", "ed", "d", "ing", "er", "t"];
/// Names of others, which may hold such a word.
const PROPER_NAMES: [&str; 1] = ["volume shadowing"];

/// Methods of slices in std, which have such a word in their names.
const STD_NAMES: [&str; 8] = [
    "chunks",
    "chunks_mut",
    "chunks_exact",
    "chunks_exact_mut",
    "as_chunks",
    "as_chunks_mut",
    "first_chunk",
    "last_chunk",
];

/// Notes to oneself.
const NOTES: [&str; 3] = ["TODO", "FIXME", "XXX"];
/// A path of one machine.
const FOREIGN_PATHS: [&str; 2] = ["/work/", "/home/"];

/// Rules on every file, whatever it holds.
pub(crate) fn check(path: &str, text: &str) -> Vec<Finding> {
    let mut found = whitespace(path, text);
    found.extend(notes(path, text));
    found.extend(foreign_paths(path, text));
    if !path.ends_with(".md") {
        found.extend(ascii(path, text));
    }
    found
}

fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(at, line)| (at + 1, line))
}

/// No blank at a line's end; the last line ends.
pub(crate) fn whitespace(path: &str, text: &str) -> Vec<Finding> {
    let trailing = lines(text).filter(|(_, line)| line.ends_with([' ', '\t', '\r']));
    let mut found: Vec<_> = trailing
        .map(|(line, _)| Finding::new(path, line, "blanks at the end"))
        .collect();
    if !text.is_empty() && (!text.ends_with('\n') || text.ends_with("\n\n")) {
        found.push(Finding::new(
            path,
            text.lines().count(),
            "a file ends with one line end",
        ));
    }
    found
}

/// No note that something is still to be done.
pub(crate) fn notes(path: &str, text: &str) -> Vec<Finding> {
    let noted = |line: &str| NOTES.iter().any(|note| !words(line, note).is_empty());
    let found = lines(text).filter(|(_, line)| noted(line));
    found
        .map(|(line, _)| Finding::new(path, line, "a note to oneself"))
        .collect()
}

/// No path that exists on one machine only.
pub(crate) fn foreign_paths(path: &str, text: &str) -> Vec<Finding> {
    let foreign = |line: &str| FOREIGN_PATHS.iter().any(|start| line.contains(start));
    let found = lines(text).filter(|(_, line)| foreign(line));
    found
        .map(|(line, _)| Finding::new(path, line, "a path of one machine"))
        .collect()
}

/// Sources show the same everywhere.
pub(crate) fn ascii(path: &str, text: &str) -> Vec<Finding> {
    let found = lines(text).filter(|(_, line)| !line.is_ascii());
    found
        .map(|(line, _)| Finding::new(path, line, "not ASCII"))
        .collect()
}

/// The project's words in prose.
pub(crate) fn prose(path: &str, text: &str) -> Vec<Finding> {
    lines(text)
        .flat_map(|(line, text)| banned(path, line, text))
        .collect()
}

/// The project's words in names, comments and strings of a Rust file.
pub(crate) fn rust_words(source: &Source) -> Vec<Finding> {
    let mut found = Vec::new();
    for at in 0..source.code.len() {
        let names: Vec<String> = source.code[at].split(|c| !is_word(c)).map(spaced).collect();
        let names = names.join(", ");
        for text in [&names, &source.comments[at], &source.strings[at]] {
            found.extend(banned(&source.path, at + 1, text));
        }
    }
    found
}

/// A name as its words: `copyStep_max` is `copy step max`. The names of std's slice methods go.
fn spaced(name: &str) -> String {
    if STD_NAMES.contains(&name) {
        return String::new();
    }
    let mut words = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() {
            words.push(' ');
        }
        words.push(if c == '_' { ' ' } else { c });
    }
    words
}

fn banned(path: &str, line: usize, text: &str) -> Vec<Finding> {
    let mut text = text.to_ascii_lowercase();
    for name in PROPER_NAMES {
        text = text.replace(name, "");
    }
    let used = |word: &&&str| {
        ENDINGS.iter().any(|ending| {
            let inflected = format!("{word}{ending}");
            !words(&text, &inflected).is_empty()
        })
    };
    let finding = |word: &&str| Finding::new(path, line, &format!("`{word}` is not our word"));
    BANNED.iter().filter(used).map(finding).collect()
}

/// Above each dependency stands why it is there; crates of one family share the reason.
pub(crate) fn dependencies(path: &str, text: &str) -> Vec<Finding> {
    let (mut inside, mut reason, mut family) = (false, false, String::new());
    let mut found = Vec::new();
    for (line, text) in lines(text) {
        if text.starts_with('[') {
            inside = text.contains("dependencies]");
            family.clear();
        } else if text.starts_with('#') {
            reason = true;
            continue;
        } else if let Some((name, _)) = text.split_once(['=', '.']).filter(|_| inside) {
            let name = name.trim();
            let related = !family.is_empty() && name.starts_with(&family);
            if !reason && !related {
                found.push(Finding::new(
                    path,
                    line,
                    &format!("no reason given for {name}"),
                ));
            }
            if !related {
                family = name.to_owned();
            }
        }
        reason = false;
    }
    found
}

/// What a link of a document points at exists; `exists` is asked for paths below the root.
pub(crate) fn links(path: &str, text: &str, exists: impl Fn(&str) -> bool) -> Vec<Finding> {
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut found = Vec::new();
    for (line, text) in lines(text) {
        for (at, _) in text.match_indices("](") {
            let target = text[at + 2..].split([')', '#']).next().unwrap_or_default();
            let local = !target.is_empty() && !target.contains("://");
            if local && !exists(&format!("{folder}/{target}")) {
                found.push(Finding::new(path, line, &format!("nothing is at {target}")));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Typed, because serde_json compares numbers with its own values as well.
    const NONE: [usize; 0] = [];

    fn at(found: &[Finding]) -> Vec<usize> {
        found.iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn whitespace_fires() {
        assert_eq!(at(&whitespace("a", "one \ntwo\nthree\t\n")), [1, 3]);
        assert_eq!(at(&whitespace("a", "one\ntwo")), [2]);
        assert_eq!(at(&whitespace("a", "one\n\n")), [2]);
        assert_eq!(at(&whitespace("a", "one\n")), NONE);
    }

    #[test]
    fn notes_fires() {
        assert_eq!(
            at(&notes("a", "// TODO: x\n//! FIXME\nXXXX\n# XXX\n")),
            [1, 2, 4]
        );
    }

    #[test]
    fn foreign_paths_fires() {
        assert_eq!(
            at(&foreign_paths("a", "/srv/work/a\n/home/me\n/srv/images\n")),
            [1, 2]
        );
    }

    #[test]
    fn ascii_fires() {
        assert_eq!(at(&ascii("a", "a\nb \u{2287} c\n")), [2]);
        assert!(check("a.md", "\u{2287}\n").is_empty());
        assert_eq!(at(&check("a.rs", "\u{2287}\n")), [1]);
    }

    #[test]
    fn prose_fires_for_every_banned_word() {
        for word in BANNED {
            assert_eq!(
                at(&prose("a.md", &format!("one {word}s here\n"))),
                [1],
                "{word}"
            );
        }
        let fine = "OpenVMS Volume Shadowing\nvolsize, legal, complex, sidekick\n";
        assert_eq!(at(&prose("a.md", fine)), NONE);
    }

    #[test]
    fn rust_words_fires_in_names_comments_and_strings() {
        let text = "let replica_id = 1;\nstruct DirtyLog;\n// one leg\nf(\"a chunk\");\na.chunks(4).first_chunk();\n";
        assert_eq!(
            at(&rust_words(&Source::parse("src/a.rs", text))),
            [1, 2, 3, 4]
        );
    }

    #[test]
    fn dependencies_fires() {
        let text = "[package]\nname = \"a\"\n[dependencies]\n# configuration\nserde = \"1\"\n\
                    serde_json = \"1\"\ntoml = \"1\"\n\n[dev-dependencies]\nserde_test = \"1\"\n";
        assert_eq!(at(&dependencies("Cargo.toml", text)), [7, 10]);
    }

    #[test]
    fn links_fires() {
        let text = "[a](there.md) [b](gone.md#x)\n[c](https://example.org) [d](#here)\n";
        let found = links("docs/x.md", text, |path| path == "docs/there.md");
        assert_eq!(at(&found), [1]);
        assert!(found[0].text.contains("gone.md"));
    }
}
