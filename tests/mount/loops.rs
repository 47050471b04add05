//! Loop devices over the unit: what they are, who is named that keeps one, and that none is left.

use serde_json::Value;

use crate::bed::{MIB, Thing, Unit, eventually};

/// Devices that are bound to something.
fn bound(unit: &Unit) -> String {
    unit.sh("losetup -n -O NAME,BACK-FILE | grep -F $U || true")
}

/// Cycles; `SHADOWSET_LOOPS` sets another number.
fn cycles() -> usize {
    let asked = std::env::var("SHADOWSET_LOOPS");
    asked.map_or(20, |text| {
        text.parse().expect("SHADOWSET_LOOPS is a number")
    })
}

#[test]
fn many_devices_come_and_go_and_none_is_left() {
    // The last block of the unit is no whole page.
    let unit = Unit::new(2, 4 * MIB + 512);
    for cycle in 0..cycles() {
        let told = unit.sh("shadowset loop attach dsa1 --json");
        let told: Value = serde_json::from_str(&told).expect("JSON");
        let device = told["device"].as_str().expect("a device").to_owned();
        unit.keep(Thing::Loop(device.clone()));
        assert_eq!(
            (&told["direct_io"], &told["block_size"]),
            (&true.into(), &512.into())
        );
        let size = unit.sh(&format!("blockdev --getsize64 {device}"));
        assert_eq!(size, (4 * MIB + 512).to_string());
        let digit = cycle % 10;
        unit.sh(&format!(
            "printf {digit} | dd of={device} bs=1 seek=4194304 conv=fsync status=none
            [ $(tail -c 512 $U | head -c 1) = {digit} ]
            [ $(shadowset loop detach dsa1) = {device} ]"
        ));
        unit.forget(&device);
        assert_eq!(bound(&unit), "", "cycle {cycle}");
    }
}

#[test]
fn who_keeps_a_device_is_named() {
    let unit = Unit::new(2, 16 * MIB);
    let device = unit.loop_device();
    unit.sh(&format!("mkfs.ext4 -q {device}"));
    let fs = unit.mount_device(&device, "fs", "");
    let busy = unit.try_sh("shadowset loop detach dsa1");
    assert_eq!(busy.code, 4, "{busy:?}");
    let says = format!("{device} is mounted on {}\n", fs.display());
    assert!(busy.err.contains(&says), "{busy:?}");
    unit.take_away(&Thing::Mount(fs));
    let script = format!(
        "f = open('{device}', 'rb')
p = os.popen('shadowset loop detach dsa1 2>&1')
says = p.read()
assert 'is open in process %d (python3' % os.getpid() in says, says
assert p.close() >> 8 == 4"
    );
    unit.python(&script);
    // It has gone with its last user.
    unit.forget(&device);
    assert_eq!(bound(&unit), "");
    assert_eq!(unit.try_sh("shadowset loop detach dsa1").code, 3);
}

#[test]
fn of_two_who_attach_at_once_one_is_refused() {
    let unit = Unit::new(2, 4 * MIB);
    unit.sh("for n in $(seq 20); do
        shadowset loop attach dsa1 >one 2>&1 & one=$!
        shadowset loop attach dsa1 >two 2>&1 & two=$!
        failed=0; wait $one || failed=$((failed+1)); wait $two || failed=$((failed+1))
        devices=$(losetup -j $U | wc -l)
        shadowset loop detach dsa1 >freed
        [ $failed$devices = 11 ] || { echo $failed refused, $devices devices; cat one two; exit 1; }
        grep -q 'is over the unit already' one two
    done");
}

/// Its device keeps the mount of a dead server in use, and each way out that is told has to work.
#[test]
fn a_device_over_a_dead_server_goes_by_what_the_hints_say() {
    let mut unit = Unit::new(2, 16 * MIB);
    let device = unit.loop_device();
    unit.sh(&format!("mkfs.ext4 -q {device}"));
    let fs = unit.mount_device(&device, "fs", "");
    unit.kill();
    let refused = unit.try_sh("shadowset status dsa1");
    let way = "unmount what is on its loop device, `shadowset loop detach dsa1`, `umount ";
    assert!(refused.err.contains(way), "{refused:?}");
    let refused = unit.try_sh("shadowset stop dsa1");
    let way = format!("unmount what is on {device}, then `shadowset loop detach dsa1`");
    assert!(refused.err.contains(&way), "{refused:?}");
    let refused = unit.try_sh("shadowset loop detach dsa1");
    assert_eq!(refused.code, 4, "{refused:?}");
    assert!(refused.err.contains("is mounted on"), "{refused:?}");
    unit.take_away(&Thing::Mount(fs));
    assert_eq!(unit.sh("shadowset loop detach dsa1"), device);
    unit.forget(&device);
    assert_eq!(bound(&unit), "");
    let none = unit.try_sh("shadowset loop detach dsa1");
    assert_eq!(none.code, 3, "{none:?}");
    let ended = unit.try_sh("shadowset status dsa1").err;
    assert!(ended.contains("hint: `umount "), "{ended}");
    unit.umount();
    unit.gone();
    unit.mount();
    unit.sh("shadowset wait dsa1 --timeout 60");
    unit.stop_and_compare();
}

/// The kernel asks the file of a loop device for its number. Where the server of its file system has died nobody answers,
/// and that is no reason to refuse the images of a unit.
#[test]
fn a_dead_file_system_under_a_loop_device_is_in_no_units_way() {
    let mut unit = Unit::new(2, 4 * MIB);
    unit.sh("mkdir nbd");
    let mut server = unit.prepared("nbdfuse");
    server.args(["nbd/image", "--command", "nbdkit", "-s", "memory", "4M"]);
    let mut server = server.spawn().expect("nbdfuse starts");
    unit.keep(Thing::Mount(unit.path("nbd")));
    eventually("it is served", || unit.path("nbd/image").exists());
    let device = unit.sh("losetup -f --show nbd/image");
    unit.keep(Thing::Loop(device.clone()));
    server.kill().expect("it is killed");
    server.wait().expect("a child");
    let ask = format!(
        "python3 -c 'import fcntl; fcntl.ioctl(open(\"{device}\"), 0x4C05, bytearray(232))' 2>&1 |
        grep -q 'Errno 107'"
    );
    // The kernel believes for a while what it was told.
    eventually("nobody answers", || unit.try_sh(&ask).code == 0);
    unit.detach("m2");
    unit.minicopy("m2");
    unit.stop();
    unit.mount();
    unit.stop_and_compare();
}
