#!/usr/bin/env python3
"""The guest's side (agent, initramfs) under QEMU TCG: a VMM that is not ours.
usage: qemu_agent.py KERNEL INITRAMFS RDINIT COMMAND [ARG...]   stdin: sent to the command
The command's stdout, stderr and status are this program's own."""
import os, select, socket, struct, subprocess, sys, tempfile, time

MARK, HELLO, EXITED, ERROR, DATA, CREDIT, RUN = 0xA7, 1, 2, 3, 16, 17, 32

def main():
    kernel, initrd, init, *argv = sys.argv[1:]
    stdin = b"" if sys.stdin.isatty() else sys.stdin.buffer.read()
    with tempfile.TemporaryDirectory() as tmp:
        path = tmp + "/agent"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(1)
        t0 = time.time()
        qemu = subprocess.Popen(
            ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-M", "q35", "-m", "512", "-nodefaults",
             "-display", "none", "-no-reboot", "-kernel", kernel, "-initrd", initrd,
             "-append", os.environ.get("APPEND", "console=ttyS0 quiet panic=-1") + " rdinit=" + init,
             "-serial", "file:" + tmp + "/console", "-chardev", f"socket,id=a,path={path}", "-serial", "chardev:a"])
        listener.settimeout(20)
        link = listener.accept()[0]
        try:
            return session(link, argv, stdin, t0, qemu)
        finally:
            try:
                qemu.wait(15)
            except subprocess.TimeoutExpired:
                qemu.kill()
                print("qemu did not power off", file=sys.stderr)
            if os.environ.get("CONSOLE"):
                sys.stderr.write(open(tmp + "/console", errors="replace").read())

def session(link, argv, stdin, t0, qemu):
    buf, seq_in, seq_out = b"", 0, 0
    out = b""
    may_link, may_stdin = 2048, 128 << 10
    started = False
    def frame(kind, stream, body):
        nonlocal seq_out, out
        out += struct.pack("<BBBBI", MARK, kind, stream, seq_out & 255, len(body)) + body
        seq_out += 1
    while True:
        while started and stdin is not None and may_stdin and len(out) < 4096:
            chunk = stdin[:min(2000, may_stdin)]
            frame(DATA, 0, chunk)
            may_stdin -= len(chunk)
            stdin = stdin[len(chunk):] if chunk else None
        want = [link] if out and may_link else []
        r, w, _ = select.select([link], want, [], 60)
        if not r and not w:
            sys.exit("timeout")
        if w:
            n = link.send(out[:may_link])
            out = out[n:]
            may_link -= n
        if r:
            got = link.recv(65536)
            if not got:
                sys.exit("link closed")
            buf += got
        while len(buf) >= 8:
            mark, kind, stream, seq, length = struct.unpack("<BBBBI", buf[:8])
            assert mark == MARK and seq == seq_in & 255, (mark, kind, seq, seq_in, buf[:64])
            if len(buf) < 8 + length:
                break
            body, buf = buf[8:8 + length], buf[8 + length:]
            seq_in += 1
            if kind == HELLO:
                print(f"hello after {time.time() - t0:.2f} s", file=sys.stderr)
                strings = ["", "", "qemu"] + argv + ["PATH=/bin:/sbin:/usr/bin:/usr/sbin", "HOME=/root"]
                frame(RUN, 0, struct.pack("<IHHIIII", 0, 24, 80, 0, 0, len(argv), 2) +
                      b"".join(s.encode() + b"\0" for s in strings))
                started = True
            elif kind == DATA:
                f = (sys.stdout, sys.stderr)[stream - 1].buffer
                f.write(body)
                f.flush()
                frame(CREDIT, stream, struct.pack("<I", length))
            elif kind == CREDIT:
                n, = struct.unpack("<I", body)
                if stream == 3:
                    may_link += n
                else:
                    may_stdin += n
            elif kind == ERROR:
                print("error:", body[4:].decode(), file=sys.stderr)
                return struct.unpack("<I", body[:4])[0]
            elif kind == EXITED:
                return struct.unpack("<I", body)[0]

sys.exit(main())
