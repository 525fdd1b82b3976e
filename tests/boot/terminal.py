#!/usr/bin/env python3
"""umbra run on a terminal: shell, Ctrl-C, window size; the terminal is as before after any end, kill -9 included."""
import fcntl, os, pathlib, pty, select, signal, struct, sys, termios, time
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from umbra_test import *

class Terminal:
    def __init__(self, *args, size=(33, 101)):
        need_kernel()
        self.master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self.text = b""
        self.pid = os.fork()
        if not self.pid:
            os.setsid()
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
            for fd in range(3):
                os.dup2(slave, fd)
            os.execve(UMBRA, [UMBRA, "run", *args], {**os.environ, "TERM": "dumb"})

    def until(self, what, seconds=60):
        end = time.time() + seconds
        start = len(self.text)
        while what not in self.text[start:]:
            assert time.time() < end, (what, self.text)
            if select.select([self.master], [], [], 0.2)[0]:
                self.text += os.read(self.master, 4096)
        return self.text[start:]

    def type(self, text):
        os.write(self.master, text)

    def raw(self):
        return not termios.tcgetattr(self.slave)[3] & termios.ICANON

    def wait(self, seconds=30):
        end = time.time() + seconds
        while time.time() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if select.select([self.master], [], [], 0.05)[0]:
                self.text += os.read(self.master, 4096)
        raise AssertionError("umbra does not end: %r" % self.text)

    def restored(self):
        end = time.time() + 3
        while termios.tcgetattr(self.slave) != self.before:
            assert time.time() < end, "the terminal is not as before"
            time.sleep(0.05)

def test_shell():
    t = Terminal()
    t.until(b"# ")
    assert t.raw()
    t.type(b"stty size; echo ready$((1+1))\r")
    assert b"33 101" in t.until(b"ready2")
    t.type(b"sleep 100\r")
    time.sleep(1)
    t.type(b"\x03")
    t.until(b"# ")
    fcntl.ioctl(t.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 132, 0, 0))
    time.sleep(0.5)
    t.type(b"stty size; echo again$((1+1))\r")
    assert b"50 132" in t.until(b"again2")
    t.type(b"exit 9\r")
    assert t.wait() == 9
    t.restored()

def test_interrupt_boot():
    t = Terminal()
    time.sleep(0.7)
    t.type(b"\x03")
    assert t.wait() in (125, 130), t.text
    t.restored()

def test_kill_each():
    """Whichever process dies, the others end, the terminal is restored and nothing is left."""
    before = processes()
    for victim in ("umbra-vm", "umbra-session", "supervisor"):
        t = Terminal()
        t.until(b"# ")
        pids = children(t.pid)
        pid = t.pid if victim == "supervisor" else next(p for p, n in pids.items() if n == victim)
        os.kill(pid, signal.SIGKILL)
        rc = t.wait()
        assert rc == (-9 if victim == "supervisor" else 125), (victim, rc, t.text)
        t.restored()
        end = time.time() + 3
        while processes() - before:
            assert time.time() < end, (victim, processes() - before)
            time.sleep(0.05)

main(globals())
