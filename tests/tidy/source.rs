//! A Rust file taken apart into code, comments and strings, line by line.
//!
//! The three views have the same lines, so that a finding in one of them has a line number. In
//! the code view comments and the insides of strings are blank, so that braces can be counted.

use std::iter::Peekable;
use std::str::Chars;

/// Files that are tests by their name, beside the folders `tests` and `testing`.
const TEST_FILES: [&str; 4] = ["fuzz.rs", "planted.rs", "testing.rs", "tests.rs"];

/// A Rust file.
#[derive(Debug)]
pub(crate) struct Source {
    /// Path below the root, with `/`.
    pub(crate) path: String,
    /// What the compiler sees.
    pub(crate) code: Vec<String>,
    /// Comments and documentation.
    pub(crate) comments: Vec<String>,
    /// Insides of strings.
    pub(crate) strings: Vec<String>,
    /// Whether the line belongs to a test.
    pub(crate) test: Vec<bool>,
}

impl Source {
    /// Takes the text apart.
    pub(crate) fn parse(path: &str, text: &str) -> Self {
        let mut lexer = Lexer::new(text);
        lexer.run();
        let [code, comments, strings] = lexer.views;
        let mut source = Self {
            path: path.to_owned(),
            code,
            comments,
            strings,
            test: Vec::new(),
        };
        source.test = source.test_lines();
        source
    }

    /// Lines of code outside tests, with their numbers from one.
    pub(crate) fn product(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.code.iter().zip(&self.test).enumerate();
        lines
            .filter(|(_, (_, test))| !**test)
            .map(|(at, (line, _))| (at + 1, line.as_str()))
    }

    /// First and last line (from zero) of every function with a body.
    pub(crate) fn functions(&self) -> Vec<(usize, usize)> {
        let mut found = Vec::new();
        for (at, line) in self.code.iter().enumerate() {
            for column in words(line, "fn") {
                let named = line[column + 2..].trim_start().starts_with(is_word);
                if let Some((_, end)) = named.then(|| self.block(at, column)).flatten() {
                    found.push((at, end));
                }
            }
        }
        found
    }

    /// The braces that open first behind a place, before a semicolon outside brackets.
    fn block(&self, line: usize, column: usize) -> Option<(usize, usize)> {
        let (mut brackets, mut braces, mut open) = (0, 0, None);
        for (at, text) in self.code.iter().enumerate().skip(line) {
            let from = if at == line { column } else { 0 };
            for c in text[from..].chars() {
                match c {
                    '(' | '[' => brackets += 1,
                    ')' | ']' => brackets -= 1,
                    '{' => {
                        open.get_or_insert(at);
                        braces += 1;
                    }
                    '}' => {
                        braces -= 1;
                        if braces == 0 {
                            return Some((open?, at));
                        }
                    }
                    ';' if braces == 0 && brackets == 0 => return None,
                    _ => {}
                }
            }
        }
        None
    }

    fn test_lines(&self) -> Vec<bool> {
        let mut test = vec![self.is_test_file(); self.code.len()];
        for (at, line) in self.code.iter().enumerate() {
            let Some(column) = line.find("#[cfg(") else {
                continue;
            };
            let condition = &line[column..];
            let tested = !words(condition, "test").is_empty() && !condition.contains("not(test");
            let after = column + condition.find(']').map_or(condition.len(), |end| end + 1);
            if tested {
                let end = self.block(at, after).map_or(at + 1, |(_, end)| end);
                let end = end.min(test.len() - 1);
                test[at..=end].fill(true);
            }
        }
        test
    }

    fn is_test_file(&self) -> bool {
        let in_tests = |folder: &str| self.path.split('/').any(|part| part == folder);
        let name = self.path.rsplit('/').next().unwrap_or_default();
        in_tests("tests") || in_tests("testing") || TEST_FILES.contains(&name)
    }
}

/// Whether the character can stand inside a word.
pub(crate) fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// Where the word stands alone in the text.
pub(crate) fn words(text: &str, word: &str) -> Vec<usize> {
    let alone = |at: &usize| {
        let before = text[..*at].chars().next_back();
        let after = text[at + word.len()..].chars().next();
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    };
    text.match_indices(word)
        .map(|(at, _)| at)
        .filter(alone)
        .collect()
}

const CODE: usize = 0;
const COMMENT: usize = 1;
const STRING: usize = 2;

struct Lexer<'a> {
    rest: Peekable<Chars<'a>>,
    views: [Vec<String>; 3],
    last: char,
}

impl<'a> Lexer<'a> {
    fn new(text: &'a str) -> Self {
        let views = std::array::from_fn(|_| vec![String::new()]);
        Self {
            rest: text.chars().peekable(),
            views,
            last: ' ',
        }
    }

    /// Puts the character in one view and a blank in the code view.
    fn put(&mut self, view: usize, c: char) {
        if c == '\n' {
            self.views
                .iter_mut()
                .for_each(|lines| lines.push(String::new()));
            return;
        }
        for (at, lines) in self.views.iter_mut().enumerate() {
            if let Some(line) = lines.last_mut().filter(|_| at == view || at == CODE) {
                line.push(if at == view { c } else { ' ' });
            }
        }
    }

    fn run(&mut self) {
        while let Some(c) = self.rest.next() {
            match (c, self.rest.peek()) {
                ('/', Some('/')) => self.line_comment(),
                ('/', Some('*')) => self.block_comment(),
                ('"', _) => self.string(),
                ('r', Some('"' | '#')) if !is_word(self.last) || "bc".contains(self.last) => {
                    self.raw_string();
                }
                ('\'', _) => self.quote(),
                _ => self.put(CODE, c),
            }
            self.last = c;
        }
    }

    fn line_comment(&mut self) {
        self.put(COMMENT, '/');
        while let Some(c) = self.rest.next_if(|c| *c != '\n') {
            self.put(COMMENT, c);
        }
    }

    fn block_comment(&mut self) {
        let (mut depth, mut before) = (0, '/');
        self.put(COMMENT, '/');
        while let Some(c) = self.rest.next() {
            self.put(COMMENT, c);
            match (before, c) {
                ('/', '*') => depth += 1,
                ('*', '/') => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return;
            }
            // `/*/` opens once and closes nothing.
            before = if (before, c) == ('/', '*') || (before, c) == ('*', '/') {
                ' '
            } else {
                c
            };
        }
    }

    fn string(&mut self) {
        self.put(CODE, '"');
        while let Some(c) = self.rest.next() {
            if c == '"' {
                return self.put(CODE, '"');
            }
            self.put(STRING, c);
            if let Some(escaped) = (c == '\\').then(|| self.rest.next()).flatten() {
                self.put(STRING, escaped);
            }
        }
    }

    /// Behind the `r`; also `r#name`, which is no string.
    fn raw_string(&mut self) {
        self.put(CODE, 'r');
        let mut hashes = 0;
        while self.rest.next_if_eq(&'#').is_some() {
            self.put(CODE, '#');
            hashes += 1;
        }
        if self.rest.next_if_eq(&'"').is_none() {
            return;
        }
        self.put(CODE, '"');
        let end = format!("\"{}", "#".repeat(hashes));
        let mut body = String::new();
        while !body.ends_with(&end) {
            let Some(c) = self.rest.next() else { return };
            body.push(c);
            self.put(STRING, c);
        }
    }

    /// A character or a lifetime.
    fn quote(&mut self) {
        self.put(CODE, '\'');
        let Some(first) = self.rest.next() else {
            return;
        };
        let escaped = first == '\\';
        let closed = escaped || self.rest.peek() == Some(&'\'');
        if !closed {
            return self.put(CODE, first);
        }
        self.put(STRING, first);
        if let Some(c) = escaped.then(|| self.rest.next()).flatten() {
            self.put(STRING, c);
        }
        while let Some(c) = self.rest.next() {
            if c == '\'' {
                return self.put(CODE, c);
            }
            self.put(STRING, c);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> String {
        Source::parse("src/x.rs", text).code.join("\n")
    }

    #[test]
    fn comments_and_strings_are_blank_in_the_code() {
        assert_eq!(code("a // b {\nc"), "a       \nc");
        assert_eq!(
            code("a /* b /* c */ d */ e").trim_start_matches('a').trim(),
            "e"
        );
        assert_eq!(
            code(r#"f("{\"}", '{', '\'', b'"', 'x')"#),
            r#"f("    ", ' ', '  ', b' ', ' ')"#
        );
        assert_eq!(code("r#\"{\"{\"# + r\"}\" r#fn"), "r#\"      + r\"   r#fn");
        assert_eq!(code("fn f<'a>(x: &'a str) {}"), "fn f<'a>(x: &'a str) {}");
    }

    #[test]
    fn each_view_keeps_the_line_numbers() {
        let source = Source::parse("src/x.rs", "let a = \"one\ntwo\"; // three\n");
        assert_eq!(source.strings, ["one", "two", ""]);
        assert_eq!(source.comments, ["", "// three", ""]);
        assert_eq!(source.code.len(), 3);
    }

    #[test]
    fn tests_are_told_from_product_code() {
        let text =
            "fn a() {}\n#[cfg(test)]\nmod tests {\n fn b() {}\n}\n#[cfg(not(test))]\nfn c() {}";
        let source = Source::parse("src/x.rs", text);
        assert_eq!(source.test, [false, true, true, true, true, false, false]);
        let source = Source::parse("src/x.rs", "#[cfg(test)]\nuse a::b;\nfn c() {\n}\n");
        assert_eq!(source.test, [true, true, false, false, false]);
        assert_eq!(
            Source::parse("src/testing/rng.rs", "fn a() {}").test,
            [true]
        );
    }

    #[test]
    fn functions_end_at_their_own_brace() {
        let text = "fn a(x: [u8; 2]) -> u8 {\n { }\n}\ntrait T {\n fn b();\n fn c() {}\n}\ntype F = fn(u8);";
        assert_eq!(
            Source::parse("src/x.rs", text).functions(),
            [(0, 2), (5, 5)]
        );
    }
}
