#!/usr/bin/env python3
"""Session and agent against each other without a VM; and the session against what a hostile guest may say."""
import os, pathlib, struct, subprocess, sys, tempfile, time
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from umbra_test import *

PEER = str(BUILD / "tests/session/session_peer")
AGENT = str(BUILD / "guest/guest-agent")
MARK, HELLO, EXITED, ERROR, DATA, CREDIT = 0xA7, 1, 2, 3, 16, 17

def peer(*args, stdin=b"", timeout=60):
    p = subprocess.run([PEER, AGENT, *args], input=stdin, capture_output=True, timeout=timeout)
    return p.returncode, p.stdout, p.stderr

def test_streams():
    assert peer("--", "sh", "-c", "echo out; echo err >&2; exit 3") == (3, b"out\n", b"err\n")
    data = os.urandom(10_000_000)
    assert peer("--", "cat", stdin=data) == (0, data, b"")
    with tempfile.NamedTemporaryFile() as f:
        f.write(data)
        f.flush()
        rc, out, err = peer("--", "sh", "-c", f"head -c 3000000 {f.name} & head -c 2000000 {f.name} >&2; wait")
        assert (rc, out, err) == (0, data[:3000000], data[:2000000])

def test_status():
    assert peer("--", "sh", "-c", "kill -9 $$")[0] == 137
    assert peer("-s", "15:300", "--", "sleep", "20")[0] == 143
    assert peer("--", "no-such-command")[0] == 127
    assert peer("--", "/etc/passwd")[0] == 126
    assert peer("-d", "/nosuch", "--", "true")[0] == 126
    assert peer("-n", "--", "sh", "-c", "cat; echo done", stdin=b"x") == (0, b"done\n", b"")
    assert peer("-d", "/", "-e", "A=b", "-e", "PATH=/bin:/usr/bin", "--", "sh", "-c", "pwd; echo $A") == (0, b"/\nb\n", b"")

def test_large_environment():
    args = ["x" * 100000] * 10
    rc, out, err = peer("-e", "PATH=/bin:/usr/bin", "--", "sh", "-c", "echo $# ${#9}", "sh", *args)
    assert (rc, out) == (0, b"10 100000\n"), (rc, out, err)

def test_terminal():
    rc, out, err = peer("-t", "--", "sh", "-c", "tty; stty size; exit 6")
    assert rc == 6 and b"/dev/pts/" in out and b"24 80" in out, (rc, out, err)

def frame(kind, stream, seq, body, mark=MARK, length=None):
    return struct.pack("<BBBBI", mark, kind, stream, seq & 255, len(body) if length is None else length) + body

HI = frame(HELLO, 0, 0, struct.pack("<II", 0x41524D55, 1))

def hostile(data, says):
    with tempfile.NamedTemporaryFile() as f:
        f.write(data)
        f.flush()
        p = subprocess.run([PEER, AGENT, "-x", f.name, "--", "true"], stdin=subprocess.DEVNULL, capture_output=True, timeout=20)
    assert p.returncode == 125 and says in p.stderr, (data[:40], p)

def test_hostile_guest():
    for data, says in [
        (os.urandom(1) + b"\0" * 64, b"not a frame header"),
        (b"login: ", b"not a frame header"),
        (frame(DATA, 1, 0, b"x"), b"no HELLO"),
        (frame(HELLO, 0, 0, struct.pack("<II", 1, 1)), b"not an agent"),
        (frame(HELLO, 0, 0, struct.pack("<II", 0x41524D55, 99)), b"another version"),
        (HI + HI, b"out of order"),
        (HI + frame(HELLO, 0, 1, struct.pack("<II", 0x41524D55, 1)), b"second HELLO"),
        (HI + frame(99, 0, 1, b""), b"unknown frame type"),
        (HI + frame(32, 0, 1, b"x" * 40), b"unknown frame type"),
        (HI + frame(DATA, 1, 1, b"", length=0xFFFFFFFF), b"too long"),
        (HI + frame(DATA, 1, 1, b"", length=16385), b"too long"),
        (HI + frame(DATA, 0, 1, b"x"), b"data of no output"),
        (HI + frame(DATA, 3, 1, b"x"), b"data of no output"),
        (HI + frame(DATA, 200, 1, b"x"), b"bad stream"),
        (HI + frame(DATA, 1, 1, b""), b"data of no output"),
        (HI + frame(EXITED, 0, 1, struct.pack("<I", 256)), b"impossible exit status"),
        (HI + frame(EXITED, 0, 1, b"x"), b"too short"),
        (HI + frame(ERROR, 0, 1, struct.pack("<I", 1) + b"x"), b"impossible error status"),
        (HI + frame(CREDIT, 1, 1, struct.pack("<I", 5)), b"credit for nothing"),
        (HI + frame(CREDIT, 3, 1, struct.pack("<I", 0xFFFFFFFF)), b"credit for nothing"),
        (HI + frame(CREDIT, 0, 1, struct.pack("<I", 1)), b"credit for nothing"),
        (HI + frame(DATA, 1, 2, b"x"), b"out of order"),
    ]:
        hostile(data, says)

def test_hostile_words():
    """Text from the guest reaches the terminal without control characters."""
    with tempfile.NamedTemporaryFile() as f:
        f.write(HI + frame(ERROR, 0, 1, struct.pack("<I", 127) + b"a\x1b]0;evil\x07b\nc"))
        f.flush()
        p = subprocess.run([PEER, AGENT, "-x", f.name, "--", "true"], stdin=subprocess.DEVNULL, capture_output=True, timeout=20)
    assert p.returncode == 127 and p.stderr == b"umbra: cannot run a?]0;evil?b?c\n", p

def test_flood():
    """More output than credit was given for, to a reader that does not read."""
    flood = HI + b"".join(frame(DATA, 1, i, b"x" * 16384) for i in range(1, 40))
    with tempfile.NamedTemporaryFile() as f:
        f.write(flood)
        f.flush()
        p = subprocess.Popen([PEER, AGENT, "-x", f.name, "--", "true"], stdin=subprocess.DEVNULL,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        time.sleep(1)
        out, err = p.communicate(timeout=20)
    assert p.returncode == 125 and b"more output than credit" in err and len(out) < 40 * 16384, (p.returncode, len(out), err)

main(globals())
