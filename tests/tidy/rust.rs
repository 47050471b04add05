//! Rules on Rust sources. Each takes a [`Source`] and returns what it found.

use crate::Finding;
use crate::source::{Source, is_word, words};

/// Modules in dependency order: each knows only those before it.
const LAYERS: [&str; 10] = [
    "sync", "set", "error", "io", "server", "control", "socket", "fuse", "cli", "testing",
];

/// What `src/set/` must not touch: the first names behind `std::`, and words.
const IMPURE_STD: [&str; 7] = ["io", "fs", "thread", "time", "net", "process", "env"];
const IMPURE_WORDS: [&str; 9] = [
    "tracing",
    "libc",
    "crossbeam",
    "crossbeam_channel",
    "arc_swap",
    "unsafe",
    "println",
    "eprintln",
    "fuser",
];

/// Where the paths of the only files with unsafe code begin.
const UNSAFE_PLACES: [&str; 3] = [
    "src/io/sys.rs",
    "src/io/sys/",
    "mountpoint-helper/src/sys.rs",
];

const PANICS: [&str; 6] = [
    ".unwrap()",
    ".expect(",
    "panic!",
    "todo!",
    "unimplemented!",
    "dbg!",
];

/// What schedules run: threads and what they wait for come from `src/sync.rs` there.
const SCHEDULED: [&str; 3] = ["src/server/", "src/io/journal", "src/io/event_log.rs"];
/// What may come from std all the same.
const UNSCHEDULED: [(&str, &[&str]); 3] = [
    ("std::thread::", &["panicking"]),
    ("std::time::", &["Duration", "SystemTime"]),
    ("std::sync::", &["Arc", "Weak", "PoisonError", "OnceLock"]),
];

const FILE_LINES_MAX: usize = 500;
const FUNCTION_LINES_MAX: usize = 60;

/// All rules of this file.
pub(crate) fn check(source: &Source) -> Vec<Finding> {
    let rules = [
        direction,
        purity,
        unsafe_place,
        safety_comment,
        panics,
        let_chains,
        file_size,
        function_size,
        schedulable,
    ];
    rules.iter().flat_map(|rule| rule(source)).collect()
}

fn is_product(source: &Source) -> bool {
    source.path.starts_with("src/") || source.path.starts_with("mountpoint-helper/src/")
}

/// `cli -> fuse -> control -> server -> io -> set`.
pub(crate) fn direction(source: &Source) -> Vec<Finding> {
    let Some(below) = source.path.strip_prefix("src/") else {
        return Vec::new();
    };
    if ["lib.rs", "main.rs"].contains(&below) {
        return Vec::new();
    }
    let own = below
        .split('/')
        .next()
        .unwrap_or(below)
        .trim_end_matches(".rs");
    let Some(rank) = LAYERS.iter().position(|layer| *layer == own) else {
        return vec![source.finding(1, format!("module {own} has no place in the layers"))];
    };
    // From `src/io/a.rs`, two `super::` reach the root of the crate.
    let depth = below.split('/').filter(|part| *part != "mod.rs").count();
    let to_root = "super::".repeat(depth);
    let mut used = heads(source, "crate::");
    used.extend(heads(source, &to_root));
    let above = |name: &str| LAYERS.iter().position(|layer| *layer == name) > Some(rank);
    // A test may use what the layers above lend it from the testing folder.
    let wrong = used.into_iter().filter(|(line, name)| {
        let lent = name == "testing" && source.test[line - 1];
        above(name) && !lent
    });
    wrong
        .map(|(line, name)| source.finding(line, format!("{own} must not know {name}")))
        .collect()
}

/// The names that follow a path's start, one by one or in braces.
fn heads(source: &Source, start: &str) -> Vec<(usize, String)> {
    let text = source.code.join("\n");
    let mut found = Vec::new();
    for (at, _) in text.match_indices(start) {
        if text[..at].ends_with(|c: char| is_word(c) || c == ':') {
            continue;
        }
        let line = 1 + text[..at].matches('\n').count();
        let behind = &text[at + start.len()..];
        let names = match behind.strip_prefix('{') {
            Some(group) => group_heads(group),
            None => vec![(0, leading_word(behind))],
        };
        found.extend(names.into_iter().map(|(lines, name)| (line + lines, name)));
    }
    found
}

/// The first names of a group's members, with the lines they are below its start.
fn group_heads(group: &str) -> Vec<(usize, String)> {
    let (mut depth, mut line, mut fresh) = (0, 0, true);
    let mut names = Vec::new();
    for (at, c) in group.char_indices() {
        match c {
            '\n' => line += 1,
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => fresh = true,
            c if fresh && is_word(c) => {
                names.push((line, leading_word(&group[at..])));
                fresh = false;
            }
            _ => {}
        }
    }
    names
}

fn leading_word(text: &str) -> String {
    text.chars().take_while(|c| is_word(*c)).collect()
}

/// No I/O, threads, clock, log or unsafe in `src/set/`.
pub(crate) fn purity(source: &Source) -> Vec<Finding> {
    if !source.path.starts_with("src/set/") {
        return Vec::new();
    }
    let mut found = Vec::new();
    for start in ["std::", "core::"] {
        for (line, name) in heads(source, start) {
            if IMPURE_STD.contains(&name.as_str()) && !source.test[line - 1] {
                found.push(source.finding(line, format!("{start}{name} in the core")));
            }
        }
    }
    for (line, text) in source.product() {
        for word in IMPURE_WORDS
            .iter()
            .filter(|word| !words(text, word).is_empty())
        {
            found.push(source.finding(line, format!("{word} in the core")));
        }
    }
    found
}

/// `unsafe` in one module of each package.
pub(crate) fn unsafe_place(source: &Source) -> Vec<Finding> {
    let mut places = UNSAFE_PLACES.iter();
    if places.any(|place| source.path.starts_with(place)) {
        return Vec::new();
    }
    let lines = source.code.iter().enumerate();
    let wrong = lines.filter(|(_, text)| !words(text, "unsafe").is_empty());
    wrong
        .map(|(at, _)| source.finding(at + 1, "unsafe code outside sys.rs".to_owned()))
        .collect()
}

/// A comment above each unsafe block or implementation says why it is sound.
pub(crate) fn safety_comment(source: &Source) -> Vec<Finding> {
    let mut found = Vec::new();
    for (at, text) in source.code.iter().enumerate() {
        let needs = words(text, "unsafe").iter().any(|column| {
            let behind = text[column + 6..].trim_start();
            behind.is_empty() || behind.starts_with('{') || behind.starts_with("impl")
        });
        if needs && !has_safety(source, at) {
            found.push(source.finding(at + 1, "unsafe without a SAFETY comment".to_owned()));
        }
    }
    found
}

/// Looks on the line itself, then upwards over comments and the rest of the statement.
fn has_safety(source: &Source, at: usize) -> bool {
    let says = |line: usize| source.comments[line].contains("SAFETY:");
    let statement_goes_on = |line: usize| {
        let code = source.code[line].trim_end();
        let comment = !source.comments[line].is_empty();
        (code.is_empty() && comment) || !(code.is_empty() || code.ends_with([';', '{', '}', ',']))
    };
    says(at)
        || (0..at)
            .rev()
            .take_while(|line| statement_goes_on(*line))
            .any(says)
}

/// Product code does not panic on what can happen.
pub(crate) fn panics(source: &Source) -> Vec<Finding> {
    if !is_product(source) {
        return Vec::new();
    }
    let mut found = Vec::new();
    for (line, text) in source.product() {
        for call in PANICS {
            let whole = |at: usize| call.starts_with('.') || !text[..at].ends_with(is_word);
            if text.match_indices(call).any(|(at, _)| whole(at)) {
                found.push(source.finding(line, format!("{call} in product code")));
            }
        }
    }
    found
}

/// `if let` with `&&` needs Rust 1.88; the oldest Rust that must do is 1.85. The formatter puts each part on a
/// line of its own.
pub(crate) fn let_chains(source: &Source) -> Vec<Finding> {
    let begins = |text: &str| {
        ["if let ", "while let ", "} else if let "]
            .iter()
            .any(|word| text.starts_with(word))
    };
    let (mut found, mut open) = (Vec::new(), false);
    for (line, text) in source.product() {
        let text = text.trim();
        open = (open || begins(text)) && !text.ends_with(['{', ';']);
        if text.starts_with("&& let ") || open && text.starts_with("&& ") {
            found.push(source.finding(line, "a chain of let, which needs Rust 1.88".to_owned()));
        }
    }
    found
}

/// A file that is too long holds more than one thing.
pub(crate) fn file_size(source: &Source) -> Vec<Finding> {
    let lines = source
        .product()
        .filter(|(_, text)| !text.trim().is_empty())
        .count();
    let long = is_product(source) && lines > FILE_LINES_MAX;
    let text = || format!("{lines} lines of code, more than {FILE_LINES_MAX}");
    long.then(|| source.finding(1, text()))
        .into_iter()
        .collect()
}

/// No schedule could choose about other threads and locks. A static outlives the schedules.
pub(crate) fn schedulable(source: &Source) -> Vec<Finding> {
    if !SCHEDULED.iter().any(|path| source.path.starts_with(path)) {
        return Vec::new();
    }
    let mut used = Vec::new();
    for (start, free) in UNSCHEDULED {
        let names = heads(source, start).into_iter();
        used.extend(names.filter(|(_, name)| !free.contains(&name.as_str())));
    }
    for (at, text) in source.code.iter().enumerate() {
        let words = ["crossbeam_channel", "arc_swap"];
        let found = words.into_iter().filter(|word| !is_absent(text, word));
        used.extend(found.map(|word| (at + 1, word.to_owned())));
    }
    let wrong = used
        .into_iter()
        .filter(|(line, _)| !source.test[line - 1] && !source.code[line - 1].contains("static "));
    wrong
        .map(|(line, name)| source.finding(line, format!("{name} comes from crate::sync here")))
        .collect()
}

fn is_absent(text: &str, word: &str) -> bool {
    words(text, word).is_empty()
}

/// A function fits on a screen.
pub(crate) fn function_size(source: &Source) -> Vec<Finding> {
    let mut found = Vec::new();
    for (first, last) in source.functions() {
        let lines = source.code[first..=last]
            .iter()
            .filter(|text| !text.trim().is_empty())
            .count();
        if lines > FUNCTION_LINES_MAX {
            let text = format!("a function of {lines} lines, more than {FUNCTION_LINES_MAX}");
            found.push(source.finding(first + 1, text));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Typed, because serde_json compares numbers with its own values as well.
    const NONE: [usize; 0] = [];

    /// Lines at which a rule fires.
    fn lines(rule: fn(&Source) -> Vec<Finding>, path: &str, text: &str) -> Vec<usize> {
        rule(&Source::parse(path, text))
            .into_iter()
            .map(|finding| finding.line)
            .collect()
    }

    #[test]
    fn direction_fires() {
        let up =
            "use crate::set::Lbn;\nuse crate::{\n    error::Error,\n    server::{a, set},\n};\n";
        assert_eq!(lines(direction, "src/io/file.rs", up), [4]);
        assert_eq!(lines(direction, "src/cli/mod.rs", up), NONE);
        assert_eq!(
            lines(direction, "src/set/view.rs", "use crate::error::Error;"),
            [1]
        );
        assert_eq!(
            lines(direction, "src/error.rs", "use crate::io::Storage;"),
            [1]
        );
        assert_eq!(
            lines(direction, "src/io/file.rs", "use super::super::cli;"),
            [1]
        );
        assert_eq!(
            lines(direction, "src/io/file.rs", "use super::storage;"),
            NONE
        );
        assert_eq!(lines(direction, "src/misc/mod.rs", ""), [1]);
        assert_eq!(
            lines(direction, "src/set/a.rs", "use crate::testing::Rng;"),
            [1]
        );
        let test = "#[cfg(test)]\nmod t { use crate::testing::Rng; }";
        assert_eq!(lines(direction, "src/set/a.rs", test), NONE);
    }

    #[test]
    fn purity_fires() {
        let text = "use std::sync::atomic::AtomicU64;\nuse std::{fmt, io};\nlet t = std::time::x();\n\
                    tracing::info!();\n#[cfg(test)]\nmod t { use std::fs; }\n";
        assert_eq!(lines(purity, "src/set/view.rs", text), [2, 3, 4]);
        assert_eq!(lines(purity, "src/io/mod.rs", text), NONE);
        assert_eq!(
            lines(
                purity,
                "src/set/view.rs",
                "// std::io\nlet a = \"std::io\";"
            ),
            NONE
        );
    }

    #[test]
    fn unsafe_place_fires() {
        let text = "#![allow(unsafe_code)]\nlet a = unsafe { f() };";
        assert_eq!(lines(unsafe_place, "src/io/file.rs", text), [2]);
        assert_eq!(lines(unsafe_place, "src/io/sys.rs", text), NONE);
    }

    #[test]
    fn safety_comment_fires() {
        let bare = "// fine\nlet a = unsafe { f() };\nunsafe impl Send for A {}\nunsafe fn g() {}";
        assert_eq!(lines(safety_comment, "src/io/sys.rs", bare), [2, 3]);
        let said = "// SAFETY: f has no\n// condition.\nlet a =\n    unsafe { f() };";
        assert_eq!(lines(safety_comment, "src/io/sys.rs", said), NONE);
        let other = "// SAFETY: for the first.\nlet a = unsafe { f() };\nlet b = unsafe { g() };";
        assert_eq!(lines(safety_comment, "src/io/sys.rs", other), [3]);
    }

    #[test]
    fn panics_fires() {
        let text = "a.unwrap();\na\n    .expect(\"b\");\npanic!();\nassert!(a);\na.unwrap_or(b);\n\
                    should_panic!();\n#[cfg(test)]\nmod t { fn f() { a.unwrap() } }\n";
        assert_eq!(lines(panics, "src/io/file.rs", text), [1, 3, 4]);
        assert_eq!(lines(panics, "tests/it.rs", text), NONE);
        assert_eq!(lines(panics, "src/set/planted.rs", text), NONE);
    }

    #[test]
    fn let_chains_fires() {
        let text = "if let Some(a) = b\n    && a\n{\n}\nwhile a\n    && let Some(b) = c\n{\n}\n\
                    if let Some(a) = b.filter(|_| c && d) {\n}\nlet a = b\n    && c;\n";
        assert_eq!(lines(let_chains, "src/io/file.rs", text), [2, 6]);
    }

    #[test]
    fn file_size_fires() {
        let long = "let a = 1;\n".repeat(FILE_LINES_MAX + 1);
        assert_eq!(lines(file_size, "src/io/file.rs", &long), [1]);
        let fits = "let a = 1;\n// why\n\n".repeat(FILE_LINES_MAX);
        assert_eq!(lines(file_size, "src/io/file.rs", &fits), NONE);
    }

    #[test]
    fn schedulable_fires() {
        let code = "use std::sync::{Arc, Mutex};\nuse arc_swap::ArcSwap;\nuse std::time::Instant;\n\
            static A: std::sync::atomic::AtomicU64 = x();\nlet a = std::thread::spawn(f);\n";
        assert_eq!(lines(schedulable, "src/server/lane.rs", code), [5, 3, 1, 2]);
        assert_eq!(lines(schedulable, "src/fuse/face.rs", code), NONE);
    }

    #[test]
    fn function_size_fires() {
        let long = format!(
            "\nfn f() {{\n{}}}\n",
            "    a();\n".repeat(FUNCTION_LINES_MAX - 1)
        );
        assert_eq!(lines(function_size, "tests/it.rs", &long), [2]);
        let fits = format!(
            "\nfn f() {{\n{}}}\n",
            "    a();\n".repeat(FUNCTION_LINES_MAX - 2)
        );
        assert_eq!(lines(function_size, "tests/it.rs", &fits), NONE);
    }
}
