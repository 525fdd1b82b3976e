#!/bin/sh
# usage: test_acpi.sh TEST_ACPI    iasl must read back every table without complaint
set -e
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
"$1" "$d"
cd "$d"
for t in FACP APIC DSDT XSDT; do
	iasl -d "$t.dat" >"$t.log" 2>&1 || { cat "$t.log"; exit 1; }
	if grep -iE "error|warning|invalid|unknown" "$t.log" "$t.dsl"; then
		echo "iasl complains about $t"
		exit 1
	fi
done
grep -q "Hardware Reduced (V5) : 1" FACP.dsl
iasl -ve DSDT.dsl >recompile.log 2>&1 || { cat recompile.log; exit 1; }
echo "4 tables disassembled"
