#!/bin/sh
# Judges a package: lintian, then a clean root of this Debian release, in which it is installed, the tour of the
# README is run with what it has installed, mount(8) is tried, and it is removed again without a trace.
# Needs root, /dev/fuse, loop devices, and the archive of Debian.
#
#   sh packaging/deb/check.sh PACKAGE.deb
set -eu
deb=$(readlink -f "$1")

for tool in lintian debootstrap unshare; do
    command -v $tool >/dev/null || apt-get install -y -q --no-install-recommends $tool
done

lintian --fail-on error,warning "$deb"

work=$(mktemp -d)
root=$work/root
trap 'rm -rf --one-file-system "$work"' EXIT
. /etc/os-release
archive=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -v security | head -n 1)
echo "a clean root of $VERSION_CODENAME"
debootstrap --variant=minbase --include=fuse3,mount,e2fsprogs,fdisk "$VERSION_CODENAME" "$root" "$archive" \
    >"$work/debootstrap.log" 2>&1 || { tail -n 20 "$work/debootstrap.log"; exit 1; }
cp "$deb" "$root/package.deb"

# The commands of the tour, but for those that build the program, and for the refusal, which is shown with its answer.
awk '/^## /{in_tour = /^## Five minutes/}
    in_tour && /^    \$ /{refusal = 1}
    in_tour && /^$/{refusal = 0}
    in_tour && /^    / && !refusal && !/cargo build/ && !/^    PATH=/{print substr($0, 5)}' \
    README.md >"$root/tour"
grep -q 'shadowset attach dsa1 m3' "$root/tour"

cat >"$root/inside" <<'END'
set -eu
list() { find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /tmp -o -path /var/lib/dpkg \
    -o -path /var/cache -o -path /var/log -o -path /run \) -prune -o -print | sort; }
list >/tmp/before
dpkg -i /package.deb
shadowset --version
ls -l /usr/sbin/*mount*.shadowset /usr/sbin/mount.shadowset
cd /root
set -x
. /tour
cat >/etc/shadowset/dsa2.toml <<'CONFIG'
[[member]]
name = "m1"
path = "/srv/images/a.img"
[[member]]
name = "m2"
path = "/srv/images/b.img"
CONFIG
mkdir -p /srv/dsa2
shadowset create dsa2 --size 16M
echo 'dsa2 /srv/dsa2 shadowset defaults,nofail 0 0' >>/etc/fstab
mount -a
findmnt -t fuse.shadowset
shadowset status dsa2
umount /srv/dsa2
[ ! -e /run/shadowset/dsa2 ]
cmp /srv/images/a.img /srv/images/b.img
rm -r /srv/images /srv/dsa2 /etc/shadowset/dsa2.toml /var/lib/shadowset
sed -i /shadowset/d /etc/fstab
dpkg --purge shadowset
set +x
list >/tmp/after
diff /tmp/before /tmp/after
END
cat >"$work/enter" <<'END'
set -eu
for dir in proc sys dev; do mount --rbind /$dir "$1/$dir"; done
mount -t tmpfs run "$1/run"
chroot "$1" sh -eu /inside
END
unshare -m --propagation private sh "$work/enter" "$root"
echo "the package is good"
