#!/bin/sh
# A backup of one member's image, for a timer or for cron.
#
#   nightly-backup.sh UNIT MEMBER STORE
#
# STORE is a borg repository, a restic repository or a directory; TOOL says which: borg, restic or tar (the
# default). Nothing but the exit code says whether it worked: 0, or what the tool or shadowset has answered.
#
# File systems on loop devices over the unit are frozen for the moment in which the member leaves. It comes back by
# minicopy when the tool has ended, well or not. What a night has not finished the next one does first.
set -eu

unit=$1 member=$2 store=$3
name=$unit-$(date +%Y-%m-%d)

case ${TOOL:-tar} in
borg)
	shadowset backup "$unit" "$member" -- borg create "$store::$name" {}
	borg prune --glob-archives "$unit-*" --keep-daily 7 --keep-weekly 4 "$store"
	;;
restic)
	shadowset backup "$unit" "$member" -- restic -r "$store" backup --tag "$unit" {}
	restic -r "$store" forget --tag "$unit" --keep-daily 7 --keep-weekly 4
	;;
tar)
	# Under another name until it is whole.
	shadowset backup "$unit" "$member" -- tar -Sczf "$store/$name.part" {}
	mv "$store/$name.part" "$store/$name.tar.gz"
	find "$store" -name "$unit-*.tar.gz" -mtime +7 -delete
	;;
*)
	echo "$0: TOOL is borg, restic or tar" >&2
	exit 2
	;;
esac
