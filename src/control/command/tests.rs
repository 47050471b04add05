//! Commands: what is understood, and what each refusal says.

use proptest::prelude::*;

use super::*;

fn attach_of(what: &str) -> Request {
    Request::Attach {
        what: what.to_owned(),
        name: None,
        policy: AttachPolicy::MinicopyOptional,
        source: None,
        confirm: false,
    }
}

fn detach_of(policy: Option<Policy>) -> Request {
    Request::Detach {
        member: "m3".to_owned(),
        policy,
    }
}

fn dry_run_of(request: Request) -> Request {
    Request::DryRun(Box::new(request))
}

fn set_of(name: &str, value: &str) -> Request {
    let [name, value] = [name, value].map(str::to_owned);
    Request::Set { name, value }
}

fn verify_of(range: Option<(u64, u64)>, repair: Option<RepairBy>) -> Request {
    Request::Verify { range, repair }
}

#[test]
fn commands_become_requests() {
    let cases: Vec<(&str, Request)> = vec![
        ("detach m3", detach_of(None)),
        ("  detach\tm3  \n", detach_of(None)),
        (
            "detach m3 policy=minicopy\n",
            detach_of(Some(Policy::Minicopy)),
        ),
        (
            "detach m3 dry-run policy=minicopy=optional",
            dry_run_of(detach_of(Some(Policy::MinicopyOptional))),
        ),
        ("detach m3 policy=none", detach_of(Some(Policy::Full))),
        ("attach m3", attach_of("m3")),
        ("attach \"/srv/my disk\"", attach_of("/srv/my disk")),
        ("attach \"a\\\"b\\\\c\\d\"", attach_of("a\"b\\c\\d")),
        (
            "attach /x as=m4 policy=full source=m1 confirm dry-run",
            dry_run_of(Request::Attach {
                what: "/x".to_owned(),
                name: Some("m4".to_owned()),
                policy: AttachPolicy::Full,
                source: Some("m1".to_owned()),
                confirm: true,
            }),
        ),
        ("set max_copies 2\n", set_of("max_copies", "2")),
        (
            "expel m1",
            Request::Expel {
                member: "m1".to_owned(),
            },
        ),
        (
            "release m3",
            Request::Release {
                member: "m3".to_owned(),
            },
        ),
        ("merge", Request::Merge { full: false }),
        ("merge full\n", Request::Merge { full: true }),
        (
            "delete-bitmap 0000001f",
            Request::DeleteBitmap(BitmapId(31)),
        ),
        ("stall 600", Request::Stall { seconds: 600 }),
        ("unstall", Request::Unstall),
        ("pause 7", Request::Pause(OpId(7))),
        ("resume 7", Request::Resume(OpId(7))),
        (
            "cancel 18446744073709551615",
            Request::Cancel(OpId(u64::MAX)),
        ),
    ];
    for (text, request) in cases {
        assert_eq!(parse(text.as_bytes()), Ok(request), "{text}");
    }
}

#[test]
fn a_verify_says_what_it_compares_and_whose_bytes_are_right() {
    let cases = [
        ("verify", verify_of(None, None)),
        (
            "verify repair range=8-9",
            verify_of(Some((8, 9)), Some(RepairBy::Majority)),
        ),
        (
            "verify source=m1 repair",
            verify_of(None, Some(RepairBy::Member("m1".to_owned()))),
        ),
    ];
    for (text, request) in cases {
        assert_eq!(parse(text.as_bytes()), Ok(request), "{text}");
    }
}

#[test]
fn every_command_has_a_dry_run() {
    let given = [
        ("detach m3", 1),
        ("attach /x policy=full", 1),
        ("expel dry-run", 2),
        ("release m3", 1),
        ("abort", 0),
        ("reset-counters", 0),
        ("dissolve policy=minicopy", 0),
        ("merge full", 0),
        ("verify repair source=m1", 0),
        ("resize 1024", 0),
        ("resize", 0),
        ("delete-bitmap 0000001f", 1),
        ("stall 30", 1),
        ("unstall", 0),
        ("pause 7", 1),
        ("resume 7", 1),
        ("cancel 7", 1),
        ("set max_copies 2", 2),
    ];
    for spec in COMMANDS {
        assert!(spec.syntax.ends_with("[dry-run]"), "{}", spec.syntax);
        let tried = given
            .iter()
            .any(|(text, _)| text.split(' ').next() == Some(spec.verb));
        assert!(tried, "{} is not tried", spec.verb);
    }
    for (text, fixed) in given {
        let run = parse(text.as_bytes()).expect(text);
        let words: Vec<&str> = text.split(' ').collect();
        // The word may stand anywhere behind the object.
        for at in 1 + fixed.min(words.len() - 1)..=words.len() {
            let mut words = words.clone();
            words.insert(at, "dry-run");
            let dry = words.join(" ");
            assert_eq!(parse(dry.as_bytes()), Ok(dry_run_of(run.clone())), "{dry}");
            let twice = parse(format!("{dry} dry-run").as_bytes());
            assert_eq!(twice.map_err(|r| r.code), Err(Code::Syntax), "{dry}");
        }
    }
    let of_member = parse_for(b"expel dry-run", "m1", &["expel"]);
    let member = "m1".to_owned();
    assert_eq!(of_member, Ok(dry_run_of(Request::Expel { member })));
}

/// What is written, the code, a part of the sentence, the word at fault.
type Mistake<'a> = (&'a [u8], Code, &'a str, Option<&'a str>);

fn all_refused(mistakes: &[Mistake<'_>]) {
    for &(bytes, code, sentence, word) in mistakes {
        let shown = String::from_utf8_lossy(bytes).into_owned();
        let refusal = parse(bytes).expect_err(&shown);
        assert_eq!(refusal.code, code, "{shown}: {refusal}");
        assert!(refusal.text.contains(sentence), "{shown}: {refusal}");
        assert_eq!(refusal.word.as_deref(), word, "{shown}");
        if let Some(word) = word {
            assert!(locate(&shown, word).is_some(), "{shown}: {word}");
        }
    }
}

#[test]
fn each_malformed_write_has_its_own_sentence() {
    let long = vec![b'x'; 4096];
    all_refused(&[
        (b"", Code::Syntax, "the command is empty", None),
        (b"\n", Code::Syntax, "the command is empty", None),
        (b" \t ", Code::Syntax, "the command is empty", None),
        (
            b"detach m1\ndetach m2\n",
            Code::Syntax,
            "the command has several lines",
            None,
        ),
        (b"detach m1\n\n", Code::Syntax, "several lines", None),
        (b"detach m\0", Code::Syntax, "a NUL byte", None),
        (b"detach \xff", Code::Syntax, "not UTF-8", None),
        (&long, Code::TooLong, "4096 bytes, and 4095", None),
        (
            b"deatch m1",
            Code::Syntax,
            "deatch is not a command",
            Some("deatch"),
        ),
        (
            b"detach",
            Code::Syntax,
            "detach needs a member",
            Some("detach"),
        ),
        (
            b"detach \"\"",
            Code::Syntax,
            "detach needs a member",
            Some("detach"),
        ),
        (
            b"detach m1 now",
            Code::Syntax,
            "now is not a word of detach",
            Some("now"),
        ),
    ]);
}

const WRONG_WORDS: &[Mistake<'static>] = &[
    (
        b"release",
        Code::Syntax,
        "release needs a member",
        Some("release"),
    ),
    (
        b"release m1 m2",
        Code::Syntax,
        "m2 is not a word of release",
        Some("m2"),
    ),
    (
        b"merge m1",
        Code::Syntax,
        "m1 is not a word of merge",
        Some("m1"),
    ),
    (
        b"merge full full",
        Code::Syntax,
        "full is given twice",
        Some("full"),
    ),
    (
        b"detach m1 policy=full",
        Code::Syntax,
        "full is not a policy of detach",
        Some("policy=full"),
    ),
    (
        b"detach m1 policy=none policy=minicopy",
        Code::Syntax,
        "policy is given twice",
        Some("policy=minicopy"),
    ),
    (
        b"attach \"/a b",
        Code::Syntax,
        "a quote is not closed",
        Some("\"/a b"),
    ),
    (
        b"attach /a as=-x",
        Code::Syntax,
        "cannot be a member's name",
        Some("as=-x"),
    ),
    (b"delete-bitmap 7", Code::Syntax, "8 hex digits", Some("7")),
    (
        b"delete-bitmap +000001f",
        Code::Syntax,
        "8 hex digits",
        Some("+000001f"),
    ),
    (
        b"stall soon",
        Code::Syntax,
        "not a number of seconds",
        Some("soon"),
    ),
    (
        b"stall +5",
        Code::Syntax,
        "not a number of seconds",
        Some("+5"),
    ),
    (
        b"resize +512",
        Code::Syntax,
        "not a number of bytes",
        Some("+512"),
    ),
    (b"stall 0", Code::OutOfRange, "1 to 600 seconds", Some("0")),
    (
        b"stall 601",
        Code::OutOfRange,
        "1 to 600 seconds",
        Some("601"),
    ),
    (
        b"pause seven",
        Code::Syntax,
        "not the number of an operation",
        Some("seven"),
    ),
    (
        b"pause +7",
        Code::Syntax,
        "not the number of an operation",
        Some("+7"),
    ),
    (
        b"verify range=+1-2",
        Code::Syntax,
        "no range of blocks",
        Some("range=+1-2"),
    ),
    (
        b"verify source=m1",
        Code::Syntax,
        "a word of verify repair",
        Some("source=m1"),
    ),
    (
        b"dissolve policy=full",
        Code::Syntax,
        "full",
        Some("policy=full"),
    ),
];

#[test]
fn each_wrong_word_has_its_own_sentence() {
    all_refused(WRONG_WORDS);
}

#[test]
fn the_file_of_an_object_says_the_object() {
    let verbs = ["detach", "attach", "expel"];
    let parse = |text: &str| parse_for(text.as_bytes(), "m3", &verbs);
    assert_eq!(parse("detach\n"), Ok(detach_of(None)));
    assert_eq!(
        parse("detach policy=none"),
        Ok(detach_of(Some(Policy::Full)))
    );
    assert_eq!(parse("attach"), Ok(attach_of("m3")));
    let refusal = parse("detach m1").expect_err("a second member");
    assert_eq!(refusal.word.as_deref(), Some("m1"));
    let refusal = parse("pause").expect_err("another object's verb");
    assert!(refusal.hint().contains("detach, attach, expel"));
    assert_eq!(
        parse_for(b"cancel", "7", &["pause", "resume", "cancel"]),
        Ok(Request::Cancel(OpId(7)))
    );
}

#[test]
fn words_are_found_where_they_stand() {
    assert_eq!(locate("detach  m1", "m1"), Some(8));
    assert_eq!(locate("detach m11 m1", "m1"), Some(11));
    assert_eq!(locate("attach \"/a b\" as=x", "/a b"), Some(7));
    assert_eq!(locate("attach m1 policy=full", "full"), Some(17));
    assert_eq!(locate("attach \u{fc}\u{fc} x", "x"), Some(10));
    assert_eq!(locate("detach m1", "m2"), None);
    assert_eq!(locate("detach m1", ""), None);
}

proptest! {
    /// Whatever is written is understood or refused, and a refusal can be shown.
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        for result in [parse(&bytes), parse_for(&bytes, "m1", &["detach", "attach"])] {
            if let Err(refusal) = result {
                let shown = crate::control::answer::echo(&bytes);
                let text = crate::control::answer::refused(&shown, &refusal);
                prop_assert!(text.starts_with("error: ") && text.ends_with('\n'));
            }
        }
    }

    /// Words that look like commands, in any order and number.
    #[test]
    fn no_words_make_it_panic(
        words in proptest::collection::vec(
            prop_oneof![
                "detach|attach|expel|pause|delete-bitmap|policy=[a-z=]{0,9}|as=.?|\"|\\\\|m1|dry-run",
                ".{0,6}",
            ],
            0..8,
        )
    ) {
        let _ = parse(words.join(" ").as_bytes());
    }

    /// A quoted path comes out as it went in.
    #[test]
    fn quoting_is_exact(path in "[^\\x00\\n]{1,40}") {
        let quoted = path.replace('\\', "\\\\").replace('"', "\\\"");
        prop_assert_eq!(parse(format!("attach \"{quoted}\"").as_bytes()), Ok(attach_of(&path)));
    }
}
