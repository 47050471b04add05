#!/bin/sh
# The disk of a virtual machine on a shadow set: prints the words for qemu-system-x86_64.
#
#   vm-disk.sh UNIT
#
# The machine opens the file of the unit itself: no loop device, and cache=none, so that a write that
# it believes to be on the disk has reached every member. vm-backup.sh backs it up while it runs.
set -eu
unit=${1:?usage: vm-disk.sh UNIT}

file=$(shadowset list --json | python3 -c '
import json, sys
for u in json.load(sys.stdin):
    if u["unit"] == sys.argv[1] and u["mountpoint"]:
        sys.exit(print(u["mountpoint"] + "/" + u["unit"]))
print(f"vm-disk.sh: no unit {sys.argv[1]} is mounted; `shadowset list` shows which are", file=sys.stderr)
sys.exit(3)' "$unit")
echo "-drive file=$file,format=raw,if=virtio,cache=none,discard=unmap"
