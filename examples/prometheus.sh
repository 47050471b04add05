#!/bin/sh
# Metrics of all units of this node for Prometheus, through the textfile collector of node_exporter.
# From cron, each minute:
#
#   * * * * *  root  prometheus.sh /var/lib/prometheus/node-exporter
#
# A unit has `.shadow/metrics` in the OpenMetrics format; the collector reads an older one, whose types
# name the samples themselves and which knows no information and no sets of states. An alert on what
# matters: shadowset_state{shadowset_state=~"reduced|mount-verify|failed"} == 1
set -eu
dir=${1:?usage: prometheus.sh DIR}

older() {
    awk '
        $1 != "#" { print; next }
        $2 == "TYPE" && $4 == "counter" { suffix[$3] = "_total"; print "# TYPE", $3 "_total counter"; next }
        $2 == "TYPE" && $4 == "info" { suffix[$3] = "_info"; print "# TYPE", $3 "_info gauge"; next }
        $2 == "TYPE" && $4 == "stateset" { print "# TYPE", $3, "gauge"; next }
        $2 == "HELP" { name = $3; sub(/^# HELP [^ ]* /, ""); print "# HELP", name suffix[name], $0; next }
        $2 == "TYPE" { print }' "$1"
}

new=$(mktemp -d "$dir/.shadowset.XXXXXX")
trap 'rm -r "$new"' EXIT
shadowset list --json | python3 -c '
import json, sys
for unit in json.load(sys.stdin):
    if unit["mountpoint"]:
        print(unit["unit"], unit["mountpoint"])' |
while read -r unit mountpoint; do
    # One that does not answer has no metrics, which is an alert too; it does not hold up the others.
    timeout 5 cat "$mountpoint/.shadow/metrics" > "$new/open" || continue
    older "$new/open" > "$new/shadowset-$unit.prom"
done
rm -f "$new/open"
# Those of units that are gone go; each of the others is replaced at once.
for old in "$dir"/shadowset-*.prom; do
    [ -e "$new/${old##*/}" ] || rm -f "$old"
done
for file in "$new"/*.prom; do
    [ ! -e "$file" ] || mv "$file" "$dir/"
done
