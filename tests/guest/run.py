#!/usr/bin/env python3
"""Runs the bare-metal test programs under umbra, or under QEMU's TCG to check the programs themselves, or on the
engine alone (bare_vm).

    run.py [--vmm umbra|qemu|engine] [--umbra PATH] [--dir DIR] [-v] [NAME…]

Exit status 0: every program ended as the table says."""
import argparse, os, subprocess, sys, time

OK = (0x10 << 1) | 1  # isa-debug-exit turns the value written into (value << 1) | 1

# name: (seconds allowed, exit under umbra, exit under QEMU, text that must appear)
DEFAULT = (30, OK, OK, "PASSED")
SPECIAL = {
    "smp": (100, OK, OK, "PASSED"),  # on a busy host its processors wait for each other
    # the CPU shuts down: QEMU -no-reboot leaves with 0, umbra reports an engine death
    "triple": (20, 125, 0, "about to triple-fault"),
    # power-off by ACPI
    "poweroff": (20, 0, 0, "powering off"),
}


CPUS = {"smp": 4}  # others: 1


def command(vmm, umbra, elf, engine):
    cpus = str(CPUS.get(os.path.basename(elf)[:-4], 1))
    if vmm == "qemu":
        return ["qemu-system-x86_64", "-kernel", elf, "-accel", "tcg", "-cpu", "max", "-m", "256", "-smp", cpus,
                "-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-debugcon", "stdio", "-display", "none",
                "-monitor", "none", "-serial", "null", "-no-reboot"]
    if vmm == "engine":
        return [os.path.join(os.path.dirname(elf), "bare_vm"), elf]
    how = ["--engine", engine] + (["--translate-after", "1"] if engine == "translate" else [])
    return [umbra, "run", "--memory", "256M", "--cpus", cpus, *how, "--kernel", elf]


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--vmm", choices=["umbra", "qemu", "engine"], default="umbra")
    ap.add_argument("--umbra", default="build/umbra")
    ap.add_argument("--engine", default="interpret", help="umbra's engine; translate: every block at its first execution")
    ap.add_argument("--dir", default=None)
    ap.add_argument("-v", action="store_true")
    ap.add_argument("names", nargs="*")
    a = ap.parse_args()
    where = a.dir or os.path.join(os.path.dirname(os.path.abspath(a.umbra)), "tests/guest")
    names = a.names or sorted(f[:-4] for f in os.listdir(where) if f.endswith(".elf"))
    if not names:
        print("no programs in", where)
        return 1
    bad = 0
    for name in names:
        limit, status_umbra, status_qemu, text = SPECIAL.get(name, DEFAULT)
        want = status_qemu if a.vmm == "qemu" else status_umbra
        cmd = command(a.vmm, a.umbra, os.path.join(where, name + ".elf"), a.engine)
        start = time.monotonic()
        try:
            p = subprocess.run(cmd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               timeout=limit)
            status, out = p.returncode, p.stdout.decode("latin1")
        except subprocess.TimeoutExpired as e:
            status, out = "timeout", (e.stdout or b"").decode("latin1")
        good = status == want and text in out
        bad += not good
        print(f"{'ok  ' if good else 'FAIL'} {name} status {status} (expected {want}) {time.monotonic() - start:.1f} s")
        if a.v or not good:
            print("".join("    " + l + "\n" for l in out.splitlines()[-60:]), end="")
    return 1 if bad else 0


sys.exit(main())
