#!/bin/sh
# Writes the list of busybox's applets, with their directories, as a C table.  usage: applets.sh BUSYBOX OUTPUT
set -eu
"$1" --list-full | sed 's/.*/	"&",/' >"$2"
