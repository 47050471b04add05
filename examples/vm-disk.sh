#!/bin/sh
# A virtual machine on a shadow set, and a nightly backup of its disk while it runs.
#
#   vm-disk.sh options UNIT                   the disk, as words for qemu-system-x86_64
#   vm-disk.sh backup UNIT MEMBER DIR         a copy of the quiet image of MEMBER in DIR
#
# The machine opens the file of the unit itself: no loop device, and cache=none, so that a write that
# it believes to be on the disk has reached every member. The image is as after a power cut of the
# machine, unless the guest is frozen meanwhile (`virsh domfsfreeze`).
set -eu

unit_file() {
    shadowset list --json | python3 -c '
import json, sys
units = [u for u in json.load(sys.stdin) if u["unit"] == sys.argv[1] and u["mountpoint"]]
sys.exit(print(units[0]["mountpoint"] + "/" + units[0]["unit"]) if units else 3)' "$1"
}

member_path() {
    shadowset status "$1" --json | python3 -c '
import json, sys
print(*[m["path"] for m in json.load(sys.stdin)["members"] if m["name"] == sys.argv[1]])' "$2"
}

case ${1:-} in
options)
    file=$(unit_file "$2")
    echo "-drive file=$file,format=raw,if=virtio,cache=none,discard=unmap"
    ;;
backup)
    image=$(member_path "$2" "$3")
    shadowset detach "$2" "$3" --policy minicopy
    # Whatever becomes of the copy, the member comes back, with what was written meanwhile.
    trap 'code=$?; shadowset attach "$2" "$3" --policy minicopy --wait || code=1; exit $code' EXIT
    cp --sparse=always "$image" "$4/$2-$(date +%F).img"
    ;;
*)
    echo "usage: vm-disk.sh options UNIT | backup UNIT MEMBER DIR" >&2
    exit 2
    ;;
esac
