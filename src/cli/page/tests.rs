//! man/shadowset.8 against the declaration of the arguments, in both directions.

use std::collections::{BTreeMap, BTreeSet};

use clap::{Command, CommandFactory};

use super::args::Args;

const PAGE: &str = include_str!("../../../man/shadowset.8");

/// The long options of each verb, such as `op pause`; what all verbs have is left out.
type Verbs = BTreeMap<String, BTreeSet<String>>;

fn declared() -> Verbs {
    let mut root = Args::command();
    root.build();
    let mut verbs = Verbs::new();
    collect(&root, "", &mut verbs);
    verbs
}

fn collect(command: &Command, path: &str, verbs: &mut Verbs) {
    let shown = command.get_subcommands().filter(|verb| !verb.is_hide_set());
    for verb in shown.filter(|verb| verb.get_name() != "help") {
        let path = format!("{path} {}", verb.get_name());
        let path = path.trim_start();
        if verb.has_subcommands() {
            collect(verb, path, verbs);
            continue;
        }
        let own = verb.get_arguments().filter(|arg| !arg.is_hide_set());
        let own = own.filter_map(|arg| {
            let short = arg.get_short().map(|short| short.to_string());
            arg.get_long().map(|long| format!("-{long}")).or(short)
        });
        let all = ["-json", "-help", "-version"];
        let own = own.filter(|option| !all.contains(&option.as_str()));
        verbs.insert(path.to_owned(), own.collect());
    }
}

fn short_options(command: &Command, found: &mut BTreeSet<String>) {
    let own = command.get_arguments().filter_map(clap::Arg::get_short);
    found.extend(own.map(|short| short.to_string()));
    for verb in command.get_subcommands() {
        short_options(verb, found);
    }
}

/// The verbs of a line such as `op pause | resume Ar unit`.
fn verbs_of(line: &str) -> Vec<String> {
    let own = line
        .split(' ')
        .take_while(|word| !matches!(*word, "Ar" | "Op"));
    let line = own.collect::<Vec<_>>().join(" ");
    let mut words = line.split(" | ");
    let first = words.next().unwrap_or_default().trim().to_owned();
    let group = first.split_once(' ').map(|(group, _)| group.to_owned());
    let others = words.map(|word| match &group {
        Some(group) => format!("{group} {}", word.trim()),
        None => word.trim().to_owned(),
    });
    std::iter::once(first.clone()).chain(others).collect()
}

/// The options that a part of the page names.
fn options_of(text: &str) -> BTreeSet<String> {
    let own = text.lines().filter(|line| !line.starts_with(".Xr"));
    let words = own.flat_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        // One after another, as in `Fl -wait | -dry-run`.
        let after = words
            .windows(2)
            .filter(|pair| pair[0].ends_with("Fl") || pair[0] == "|" && pair[1].starts_with('-'));
        // Two hyphens alone end the options.
        let named = after.map(|pair| pair[1]).filter(|word| *word != "-");
        named.map(str::to_owned).collect::<Vec<_>>()
    });
    words.collect()
}

/// What the synopsis says of each verb.
fn synopsis(page: &str) -> Verbs {
    let (_, rest) = page.split_once(".Sh SYNOPSIS\n").expect("a synopsis");
    let (synopsis, _) = rest.split_once(".Sh DESCRIPTION\n").expect("a description");
    let mut verbs = Verbs::new();
    for block in synopsis.split(".Nm\n.Cm ").skip(1) {
        let (line, rest) = block.split_once('\n').unwrap_or((block, ""));
        for verb in verbs_of(line) {
            assert!(
                verbs.insert(verb.clone(), options_of(rest)).is_none(),
                "{verb} stands twice in the synopsis"
            );
        }
    }
    verbs
}

/// The text that describes each verb, with those that follow it at the same item.
fn described(page: &str, known: &Verbs) -> BTreeMap<String, String> {
    let (_, rest) = page.split_once(".Ss Creating\n").expect("commands");
    let (rest, _) = rest.split_once(".Ss What a crash").expect("their end");
    let mut texts: BTreeMap<String, String> = BTreeMap::new();
    let mut current: Vec<String> = Vec::new();
    for line in rest.lines() {
        let item = line.strip_prefix(".It Cm ").map(verbs_of);
        match item {
            Some(verbs) if verbs.iter().all(|verb| known.contains_key(verb)) => current = verbs,
            // An option of a mount, or a word of a goal.
            _ => {}
        }
        for verb in &current {
            let text = texts.entry(verb.clone()).or_default();
            text.push_str(line);
            text.push('\n');
        }
    }
    texts
}

fn differences(page: &str) -> Vec<String> {
    let (declared, synopsis) = (declared(), synopsis(page));
    let texts = described(page, &declared);
    let mut found = Vec::new();
    for (verb, options) in &declared {
        match synopsis.get(verb) {
            None => found.push(format!("{verb} is not in the synopsis")),
            Some(shown) if shown != options => {
                found.push(format!("{verb} has {options:?}, the synopsis {shown:?}"));
            }
            Some(_) => {}
        }
        let Some(text) = texts.get(verb) else {
            found.push(format!("{verb} is not described"));
            continue;
        };
        let told = options_of(text);
        let missing = options.iter().filter(|option| !told.contains(*option));
        found.extend(missing.map(|option| format!("{verb}: {option} is not described")));
    }
    let unknown = synopsis.keys().filter(|verb| !declared.contains_key(*verb));
    found.extend(unknown.map(|verb| format!("{verb} is no command")));
    let all: BTreeSet<&String> = declared.values().flatten().collect();
    let mut shorts = BTreeSet::new();
    short_options(&Args::command(), &mut shorts);
    let others = ["-json", "-help", "-version"];
    let named = options_of(page);
    let invented = named.iter().filter(|option| {
        !all.contains(option) && !shorts.contains(*option) && !others.contains(&option.as_str())
    });
    found.extend(invented.map(|option| format!("{option} is no option")));
    found
}

#[test]
fn every_verb_and_option_stands_in_the_page_and_no_other() {
    assert_eq!(differences(PAGE), [""; 0]);
}

#[test]
fn what_is_missing_or_invented_is_noticed() {
    let finds = |from: &str, to: &str, says: &str| {
        let page = PAGE.replace(from, to);
        assert_ne!(page, PAGE, "{from}");
        let found = differences(&page);
        assert!(
            found.iter().any(|found| found.contains(says)),
            "{says}: {found:?}"
        );
    };
    finds(
        ".Nm\n.Cm op list\n",
        ".Nm\n.Cm op listing\n",
        "op list is not in the synopsis",
    );
    finds(
        ".Nm\n.Cm op list\n",
        ".Nm\n.Cm op listing\n",
        "op listing is no command",
    );
    finds(
        ".It Cm release Ar",
        ".It Em release Ar",
        "release is not described",
    );
    finds(
        ".It Fl -keep\n",
        ".It Em keep\n",
        "demo: -keep is not described",
    );
    finds(".Op Fl -full\n", "", "merge has {");
    finds(".Op Fl -full\n", ".Op Fl -fuller\n", "-fuller is no option");
}

#[test]
fn every_verb_has_help_that_names_its_options() {
    let mut root = Args::command();
    root.build();
    for (path, options) in declared() {
        let words = path.split(' ');
        let verb = words.fold(&root, |at, word| {
            at.find_subcommand(word).expect("it is declared")
        });
        let help = verb.clone().render_long_help().to_string();
        for option in options {
            assert!(help.contains(&format!("-{option}")), "{path}: {option}");
        }
        assert!(help.contains("--json"), "{path}");
        for arg in verb.get_arguments().filter(|arg| !arg.is_hide_set()) {
            assert!(arg.get_help().is_some(), "{path}: {}", arg.get_id());
        }
    }
}
