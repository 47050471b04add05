//! mount(8) and umount(8) themselves with the helpers, in a mount namespace where `/sbin` has them:
//! the machine's own `/sbin` and list of mounts stay as they are.

use std::path::Path;

use crate::bed::{MIB, Plan, Unit};

/// `$B` is `/sbin` with our links in it, everything else there as it was; `$O` a fresh list of mounts.
const NAMESPACE: &str = r#"
# Units of other tests, called dsa1 as well, are not in this one's sight.
findmnt -rn -t fuse.shadowset -o TARGET | while read -r other; do umount -i -l "$other" || :; done || :
B=$(readlink -f /sbin) O=/run/mount
mkdir -p $D/sbin $O
mount --bind $B $D/sbin
mount -t tmpfs sbin $B
ln -s $D/sbin/* $B/
for name in mount.shadowset mount.fuse.shadowset umount.shadowset umount.fuse.shadowset shadowset; do
    rm -f $B/$name
done
cp $HELPER $B/mount.shadowset
for name in mount.fuse.shadowset umount.shadowset umount.fuse.shadowset; do ln -s mount.shadowset $B/$name; done
ln -s $PROGRAM $B/shadowset
mount -t tmpfs mounts $O
end() { for d in $(losetup -j $U -n -O NAME); do losetup -d $d; done; umount -l $M || :; }
trap 'end 2>/dev/null' EXIT
pid() { cat $SHADOWSET_RUNTIME_DIR/dsa1/pid; }
# The exit code that is expected, then a command; what it says is in $D/says.
fails() {
    local expected=$1 code=0; shift
    "$@" >$D/says 2>&1 || code=$?
    [ $code = $expected ] || { echo "$*: $code, not $expected"; cat $D/says; exit 1; }
}
says() { grep -qF -- "$1" $D/says || { echo "not said: $1"; cat $D/says; exit 1; }; }
mounted() { findmnt -n -t fuse.shadowset $M >$D/found; }
"#;

/// A unit that nobody has mounted yet.
fn unit() -> Unit {
    Plan::new(2, 64 * MIB).create()
}

/// Runs a script in a namespace of its own; it ends with everything that the script has mounted.
fn inside(unit: &Unit, script: &str) -> String {
    let program = Path::new(env!("CARGO_BIN_EXE_shadowset"));
    let helper = program.with_file_name("mount-shadowset");
    assert!(
        helper.exists(),
        "the helper is not built: cargo build --workspace"
    );
    let (program, helper) = (program.display(), helper.display());
    let whole = format!("PROGRAM={program} HELPER={helper}\n{NAMESPACE}\n{script}");
    std::fs::write(unit.path("script"), whole).expect("the script");
    unit.sh("unshare -m --propagation private bash -eu -o pipefail $D/script")
}

#[test]
fn both_types_mount_and_umount_returns_when_the_members_are_clean() {
    let unit = unit();
    inside(
        &unit,
        r#"
for type in shadowset fuse.shadowset; do
    mount -t $type -o log=$D/log,_netdev,nofail,x-systemd.requires=a,noauto,user dsa1 $M
    mounted
    grep -q 'fuse.shadowset nosuid,nodev,noexec\|rw,nosuid,nodev,noexec,noatime' $D/found
    grep -q '^dsa1 on .*_netdev' <(mount)
    # Much that is not written back yet, so that the end takes its time.
    head -c 60M /dev/urandom >$D/data
    dd if=$D/data of=$U bs=1M conv=notrunc status=none
    umount $M
    [ ! -e $SHADOWSET_RUNTIME_DIR/dsa1 ] || { echo "umount has not waited"; exit 1; }
    ! mounted
    [ ! -s $O/utab ] || { echo "left behind:"; cat $O/utab; exit 1; }
    cmp -n 62914560 $D/data $I/m1.img; cmp $I/m1.img $I/m2.img
done
mount -v -t shadowset -o log=$D/log dsa1 $M >$D/says; says "shadowset mount -o log=$D/log -- dsa1 $M"
umount -v $M >$D/says; says 'dsa1 is stopped'
"#,
    );
    unit.assert_equal();
}

#[test]
fn a_second_way_to_a_unit_is_taken_away_alone() {
    inside(
        &unit(),
        r#"
mount -t shadowset -o log=$D/log dsa1 $M
mkdir $D/other
for flag in -r -v; do
    mount --bind $M $D/other
    $B/umount.fuse.shadowset $flag $D/other
    mounted
    ! mountpoint -q $D/other
done
umount $M
! mounted
"#,
    );
}

/// Under a umask of 0 anybody could connect to the control socket before it had its permissions.
#[test]
fn a_server_makes_nothing_that_others_may_write() {
    inside(
        &unit(),
        r#"
for mask in 0000:0022 0002:0022 0077:0077; do
    (umask ${mask%:*}; mount -t shadowset -o log=$D/log dsa1 $M)
    grep -q "^Umask:.${mask#*:}$" /proc/$(pid)/status || { grep Umask /proc/$(pid)/status; exit 1; }
    umount $M
done
"#,
    );
}

/// A mount under flock(1) held its lock until the unmount.
#[test]
fn a_server_holds_nothing_of_those_who_have_mounted() {
    inside(
        &unit(),
        r#"
exec 9>$D/lock
flock 9
mount -t shadowset -o log=$D/log dsa1 $M
exec 9>&-
flock -n $D/lock true
umount $M
"#,
    );
}

#[test]
fn lines_of_fstab_are_mounted_once() {
    inside(
        &unit(),
        r#"
echo "dsa1 $M shadowset defaults,nofail,x-systemd.mount-timeout=5min,log=$D/log,max_copies=2 0 0" >$D/fstab
mount -a -T $D/fstab
mounted
server=$(pid)
[ $(cat $M/.shadow/params/max_copies) = 2 ]
mount -a -T $D/fstab
[ $(pid) = $server ]
fails 32 mount -T $D/fstab $M
says 'is served by process'
umount $M
! mounted
"#,
    );
}

#[test]
fn what_cannot_be_mounted_has_the_exit_code_of_mount() {
    inside(
        &unit(),
        r#"
fails 1 mount -t shadowset -o colour dsa1 $M
says 'unknown option `colour`'
fails 1 mount -f -t shadowset -o colour dsa1 $M
fails 32 mount -t shadowset dsa9 $M
says 'dsa9.toml'
fails 32 mount -f -t fuse.shadowset dsa9 $M
fails 32 mount -t shadowset dsa1 $D/nowhere
fails 1 $B/mount.shadowset dsa1 /dev/fd/3 -o rw
fails 1 setpriv --reuid 65534 --regid 65534 --clear-groups $B/mount.shadowset dsa1 $M -o rw,user
says 'only root'
fails 32 umount.shadowset $M
! mounted
mount -f -t shadowset dsa1 $M
! mounted
[ ! -e $SHADOWSET_RUNTIME_DIR/dsa1 ]
mount -s -t shadowset -o colour,log=$D/log dsa1 $M 2>$D/says
says 'unknown option `colour`'
umount $M
"#,
    );
}

#[test]
fn a_remount_changes_what_it_can_and_refuses_the_rest() {
    inside(
        &unit(),
        r#"
mount -t shadowset -o log=$D/log,max_copies=2 dsa1 $M
server=$(pid)
mount -o remount,ro $M
grep -q ' ro,nosuid,nodev,noexec,noatime' <(findmnt -n $M)
fails 1 touch $U
says 'Read-only'
fails 4 shadowset detach dsa1 m2
fails 32 mount -o remount,ro,max_copies=4 $M
mount -o remount,rw,max_copies=3 $M
[ $(cat $M/.shadow/params/max_copies) = 3 ]
mount -o remount,max_copies=5 $M
grep -q ' rw,nosuid,nodev,noexec,noatime' <(findmnt -n $M)
touch $U
fails 32 mount -o remount,ro,durability=crash,max_copies=9 $M
says 'durability cannot be changed'
fails 32 mount -o remount,allow_other $M
fails 1 mount -o remount,colour $M
[ $(cat $M/.shadow/params/max_copies) = 5 ]
exec 3>>$U
fails 32 mount -o remount,ro $M
says 'the unit is in use'
exec 3>&-
[ $(pid) = $server ]
umount $M
mount -t shadowset -o ro,log=$D/log dsa1 $M
fails 32 mount -o remount,rw $M
says 'is mounted read-only'
umount $M
"#,
    );
}

#[test]
fn a_unit_in_use_is_not_unmounted_and_the_loop_device_is_named() {
    inside(
        &unit(),
        r#"
mount -t shadowset -o log=$D/log dsa1 $M
device=$(shadowset loop attach dsa1)
fails 32 umount $M
says "in use by $device"
says 'loop detach dsa1'
mounted
shadowset loop detach dsa1
exec 3<$U
fails 32 umount $M
says 'fuser -vm'
exec 3<&-
umount $M
"#,
    );
}

#[test]
fn a_dead_mount_gives_way_to_the_next_and_to_umount() {
    let unit = unit();
    inside(
        &unit,
        r#"
kill_server() {
    local server=$(pid)
    kill -9 $server
    tail --pid=$server -f /dev/null
    fails 2 ls $M
    says 'not connected'
}
mount -t shadowset -o log=$D/log dsa1 $M
kill_server
mount -t shadowset -o log=$D/log dsa1 $M 2>$D/says
says 'the dead mount of dsa1'
[ $(grep -c x-shadowset $O/utab) = 1 ]
ls $M >$D/says; says dsa1
[ $(findmnt -n -t fuse.shadowset $M | wc -l) = 1 ]
kill_server
umount $M 2>$D/says
! mounted
mount -t shadowset -o log=$D/log dsa1 $M
umount $M
"#,
    );
    unit.assert_equal();
}

#[test]
fn lazy_and_forced_unmounts_are_those_of_umount() {
    inside(
        &unit(),
        r#"
mount -t shadowset -o log=$D/log dsa1 $M
server=$(pid)
exec 3<$U
umount -l $M
! mounted
kill -0 $server
exec 3<&-
timeout 30 tail --pid=$server -f /dev/null
mount -t shadowset -o log=$D/log dsa1 $M
umount -f -v $M >$D/says
says 'umount -i -f'
! mounted
[ ! -e $SHADOWSET_RUNTIME_DIR/dsa1 ]
[ ! -s $O/utab ]
"#,
    );
}

#[test]
fn a_second_way_to_a_unit_goes_without_the_unit() {
    inside(
        &unit(),
        r#"
mount -t shadowset -o log=$D/log dsa1 $M
mkdir $D/other
mount --bind $M $D/other
(cd $D; umount -v other) >$D/says 2>&1
says "shadowset stop -- $D/other"
! grep 'had died' $D/says
says 'one way to dsa1 is taken away; it is still served'
! findmnt -n $D/other
mount --bind $M $D/other
shadowset stop --json $D/other >$D/says
says '"ended":false'
mounted
umount $M
"#,
    );
}

#[test]
fn another_mount_namespace_gets_the_mount() {
    inside(
        &unit(),
        r#"
unshare -m --propagation private tail -f /dev/null &
other=$!
trap 'kill $other; end 2>/dev/null' EXIT
while [ $(readlink /proc/$other/ns/mnt) = $(readlink /proc/$$/ns/mnt) ]; do :; done
mount -N $other -t shadowset -o log=$D/log dsa1 $M
! mounted
nsenter -t $other -m findmnt -n -t fuse.shadowset $M >$D/says
server=$(pid)
umount -N $other $M
timeout 30 tail --pid=$server -f /dev/null
fails 1 nsenter -t $other -m findmnt -n -t fuse.shadowset $M
"#,
    );
}
