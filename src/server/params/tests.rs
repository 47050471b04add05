//! The table and its texts.

use super::*;

const RATE: Spec = Spec {
    name: "rate",
    kind: Kind::Rate,
    default: UNLIMITED,
    doc: " A rate.",
};

#[test]
fn every_parameter_has_a_name_of_its_own_a_sentence_and_a_default_within_its_range() {
    assert_eq!(Param::ALL.len(), TABLE.len());
    for (at, param) in Param::ALL.iter().enumerate() {
        let spec = param.spec();
        assert_eq!(
            (param.index(), Param::from_name(spec.name)),
            (at, Some(*param))
        );
        let plain = |b: u8| b.is_ascii_lowercase() || b == b'_';
        assert!(spec.name.bytes().all(plain), "{}", spec.name);
        assert!(
            spec.doc().ends_with('.') && !spec.doc().starts_with(' '),
            "{}",
            spec.doc()
        );
        let written = spec.write(spec.default);
        assert_eq!(spec.read(&written), Ok(spec.default), "{written}");
    }
}

#[test]
fn what_is_written_is_read_as_the_same_value() {
    for param in Param::ALL {
        let spec = param.spec();
        let values = match spec.kind {
            Kind::Number { least, most, .. } => vec![least, most],
            Kind::Rate => vec![1, UNLIMITED],
            Kind::Word(words) => (0..words.len() as u64).collect(),
        };
        for value in values {
            assert_eq!(spec.read(&spec.write(value)), Ok(value), "{}", spec.name);
        }
    }
}

#[test]
fn a_number_outside_its_range_and_what_is_no_number_are_refused() {
    let table = [
        ("201", Code::OutOfRange, "takes 0 to 200 copies, not 201"),
        ("99999999999999999999999", Code::OutOfRange, "not 9999"),
        ("-1", Code::Syntax, "not -1"),
        ("+1", Code::Syntax, "not +1"),
        ("1.5", Code::Syntax, "not 1.5"),
        ("", Code::Syntax, "takes 0 to 200"),
        ("four", Code::Syntax, "not four"),
    ];
    for (text, code, says) in table {
        let refusal = Param::MaxCopies.value(text).expect_err(text);
        assert_eq!(refusal.code, code, "{text}");
        assert!(refusal.text.starts_with("max_copies takes"), "{refusal}");
        assert!(refusal.text.contains(says), "{refusal}");
    }
    assert_eq!(Param::MaxCopies.value("200"), Ok(200));
    assert_eq!(Param::MaxCopies.value("007"), Ok(7));
}

#[test]
fn a_word_is_one_of_its_list() {
    let spec = Param::DefaultDetachPolicy.spec();
    assert_eq!(spec.read("none"), Ok(2));
    let wrong = spec.read("full").expect_err("no word of it");
    assert_eq!(wrong.code, Code::OutOfRange);
    assert_eq!(
        wrong.text,
        "takes minicopy, minicopy=optional, none, not full"
    );
    let params = Params::new(Values::default());
    for (at, word) in DETACH_WORDS.iter().enumerate() {
        params.set(Param::DefaultDetachPolicy, at as u64);
        let policy = params.default_detach_policy();
        let named = if policy == Policy::Full {
            "none"
        } else {
            policy.name()
        };
        assert_eq!(named, *word);
    }
}

#[test]
fn rates_are_bytes_with_letters_or_max() {
    let table = [
        ("1", 1),
        ("64k", 65_536),
        ("10M", 10 << 20),
        ("2G", 2 << 30),
        ("max", UNLIMITED),
    ];
    for (text, value) in table {
        assert_eq!(RATE.read(text), Ok(value), "{text}");
        assert_eq!(RATE.read(&RATE.write(value)), Ok(value), "{text}");
    }
    for (text, code) in [
        ("0", Code::OutOfRange),
        ("0M", Code::OutOfRange),
        ("M", Code::Syntax),
        ("1T", Code::Syntax),
        ("18446744073709551615", Code::Syntax),
        ("99999999999G", Code::Syntax),
        ("fast", Code::Syntax),
    ] {
        assert_eq!(RATE.read(text).expect_err(text).code, code, "{text}");
    }
}

#[test]
fn no_limit_and_no_priority_hold_copies() {
    let params = Params::new(Values::default());
    assert_eq!(params.limits(Duration::ZERO), Limits::default());
    assert_eq!(params.set(Param::MaxCopies, 0), 4);
    assert_eq!(params.limits(Duration::ZERO).at_once(), 0);
    params.set(Param::MaxCopies, 200);
    assert_eq!(params.limits(Duration::ZERO).at_once(), 200);
    params.set(Param::Priority, 0);
    assert_eq!(params.limits(Duration::ZERO).at_once(), 0);
    params.set(Param::Priority, 1);
    assert_eq!(params.limits(Duration::ZERO).at_once(), 200);
    params.set(Param::RecDly, 2);
    let delayed = [0, 1, 2, 3].map(|s| params.limits(Duration::from_secs(s)).delayed);
    assert_eq!(delayed, [true, true, false, false]);
}

#[test]
fn members_have_a_cost_and_a_site() {
    let find = |name| OfMember::find(name).expect("a parameter");
    assert_eq!(find("a.b.read_cost"), Some(("a.b", OfMember::ReadCost)));
    assert_eq!(find("m1.site"), Some(("m1", OfMember::Site)));
    assert_eq!(find("max_copies"), None);
    let refusal = OfMember::find("m1.weight").expect_err("none");
    assert_eq!(refusal.code, Code::NoSuchParameter);
    let tuning = |value| OfMember::Site.tuning("m1.site", value);
    assert_eq!(tuning("255"), Ok(Tuning::Site(255)));
    let cost = OfMember::ReadCost.tuning("m1.read_cost", "4294967295");
    assert_eq!(cost, Ok(Tuning::ReadCost(u32::MAX)));
    for (value, code) in [("256", Code::OutOfRange), ("-1", Code::Syntax)] {
        assert_eq!(tuning(value).expect_err(value).code, code);
    }
}

#[test]
fn the_help_has_a_line_of_columns_for_each_parameter() {
    let help = help();
    let lines: Vec<Vec<&str>> = help
        .lines()
        .map(|l| l.split_whitespace().collect())
        .collect();
    assert_eq!(lines.len(), TABLE.len() + 1);
    assert_eq!(
        lines[1][..6],
        ["max_copies", "number", "0", "200", "4", "copies"]
    );
    assert_eq!(
        lines[3][..6],
        ["copy_rate_min", "rate", "1", "max", "10485760", "bytes/s"]
    );
    assert_eq!(
        lines[5][..6],
        ["copy_depth", "number", "1", "8", "2", "steps"]
    );
    let word = [
        "default_detach_policy",
        "minicopy|minicopy=optional|none",
        "-",
        "-",
    ];
    let line = lines
        .iter()
        .find(|line| line[0] == word[0])
        .expect("listed");
    assert_eq!(line[..4], word);
}
