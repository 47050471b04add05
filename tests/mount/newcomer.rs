//! What somebody meets who uses the program for the first time: lines that are nearly right, and what they say.

use crate::bed::{MIB, Plan, Unit};

/// A set in `b1.toml` with the images `a.img`, `b.img` and `c.img`, and nothing of the machine's state directories.
const SET_OF_THREE: &str = "
mkdir -p /var/lib/shadowset; mount -t tmpfs state /var/lib/shadowset
trap 'umount -l $M 2>/dev/null' EXIT
shadowset create ./b1.toml --size 64M --member m1=a.img --member m2=b.img --member m3=c.img >/dev/null
";

/// Runs a script in a mount namespace of its own; what it prints, and says, is the answer.
fn inside(unit: &Unit, script: &str) -> String {
    std::fs::write(unit.path("script"), script).expect("the script");
    unit.sh("cd $D; unshare -m --propagation private bash -eu -o pipefail $D/script 2>&1")
}

#[test]
fn a_member_that_is_left_out_of_a_list_of_paths_is_missed() {
    let unit = Plan::new(1, MIB).prepare();
    let said = inside(
        &unit,
        &format!(
            "{SET_OF_THREE}
shadowset mount none $M -o members=a.img:c.img,unit=b2,require_members,policy=minicopy || echo \"$?\"
shadowset mount none $M -o members=a.img:c.img,unit=b2,policy=minicopy
shadowset status b2 || :; shadowset stop b2 --wait
shadowset mount ./b1.toml $M; shadowset status b1 || :; shadowset stop b1 --wait"
        ),
    );
    assert!(
        said.contains("m2: not there, and require_members"),
        "{said}"
    );
    assert!(
        said.contains("2 of 3 members are sources, m2 is missing"),
        "{said}"
    );
    assert!(!said.contains("released"), "{said}");
}

#[test]
fn a_server_that_is_stopped_holds_up_nobody_who_looks_at_all_units() {
    let unit = Unit::new(2, 4 * MIB);
    let pid = unit.pid();
    unit.sh(&format!(
        "kill -STOP {pid}; trap 'kill -CONT {pid}' EXIT
        timeout 20 shadowset list >$D/list; grep -q 'dsa1  does not answer' $D/list
        timeout 20 shadowset list --json | grep -q '\"state\":\"does not answer\"'
        code=0; timeout 20 shadowset status 2>$D/says || code=$?
        [ $code = 5 ]; grep -q 'dsa1 does not answer' $D/says"
    ));
    unit.sh("shadowset list | grep -q steady");
}

#[test]
fn a_unit_that_was_unmounted_lazily_is_being_stopped() {
    let unit = Unit::new(2, 4 * MIB);
    unit.sh("exec 3<$U; umount -l $M; shadowset list | grep -q 'dsa1  stopping'; exec 3<&-");
}
