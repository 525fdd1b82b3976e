#!/usr/bin/env python3
"""Several processors under Linux: smp_user (memory order, locked instructions, code and page tables changed under others,
clock, fork and exec), processors taken away and given back, trace events switched on and off under load.

usage: smp.py UMBRA SMP_USER ENGINE      skipped (77) without a guest kernel
"""
import os, pathlib, shutil, subprocess, sys, tempfile

SKIP = 77


def run(umbra, engine, cpus, root, *command, timeout=200):
    more = ["--root", root] if root else []
    return subprocess.run([umbra, "run", "--engine", engine, "--cpus", str(cpus), *more, "--", *command], capture_output=True,
                          text=True, stdin=subprocess.DEVNULL, timeout=timeout)


def check(name, result, good):
    if not good or result.returncode:
        print(f"{name}: status {result.returncode}\n{result.stdout}\n{result.stderr}")
    else:
        print(f"{name}: ok")
    return bool(good) and not result.returncode


HOTPLUG = """mount -t sysfs sysfs /sys 2>/dev/null
for round in 1 2 3; do
    for c in 1 2 3; do echo 0 > /sys/devices/system/cpu/cpu$c/online || exit 1; done
    [ $(nproc) = 1 ] || exit 2
    for c in 3 1 2; do echo 1 > /sys/devices/system/cpu/cpu$c/online || exit 3; done
    [ $(nproc) = 4 ] || exit 4
    for c in 0 1 2 3; do taskset $((1 << c)) sh -c 'i=0; while [ $i -lt 500 ]; do i=$((i+1)); done' || exit 5; done
done
echo done"""

TRACING = """mount -t sysfs sysfs /sys 2>/dev/null; mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null
[ -e /sys/kernel/tracing/events/enable ] || { echo done; exit 0; }
(while :; do true | true; done) & a=$!
(while :; do ls / > /dev/null; done) & b=$!
for round in 1 2 3 4 5; do
    echo 1 > /sys/kernel/tracing/events/syscalls/enable || exit 1
    echo 0 > /sys/kernel/tracing/events/syscalls/enable || exit 2
done
kill $a $b
echo done"""


def main():
    umbra, program, engine = sys.argv[1:4]
    data = pathlib.Path(os.environ.get("XDG_DATA_HOME") or os.path.join(os.environ.get("HOME", "/"), ".local/share"))
    if not list((data / "umbra/kernels").glob("*/vmlinuz")):
        return SKIP
    good = True
    with tempfile.TemporaryDirectory() as root:
        os.chmod(root, 0o755)
        shutil.copy(program, root + "/smp_user")
        for cpus in (2, 4):
            r = run(umbra, engine, cpus, root, "/smp_user", "100")
            good &= check(f"smp_user on {cpus}", r, f"{cpus} processors" in r.stdout and "FAILED" not in r.stdout)
    r = run(umbra, engine, 8, None, "nproc")
    good &= check("8 processors", r, r.stdout == "8\n")
    r = run(umbra, engine, 4, None, "sh", "-c", HOTPLUG)
    good &= check("hotplug", r, r.stdout.endswith("done\n"))
    r = run(umbra, engine, 2, None, "sh", "-c", TRACING)
    good &= check("trace events", r, r.stdout.endswith("done\n"))
    return 0 if good else 1


sys.exit(main())
