//! The virtual unit as a file: what it answers, what it refuses, and that all of it reaches every
//! member.

use crate::bed::{MIB, Plan, REGION, Unit};

#[test]
fn the_mount_is_what_it_says() {
    let mut unit = Unit::new(2, REGION * 100 + 512);
    let line = unit.sh("grep \" $M \" /proc/mounts");
    assert!(
        line.starts_with("dsa1 ") && line.contains(" fuse.shadowset rw,"),
        "{line}"
    );
    let size = unit.sh("stat -c '%s %F %a' $U");
    assert_eq!(size, format!("{} regular file 600", REGION * 100 + 512));
    assert_eq!(unit.sh("ls -A $M | sort | tr '\\n' ' '"), ".shadow dsa1 ");
    unit.python(
        "
v = os.statvfs(M)
assert v.f_bsize == 4096 and v.f_frsize == 4096, v
assert v.f_blocks * 4096 <= os.stat(U).st_size < (v.f_blocks + 1) * 4096, v
assert os.stat(M).st_ino != os.stat(U).st_ino
",
    );
    unit.stop_and_compare();
}

#[test]
fn the_size_is_fixed_and_names_are_given() {
    let mut unit = Unit::new(2, 4 * MIB);
    unit.python(
        "
size = os.stat(U).st_size
fails('EPERM', os.truncate, U, size - 1)
fails('EPERM', os.truncate, U, 0)
f = os.open(U, os.O_RDWR)
fails('EPERM', os.ftruncate, f, 0)
fails('EPERM', os.ftruncate, f, size // 2)
fails('EFBIG', os.truncate, U, size + 1)
fails('EFBIG', os.truncate, U, size + 4096)
fails('EFBIG', os.ftruncate, f, size + 4096)
os.truncate(U, size)
# What this thread has opened is no excuse any more once it is read, written or closed.
os.pread(f, 1, 0)
fails('EPERM', os.truncate, U, 0)
f2 = os.open(U, os.O_WRONLY)
os.pwrite(f2, b'\\0', 0)
fails('EPERM', os.truncate, U, 0)
os.close(os.open(U, os.O_RDWR))
fails('EPERM', os.truncate, U, 0)
os.close(os.open(U, os.O_WRONLY | os.O_TRUNC))
assert os.stat(U).st_size == size
fails('ENOSPC', os.pwrite, f, b'x', size)
assert os.pwrite(f, b'xyz', size - 2) == 2
assert os.pread(f, 10, size - 2) == b'xy'
assert os.pread(f, 10, size) == b''
fails('EPERM', os.open, M + '/new', os.O_CREAT | os.O_WRONLY)
fails('EPERM', os.mkdir, M + '/new')
fails('EPERM', os.mkdir, S + '/members/m9')
fails('EPERM', os.rename, U, M + '/other')
fails('EPERM', os.unlink, U)
fails('EPERM', os.unlink, S + '/state')
fails('EPERM', os.symlink, 'x', M + '/new')
fails('EPERM', os.link, U, M + '/new')
fails('EPERM', os.mknod, M + '/new')
fails('EPERM', os.rmdir, S + '/members/m1')
assert os.fstat(f).st_size == size
",
    );
    // A shell empties an ordinary file first; here it overwrites the first bytes.
    unit.sh("printf abcdef > $U; printf xy > $U; [ $(head -c 6 $U) = xycdef ]");
    unit.stop_and_compare();
}

#[test]
fn holes_are_made_found_and_filled() {
    let mut unit = Unit::new(3, 8 * MIB);
    unit.sh("head -c 8M /dev/urandom | dd of=$U bs=1M conv=notrunc iflag=fullblock status=none; cp $U model");
    unit.detach("m3");
    unit.sh("for f in $U model; do
        fallocate -p -o 1M -l 1M $f; fallocate -p -o 3000001 -l 100001 $f
        fallocate -z -o 5M -l 1M $f; fallocate -n -o 1100K -l 8K $f; fallocate -o 0 -l 8M $f; done
        cmp $U model");
    let ran = unit.try_sh("fallocate -o 8M -l 1 $U");
    assert_ne!(ran.code, 0, "allocation does not extend");
    let ran = unit.try_sh("fallocate -c -o 0 -l 4096 $U");
    assert!(ran.err.contains("not supported"), "{ran:?}");
    unit.sh("fallocate -p -o 1M -l 1M $U; fallocate -p -o 1M -l 1M model");
    unit.python(
        "
f = os.open(U, os.O_RDONLY)
M1 = 1 << 20
assert os.lseek(f, 0, os.SEEK_HOLE) == M1
assert os.lseek(f, M1, os.SEEK_DATA) == 2 * M1
assert os.lseek(f, M1 + 5, os.SEEK_HOLE) == M1 + 5
assert os.lseek(f, 7 * M1, os.SEEK_HOLE) == 8 * M1
fails('ENXIO', os.lseek, f, 8 * M1, os.SEEK_DATA)
",
    );
    let marked = unit.bitmap("m3", "set_bytes");
    assert!(
        (2 * MIB + 100_001..3 * MIB).contains(&marked) || marked == 8 * MIB,
        "{marked}"
    );
    unit.minicopy("m3");
    unit.sh("cmp $U model; cp --sparse=always $U copy; cmp copy model");
    for member in ["m1", "m2", "m3"] {
        let taken = unit.allocated(member);
        assert!(
            taken <= 7 * MIB + 65536,
            "{member}: {taken} with a hole of 1 MiB"
        );
    }
    unit.stop_and_compare();
}

#[test]
fn copies_within_the_unit_are_tracked() {
    let mut unit = Unit::new(2, REGION * 100);
    unit.sh(
        "head -c 3000000 /dev/urandom | dd of=$U bs=64k conv=notrunc iflag=fullblock status=none",
    );
    unit.detach("m2");
    unit.python(&format!(
        "
r = {REGION}
f = os.open(U, os.O_RDWR)
before = os.pread(f, 3 * r, 5 * r)
left, src, dst = 3 * r, 5 * r, 60 * r
while left:
    n = os.copy_file_range(f, f, left, src, dst)
    assert n > 0
    left -= n; src += n; dst += n
assert os.pread(f, 3 * r, 60 * r) == before
# Into the unit from elsewhere, through the kernel's pipe.
with open(D + '/piece', 'wb') as p: p.write(b'q' * 1000)
assert os.sendfile(f, os.open(D + '/piece', os.O_RDONLY), 0, 1000) == 1000
assert os.pread(f, 1000, 0) == b'q' * 1000
"
    ));
    let expected = format!("0 127\n{} {}\n", 60 * 127, 3 * 127);
    assert_eq!(unit.read("members/m2/bitmap/ranges"), expected);
    unit.minicopy("m2");
    unit.stop_and_compare();
}

#[test]
fn memory_that_is_shared_with_the_unit_reaches_all_members() {
    let mut unit = Unit::new(3, 8 * MIB);
    unit.detach("m2");
    unit.python(&format!(
        "
r = {REGION}
f = os.open(U, os.O_RDWR)
m = mmap.mmap(f, 1 << 20, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
m[0:5] = b'hello'
m[8 * r:8 * r + 3] = b'abc'
m.flush()
assert os.pread(f, 5, 0) == b'hello'
for n in (1, 3):
    assert image(n)[8 * r:8 * r + 3] == b'abc', n
assert image(2)[:5] == bytes(5)
os.pwrite(f, b'H', 0)
m.close()
"
    ));
    assert!(unit.bitmap("m2", "set_bits") >= 2);
    unit.minicopy("m2");
    unit.stop_and_compare();
    assert_eq!(unit.contents("m2")[..5], *b"Hello");
}

#[test]
fn fsync_and_synchronous_writes_are_on_every_member() {
    let mut unit = Unit::new(2, 4 * MIB);
    unit.sh("head -c 1M /dev/urandom > piece
        dd if=piece of=$U bs=64k conv=notrunc,fsync status=none
        dd if=piece of=$U bs=64k seek=20 conv=notrunc oflag=sync status=none
        dd if=piece of=$U bs=64k seek=40 conv=notrunc oflag=direct,dsync status=none
        sync -d $U; sync -f $M
        cmp $I/m1.img $I/m2.img; cmp -n 1048576 piece $I/m2.img");
    unit.stop_and_compare();
}

#[test]
fn umount_from_outside_ends_the_daemon_and_leaves_the_set_clean() {
    let mut unit = Unit::new(2, 4 * MIB);
    let generation: u64 = unit.read("generation").trim().parse().expect("a number");
    unit.sh("head -c 1M /dev/urandom | dd of=$U bs=64k conv=notrunc iflag=fullblock status=none");
    let pid = unit.pid();
    unit.umount();
    unit.sh(&format!("timeout 20 tail --pid={pid} -f /dev/null"));
    unit.gone();
    unit.assert_equal();
    unit.mount();
    assert_eq!(
        unit.status()["operations"].as_array().map(Vec::len),
        Some(0),
        "no copy"
    );
    let now: u64 = unit.read("generation").trim().parse().expect("a number");
    assert!(now > generation, "I6");
    unit.stop_and_compare();
}

#[test]
fn a_unit_that_is_mounted_read_only_is_only_read() {
    let mut unit = Plan::new(2, 4 * MIB).options("ro").mount();
    let before = unit.checksum("m1");
    assert_eq!(unit.status()["state"], "read-only");
    unit.python(
        "
fails('EROFS', os.open, U, os.O_RDWR)
assert os.pread(os.open(U, os.O_RDONLY), 3, 0) == bytes(3)
",
    );
    unit.stop_and_compare();
    assert_eq!(unit.checksum("m1"), before);
}
