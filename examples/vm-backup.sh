#!/bin/sh
# A backup of a virtual machine whose disk is a unit that QEMU has opened itself:
#
#   qemu-system-x86_64 ... -drive file=/mnt/shadow/dsa1,format=raw,cache=none
#
#   vm-backup.sh UNIT MEMBER DOMAIN FILE
#
# No file system is mounted here, so the guest's agent freezes those of the guest. It is asked to thaw in every case;
# after 20 seconds at the latest.
set -eu

unit=$1 member=$2 domain=$3 file=$4

shadowset backup "$unit" "$member" --freeze-timeout 20 \
	--freeze-cmd "virsh domfsfreeze '$domain'" \
	--thaw-cmd "virsh domfsthaw '$domain'" \
	-- cp --sparse=always {} "$file.part"
mv "$file.part" "$file"
