//! The unit as a service: what the service manager is told, and the files that systemd and udev read.
//!
//! systemd runs none of it here: its tools read the files, and udevadm(8) plays one event through the rule.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::bed::{MIB, Plan, Thing, Unit, eventually};

/// Where the files of the package are.
const FILES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/mountpoint-helper");

/// A server in the foreground, and what it tells its manager.
struct Service<'a> {
    unit: &'a Unit,
    manager: UnixDatagram,
    server: Child,
}

impl<'a> Service<'a> {
    fn start(unit: &'a Unit) -> Self {
        let path = unit.path("notify");
        let manager = UnixDatagram::bind(&path).expect("a socket");
        let time = Some(Duration::from_secs(60));
        manager.set_read_timeout(time).expect("a time");
        let mut command = unit.prepared("shadowset");
        command.args(["mount", "--foreground", "dsa1"]);
        command
            .arg(unit.path("mnt"))
            .arg("--log")
            .arg(unit.path("log"));
        command.env("NOTIFY_SOCKET", &path).stdout(Stdio::null());
        unit.keep(Thing::Mount(unit.path("mnt")));
        let server = command.spawn().expect("it starts");
        Self {
            unit,
            manager,
            server,
        }
    }

    /// Waits until the manager is told this.
    fn told(&self, what: &str) -> String {
        let mut heard = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(bytes) = self.manager.recv(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..bytes]).into_owned();
            if text.contains(what) {
                return text;
            }
            heard.push(text);
        }
        panic!("not told: {what}; but {heard:#?}");
    }

    fn signal(&self) {
        self.unit.sh(&format!("kill -TERM {}", self.server.id()));
    }

    fn ends(mut self) {
        let status = self.server.wait().expect("it ends");
        assert!(status.success(), "{status}");
        self.unit.forget_thing(&Thing::Mount(self.unit.path("mnt")));
    }
}

#[test]
fn the_manager_is_told_how_the_unit_is_doing() {
    let unit = Plan::new(2, 64 * MIB).create();
    let service = Service::start(&unit);
    let ready = service.told("READY=1");
    assert_eq!(ready, "READY=1\nSTATUS=dsa1: 2 members");
    unit.detach("m2");
    service.told("STATUS=dsa1: 1 member, m2 detached");
    unit.sh("head -c 8M /dev/urandom | dd of=$U conv=notrunc status=none");
    // So slow that it runs when somebody looks at what is to be told.
    unit.accepted("set copy_rate_max 4M");
    unit.accepted("attach m2 policy=minicopy");
    service.told(", minicopy m2 ");
    unit.accepted("set copy_rate_max max");
    service.told("STATUS=dsa1: 2 members");
    service.signal();
    let stopping = service.told("STOPPING=1");
    assert!(
        stopping.contains("EXTEND_TIMEOUT_USEC=300000000"),
        "{stopping}"
    );
    service.ends();
    unit.assert_equal();
}

#[test]
fn a_unit_in_use_is_served_on_after_a_signal_and_leaves_at_a_second() {
    let unit = Plan::new(2, 16 * MIB).create();
    let service = Service::start(&unit);
    service.told("READY=1");
    let user = std::fs::File::open(unit.file()).expect("the unit");
    service.signal();
    service.told("STATUS=dsa1: in use");
    unit.sh("head -c 1M /dev/urandom | dd of=$U conv=notrunc status=none");
    service.signal();
    eventually("the mount has gone", || !unit.path("mnt/dsa1").exists());
    drop(user);
    service.told("STOPPING=1");
    service.ends();
    unit.assert_equal();
}

/// What a tool says of files in which the program is where it was built.
fn judged(unit: &Unit, folder: &str, tool: &str) -> String {
    let program = env!("CARGO_BIN_EXE_shadowset");
    let into = unit.path(folder);
    std::fs::create_dir(&into).expect("a directory");
    let mut files = Vec::new();
    for entry in std::fs::read_dir(Path::new(FILES).join(folder)).expect("the files") {
        let path = entry.expect("an entry").path();
        let text = std::fs::read_to_string(&path).expect("text");
        let copy = into.join(path.file_name().expect("a name"));
        std::fs::write(&copy, text.replace("/usr/bin/shadowset", program)).expect("written");
        files.push(copy.display().to_string());
    }
    let ran = unit.try_sh(&format!("{tool} {}", files.join(" ")));
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    format!("{}{}", ran.out, ran.err)
}

#[test]
fn systemd_understands_the_units() {
    let unit = Plan::new(2, 16 * MIB).create();
    let tool = "SYSTEMD_UNIT_PATH=$D/systemd: systemd-analyze verify --man=no";
    assert_eq!(
        judged(&unit, "systemd", tool),
        "",
        "a mistake is a warning, and none is wanted"
    );
    let tool = "mkdir $D/root; systemd-tmpfiles --root=$D/root --create";
    assert_eq!(judged(&unit, "tmpfiles.d", tool), "");
    assert_eq!(
        unit.sh("stat -c '%a %F' $D/root/run/shadowset"),
        "755 directory"
    );
}

#[test]
fn udev_names_the_loop_device_after_its_unit() {
    let unit = Plan::new(2, 16 * MIB).create();
    // In a mount namespace with devices and files of udev of its own. udev clears the environment.
    let script = r#"
for place in /run/udev /run/shadowset; do mkdir -p $place; mount -t tmpfs own $place; done
mkdir -p $D/dev /run/udev/rules.d
mount -t tmpfs own $D/dev
cp -a /dev/loop* /dev/null /dev/fuse /dev/urandom $D/dev/
mount --bind $D/dev /dev
sed "s|/usr/bin/shadowset|$PROGRAM|" $RULES >/run/udev/rules.d/90-shadowset.rules
unset SHADOWSET_RUNTIME_DIR
end() { shadowset loop detach dsa1; umount -l $M; }
trap 'end >/dev/null 2>&1 || :' EXIT
shadowset mount dsa1 $M -o log=$D/log
device=$(shadowset loop attach dsa1)
[ "$(shadowset loop unit $device)" = dsa1 ]
event() { udevadm test --action=change /sys/block/${device#/dev/} >$D/event 2>&1; }
event
grep -qx 'SHADOWSET_UNIT=dsa1' $D/event || { cat $D/event; exit 1; }
[ $(readlink -f /dev/shadowset/dsa1) = $device ]
shadowset loop detach dsa1
! shadowset loop unit $device 2>/dev/null
# A device over another file is not ours.
truncate -s 1M $D/other
losetup $device $D/other
event
! grep SHADOWSET_UNIT $D/event
losetup -d $device
umount $M
"#;
    let (program, rules) = (
        env!("CARGO_BIN_EXE_shadowset"),
        format!("{FILES}/udev/90-shadowset.rules"),
    );
    let script = format!("PROGRAM={program} RULES={rules}\n{script}");
    std::fs::write(unit.path("script"), script).expect("the script");
    unit.sh("unshare -m --propagation private bash -eu -o pipefail $D/script");
}
