//! What somebody meets who uses the program for the first time: lines that are nearly right, and what they say.

use crate::bed::{MIB, Plan, Unit};

/// A set in `b1.toml` with the images `a.img`, `b.img` and `c.img`, and nothing of the machine's state directories.
const SET_OF_THREE: &str = "
mkdir -p /var/lib/shadowset; mount -t tmpfs state /var/lib/shadowset
trap 'umount -l $M 2>/dev/null || :' EXIT
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
shadowset mount none $M -o members=a.img:c.img,unit=b2,include; shadowset stop b2 --wait
shadowset mount ./b1.toml $M; shadowset status b1 || :; shadowset stop b1 --wait"
        ),
    );
    assert!(
        said.contains("m2: not there, and require_members"),
        "{said}"
    );
    assert!(
        said.contains("m2 is missing: it is not in the configuration, nor in the option members"),
        "{said}"
    );
    assert!(
        said.contains("m2 is expelled: it had left the set, and include takes back nobody who has"),
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

#[test]
fn a_dry_run_of_a_mount_is_refused_as_the_mount() {
    let plan = Plan::new(2, 4 * MIB);
    let mut unit = plan.prepare();
    let dry = "shadowset mount -n dsa1 $M --log $D/log";
    let says = |unit: &Unit, code: i32, text: &str| {
        let ran = unit.try_sh(dry);
        assert_eq!(ran.code, code, "{ran:?}");
        assert!(format!("{}{}", ran.out, ran.err).contains(text), "{ran:?}");
    };
    says(&unit, 32, "mount dsa1: the set has never been created");
    says(&unit, 32, "`shadowset create dsa1`");
    unit.sh("shadowset create dsa1 --size 4M");
    let before = unit.sh("cd $D; find . -type f ! -name said | sort");
    says(&unit, 0, "dsa1 would be mounted on");
    let after = unit.sh("cd $D; find . -type f ! -name said | sort");
    assert_eq!(after, before, "a dry run makes nothing");
    unit.mount();
    says(&unit, 32, "unit dsa1 is served by process");
    let on = format!(", and mounted on {}", unit.path("mnt").display());
    says(&unit, 32, &on);
    unit.sh("sed s/m1/x1/ $D/conf/dsa1.toml >$D/conf/dsa2.toml; mkdir $D/second");
    let ran = unit.try_sh("shadowset mount -n dsa2 $D/second");
    assert_eq!(ran.code, 32, "the state directory is in use: {ran:?}");
    unit.stop_and_compare();
    unit.sh("mv $I/m2.img $D/away");
    says(&unit, 0, "would be mounted");
    let ran = unit.try_sh(&format!("{dry} -o require_members"));
    assert!(ran.err.contains("m2: not there"), "{ran:?}");
}

#[test]
fn what_was_waited_for_is_said() {
    let unit = Unit::new(2, 4 * MIB);
    assert_eq!(unit.sh("shadowset wait dsa1"), "dsa1 is steady");
    unit.sh("truncate -s 4M $D/new.img; shadowset attach dsa1 $D/new.img --as m3 --wait");
    let said = unit.sh("shadowset wait dsa1 --for member=m3:source");
    assert_eq!(said, "m3 is source");
    let op = unit.status()["operations"][0]["id"].clone();
    let shown = unit.sh(&format!("shadowset op show dsa1 {op} --json"));
    for wait in [
        format!("op wait dsa1 {op}"),
        format!("wait dsa1 --for op={op}"),
    ] {
        assert_eq!(unit.sh(&format!("shadowset {wait} --json")), shown);
    }
}

#[test]
fn a_hint_is_about_what_is_wrong() {
    let unit = Unit::new(2, 4 * MIB);
    let says = |line: &str| unit.try_sh(&format!("shadowset {line}")).err;
    unit.sh("truncate -s 4M $D/new.img");
    let source = says("attach dsa1 $D/new.img --source m9");
    assert!(
        source.contains("no member m9") && !source.contains(".//"),
        "{source}"
    );
    let quoted = says("detach dsa1 'm 1'");
    assert!(
        quoted.starts_with("shadowset: detach m 1: no member m 1;"),
        "{quoted}"
    );
    for empty in ["detach dsa1 ''", "params set dsa1 max_copies ''"] {
        let said = says(empty);
        assert!(
            said.contains("is empty") && !said.contains("link"),
            "{said}"
        );
    }
    let hook = says("detach dsa1 m2 --freeze-cmd false");
    assert!(
        hook.contains("has failed") && hook.contains("hint: no member has left: mend the command"),
        "{hook}"
    );
    let member = says("release dsa1 m2");
    assert!(
        member.contains("out first: `shadowset detach dsa1 m2 --policy none`"),
        "{member}"
    );
    let inside = says("create $D/inner.toml --size 1M --member m1=$U");
    assert!(
        inside.contains("where the unit dsa1 is mounted") && !inside.contains("become root"),
        "{inside}"
    );
    assert!(says("op show dsa1 77").contains("`shadowset op list dsa1`"));
    unit.sh("shadowset mount -o remount,ro none $M");
    let remounted = says("detach dsa1 m2");
    assert!(remounted.contains("`mount -o remount,rw"), "{remounted}");
    unit.sh("shadowset mount -o remount,rw none $M; shadowset detach dsa1 m2");
}
