//! The control tree as shells use it, and what readers see while it changes.

use crate::bed::{MIB, Unit, Writers};

#[test]
fn every_way_of_writing_a_line_gives_a_command() {
    let mut unit = Unit::new(2, 4 * MIB);
    let detached = |how: &str, shell: &str| {
        unit.with_shell(shell, how);
        assert_eq!(unit.state_of("m2"), "detached", "{shell}: {how}");
        unit.minicopy("m2");
    };
    for shell in ["bash", "dash"] {
        for how in [
            "echo detach m2 > $C",
            "echo 'detach m2 policy=minicopy' >> $C",
            "printf 'detach m2' > $C",
            "printf '  detach\\tm2  \\n' > $C",
            "echo detach m2 | tee $C > /dev/null",
            "echo detach m2 | tee -a $C > /dev/null",
            "echo detach m2 | dd of=$C status=none",
            "echo detach m2 | dd of=$C conv=notrunc oflag=append status=none",
            "echo detach m2 > line; cp line $C",
            "echo detach m2 > line; cat line > $C",
            "echo detach > $S/members/m2/state",
            "exec 3<> $C; echo detach m2 >&3",
            ": > $C; truncate -s 0 $C; echo detach m2 > $C",
        ] {
            detached(how, shell);
        }
    }
    unit.stop_and_compare();
}

#[test]
fn a_refusal_is_the_exit_code_of_the_shell_command() {
    let unit = Unit::new(1, 4 * MIB);
    for (shell, how) in [
        ("bash", "echo detach m1 > $C"),
        ("dash", "echo detach m1 > $C"),
        ("bash", "printf 'detach m1\\n' > $C"),
        ("bash", "echo detach m1 | tee $C"),
        ("bash", "echo detach m1 | dd of=$C"),
        ("bash", "echo detach m1 > line; cp line $C"),
    ] {
        let ran = unit.try_sh(&format!("{shell} -c \"{how}\""));
        assert_ne!(ran.code, 0, "{shell}: {how}");
        // dash has one text for every errno.
        let says = if shell == "dash" { "I/O error" } else { "busy" };
        assert!(ran.err.contains(says), "{shell}: {how}: {ran:?}");
    }
    // The answer on the same file, from a shell.
    let answer = unit.sh("exec 3<> $C; echo detach m1 >&3 2> /dev/null || cat <&3");
    assert!(answer.starts_with("error: last-source EBUSY\n"), "{answer}");
    let answer = unit.sh("exec 3<> $C; echo detach m9 >&3 2> /dev/null || head -n 1 <&3");
    assert_eq!(answer, "error: no-such-member ENOENT");
}

#[test]
fn of_commands_at_the_same_time_one_is_carried_out() {
    let mut unit = Unit::new(3, 4 * MIB);
    for _ in 0..5 {
        let good = unit.sh("for n in 1 2 3 4 5 6; do
                (echo detach m2 > $C) 2> /dev/null && echo good & done; wait");
        assert_eq!(good, "good", "one detach and five refusals");
        unit.minicopy("m2");
    }
    assert_eq!(unit.read("error_log").matches("error: ").count(), 16);
    unit.stop_and_compare();
}

#[test]
fn opening_and_closing_is_no_command() {
    let unit = Unit::new(2, 4 * MIB);
    unit.sh(": > $C; : >> $C; exec 3<> $C; exec 3>&-; cat $C > /dev/null");
    assert_eq!(unit.read("error_log"), "");
    // The answer is that of the last command on this file, and not of another.
    let text = unit.sh("exec 3<> $C; echo detach m2 >&3; echo detach m9 > $C || cat <&3");
    assert!(text.starts_with("ok: m2 is detached"), "{text}");
}

#[test]
fn status_json_is_whole_each_time_while_everything_changes() {
    let mut unit = Unit::new(3, 8 * MIB);
    let writers = Writers::start(&unit.file(), 2);
    let script = "
n = 0
kinds = set()
while n < 200 or len(kinds) < 2:
    with open(S + '/status.json') as f: s = json.load(f)
    assert s['schema'] == 1 and len(s['members']) == 3
    assert len(s['members']) - sum(m['state'] == 'source' for m in s['members']) <= 1
    kinds.add(s['members'][2]['state'])
    n += 1
    assert n < 100000, kinds
";
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| unit.python(script));
        let mut round = 0;
        while round < 5 || !reader.is_finished() {
            unit.detach("m3");
            writers.go_on(20);
            unit.minicopy("m3");
            round += 1;
        }
        reader.join().expect("each reading was whole");
    });
    writers.stop();
    unit.stop_and_compare();
}

#[test]
fn a_file_is_rendered_once_per_open() {
    let unit = Unit::new(2, 4 * MIB);
    unit.python(
        "
f = os.open(S + '/status.json', os.O_RDONLY)
head = os.pread(f, 40, 0)
whole = open(S + '/status.json', 'rb').read()
c = os.open(C, os.O_WRONLY); os.write(c, b'detach m2')
rest = b''
while True:
    piece = os.pread(f, 7, 40 + len(rest))
    if not piece: break
    rest += piece
s = json.loads(head + rest)
assert [m['state'] for m in s['members']] == ['source', 'source'], s
s = json.load(open(S + '/status.json'))
assert [m['state'] for m in s['members']] == ['source', 'detached'], s
assert os.fstat(f).st_size == 0
assert open(S + '/state').read() == 'steady\\n'
assert open(S + '/abi').read() == '1\\n'
",
    );
}

#[test]
fn people_find_what_they_look_for() {
    let unit = Unit::new(2, 4 * MIB);
    unit.sh("head -c 100k /dev/urandom | dd of=$U conv=notrunc status=none");
    unit.detach("m2");
    unit.sh("printf x | dd of=$U bs=1 seek=70000 conv=notrunc status=none");
    let text = unit.sh("cat $S/show; find $S -type f -readable -exec cat {} + > /dev/null");
    assert!(text.contains("dsa1") && text.contains("m2"), "{text}");
    let plan = unit.read("members/m2/plan");
    assert!(
        plan.contains("verdict minicopy\n") && plan.contains("bytes 65024\n"),
        "{plan}"
    );
    assert_eq!(unit.read("bitmaps/../size"), format!("{}\n", 4 * MIB));
    let link = std::fs::read_link(unit.path("mnt/.shadow/members/m2/bitmap")).expect("a link");
    let id = unit.status()["members"][1]["bitmap"]
        .as_str()
        .expect("an id")
        .to_owned();
    assert_eq!(link.to_str(), Some(format!("../../bitmaps/{id}").as_str()));
    let map =
        unit.sh("xxd -p $S/members/m2/bitmap/map 2> /dev/null || od -An -tx1 $S/bitmaps/*/map");
    assert!(map.trim().starts_with("02"), "region 1 is bit 1: {map}");
    unit.sh("grep -q 'detach <member>' $S/help; tail -n 1 $S/events | grep -q member-detached");
}
