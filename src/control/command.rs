//! Commands: from the bytes of one write to a request of the shadow server, or a refusal.
//!
//! One parser for `control` and for the files of single objects, where the object goes without
//! saying. Only form is checked here; whether a member exists is the shadow server's business.

use crate::server::Request;
use crate::set::{AttachPolicy, BitmapId, Bytes, Code, OpId, Policy, Refusal, RepairBy};

/// Most bytes of one command.
pub const COMMAND_BYTES: usize = 4095;

/// Longest stall.
const STALL_SECONDS: u64 = 600;

/// The word, of every command, that has it only say what it would do.
const DRY_RUN: &str = "dry-run";

/// One command of the interface.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// Its first word.
    pub verb: &'static str,
    /// Its form.
    pub syntax: &'static str,
    /// Its meaning, one sentence.
    pub doc: &'static str,
    parse: Parse,
}

type Parse = fn(&mut Words) -> Result<Request, Refusal>;

/// Every command of this version.
pub static COMMANDS: &[Spec] = &[
    Spec {
        verb: "detach",
        syntax: "detach <member> [policy=minicopy | minicopy=optional | none] [dry-run]",
        doc: "Take a member out on purpose; its image is complete and quiet when this returns.",
        parse: detach,
    },
    Spec {
        verb: "attach",
        syntax: "attach <member> | <path> [as=<name>] \
                 [policy=minicopy | minicopy=optional | compare | full | nocopy] [source=<member>] [confirm] [dry-run]",
        doc: "Bring a departed member or a new image in; returns when the copy is queued.",
        parse: attach,
    },
    Spec {
        verb: "expel",
        syntax: "expel <member> [dry-run]",
        doc: "Take a member out at once, as after an error.",
        parse: expel,
    },
    Spec {
        verb: "release",
        syntax: "release <member> [dry-run]",
        doc: "Give up a departed member: its row and its bitmap go, and its image may be written.",
        parse: release,
    },
    Spec {
        verb: "abort",
        syntax: "abort [dry-run]",
        doc: "Wait no longer for members that do not answer: they are expelled, or requests fail.",
        parse: |_| Ok(Request::Abort),
    },
    Spec {
        verb: "merge",
        syntax: "merge [full] [dry-run]",
        doc: "Make the other sources equal to the master: where writes may be in flight, or everywhere.",
        parse: |words| {
            let full = words.flag("full")?;
            Ok(Request::Merge { full })
        },
    },
    Spec {
        verb: "verify",
        syntax: "verify [range=<first>-<last>] [repair [source=<member>]] [dry-run]",
        doc: "Compare the source members, and repair what differs; returns when it has begun.",
        parse: verify,
    },
    Spec {
        verb: "resize",
        syntax: "resize [<bytes>] [dry-run]",
        doc: "Make the unit larger: to a size, or as far as its members have room.",
        parse: resize,
    },
    Spec {
        verb: "stall",
        syntax: "stall <seconds> [dry-run]",
        doc: "Have writes wait; returns when all is flushed and the members are quiet.",
        parse: stall,
    },
    Spec {
        verb: "unstall",
        syntax: "unstall [dry-run]",
        doc: "Let writes go on before the seconds of a stall are over.",
        parse: |_| Ok(Request::Unstall),
    },
    Spec {
        verb: "dissolve",
        syntax: "dissolve [policy=minicopy | minicopy=optional] [dry-run]",
        doc: "Close the set and unmount the unit; its members are marked clean when this returns.",
        parse: |words| {
            let policy = words.policy(&[
                ("minicopy", Policy::Minicopy),
                ("minicopy=optional", Policy::MinicopyOptional),
            ])?;
            Ok(Request::Dissolve {
                policy: policy.unwrap_or(Policy::MinicopyOptional),
            })
        },
    },
    Spec {
        verb: "reset-counters",
        syntax: "reset-counters [dry-run]",
        doc: "Have the errors of members and all counters begin at 0 again.",
        parse: |_| Ok(Request::ResetCounters),
    },
    Spec {
        verb: "delete-bitmap",
        syntax: "delete-bitmap <id> [dry-run]",
        doc: "Delete a bitmap that no copy uses; its member will need a full copy.",
        parse: delete_bitmap,
    },
    Spec {
        verb: "pause",
        syntax: "pause <operation> [dry-run]",
        doc: "Hold an operation.",
        parse: |words| Ok(Request::Pause(operation(words)?)),
    },
    Spec {
        verb: "resume",
        syntax: "resume <operation> [dry-run]",
        doc: "Let a held operation go on.",
        parse: |words| Ok(Request::Resume(operation(words)?)),
    },
    Spec {
        verb: "cancel",
        syntax: "cancel <operation> [dry-run]",
        doc: "End an operation; the target of a copy is detached and keeps what is left of its bitmap.",
        parse: |words| Ok(Request::Cancel(operation(words)?)),
    },
    Spec {
        verb: "set",
        syntax: "set <parameter> <value> [dry-run]",
        doc: "Give a parameter another value, at once in force; `params/HELP` lists them.",
        parse: |words| {
            let (name, value) = (words.object("a parameter")?, words.object("a value")?);
            Ok(Request::Set { name, value })
        },
    },
];

/// Parses what was written to `control`.
///
/// # Errors
/// A refusal that names the word at fault.
pub fn parse(bytes: &[u8]) -> Result<Request, Refusal> {
    let words = Words::of(line(bytes)?)?;
    let spec = find(&words.verb)?;
    finish(spec, words)
}

/// Parses what was written to the file of one object: `object` follows the verb unsaid.
///
/// # Errors
/// A refusal that names the word at fault.
pub fn parse_for(bytes: &[u8], object: &str, verbs: &[&str]) -> Result<Request, Refusal> {
    let mut words = Words::of(line(bytes)?)?;
    let spec = find(&words.verb)?;
    if !verbs.contains(&spec.verb) {
        let text = format!("{} is not a command of this file", spec.verb);
        let hint = format!("this file takes {}", verbs.join(", "));
        return Err(syntax(text).at(spec.verb).with_hint(hint));
    }
    words.rest.push(object.to_owned());
    finish(spec, words)
}

/// Parses what was written to the file of a parameter: the value alone.
///
/// # Errors
/// A refusal that names the word at fault.
pub fn parse_value(bytes: &[u8], name: &str) -> Result<Request, Refusal> {
    let mut words = split(line(bytes)?)?.into_iter().map(|token| token.text);
    let value = words.next().filter(|value| !value.is_empty());
    match (value, words.next()) {
        (Some(value), None) => Ok(Request::Set {
            name: name.to_owned(),
            value,
        }),
        (None, None) => Err(syntax(format!("{name} needs a value"))),
        (_, Some(word)) => Err(syntax(format!("{name} takes one value")).at(word)),
    }
}

/// The column of a word in a command, in characters.
///
/// A word that is part of another (`full` of `policy=full`) is found as well.
#[must_use]
pub fn locate(command: &str, word: &str) -> Option<usize> {
    if word.is_empty() {
        return None;
    }
    let tokens = split(command).ok();
    let token = tokens
        .as_ref()
        .and_then(|tokens| tokens.iter().find(|t| t.text == word));
    if let Some(token) = token {
        return Some(token.column);
    }
    let byte = command.find(word)?;
    Some(command[..byte].chars().count())
}

fn syntax(text: impl Into<String>) -> Refusal {
    Refusal::new(Code::Syntax, text)
}

/// The one line of a command, without its newline.
fn line(bytes: &[u8]) -> Result<&str, Refusal> {
    if bytes.len() > COMMAND_BYTES {
        let text = format!(
            "the command has {} bytes, and {COMMAND_BYTES} are the most",
            bytes.len()
        );
        return Err(Refusal::new(Code::TooLong, text));
    }
    if bytes.contains(&0) {
        return Err(syntax("the command holds a NUL byte").with_hint("write plain text"));
    }
    let Ok(text) = std::str::from_utf8(bytes) else {
        return Err(syntax("the command is not UTF-8").with_hint("write plain text"));
    };
    let text = text.strip_suffix('\n').unwrap_or(text);
    if text.contains('\n') {
        let refusal = syntax("the command has several lines");
        return Err(refusal.with_hint("write one command at a time"));
    }
    Ok(text)
}

fn find(verb: &str) -> Result<&'static Spec, Refusal> {
    if let Some(spec) = COMMANDS.iter().find(|spec| spec.verb == verb) {
        return Ok(spec);
    }
    let verbs: Vec<&str> = COMMANDS.iter().map(|spec| spec.verb).collect();
    let hint = format!("the commands are {}", verbs.join(", "));
    Err(syntax(format!("{verb} is not a command"))
        .at(verb)
        .with_hint(hint))
}

fn finish(spec: &Spec, mut words: Words) -> Result<Request, Refusal> {
    let with_syntax = |refusal: Refusal| match refusal.code {
        Code::Syntax => refusal.with_hint(format!("the form is: {}", spec.syntax)),
        _ => refusal,
    };
    let request = (spec.parse)(&mut words).map_err(with_syntax)?;
    let dry_run = words.flag(DRY_RUN).map_err(with_syntax)?;
    match words.rest.pop() {
        None if dry_run => Ok(Request::DryRun(Box::new(request))),
        None => Ok(request),
        Some(word) => Err(with_syntax(
            syntax(format!("{word} is not a word of {}", spec.verb)).at(word),
        )),
    }
}

fn detach(words: &mut Words) -> Result<Request, Refusal> {
    let member = words.object("a member")?;
    let policy = words.policy(&[
        ("minicopy", Policy::Minicopy),
        ("minicopy=optional", Policy::MinicopyOptional),
        ("none", Policy::Full),
    ])?;
    Ok(Request::Detach { member, policy })
}

fn attach(words: &mut Words) -> Result<Request, Refusal> {
    let what = words.object("a member or the path of an image")?;
    let name = words.option("as")?;
    if let Some(name) = name.as_deref().filter(|name| !is_member_name(name)) {
        let text = format!(
            "{name} cannot be a member's name: 1 to 32 letters, digits and . _ -, a letter or \
             digit first"
        );
        return Err(syntax(text).at(format!("as={name}")));
    }
    let source = words.option("source")?;
    let policy = words.policy(&[
        ("minicopy", AttachPolicy::Minicopy),
        ("minicopy=optional", AttachPolicy::MinicopyOptional),
        ("compare", AttachPolicy::Compare),
        ("full", AttachPolicy::Full),
        ("nocopy", AttachPolicy::Nocopy),
    ])?;
    let confirm = words.flag("confirm")?;
    Ok(Request::Attach {
        what,
        name,
        policy: policy.unwrap_or_default(),
        source,
        confirm,
    })
}

fn resize(words: &mut Words) -> Result<Request, Refusal> {
    let at = words.rest.iter().rposition(|word| word != DRY_RUN);
    let size = at.map(|at| {
        let word = words.rest.remove(at);
        let bytes = digits(&word).map(Bytes);
        bytes.ok_or_else(|| syntax(format!("{word} is not a number of bytes")).at(word))
    });
    let size = size.transpose()?;
    Ok(Request::Resize { size })
}

fn stall(words: &mut Words) -> Result<Request, Refusal> {
    let word = words.object("a number of seconds")?;
    let Some(seconds) = digits(&word) else {
        return Err(syntax(format!("{word} is not a number of seconds")).at(word));
    };
    if !(1..=STALL_SECONDS).contains(&seconds) {
        let text = format!("a stall takes 1 to {STALL_SECONDS} seconds, not {seconds}");
        let refusal = Refusal::new(Code::OutOfRange, text).at(word);
        return Err(refusal.with_hint("`stall` again before they are over begins them anew"));
    }
    Ok(Request::Stall { seconds })
}

fn verify(words: &mut Words) -> Result<Request, Refusal> {
    let range = words.option("range")?;
    let range = range.map(|text| {
        let blocks = text.split_once('-');
        let blocks = blocks.and_then(|(first, last)| Some((digits(first)?, digits(last)?)));
        let says = format!("{text} is no range of blocks");
        blocks.ok_or_else(|| syntax(says).at(format!("range={text}")))
    });
    let range = range.transpose()?;
    let (repair, source) = (words.flag("repair")?, words.option("source")?);
    let repair = match (repair, source) {
        (false, None) => None,
        (true, None) => Some(RepairBy::Majority),
        (true, Some(member)) => Some(RepairBy::Member(member)),
        (false, Some(member)) => {
            let refusal = syntax("source is a word of verify repair");
            return Err(refusal.at(format!("source={member}")));
        }
    };
    Ok(Request::Verify { range, repair })
}

/// A number without a sign: `+512` might be meant as so many more.
fn digits(word: &str) -> Option<u64> {
    let digits = word.bytes().all(|b| b.is_ascii_digit());
    word.parse().ok().filter(|_| digits)
}

fn expel(words: &mut Words) -> Result<Request, Refusal> {
    let member = words.object("a member")?;
    Ok(Request::Expel { member })
}

fn release(words: &mut Words) -> Result<Request, Refusal> {
    let member = words.object("a member")?;
    Ok(Request::Release { member })
}

fn delete_bitmap(words: &mut Words) -> Result<Request, Refusal> {
    let word = words.object("a bitmap")?;
    match bitmap_id(&word) {
        Some(id) => Ok(Request::DeleteBitmap(id)),
        None => Err(syntax(format!("{word} is not the id of a bitmap: 8 hex digits")).at(word)),
    }
}

/// The id of a bitmap from its 8 hex digits.
#[must_use]
pub fn bitmap_id(word: &str) -> Option<BitmapId> {
    let digits = word.len() == 8 && word.bytes().all(|b| b.is_ascii_hexdigit());
    let number = u32::from_str_radix(word, 16).ok()?;
    digits.then_some(BitmapId(number))
}

fn operation(words: &mut Words) -> Result<OpId, Refusal> {
    let word = words.object("an operation")?;
    let number = digits(&word).map(OpId);
    number.ok_or_else(|| syntax(format!("{word} is not the number of an operation")).at(word))
}

/// Whether a member can have this name.
#[must_use]
pub fn is_member_name(name: &str) -> bool {
    let inside = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (1..=32).contains(&name.len())
        && name.bytes().all(inside)
        && name.as_bytes()[0].is_ascii_alphanumeric()
}

/// A command taken apart; what has been understood is taken out of `rest`, which is reversed.
struct Words {
    verb: String,
    rest: Vec<String>,
}

impl Words {
    fn of(line: &str) -> Result<Self, Refusal> {
        let tokens = split(line)?;
        let mut rest: Vec<String> = tokens.into_iter().map(|t| t.text).rev().collect();
        match rest.pop() {
            Some(verb) => Ok(Self { verb, rest }),
            None => Err(syntax("the command is empty")),
        }
    }

    /// The next word, which names an object.
    fn object(&mut self, what: &str) -> Result<String, Refusal> {
        match self.rest.pop() {
            Some(word) if !word.is_empty() => Ok(word),
            _ => Err(syntax(format!("{} needs {what}", self.verb)).at(self.verb.as_str())),
        }
    }

    /// The value of `key=value`, at most once.
    fn option(&mut self, key: &str) -> Result<Option<String>, Refusal> {
        let is_it = |word: &String| word.split_once('=').is_some_and(|(k, _)| k == key);
        let word = self.take(key, is_it)?;
        Ok(word.and_then(|word| word.split_once('=').map(|(_, value)| value.to_owned())))
    }

    /// Whether a word is there, at most once.
    fn flag(&mut self, name: &str) -> Result<bool, Refusal> {
        Ok(self.take(name, |word| word == name)?.is_some())
    }

    fn policy<T: Copy>(&mut self, policies: &[(&str, T)]) -> Result<Option<T>, Refusal> {
        let Some(value) = self.option("policy")? else {
            return Ok(None);
        };
        if let Some((_, policy)) = policies.iter().find(|(name, _)| *name == value) {
            return Ok(Some(*policy));
        }
        let text = format!("{value} is not a policy of {}", self.verb);
        Err(syntax(text).at(format!("policy={value}")))
    }

    fn take(
        &mut self,
        what: &str,
        is_it: impl Fn(&String) -> bool,
    ) -> Result<Option<String>, Refusal> {
        let Some(first) = self.rest.iter().rposition(&is_it) else {
            return Ok(None);
        };
        let word = self.rest.remove(first);
        match self.rest.iter().find(|word| is_it(word)) {
            Some(again) => Err(syntax(format!("{what} is given twice")).at(again.as_str())),
            None => Ok(Some(word)),
        }
    }
}

/// One word of a command and the column where it starts, in characters.
struct Token {
    text: String,
    column: usize,
}

/// Splits at blanks; double quotes hold blanks, and `\"` and `\\` stand for themselves in them.
fn split(line: &str) -> Result<Vec<Token>, Refusal> {
    let mut tokens: Vec<Token> = Vec::new();
    let mut inside = false;
    let mut quoted_at = None;
    let mut chars = line.chars().enumerate().peekable();
    while let Some((column, c)) = chars.next() {
        if quoted_at.is_none() && matches!(c, ' ' | '\t') {
            inside = false;
            continue;
        }
        if !inside {
            tokens.push(Token {
                text: String::new(),
                column,
            });
            inside = true;
        }
        match (c, chars.peek()) {
            ('"', _) if quoted_at.is_some() => quoted_at = None,
            ('"', _) => quoted_at = Some(column),
            ('\\', Some(&(_, next @ ('"' | '\\')))) if quoted_at.is_some() => {
                chars.next();
                push(&mut tokens, next);
            }
            (c, _) => push(&mut tokens, c),
        }
    }
    match quoted_at {
        None => Ok(tokens),
        Some(column) => {
            let rest: String = line.chars().skip(column).collect();
            Err(syntax("a quote is not closed").at(rest))
        }
    }
}

fn push(tokens: &mut [Token], c: char) {
    if let Some(token) = tokens.last_mut() {
        token.text.push(c);
    }
}

#[cfg(test)]
mod tests;
