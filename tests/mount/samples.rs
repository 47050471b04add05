//! The files in examples/, each used as it says, as far as its programs are here.

use crate::bed::{MIB, Unit};

/// A unit that has a name for the examples.
fn unit(size: u64) -> Unit {
    let unit = Unit::new(2, size);
    unit.sh(&format!(
        "ln -s {}/examples examples",
        env!("CARGO_MANIFEST_DIR")
    ));
    unit
}

#[test]
fn a_virtual_machine_opens_the_unit_itself() {
    let mut unit = unit(16 * MIB);
    let options = unit.sh("examples/vm-disk.sh dsa1");
    let file = unit.file().display().to_string();
    assert_eq!(
        options,
        format!("-drive file={file},format=raw,if=virtio,cache=none,discard=unmap")
    );
    // What such a drive does: past the cache, with flushes and discards, two requests at once.
    unit.sh("mkdir backup
        disk=driver=raw,file.driver=file,file.filename=$U,file.cache.direct=on,discard=unmap
        qemu-io --image-opts \"$disk\" -c 'aio_write -P 0x11 0 1M' -c 'aio_write -P 0x22 4M 1M' \
            -c 'aio_flush' -c 'write -P 0x33 8M 64k' -c 'discard 4M 512k' -c 'flush'
        shadowset backup dsa1 m2 -- cp --sparse=always {} backup/
        qemu-img compare -f raw -F raw backup/m2.img $U
        qemu-io -r --image-opts \"$disk\" -c 'read -P 0x11 0 1M' -c 'read -P 0x22 4608k 512k' \
            -c 'read -P 0 4M 512k' -c 'read -P 0x33 8M 64k' > read
        ! grep -i 'fail\\|pattern' read");
    assert_eq!(unit.read("state"), "steady\n");
    unit.stop_and_compare();
}

#[test]
fn a_unit_that_is_not_mounted_gives_no_disk() {
    let unit = unit(4 * MIB);
    let ran = unit.try_sh("examples/vm-disk.sh dsa9");
    assert_eq!((ran.code, ran.out.as_str()), (3, ""), "{ran:?}");
}

#[test]
fn an_emulator_attaches_the_unit() {
    let unit = unit(10 * MIB);
    unit.sh(
        "sed \"s#/mnt/shadow/dsa1#$U#\" examples/simh.ini > simh.ini; echo exit >> simh.ini
        pdp11 simh.ini > told 2>&1 || true
        grep -q \"attached to $U\" told || { cat told >&2; exit 1; }",
    );
}

/// What node_exporter reads, read by the parser of Prometheus's own library.
#[test]
fn a_scrape_has_the_metrics_of_each_unit_that_is_mounted() {
    let mut unit = unit(4 * MIB);
    let script = "
import sys
from prometheus_client.parser import text_string_to_metric_families
for family in text_string_to_metric_families(open(sys.argv[1]).read()):
    assert family.documentation and family.type != 'unknown', family
    for s in family.samples:
        print(family.type, s.name, *('%s=%s' % p for p in sorted(s.labels.items())), '%g' % s.value)
";
    std::fs::write(unit.path("parse.py"), script).expect("written");
    unit.sh("mkdir prom; touch prom/other.prom prom/shadowset-gone.prom
        printf x | dd of=$U conv=notrunc,fsync status=none
        examples/prometheus.sh prom");
    assert_eq!(unit.sh("ls -A prom"), "other.prom\nshadowset-dsa1.prom");
    let parsed = unit.sh("/usr/bin/python3 parse.py prom/shadowset-dsa1.prom");
    for line in [
        "gauge shadowset_state shadowset_state=steady unit=dsa1 1",
        "gauge shadowset_size_bytes unit=dsa1 4.1943e+06",
        "counter shadowset_member_errors_total member=m2 unit=dsa1 0",
        "histogram shadowset_request_seconds_count request=write unit=dsa1 1",
    ] {
        assert!(parsed.lines().any(|own| own == line), "{line}: {parsed}");
    }
    unit.stop();
    unit.sh("examples/prometheus.sh prom");
    assert_eq!(unit.sh("ls -A prom"), "other.prom");
}

/// Each line is read by mount(8)'s own parser, and its options are ours.
#[test]
fn the_lines_for_fstab_are_understood() {
    let unit = unit(4 * MIB);
    let text =
        unit.sh("findmnt --fstab --tab-file examples/fstab -n -o SOURCE,TARGET,FSTYPE,OPTIONS");
    let lines: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(lines.len(), 3, "{text}");
    for line in lines {
        assert_eq!(line[2], "shadowset", "{text}");
        // A place that is not there is refused behind the options, which were understood.
        let ran = unit.try_sh(&format!("shadowset mount dsa1 nowhere -o {}", line[3]));
        assert_eq!(ran.code, 32, "{line:?}: {ran:?}");
        assert!(ran.err.contains("mount point"), "{line:?}: {ran:?}");
    }
}
