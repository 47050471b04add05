//! The examples of the OpenVMS manual (4-1 to 4-9, 5-1 to 5-6, 6-1 to 6-4), each as what stands for it here.
//!
//! Two have no counterpart and are tested as that: copies are never given to a controller (4-2), and
//! a unit belongs to one node (4-3).

use serde_json::Value;

use crate::bed::{MIB, Plan, Thing, Unit};

/// Fills the unit with data that is kept as `$D/data`.
fn fill(unit: &Unit) {
    unit.sh(
        "head -c 4M /dev/urandom > $D/data; dd if=$D/data of=$U bs=1M conv=notrunc,fsync status=none",
    );
}

fn kinds(unit: &Unit) -> Vec<String> {
    let status = unit.status();
    let operations = status["operations"].as_array().expect("a list");
    let kind = |op: &Value| op["kind"].as_str().expect("a word").to_owned();
    operations.iter().map(kind).collect()
}

fn says(unit: &Unit, code: i32, line: &str) -> String {
    let ran = unit.try_sh(line);
    assert_eq!(ran.code, code, "{line}: {ran:?}");
    ran.out + &ran.err
}

/// MOUNT DSA1: /SHADOW=($1$DUA10:,$1$DUA11:) DISK1, of two new disks: no copy is needed. What is there
/// then is what SHOW DEVICES tells.
#[test]
fn example_4_1_a_set_is_created() {
    let mut unit = Unit::new(2, 4 * MIB);
    assert_eq!(unit.read("state"), "steady\n");
    assert_eq!(kinds(&unit), [""; 0]);
    let show = says(&unit, 0, "shadowset show dsa1");
    for word in ["dsa1", "m1", "m2"] {
        assert!(show.contains(word), "{show}");
    }
    fill(&unit);
    unit.sh("cmp $D/data $U");
    unit.stop_and_compare();
}

/// /NOASSIST: this program reads and writes by itself, so there is no word for that, and it is refused.
#[test]
fn example_4_2_copies_are_not_assisted() {
    let mut unit = Plan::new(2, 4 * MIB).create();
    let refused = says(&unit, 1, "shadowset mount dsa1 $M -o noassist");
    assert!(refused.contains("unknown option `noassist`"), "{refused}");
    unit.mount();
}

/// /CLUSTER: a unit is served once. A second mount is refused and names the first.
#[test]
fn example_4_3_a_unit_is_mounted_once() {
    let unit = Unit::new(2, 4 * MIB);
    let refused = says(
        &unit,
        32,
        "mkdir other; shadowset mount dsa1 other --log $D/log2",
    );
    assert!(refused.starts_with("shadowset: mount dsa1: "), "{refused}");
    assert_eq!(unit.read("state"), "steady\n");
}

/// A third disk is added to a set that is in use: it is copied, and is then one of three.
#[test]
fn example_4_4_a_member_is_added() {
    let unit = Unit::new(2, 4 * MIB);
    fill(&unit);
    unit.sh("truncate -s 4M third.img; shadowset attach dsa1 ./third.img --as m3 --wait");
    assert_eq!(unit.state_of("m3"), "source");
    assert_eq!(kinds(&unit), ["full-copy"]);
    unit.sh("cmp third.img $D/data");
}

/// A set of two, and a third member in a command of its own; while the copy is held the new member is a
/// target, and the set is in use.
#[test]
fn example_4_5_a_set_is_created_and_a_third_member_added() {
    let unit = Unit::new(1, 4 * MIB);
    unit.sh("truncate -s 4M second.img third.img
        shadowset attach dsa1 ./second.img --as m2 --wait
        shadowset params set dsa1 max_copies 0
        shadowset attach dsa1 ./third.img --as m3");
    assert_eq!(
        (unit.state_of("m2"), unit.state_of("m3")),
        ("source".to_owned(), "copy-target".to_owned())
    );
    fill(&unit);
    unit.sh("shadowset params set dsa1 max_copies 4; shadowset wait dsa1 --timeout 60");
    unit.sh("cmp second.img $D/data; cmp third.img $D/data");
}

/// /CONFIRM: a disk that holds something and was never a member is overwritten only when that is agreed to.
#[test]
fn example_4_6_an_image_with_data_needs_a_yes() {
    let unit = Unit::new(2, 4 * MIB);
    fill(&unit);
    unit.sh("head -c 4M /dev/urandom > other.img; cp other.img kept.img");
    let refused = says(&unit, 4, "shadowset attach dsa1 ./other.img --as m3");
    assert!(refused.contains("\nhint: add --yes"), "{refused}");
    unit.sh("cmp other.img kept.img; ! test -e $S/members/m3
        shadowset attach dsa1 ./other.img --as m3 --yes --wait; cmp other.img $D/data");
}

/// /NOCOPY: what would need a copy is refused, by a mount and by an attach, and nothing has changed.
#[test]
fn example_4_7_nothing_is_copied() {
    let mut unit = Plan::new(2, 4 * MIB).create();
    unit.sh("head -c 4M /dev/urandom > $I/m1.img; cp $I/m2.img kept.img
        shadowset create dsa1 --from m1 --erase");
    let refused = says(&unit, 32, "shadowset mount dsa1 $M -o nocopy --log $D/log");
    assert!(
        refused.contains("hint: leave out nocopy") && !refused.contains("--policy"),
        "{refused}"
    );
    unit.sh("cmp $I/m2.img kept.img");
    unit.mount();
    unit.sh("shadowset wait dsa1 --timeout 60; shadowset detach dsa1 m2 --policy none");
    let refused = says(&unit, 4, "shadowset attach dsa1 m2 --policy nocopy");
    assert!(refused.contains("--policy nocopy"), "{refused}");
    assert_eq!(unit.state_of("m2"), "detached");
}

/// /INCLUDE: one member is named, and the others are found by what it knows of the set.
#[test]
fn example_4_8_the_other_members_are_included() {
    let unit = Plan::new(1, 4 * MIB).create();
    unit.keep(Thing::Mount(unit.path("other")));
    unit.sh("mkdir other
        shadowset create ./dsa2.toml --size 4M --state-dir $D/state2 \
            --member m1=a.img --member m2=b.img --member m3=c.img
        python3 -c '
text = open(\"dsa2.toml\").read().split(\"[[member]]\")
open(\"dsa2.toml\", \"w\").write(\"[[member]]\".join(text[:2]))'
        [ $(grep -c '^\\[\\[member' dsa2.toml) = 1 ]
        shadowset mount ./dsa2.toml other -o include --log $D/log2
        [ \"$(cat other/.shadow/members/*/state | uniq)\" = source ]
        [ $(cat other/.shadow/state) = steady ]; [ -z \"$(ls other/.shadow/operations)\" ]
        [ $(ls other/.shadow/members | wc -l) = 3 ]
        shadowset stop dsa2 --wait; cmp a.img c.img");
}

/// DISMOUNT DSA1: the set is dissolved, and each member is a disk by itself.
#[test]
fn example_4_9_a_set_is_dissolved() {
    let mut unit = Unit::new(3, 4 * MIB);
    let device = unit.loop_device();
    unit.sh(&format!("mkfs.ext4 -q -F {device}"));
    unit.free(&device);
    unit.stop_and_compare();
    for n in 1..=3 {
        unit.sh(&format!("e2fsck -fn $I/m{n}.img"));
    }
}

/// SYS$MOUNT and SYS$DISMOU: what a program sees. Creation, a new member, its wait, the departure and the
/// return of one, and the refusals as error numbers.
#[test]
fn examples_5_1_to_5_6_the_same_by_a_program() {
    let mut unit = Unit::new(2, 4 * MIB);
    fill(&unit);
    unit.python(
        "
def command(text):
    fd = os.open(C, os.O_RDWR)
    try:
        try:
            os.write(fd, text.encode()); errno_ = 0
        except OSError as e:
            errno_ = e.errno
        return errno_, os.pread(fd, 65536, 0).decode()
    finally:
        os.close(fd)
def state(name):
    return open(S + '/members/' + name + '/state').read().strip()
def until(name, wanted):
    fd = os.open(S + '/members/' + name + '/state', os.O_RDONLY)
    poller = select.poll(); poller.register(fd, select.POLLPRI)
    while os.pread(fd, 99, 0).decode().strip() != wanted:
        assert poller.poll(60000), name
        os.close(fd)
        fd = os.open(S + '/members/' + name + '/state', os.O_RDONLY)
        poller = select.poll(); poller.register(fd, select.POLLPRI)
    os.close(fd)
def facts(text):
    return dict(line.split(' ', 1) for line in text.splitlines()[1:])
# 5-1: the set that was mounted.
status = json.load(open(S + '/status.json'))
assert status['state'] == 'steady' and [m['name'] for m in status['members']] == ['m1', 'm2']
# 5-2, 5-3: a third member, and a fourth beside it.
for name in ('m3', 'm4'):
    path = '%s/%s.img' % (D, name)
    with open(path, 'wb') as f: f.truncate(4 << 20)
    e, text = command('attach %s as=%s' % (path, name))
    assert e == 0 and facts(text)['member'] == name, text
    until(name, 'source')
# 5-4: a member leaves, and comes back by minicopy.
e, text = command('detach m3 policy=minicopy')
assert e == 0 and state('m3') == 'detached', text
fd = os.open(U, os.O_RDWR); os.pwrite(fd, b'new', 1 << 20); os.fsync(fd); os.close(fd)
e, text = command('attach m3 policy=minicopy')
assert e == 0 and facts(text)['kind'] == 'minicopy' and facts(text)['bytes'] == '65024', text
until('m3', 'source')
# 5-5: what is refused is an error number, and a record that says why.
for text, number, code in (('detach m9', errno.ENOENT, 'no-such-member'),
                           ('attach m3', errno.EEXIST, 'already-member'),
                           ('frobnicate', errno.EINVAL, 'syntax')):
    e, answer = command(text)
    assert e == number and answer.startswith('error: %s ' % code), (text, e, answer)
# 5-6: members leave for good, down to the last source, which stays.
for name in ('m4', 'm3', 'm2'):
    assert command('detach %s policy=none' % name)[0] == 0
    assert command('release %s' % name)[0] == 0 and not os.path.exists(S + '/members/' + name)
e, answer = command('detach m1')
assert e == errno.EBUSY and answer.startswith('error: last-source '), answer
",
    );
    unit.stop();
}

/// A new set of disks that differ: the one that is named wins, and is copied into the other.
#[test]
fn example_6_1_a_new_set_is_copied() {
    let mut unit = Plan::new(2, 4 * MIB).create();
    unit.sh("head -c 4M /dev/urandom > $I/m1.img; head -c 4M /dev/urandom > $I/m2.img; cp $I/m1.img kept
        shadowset create dsa1 --from m1 --erase");
    unit.mount();
    unit.sh("shadowset wait dsa1 --timeout 60");
    let kinds = kinds(&unit);
    assert!(kinds.len() == 1 && kinds[0].ends_with("-copy"), "{kinds:?}");
    unit.stop_and_compare();
    unit.sh("cmp $I/m2.img kept");
}

/// A former member, whose generation is older than that of the set: it is a target, whatever it holds.
#[test]
fn example_6_2_a_former_member_is_copied() {
    let mut unit = Unit::new(2, 4 * MIB);
    unit.sh("shadowset detach dsa1 m2 --policy none");
    fill(&unit);
    unit.stop();
    unit.mount();
    assert_eq!(unit.state_of("m2"), "detached", "nobody brings it back");
    let dry = says(&unit, 0, "shadowset attach dsa1 m2 --dry-run");
    assert!(!dry.contains("minicopy"), "there is no bitmap: {dry}");
    unit.sh("shadowset attach dsa1 m2 --wait; cmp $I/m2.img $D/data");
    unit.stop_and_compare();
}

/// A set that was dismounted well is built again: no copy.
#[test]
fn example_6_3_a_set_is_built_again_without_a_copy() {
    let mut unit = Unit::new(3, 4 * MIB);
    fill(&unit);
    unit.stop();
    unit.sh("shadowset mount dsa1 $M -o nocopy,require_members --log $D/log");
    assert_eq!(
        (unit.read("state").as_str(), kinds(&unit).len()),
        ("steady\n", 0)
    );
    unit.sh("cmp $U $D/data; shadowset stop dsa1 --wait");
}

/// A set whose node has failed is built again: the members are merged, where writes were in flight.
#[test]
fn example_6_4_a_set_is_merged_after_a_crash() {
    let mut unit = Unit::new(2, 4 * MIB);
    fill(&unit);
    let pid = unit.pid();
    unit.sh(&format!(
        "dd if=/dev/urandom of=$U bs=64k count=4 conv=notrunc status=none
        kill -9 {pid}; timeout 60 tail --pid={pid} -f /dev/null; umount $M"
    ));
    unit.gone();
    unit.mount();
    unit.sh("shadowset wait dsa1 --timeout 60");
    let kinds = kinds(&unit);
    assert!(
        !kinds.is_empty() && kinds.iter().all(|kind| kind == "minimerge"),
        "{kinds:?}"
    );
    unit.stop_and_compare();
}
