#!/bin/sh
# Writes the paths of what the binary carries, for the assembler.  usage: embed_paths.sh AGENT BUSYBOX OUTPUT
set -eu
printf '#define AGENT_FILE "%s"\n#define BUSYBOX_FILE "%s"\n' "$(realpath "$1")" "$(realpath "$2")" >"$3"
