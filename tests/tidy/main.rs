//! The house rules, as a test that reads the source tree.
//!
//! Every rule is a small function over text and has a test of its own, which shows it an offence;
//! a rule that cannot fire proves nothing. Findings are printed all at once, with file and line.

#![allow(clippy::expect_used, reason = "a test ends at the first surprise")]

mod docs;
mod rust;
mod source;
mod text;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use source::Source;

/// The rules' own offences, which their tests need, are here.
const THIS_FOLDER: &str = "tests/tidy/";

/// Files that are texts by their name or ending.
const TEXTS: [&str; 12] = [
    "rs", "md", "toml", "7", "8", "json", "sh", "py", "service", "rules", "Makefile", "run",
];

// ENABLE once `shadowset::control::help` exists: `Some(shadowset::control::help)`.
const HELP: Option<fn() -> String> = Some(shadowset::control::help);

/// One breach of a rule.
#[derive(Debug)]
pub(crate) struct Finding {
    path: String,
    line: usize,
    text: String,
}

impl Finding {
    fn new(path: &str, line: usize, text: &str) -> Self {
        Self {
            path: path.to_owned(),
            line,
            text: text.to_owned(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.text)
    }
}

impl Source {
    fn finding(&self, line: usize, text: String) -> Finding {
        Finding {
            path: self.path.clone(),
            line,
            text,
        }
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|cause| panic!("{path}: {cause}"))
}

/// All texts of the tree as path below the root and contents.
fn tree() -> Vec<(String, String)> {
    let mut folders: Vec<PathBuf> = vec![root().to_owned()];
    let mut texts = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("list a folder") {
            let path = entry.expect("an entry").path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let ending = name.rsplit('.').next().unwrap_or_default();
            let built = path.join("CACHEDIR.TAG").exists() || [".git", "target"].contains(&&*name);
            if path.is_dir() && !built {
                folders.push(path);
            } else if path.is_file() && TEXTS.contains(&ending) {
                let below = path.strip_prefix(root()).expect("below the root");
                let below = below.to_string_lossy().into_owned();
                let text = read(&below);
                texts.push((below, text));
            }
        }
    }
    texts.sort();
    texts
}

fn report(found: &[Finding]) {
    let list: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert!(
        list.is_empty(),
        "{} findings:\n{}",
        list.len(),
        list.join("\n")
    );
}

#[test]
fn sources_and_documents_keep_the_house_rules() {
    let tree = tree();
    assert!(
        tree.iter().any(|(path, _)| path == "src/lib.rs"),
        "the tree was not found"
    );
    let mut found = Vec::new();
    for (path, text) in &tree {
        let ours = path.starts_with(THIS_FOLDER);
        found.extend(if ours {
            text::whitespace(path, text)
        } else {
            text::check(path, text)
        });
        if path.ends_with(".rs") {
            let source = Source::parse(path, text);
            found.extend(rust::check(&source));
            found.extend(if ours {
                Vec::new()
            } else {
                text::rust_words(&source)
            });
        } else {
            found.extend(text::prose(path, text));
        }
        if path.ends_with("Cargo.toml") {
            found.extend(text::dependencies(path, text));
        }
        if path.ends_with(".md") {
            let exists = |path: &str| root().join(path.trim_start_matches('/')).exists();
            found.extend(text::links(path, text, exists));
        }
    }
    report(&found);
}

#[test]
fn every_invariant_is_defined_and_named() {
    let is_source = |path: &str| path.ends_with(".rs") && !path.starts_with(THIS_FOLDER);
    let sources: Vec<String> = tree()
        .into_iter()
        .filter(|(path, _)| is_source(path))
        .map(|(_, text)| text)
        .collect();
    let document = read("ARCHITECTURE.md");
    report(&docs::invariants(
        &document,
        &sources.join("\n"),
        &docs::NOT_NAMED_YET,
    ));
}

#[test]
fn every_code_stands_in_the_manual_page() {
    let names = shadowset::set::Code::ALL.iter().map(|code| code.name());
    report(&docs::codes(names, &read("man/shadowset-control.7")));
}

#[test]
fn every_event_and_metric_stands_in_the_manual_page() {
    let page = read("man/shadowset-control.7");
    let events = shadowset::server::EVENTS.iter().copied();
    report(&docs::listed(events, "EVENTS", &page));
    report(&docs::listed(
        shadowset::control::metric_names(),
        "Metrics",
        &page,
    ));
}

#[test]
fn every_node_and_command_stands_in_the_manual_page() {
    if let Some(help) = HELP {
        report(&docs::help(&help(), &read("man/shadowset-control.7")));
    }
}

#[test]
fn every_parameter_stands_in_the_manual_page() {
    use shadowset::server::params::Param;
    let row = |param: &Param| {
        let spec = param.spec();
        [spec.name.to_owned(), spec.takes(), spec.write(spec.default)]
    };
    let rows: Vec<_> = Param::ALL.iter().map(row).collect();
    report(&docs::params(&rows, &read("man/shadowset-control.7")));
}
