#!/usr/bin/env python3
"""Runs x86_user on the host and in the guest; what a program sees of the CPU through Linux must be the same.

usage: x86_user.py UMBRA PROGRAM ENGINE      skipped (77) without a guest kernel or where the host lacks 32-bit code or LDTs
"""
import difflib, os, pathlib, shutil, subprocess, sys, tempfile

SKIP = 77

def kernel(flavour):
    base = pathlib.Path(os.environ.get("XDG_DATA_HOME") or os.path.join(os.environ.get("HOME", "/"), ".local/share"))
    found = sorted(p for p in (base / "umbra/kernels").glob("*/vmlinuz") if ("-cloud-" in p.parent.name) == (flavour == "cloud"))
    return found[-1] if found else None

def main():
    umbra, program, engine = sys.argv[1:4]
    compared = 0
    for flavour, args in (("cloud", []), ("ordinary", ["16"])):  # the cloud kernel has no 16-bit segments
        image = kernel(flavour)
        if not image:
            continue
        native = subprocess.run([program, *args], capture_output=True, text=True, timeout=30)
        if native.returncode or "refused" in native.stdout or "32 nop\n  rax 0" not in native.stdout:
            print(f"the host cannot run x86_user {' '.join(args)}: status {native.returncode}")
            continue
        with tempfile.TemporaryDirectory() as root:
            os.chmod(root, 0o755)
            shutil.copy(program, root + "/x86_user")
            guest = subprocess.run([umbra, "run", "--engine", engine, "--kernel", str(image), "--root", root, "--", "/x86_user", *args],
                                   capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120)
        if guest.returncode or guest.stdout != native.stdout:
            sys.stdout.writelines(difflib.unified_diff(native.stdout.splitlines(True), guest.stdout.splitlines(True), "host", "guest"))
            print(f"{flavour} kernel: status {guest.returncode}\n{guest.stderr}")
            return 1
        print(f"{flavour} kernel: {len(native.stdout.splitlines())} lines equal")
        compared += 1
    return 0 if compared else SKIP

sys.exit(main())
