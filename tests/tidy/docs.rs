//! Rules between documents and code: invariants, codes, nodes and commands.

use crate::Finding;
use crate::source::words;

/// Invariants that ARCHITECTURE.md has to define.
pub(crate) const INVARIANTS: std::ops::RangeInclusive<u32> = 1..=14;

/// Invariants that nothing in the tree names yet, each with the reason.
pub(crate) const NOT_NAMED_YET: [(u32, &str); 0] = [];

/// Each invariant is defined once in the document, and named by a comment, an assert or a test.
pub(crate) fn invariants(document: &str, sources: &str, exempt: &[(u32, &str)]) -> Vec<Finding> {
    let mut found = Vec::new();
    for number in INVARIANTS {
        let name = format!("I{number}");
        let mut report = |text: String| found.push(Finding::new("ARCHITECTURE.md", 1, &text));
        let defined = document.matches(&format!("- **{name} ")).count();
        if defined != 1 {
            report(format!("{name} is defined {defined} times"));
        }
        let named = !words(sources, &name).is_empty();
        let reason = exempt.iter().find(|(exempt, _)| *exempt == number);
        match (named, reason) {
            (false, None) => report(format!("nothing in src/ or tests/ names {name}")),
            (true, Some(_)) => report(format!("{name} is named: take it off the exemptions")),
            (false, Some((_, ""))) => {
                report(format!("{name} is exempt without a reason"));
            }
            _ => {}
        }
    }
    found
}

/// Every stable code stands in the manual page.
pub(crate) fn codes<'a>(names: impl Iterator<Item = &'a str>, page: &str) -> Vec<Finding> {
    let page = plain(page);
    let missing = names.filter(|name| !lists(&page, name));
    missing
        .map(|name| Finding::new(PAGE, 1, &format!("code {name} is missing")))
        .collect()
}

/// The items of a section of the manual page are these names, and no others.
pub(crate) fn listed<'a>(
    names: impl Iterator<Item = &'a str>,
    section: &str,
    page: &str,
) -> Vec<Finding> {
    let page = plain(page);
    let is_heading = |line: &&str| line.starts_with(".Sh ") || line.starts_with(".Ss ");
    let lines = page
        .lines()
        .skip_while(|line| !(is_heading(line) && line.ends_with(section)));
    let lines = lines.skip(1).take_while(|line| !is_heading(line));
    let items = lines.filter_map(|line| line.strip_prefix(".It Li ")?.split(' ').next());
    let (items, names): (Vec<&str>, Vec<&str>) = (items.collect(), names.collect());
    let missing = names.iter().filter(|name| !items.contains(name));
    let missing = missing.map(|name| format!("{name} is missing in {section}"));
    let invented = items.iter().filter(|name| !names.contains(name));
    let invented = invented.map(|name| format!("{name} does not exist"));
    let all = missing.chain(invented);
    all.map(|text| Finding::new(PAGE, 1, &text)).collect()
}

/// Every node and command of the help text stands in the manual page, and no other.
///
/// The first word of a line is the path or the command; lines that begin with `#` are titles.
pub(crate) fn help(help: &str, page: &str) -> Vec<Finding> {
    let page = plain(page);
    let titles = |line: &&str| !line.trim_start().starts_with('#');
    let names = help
        .lines()
        .filter(titles)
        .filter_map(|line| line.split_whitespace().next());
    let names = names.map(|name| name.trim_start_matches(".shadow/").trim_end_matches('/'));
    let names: Vec<&str> = names.filter(|name| !name.is_empty()).collect();
    let missing = names.iter().filter(|name| !lists(&page, name));
    let missing = missing.map(|name| format!("`{name}` is missing"));
    let invented = described(&page).filter(|name| !names.contains(name));
    let invented = invented.map(|name| format!("`{name}` does not exist"));
    missing
        .chain(invented)
        .map(|text| Finding::new(PAGE, 1, &text))
        .collect()
}

/// The parameters in the manual page are those of the program: each is name, what it takes, default.
pub(crate) fn params(rows: &[[String; 3]], page: &str) -> Vec<Finding> {
    let page = plain(page);
    let described = page.lines().filter_map(|line| line.strip_prefix(".It Va "));
    let described: Vec<&str> = described.collect();
    let rows = rows
        .iter()
        .map(|[name, takes, default]| format!("{name} Pq {takes}, default {default}"));
    let rows: Vec<String> = rows.collect();
    let name = |row: &str| row.split(' ').next().map(str::to_owned);
    let missing = rows.iter().filter(|row| !described.contains(&row.as_str()));
    let missing = missing.map(|row| format!("parameter {row} is missing"));
    let known = |row: &&&str| rows.iter().any(|known| name(known) == name(row));
    let invented = described.iter().filter(|row| !known(row));
    let invented =
        invented.map(|row| format!("parameter {} does not exist", name(row).unwrap_or_default()));
    missing
        .chain(invented)
        .map(|text| Finding::new(PAGE, 1, &text))
        .collect()
}

/// Nodes (`.It Pa`) and commands (`.It Ic`) that the page describes.
fn described(page: &str) -> impl Iterator<Item = &str> {
    page.lines().filter_map(|line| {
        let item = line
            .strip_prefix(".It Pa ")
            .or(line.strip_prefix(".It Ic "))?;
        item.split_whitespace().next()
    })
}

const PAGE: &str = "man/shadowset-control.7";

/// The page as it reads: escapes undone, comments and macros of headings gone.
fn plain(page: &str) -> String {
    let lines = page.lines().filter(|line| !line.starts_with(".\\\""));
    lines
        .collect::<Vec<_>>()
        .join("\n")
        .replace("\\-", "-")
        .replace("\\&", "")
}

/// Whether the page has a list item for the name: prose that mentions it does not describe it.
fn lists(page: &str, name: &str) -> bool {
    let items = page.lines().filter_map(|line| line.strip_prefix(".It "));
    items
        .flat_map(str::split_whitespace)
        .any(|word| word == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(found: &[Finding]) -> Vec<&str> {
        found.iter().map(|finding| finding.text.as_str()).collect()
    }

    /// A document that defines all invariants, but for what the caller takes out.
    fn document() -> String {
        INVARIANTS
            .map(|n| format!("- **I{n} name** text\n"))
            .collect()
    }

    fn sources() -> String {
        INVARIANTS.map(|n| format!("// (I{n})\n")).collect()
    }

    #[test]
    fn invariants_fires() {
        assert!(invariants(&document(), &sources(), &[]).is_empty());
        let undefined = document().replace("- **I3 ", "- **Q ");
        assert_eq!(
            texts(&invariants(&undefined, &sources(), &[])),
            ["I3 is defined 0 times"]
        );
        let unnamed = sources().replace("I1)", "Q)");
        let found = invariants(&document(), &unnamed, &[]);
        assert_eq!(texts(&found), ["nothing in src/ or tests/ names I1"]);
        assert!(invariants(&document(), &unnamed, &[(1, "later")]).is_empty());
        assert_eq!(invariants(&document(), &unnamed, &[(1, "")]).len(), 1);
        assert_eq!(
            invariants(&document(), &sources(), &[(1, "later")]).len(),
            1
        );
    }

    #[test]
    fn codes_fires() {
        let page = ".It Er EBUSY Ta last\\-source Ta x\nsyntax is only mentioned\n";
        let found = codes(["last-source", "syntax"].into_iter(), page);
        assert_eq!(texts(&found), ["code syntax is missing"]);
    }

    #[test]
    fn listed_fires() {
        let page = ".Ss Metrics\n.Bl\n.It Li a Pq gauge\n.It Li c\n.El\n.Ss Other\n.It Li b\n";
        let found = listed(["a", "b"].into_iter(), "Metrics", page);
        assert_eq!(
            texts(&found),
            ["b is missing in Metrics", "c does not exist"]
        );
    }

    #[test]
    fn params_fires() {
        let page =
            ".It Va max_copies Pq 0 to 200, default 4\nCopies.\n.It Va gone Pq 1, default 1\n";
        let rows = [["max_copies", "0 to 200", "4"], ["priority", "0 to 9", "1"]];
        let rows = rows.map(|row| row.map(str::to_owned));
        let found = params(&rows, page);
        let expected = [
            "parameter priority Pq 0 to 9, default 1 is missing",
            "parameter gone does not exist",
        ];
        assert_eq!(texts(&found), expected);
        let found = params(&rows[..1], &page.replace("default 4", "default 5"));
        assert_eq!(
            texts(&found)[0],
            "parameter max_copies Pq 0 to 200, default 4 is missing"
        );
    }

    #[test]
    fn help_fires() {
        let page = ".It Pa help Ta r\n.It Ic gone\n.It Pa members/<m>/state\n\
                    .It Ic detach Ar member\nattach comes later\n";
        let text =
            "# nodes\nhelp r\n.shadow/members/<m>/state rw p\n\ndetach <member>\nattach <path>\n";
        assert_eq!(
            texts(&help(text, page)),
            ["`attach` is missing", "`gone` does not exist"]
        );
    }
}
