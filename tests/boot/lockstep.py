#!/usr/bin/env python3
"""Engines in lockstep: a deterministic boot to a command's end, executed in different ways, must go through the very same
states: registers, segments, FPU, interrupt state every million instructions, all of RAM at the end.

Ways: the interpreter with other block sizes, the translator, the translator without warm-up, with tiny blocks."""
import os, pathlib, random, sys, tempfile
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from umbra_test import *

STOP = int(os.environ.get("LOCKSTEP_INSNS", 420_000_000))
EVERY = 1_000_000

WAYS = {
    "interpreter": ["--engine", "interpret"],
    "interpreter, blocks of 3": ["--engine", "interpret", "--block-limit", "3"],
    "translator": ["--engine", "translate"],
    "translator at once": ["--engine", "translate", "--translate-after", "1"],
    "translator, random blocks": ["--engine", "translate", "--translate-after", "2", "--block-limit", str(random.randint(1, 20))],
}

def test_lockstep():
    kernel = need_kernel()["path"]
    with tempfile.TemporaryDirectory() as where:
        first = None
        for name, options in WAYS.items():
            file = f"{where}/{len(os.listdir(where))}"
            status, out, err = umbra("run", "--kernel", kernel, "--memory", "256M", "--deterministic=7", "--stop-at", str(STOP),
                                     "--checkpoints", f"{file},{EVERY}", *options, "--", "sh", "-c",
                                     "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); ls / >/dev/null; done", timeout=200)
            assert b"instruction" in err or status in (0, 125), (name, status, err)
            if first is None:
                first = file
                continue
            status, out, err = umbra("compare", first, file)
            print(f"  {name}: {out.decode().strip()}")
            assert status == 0 and b"identical" in out, (name, options, out.decode(), err.decode())

main(globals())
