//! Hints in the words of the command line: the control tree gives them in words of its own files.
//!
//! One table for all verbs. A refusal keeps its code and its sentence; only the way out is told anew,
//! because `policy=full` or `cat .shadow/help` is nothing that can be typed here.

use std::error::Error as _;
use std::io;

use super::{log, system};
use crate::error::Error;
use crate::set::Code;

/// Where a configuration is explained.
pub(super) const CONFIG: &str = "shadowset.toml(5) describes every key, with an example to copy";

/// Words of a control file and what stands for them here, for hints that no line of the table tells.
const WORDS: [(&str, &str); 6] = [
    ("policy=", "--policy "),
    (" as=", " --as "),
    ("source=", "--source "),
    ("add `confirm`", "add --yes"),
    ("leave out nocopy", "leave out --policy nocopy"),
    (
        "`cat .shadow/",
        "`shadowset show UNIT` or `cat DIR/.shadow/",
    ),
];

/// The hint of an error; one that is only its code's own is told in words of the command line.
pub(super) fn of(error: &Error) -> String {
    if error.code() == Code::Io && error.hint() == Code::Io.hint() {
        return of_system(error).to_owned();
    }
    if error.code() == Code::NotPermitted && error.hint() == error.code().hint() {
        return not_permitted(system::is_root()).to_owned();
    }
    if error.hint() == error.code().hint() {
        return translate(error.code(), error.hint(), "UNIT", "");
    }
    error.hint().to_owned()
}

/// What helps where something is not permitted: root is it already.
fn not_permitted(root: bool) -> &'static str {
    match root {
        true => {
            "root may not do it there either: the file system, the flags of the file, or a container forbids it"
        }
        false => Code::NotPermitted.hint(),
    }
}

/// What helps with an error of the system that no server has met: no log has it.
fn of_system(error: &Error) -> &'static str {
    let cause = error.source();
    let Some(cause) = cause.and_then(|cause| cause.downcast_ref::<io::Error>()) else {
        return "";
    };
    match cause.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "make room there, or use another place"
        }
        io::ErrorKind::NotADirectory => "a part of the path is no directory: use another path",
        io::ErrorKind::IsADirectory => "it is a directory: name a file",
        io::ErrorKind::InvalidData => "it is no text in UTF-8: is it the file that is meant?",
        _ => "",
    }
}

/// The hint of a refused command of the control tree, for the unit as the operator names it.
pub(super) fn translate(code: Code, hint: &str, unit: &str, command: &str) -> String {
    let mut words = command.split_whitespace();
    let (verb, object) = (words.next(), words.next().unwrap_or("MEMBER"));
    if let Some(hint) = of_verb(code, verb.unwrap_or_default(), object, hint, unit) {
        return hint;
    }
    match code {
        Code::Syntax | Code::OutOfRange | Code::TooLong => match verb {
            Some(verb) => format!("`shadowset {} --help` shows the form", verb_of(verb)),
            None => "shadowset(8) describes every option".to_owned(),
        },
        Code::NoSuchMember => format!("`shadowset status {unit}` shows the members"),
        Code::NoSuchBitmap => format!("`shadowset bitmap list {unit}` lists the bitmaps"),
        Code::NoSuchOperation => format!("`shadowset op list {unit}` lists the operations"),
        Code::NoSuchParameter => format!("`shadowset params list {unit}` lists the parameters"),
        Code::AlreadyMember if hint.contains("as=") => "choose another name: --as NAME".to_owned(),
        Code::AlreadyMember if hint == code.hint() => {
            format!("`shadowset status {unit}` shows the members")
        }
        Code::AlreadyDetached => format!("`shadowset attach {unit} {object}` brings it back"),
        Code::InUse => match operation_in(hint) {
            Some(op) => format!(
                "wait: `shadowset op wait {unit} {op}`, or `shadowset op cancel {unit} {op}`"
            ),
            None => in_words(hint, unit),
        },
        Code::IsCopyTarget => match operation_in(hint) {
            Some(op) => {
                format!("`shadowset op cancel {unit} {op}`, or wait: `shadowset wait {unit}`")
            }
            None => format!(
                "wait: `shadowset wait {unit}`, or cancel it: `shadowset op list {unit}` has its \
                 number"
            ),
        },
        Code::MergePending => format!("wait: `shadowset wait {unit}`"),
        Code::NoBitmap => "use --policy minicopy=optional to copy everything".to_owned(),
        Code::ImageChanged | Code::WrongGeneration => {
            "--policy compare writes only what differs, --policy full everything; what was written \
             to the image is lost by both"
                .to_owned()
        }
        Code::OtherSet => other_set(hint, unit),
        Code::NotBlank | Code::NeedsConfirm => "add --yes to overwrite the image".to_owned(),
        Code::NeedsCopy => "leave out --policy nocopy".to_owned(),
        Code::TooManyBitmaps => format!(
            "`shadowset bitmap list {unit}` lists them, `shadowset bitmap delete {unit} ID` frees \
             one"
        ),
        Code::StateChanged | Code::NotInMountVerify => {
            format!("`shadowset status {unit}` shows the state")
        }
        Code::Config => CONFIG.to_owned(),
        Code::Io if hint == code.hint() => log::SAYS_WHY.to_owned(),
        _ => in_words(hint, unit),
    }
}

/// What helps with a verb that takes more than names.
fn of_verb(code: Code, verb: &str, object: &str, hint: &str, unit: &str) -> Option<String> {
    let says = match (verb, code) {
        ("set", Code::Syntax | Code::OutOfRange) => of_value(object, unit),
        ("verify", Code::OutOfRange) => hint.to_owned(),
        ("verify", Code::Syntax) if object.starts_with("range=") => {
            "as in --range 0-99: the first and the last block of 512 bytes".to_owned()
        }
        ("resize", Code::OutOfRange) => {
            "a unit only grows, by multiples of 512 bytes; without a size it takes all that its \
             members have room for"
                .to_owned()
        }
        ("resize", Code::StateChanged) => format!(
            "to make room, enlarge the smallest images with `truncate -s`: `shadowset status \
             {unit}` shows the sizes"
        ),
        ("detach", Code::MergePending) if hint == code.hint() => {
            format!("wait: `shadowset wait {unit}`, or use --policy minicopy=optional")
        }
        ("release", Code::InUse) if hint.starts_with("take it out first") => {
            format!("take it out first: `shadowset detach {unit} {object} --policy none`")
        }
        ("attach", Code::MemberTooSmall) => {
            "make the image as large as the unit with `truncate -s`, then attach it with --policy \
             compare"
                .to_owned()
        }
        _ => return None,
    };
    Some(says)
}

/// The hint of a refused mount, whose options are other words, for the unit as it was named.
pub(super) fn of_mount(error: Error, spec: &str) -> Error {
    match error.code() {
        Code::NeedsCopy if error.hint() == Code::NeedsCopy.hint() => {
            error.with_hint("leave out nocopy, of -o or of [mount] in the configuration")
        }
        Code::NoBitmap => error.with_hint("leave out policy=minicopy to mount without a bitmap"),
        _ if spec != "none" && error.hint().contains("UNIT") => {
            let hint = error.hint().replace("UNIT", spec);
            error.with_hint(hint)
        }
        _ => error,
    }
}

/// What a parameter takes: those of members and operations are not in the list of the unit's.
fn of_value(name: &str, unit: &str) -> String {
    match name.rsplit_once('.') {
        Some((_, "rate_max")) => {
            format!("as in `shadowset params set {unit} {name} 10M`, or max for no limit")
        }
        Some(_) => format!("as in `shadowset params set {unit} {name} 1`"),
        None => format!("`shadowset params list {unit}` shows what each parameter takes"),
    }
}

/// Whose image it is, from `...; SCB says whose it is`.
fn other_set(hint: &str, unit: &str) -> String {
    let scb = hint.rsplit_once("; ").map(|(_, last)| last);
    match scb.and_then(|last| last.strip_suffix(" says whose it is")) {
        Some(scb) => format!(
            "`shadowset examine {scb}` shows whose it is: release it there, or remove that file if \
             the set is no more"
        ),
        None => in_words(hint, unit),
    }
}

/// The verb of the command line for one of the control tree.
fn verb_of(verb: &str) -> &str {
    match verb {
        "delete-bitmap" => "bitmap delete",
        "pause" => "op pause",
        "resume" => "op resume",
        "cancel" => "op cancel",
        verb => verb,
    }
}

/// The number in `... cancel 4`.
fn operation_in(hint: &str) -> Option<u64> {
    let (_, number) = hint.rsplit_once("cancel ")?;
    number.trim_end_matches('`').parse().ok()
}

fn in_words(hint: &str, unit: &str) -> String {
    WORDS
        .iter()
        .fold(hint.to_owned(), |text, (from, to)| text.replace(from, to))
        .replace("UNIT", unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_out_is_told_in_words_that_can_be_typed() {
        let table = [
            (
                Code::IsCopyTarget,
                "wait for it, or cancel it: cancel 4",
                "detach m3",
                "`shadowset op cancel dsa1 4`, or wait: `shadowset wait dsa1`",
            ),
            (
                Code::NeedsConfirm,
                "add `confirm` to overwrite the image",
                "attach /a",
                "add --yes to overwrite the image",
            ),
            (
                Code::InUse,
                "take it out first: detach m1 policy=none",
                "release m1",
                "take it out first: `shadowset detach dsa1 m1 --policy none`",
            ),
            (
                Code::AlreadyMember,
                "choose another name: as=NAME",
                "attach /a as=m1",
                "choose another name: --as NAME",
            ),
            (
                Code::AlreadyDetached,
                "attach it to bring it back",
                "detach m2",
                "`shadowset attach dsa1 m2` brings it back",
            ),
            (
                Code::Syntax,
                "the form is: pause <operation>",
                "pause x",
                "`shadowset op pause --help` shows the form",
            ),
            (
                Code::LastSource,
                "attach another member first",
                "detach m1",
                "attach another member first",
            ),
            (
                Code::NotSupported,
                "`cat .shadow/help` shows them",
                "merge",
                "`shadowset show dsa1` or `cat DIR/.shadow/help` shows them",
            ),
        ];
        for (code, hint, command, expected) in table {
            assert_eq!(translate(code, hint, "dsa1", command), expected);
        }
    }

    #[test]
    fn a_policy_is_named_to_verbs_that_have_one() {
        let told = |verb| translate(Code::MergePending, Code::MergePending.hint(), "dsa1", verb);
        assert_eq!(told("merge full"), "wait: `shadowset wait dsa1`");
        assert!(told("detach m1").contains("--policy minicopy=optional"));
    }

    #[test]
    fn what_is_no_name_is_told_by_an_example() {
        let table = [
            (
                Code::OtherSet,
                "release it there, or remove its block if that set is gone; /a.scb says whose it is",
                "attach /a",
                "`shadowset examine /a.scb` shows whose it is: release it there, or remove that \
                 file if the set is no more",
            ),
            (
                Code::Syntax,
                "`cat .shadow/params/HELP` shows what each parameter takes",
                "set 3.rate_max abc",
                "as in `shadowset params set dsa1 3.rate_max 10M`, or max for no limit",
            ),
            (
                Code::OutOfRange,
                "`cat .shadow/help` shows the range",
                "set m1.site 999",
                "as in `shadowset params set dsa1 m1.site 1`",
            ),
            (
                Code::Syntax,
                "the form is: verify [range=<first>-<last>]",
                "verify range=100",
                "as in --range 0-99: the first and the last block of 512 bytes",
            ),
            (
                Code::OutOfRange,
                "`cat .shadow/help` shows the range",
                "resize 512",
                "a unit only grows, by multiples of 512 bytes; without a size it takes all that \
                 its members have room for",
            ),
        ];
        for (code, hint, command, expected) in table {
            assert_eq!(translate(code, hint, "dsa1", command), expected);
        }
    }

    #[test]
    fn no_code_has_a_hint_in_words_of_the_control_tree() {
        for code in Code::ALL {
            let told = of(&Error::new(*code, "nothing"));
            for word in [
                "cat .shadow",
                "ls .shadow",
                "policy=",
                "`confirm`",
                " as=",
                "source=",
            ] {
                assert!(!told.contains(word), "{code}: {told}");
            }
        }
    }

    #[test]
    fn a_mount_has_options_and_no_policy() {
        let hint = |code: Code, hint: &str| {
            of_mount(Error::new(code, "no").with_hint(hint), "dsa1")
                .hint()
                .to_owned()
        };
        let nocopy = hint(Code::NeedsCopy, Code::NeedsCopy.hint());
        assert!(
            nocopy.contains("nocopy") && !nocopy.contains("--"),
            "{nocopy}"
        );
        assert_eq!(hint(Code::NeedsCopy, "bring back m1"), "bring back m1");
        assert_eq!(hint(Code::Config, "`create UNIT`"), "`create dsa1`");
        assert!(!hint(Code::NoBitmap, "use it").contains("--"));
    }

    #[test]
    fn an_error_of_the_system_leads_to_no_log() {
        let hint = |errno| of(&Error::io("no", io::Error::from_raw_os_error(errno)));
        assert_eq!(hint(libc::ENOSPC), "make room there, or use another place");
        assert!(hint(libc::ENOTDIR).contains("no directory"));
        assert!(hint(libc::EISDIR).contains("name a file"));
        assert_eq!(hint(libc::EIO), "", "the system has said all");
        assert_eq!(of(&Error::new(Code::Io, "`false` has failed")), "");
    }

    #[test]
    fn nobody_has_to_become_who_he_is() {
        assert!(!not_permitted(true).contains("become root"));
        assert_eq!(not_permitted(false), "become root");
    }

    #[test]
    fn a_hint_of_the_program_itself_stays() {
        let error = Error::new(Code::Syntax, "no").with_hint("name each member");
        assert_eq!(of(&error), "name each member");
    }
}
