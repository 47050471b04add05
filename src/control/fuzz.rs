//! Any line as a command.

use super::command::{COMMAND_BYTES, COMMANDS, locate, parse, parse_for, parse_value};
use crate::server::Request;
use crate::set::{AttachPolicy, Policy, Refusal, RepairBy};
use crate::testing::fuzz::refused;

/// What is understood says the same when it is printed; what is not names its word, where it stands.
pub(crate) fn command(line: &[u8]) {
    let read = parse(line);
    if let Err(refusal) = &read {
        let text = String::from_utf8_lossy(line);
        let word = refusal.word.as_deref().filter(|word| !word.is_empty());
        assert!(
            word.is_none_or(|word| locate(text.trim_end_matches('\n'), word).is_some()),
            "{text:?}: {word:?} is not there"
        );
    }
    prints(read);
    let verbs: Vec<&str> = COMMANDS.iter().map(|spec| spec.verb).collect();
    prints(parse_for(line, "m1", &verbs));
    prints(parse_value(line, "max_copies"));
}

fn prints(read: Result<Request, Refusal>) {
    match read {
        Err(refusal) => {
            refused(refusal.code, &refusal.text, refusal.hint());
            assert!(!refusal.text.contains('\n'), "{refusal:?}");
        }
        Ok(request) => {
            let text = print(&request);
            if text.len() <= COMMAND_BYTES {
                assert_eq!(parse(text.as_bytes()), Ok(request), "{text}");
            }
        }
    }
}

fn quoted(word: &str) -> String {
    format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\""))
}

fn option(key: &str, value: Option<&str>) -> String {
    value.map_or_else(String::new, |value| {
        format!(" {}", quoted(&format!("{key}={value}")))
    })
}

fn flag(word: &str, set: bool) -> String {
    if set {
        format!(" {word}")
    } else {
        String::new()
    }
}

fn print(request: &Request) -> String {
    match request {
        Request::Detach { member, policy } => {
            let policy = policy.map(|policy| match policy {
                Policy::Full => "none",
                other => other.name(),
            });
            format!("detach {}{}", quoted(member), option("policy", policy))
        }
        Request::Attach { .. } => print_attach(request),
        Request::Expel { member } => format!("expel {}", quoted(member)),
        Request::Release { member } => format!("release {}", quoted(member)),
        Request::Resize { size: None } => "resize".to_owned(),
        Request::Resize { size: Some(size) } => format!("resize {}", size.0),
        Request::Merge { full } => format!("merge{}", flag("full", *full)),
        Request::Abort => "abort".to_owned(),
        Request::Stall { seconds } => format!("stall {seconds}"),
        Request::Unstall => "unstall".to_owned(),
        Request::Verify { range, repair } => {
            let range = range.map(|(first, last)| format!("{first}-{last}"));
            let source = match repair {
                Some(RepairBy::Member(member)) => Some(member.as_str()),
                _ => None,
            };
            let range = option("range", range.as_deref());
            let repair = flag("repair", repair.is_some());
            format!("verify{range}{repair}{}", option("source", source))
        }
        Request::Dissolve { policy } => format!("dissolve policy={}", policy.name()),
        Request::ResetCounters => "reset-counters".to_owned(),
        Request::DeleteBitmap(id) => format!("delete-bitmap {:08x}", id.0),
        Request::Pause(op) => format!("pause {}", op.0),
        Request::Resume(op) => format!("resume {}", op.0),
        Request::Cancel(op) => format!("cancel {}", op.0),
        Request::Return { member } => unreachable!("no command has {member} come back"),
        Request::Forget(op) => unreachable!("no command forgets operation {}", op.0),
        Request::Set { name, value } => format!("set {} {}", quoted(name), quoted(value)),
        Request::DryRun(request) => format!("{} dry-run", print(request)),
    }
}

fn print_attach(request: &Request) -> String {
    let Request::Attach {
        what,
        name,
        policy,
        source,
        confirm,
    } = request
    else {
        unreachable!("{request:?}")
    };
    let policy = match policy {
        AttachPolicy::Minicopy => "minicopy",
        AttachPolicy::MinicopyOptional => "minicopy=optional",
        AttachPolicy::Compare => "compare",
        AttachPolicy::Full => "full",
        AttachPolicy::Nocopy => "nocopy",
    };
    [
        format!("attach {}", quoted(what)),
        option("as", name.as_deref()),
        option("policy", Some(policy)),
        option("source", source.as_deref()),
        flag("confirm", *confirm),
    ]
    .concat()
}
