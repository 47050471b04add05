//! The election: a table of cases.

mod histories;

use std::path::PathBuf;

use super::*;
use crate::set::scb::ScbState::{Detached, Expelled, Merging, Source, Target};

const UNIT: Bytes = Bytes(1 << 20);

fn uuid(n: usize) -> Uuid {
    Uuid::from_u128(n as u128 + 1)
}

fn generation(n: u64) -> Generation {
    Generation::from_number(n).expect("in range")
}

/// The block of member `own` of a set whose members have these states.
fn block(own: usize, at: u64, clean: bool, states: &[ScbState]) -> Scb {
    let table: Vec<ScbRow> = states
        .iter()
        .enumerate()
        .map(|(n, state)| ScbRow {
            member: uuid(n),
            name: format!("m{n}"),
            path: PathBuf::from(format!("/m{n}")),
            state: *state,
        })
        .collect();
    Scb {
        set: Uuid::from_u128(900),
        member: uuid(own),
        name: table[own].name.clone(),
        state: table[own].state,
        label: "payroll".to_owned(),
        generation: generation(at),
        lineage: Lineage::new(1),
        geometry: Geometry::new(UNIT, 127).expect("valid"),
        clean,
        sequence: 1,
        table,
        created: None,
        stamp: None,
    }
}

fn found(n: usize, scb: ScbFound) -> Found {
    Found {
        name: format!("m{n}"),
        image: Some(UNIT),
        scb,
    }
}

fn read(n: usize, scb: Scb) -> Found {
    found(n, ScbFound::Read(scb))
}

fn started(found: &[Found]) -> Vec<Start> {
    assess(found, &[]).expect("assembles").starts
}

fn refused(found: &[Found]) -> (Code, String) {
    let refusal = assess(found, &[]).expect_err("refused");
    (refusal.code, refusal.text)
}

/// Two mounts of halves of one set, each without the other.
fn halves(a: u64, b: u64) -> [Found; 2] {
    let mut left = block(0, a, true, &[Source, Expelled]);
    let mut right = block(1, b, true, &[Expelled, Source]);
    left.lineage = left.lineage.mounted(generation(5), 20);
    right.lineage = right.lineage.mounted(generation(5), 30);
    [read(0, left), read(1, right)]
}

#[test]
fn equal_and_clean_members_are_all_sources() {
    let both = [Source, Source];
    let set = [
        read(0, block(0, 4, true, &both)),
        read(1, block(1, 4, true, &both)),
    ];
    let assembly = assess(&set, &[]).expect("assembles");
    assert_eq!(assembly.starts, [Start::Source, Start::Source]);
    assert_eq!((assembly.generation, assembly.clean), (generation(4), true));
    assert_eq!(
        (assembly.set, assembly.label.as_str()),
        (Uuid::from_u128(900), "payroll")
    );
    assert_eq!(assembly.geometry.size(), UNIT);
    assert_eq!(assembly.members, [Some(uuid(0)), Some(uuid(1))]);
}

#[test]
fn equal_and_unclean_members_are_merged_from_the_first_source() {
    let all = [Source, Source, Source];
    let set: Vec<Found> = (0..3).map(|n| read(n, block(n, 4, false, &all))).collect();
    assert_eq!(
        started(&set),
        [Start::Source, Start::Merging, Start::Merging]
    );
    let merging = [Merging, Source, Source];
    let set: Vec<Found> = (0..3)
        .map(|n| read(n, block(n, 4, false, &merging)))
        .collect();
    assert_eq!(
        started(&set),
        [Start::StillMerging, Start::Source, Start::Merging]
    );
    let set: Vec<Found> = (0..3)
        .map(|n| read(n, block(n, 4, true, &merging)))
        .collect();
    assert_eq!(
        started(&set),
        [Start::StillMerging, Start::Source, Start::Source]
    );
    assert_eq!(
        started(&set[..1]),
        [Start::Source],
        "the only one that is there"
    );
}

#[test]
fn the_newest_generation_wins_whatever_the_order() {
    let old = read(0, block(0, 3, false, &[Source, Source]));
    let new = read(1, block(1, 4, true, &[Target, Source]));
    assert_eq!(
        started(&[old.clone(), new.clone()]),
        [Start::Copy { resume: false }, Start::Source]
    );
    assert_eq!(
        started(&[new, old]),
        [Start::Source, Start::Copy { resume: false }]
    );
}

#[test]
fn a_departure_is_known_from_the_newest_table() {
    let states = [Source, Detached, Expelled, Target];
    let was = [Source; 4];
    let set = [
        read(0, block(0, 9, true, &states)),
        read(1, block(1, 8, false, &was)),
        read(2, block(2, 8, false, &was)),
        read(3, block(3, 9, true, &states)),
    ];
    let expected = [
        Start::Source,
        Start::Detached,
        Start::Expelled,
        Start::Copy { resume: true },
    ];
    assert_eq!(started(&set), expected);
}

#[test]
fn a_departed_member_may_lack_its_block_or_have_a_damaged_one() {
    let states = [Source, Detached, Detached];
    let set = [
        read(0, block(0, 9, true, &states)),
        found(1, ScbFound::None),
        found(2, ScbFound::Damaged("bad".to_owned())),
    ];
    let assembly = assess(&set, &[]).expect("assembles");
    assert_eq!(
        assembly.starts,
        [Start::Source, Start::Detached, Start::Detached]
    );
    assert_eq!(
        assembly.members,
        [Some(uuid(0)), Some(uuid(1)), Some(uuid(2))]
    );
}

#[test]
fn what_is_not_there_is_missing() {
    let states = [Source, Source, Source];
    let gone = Found {
        image: None,
        ..read(1, block(1, 9, true, &states))
    };
    let set = [
        read(0, block(0, 9, true, &states)),
        gone,
        found(2, ScbFound::None),
    ];
    assert_eq!(
        started(&set),
        [
            Start::Source,
            Start::Missing { equal: true },
            Start::Missing { equal: true }
        ]
    );
}

#[test]
fn a_set_without_blocks_was_never_created() {
    let set = [found(0, ScbFound::None), found(1, ScbFound::None)];
    let (code, text) = refused(&set);
    assert_eq!(code, Code::Config);
    assert!(text.contains("never been created"), "{text}");
    assert!(
        assess(&set, &[])
            .expect_err("refused")
            .hint()
            .contains("shadowset create")
    );
    assert_eq!(refused(&[]).0, Code::Config);
}

#[test]
fn a_damaged_block_of_a_present_member_is_refused_by_name() {
    let good = read(0, block(0, 9, true, &[Source, Source]));
    let bad = found(
        1,
        ScbFound::Damaged("/m1.scb: the checksum is wrong".to_owned()),
    );
    for set in [vec![good, bad.clone()], vec![bad]] {
        let (code, text) = refused(&set);
        assert_eq!(code, Code::Config);
        assert!(text.contains("m1") && text.contains("/m1.scb"), "{text}");
    }
}

#[test]
fn an_image_of_another_set_is_refused_by_name() {
    let mut other = block(1, 30, true, &[Source, Source]);
    other.set = Uuid::from_u128(901);
    let ours = |n| read(n, block(n, 3, true, &[Source, Source, Source]));
    for set in [
        vec![ours(0), read(1, other.clone())],
        vec![read(1, other), ours(0), ours(2)],
    ] {
        let (code, text) = refused(&set);
        assert_eq!(code, Code::OtherSet);
        assert!(text.starts_with("m1 belongs"), "{text}");
    }
}

#[test]
fn one_member_twice_is_refused() {
    let own = block(0, 3, true, &[Source, Source]);
    let (code, text) = refused(&[read(0, own.clone()), read(1, own)]);
    assert_eq!(code, Code::AlreadyMember);
    assert!(text.contains("m0 and m1"), "{text}");
}

#[test]
fn an_image_that_became_too_small_is_refused_with_both_numbers() {
    let states = [Source, Source];
    let small = Found {
        image: Some(Bytes(4096)),
        ..read(1, block(1, 9, true, &states))
    };
    let (code, text) = refused(&[read(0, block(0, 9, true, &states)), small.clone()]);
    assert_eq!(code, Code::MemberTooSmall);
    assert!(
        text.contains("m1") && text.contains("4096") && text.contains("1048576"),
        "{text}"
    );
    let gone = [Source, Detached];
    let set = [read(0, block(0, 10, true, &gone)), small];
    assert_eq!(
        started(&set),
        [Start::Source, Start::Detached],
        "it does not enter"
    );
}

#[test]
fn halves_that_were_changed_apart_are_refused_at_every_age() {
    for (a, b) in [(7, 7), (7, 6), (6, 7), (40, 6), (5, 5)] {
        let (code, text) = refused(&halves(a, b));
        assert_eq!(code, Code::SplitBrain, "{a} and {b}");
        assert!(text.contains("m0") && text.contains("m1"), "{text}");
    }
}

#[test]
fn a_member_that_was_only_left_behind_is_no_split() {
    let mut left = block(0, 9, false, &[Source, Expelled]);
    left.lineage = left.lineage.mounted(generation(5), 20);
    let behind = block(1, 4, true, &[Source, Source]);
    assert_eq!(
        started(&[read(0, left), read(1, behind)]),
        [Start::Source, Start::Expelled]
    );
}

#[test]
fn copy_targets_and_departed_members_are_never_sources() {
    for own in [Target, Detached, Expelled] {
        let (code, text) = refused(&[read(0, block(0, 9, true, &[own, Source]))]);
        assert_eq!(code, Code::NeedsCopy);
        assert!(
            text.contains("no source member") && text.contains("m0"),
            "{text}"
        );
    }
    // The newest source is known but not there; what is left is older.
    let gone = Found {
        image: None,
        ..read(0, block(0, 9, true, &[Source, Expelled]))
    };
    let refusal = assess(&[gone, read(1, block(1, 8, true, &[Source, Source]))], &[]);
    let refusal = refusal.expect_err("refused");
    assert_eq!(refusal.code, Code::NeedsCopy);
    assert!(refusal.hint().contains("m0"), "{}", refusal.hint());
}

#[test]
fn of_one_generation_there_is_one_table() {
    let own = |n, states: [ScbState; 2]| read(n, block(n, 9, true, &states));
    let apart = [own(0, [Source, Detached]), own(1, [Source, Source])];
    assert_eq!(refused(&apart).0, Code::SplitBrain);
}

/// The newest block knows the last mounts only. Who is older than all of them is believed to be an ancestor when
/// the set knows that it has left.
#[test]
fn a_member_of_a_forgotten_mount_has_to_have_left() {
    let mut newest = block(0, 9, true, &[Source, Detached]);
    for n in 0..crate::set::scb::LINEAGE_MAX as u64 {
        let mount = generation(10 + n);
        newest.lineage = newest.lineage.mounted(mount, 100 + n);
        newest.generation = mount;
    }
    let set = |newest: &Scb| {
        [
            read(0, newest.clone()),
            read(1, block(1, 8, true, &[Source; 2])),
        ]
    };
    assert_eq!(started(&set(&newest)), [Start::Source, Start::Detached]);
    newest.table[1].state = Source;
    assert_eq!(refused(&set(&newest)).0, Code::SplitBrain);
}

/// Sources that are absent hold other bytes than a member that was still to be merged.
#[test]
fn a_set_led_by_a_member_to_be_merged_is_not_clean() {
    let clean = |state| {
        let there = read(0, block(0, 9, true, &[state, Source]));
        let set = [there, found(1, ScbFound::None)];
        assess(&set, &[]).expect("assembles").clean
    };
    assert!(clean(Source) && !clean(Merging));
}

#[test]
fn who_is_not_in_the_newest_table_was_released() {
    let mut alone = block(0, 9, true, &[Source, Source]);
    alone.table.truncate(1);
    let older = block(1, 8, true, &[Source, Detached]);
    let set = [read(0, alone), read(1, older)];
    assert_eq!(started(&set), [Start::Source, Start::Released]);
}

#[test]
fn without_a_source_everybody_is_named_with_what_it_is() {
    let states = [Source, Target, Detached, Expelled];
    let mut all: Vec<_> = (0..4)
        .map(|n| read(n, block(n, 9, true, &states)))
        .collect();
    all[0].image = None;
    let text = refused(&all).1;
    let expected = "m1 to be copied; m2 detached; m3 expelled; m0 missing;";
    assert!(text.contains(expected), "{text}");
}

mod kept {
    //! What the bitmaps that were kept prove of the generations.

    use super::*;
    use crate::set::{BitmapId, BitmapKind, BitmapRecord, BitmapTag, Moment, Policy};

    fn intent(kind: BitmapKind, generation: u64, scb: &Scb) -> BitmapRecord {
        let tag = BitmapTag {
            id: BitmapId(1),
            policy: Policy::default(),
            created: Moment(0),
            generation,
        };
        let owner = Uuid::from_u64_pair(0, scb.lineage.mark());
        BitmapRecord { tag, kind, owner }
    }

    /// A crash among the blocks of generation 9: m1 has it, m2 has 8 still.
    fn torn(states: [ScbState; 2], own: ScbState) -> [Found; 2] {
        let mut behind = block(1, 8, false, &[Source, own]);
        behind.state = own;
        [read(0, block(0, 9, false, &states)), read(1, behind)]
    }

    fn start_of_second(set: &[Found], kept: &[BitmapRecord]) -> Start {
        assess(set, kept).expect("assembles").starts[1]
    }

    #[test]
    fn who_was_left_behind_by_the_crash_needs_no_copy() {
        let set = torn([Source, Source], Source);
        let line = block(0, 9, false, &[Source, Source]);
        let proven = |generation| [intent(BitmapKind::Intent, generation, &line)];
        assert_eq!(start_of_second(&set, &proven(8)), Start::Merging);
        // All blocks had got 9: somebody has put an older block back.
        let old = Start::Copy { resume: false };
        assert_eq!(start_of_second(&set, &proven(9)), old);
        assert_eq!(start_of_second(&set, &[]), old);
        // Kept before the set went on without them.
        assert_eq!(start_of_second(&set, &proven(7)), old);
    }

    #[test]
    fn an_attach_that_had_not_begun_to_write_leaves_its_bitmap_good() {
        let set = torn([Source, Target], Detached);
        let line = block(0, 9, false, &[Source, Target]);
        let proven = |generation| [intent(BitmapKind::Intent, generation, &line)];
        assert_eq!(start_of_second(&set, &proven(8)), Start::Detached);
        let old = Start::Copy { resume: false };
        assert_eq!(start_of_second(&set, &proven(9)), old);
    }

    #[test]
    fn a_copy_that_had_just_ended_is_not_begun_anew() {
        let set = torn([Source, Source], Target);
        let line = block(0, 9, false, &[Source, Source]);
        let proven = |generation| [intent(BitmapKind::Intent, generation, &line)];
        let resumed = Start::Copy { resume: true };
        assert_eq!(start_of_second(&set, &proven(8)), resumed);
        let old = Start::Copy { resume: false };
        assert_eq!(start_of_second(&set, &proven(9)), old);
    }

    #[test]
    fn bitmaps_are_believed_up_to_the_change_that_was_under_way() {
        let all = [Source, Source];
        let set = [
            read(0, block(0, 9, true, &all)),
            read(1, block(1, 9, true, &all)),
        ];
        let line = block(0, 9, true, &all);
        let believed = |kind, generation| {
            let kept = [intent(kind, generation, &line)];
            assess(&set, &kept).expect("assembles").believed
        };
        assert!(believed(BitmapKind::Intent, 9) && believed(BitmapKind::Intent, 8));
        assert!(believed(BitmapKind::Opening, 9));
        assert!(
            !believed(BitmapKind::Intent, 7),
            "a mount without bitmaps came between"
        );
        assert!(!assess(&set, &[]).expect("assembles").believed);
    }

    /// m1 has begun generation 9 and crashed; m2 was mounted without it, and has reached 9 as well.
    #[test]
    fn of_two_lines_the_one_with_the_latest_bitmap_is_the_newest() {
        let all = [Source, Source];
        let first = block(0, 9, false, &all);
        let mut second = block(1, 9, false, &all);
        second.lineage = second.lineage.mounted(generation(9), 30);
        let kept = [
            intent(BitmapKind::Intent, 8, &first),
            intent(BitmapKind::Intent, 9, &second),
        ];
        let refusal = assess(&[read(0, first), read(1, second)], &kept).expect_err("refused");
        assert_eq!(refusal.code, Code::SplitBrain);
        assert_eq!(refusal.word.as_deref(), Some("m0"), "it knows less");
    }

    #[test]
    fn a_newer_generation_that_nobody_has_is_missed() {
        let all = [Source, Source];
        let set = [read(0, block(0, 9, true, &all)), found(1, ScbFound::None)];
        let line = block(0, 9, true, &all);
        let kept = [intent(BitmapKind::Intent, 10, &line)];
        let refusal = assess(&set, &kept).expect_err("m2 alone has newer data");
        assert_eq!(refusal.code, Code::WrongGeneration);
        assert!(refusal.text.contains("has reached 10"), "{refusal}");
        assert!(
            refusal.hint().contains("bring back m1;"),
            "{}",
            refusal.hint()
        );
        // A mount that had not written a block has no data of its own.
        let kept = [intent(BitmapKind::Opening, 10, &line)];
        assert!(assess(&set, &kept).is_ok());
    }

    /// A start that was refused keeps a bitmap too: what proves that the unit was served is a complete one.
    #[test]
    fn a_line_that_has_only_begun_is_not_the_newest() {
        let all = [Source, Source];
        let served = block(0, 9, false, &all);
        let mut begun = block(1, 10, false, &all);
        begun.lineage = begun.lineage.mounted(generation(9), 30);
        let kept = [
            intent(BitmapKind::Intent, 8, &served),
            intent(BitmapKind::Intent, 9, &served),
            intent(BitmapKind::Opening, 10, &begun),
        ];
        let refusal = assess(&[read(0, served), read(1, begun)], &kept).expect_err("refused");
        assert_eq!(refusal.word.as_deref(), Some("m1"), "it has only begun");
    }

    #[test]
    fn bitmaps_of_another_line_prove_nothing() {
        let all = [Source, Source];
        let set = [0, 1].map(|n| read(n, block(n, 9, true, &all)));
        let mut other = block(0, 9, true, &all);
        other.lineage = Lineage::new(77);
        let opening = [intent(BitmapKind::Opening, 9, &other)];
        assert!(!assess(&set, &opening).expect("assembles").believed);
        // It was complete: somebody has this generation, and is not here.
        let complete = [intent(BitmapKind::Intent, 9, &other)];
        let refusal = assess(&set, &complete).expect_err("another history");
        assert_eq!(refusal.code, Code::WrongGeneration);
        assert!(refusal.text.contains("another generation 9"), "{refusal}");
        assert!(
            refusal.hint().starts_with("to go on without"),
            "nobody is absent: {}",
            refusal.hint()
        );
    }

    #[test]
    fn who_the_crash_left_behind_goes_on_as_what_it_was() {
        let line = block(0, 9, false, &[Source, Source]);
        let start = |row, own, proven| {
            let kept = [intent(BitmapKind::Intent, proven, &line)];
            start_of_second(&torn([Source, row], own), &kept)
        };
        let everything = Start::Copy { resume: false };
        for (row, own, as_before) in [
            (Merging, Merging, Start::StillMerging),
            (Target, Target, Start::Copy { resume: true }),
            (Target, Expelled, Start::Expelled),
        ] {
            assert_eq!(start(row, own, 8), as_before, "{row:?}");
            assert_eq!(start(row, own, 9), everything, "{row:?}: put back");
        }
    }
}
