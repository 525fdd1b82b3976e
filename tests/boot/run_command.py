#!/usr/bin/env python3
"""umbra run from end to end: a stock kernel, a command, its output and status."""
import hashlib, os, pathlib, re, shutil, signal, subprocess, sys, tempfile, time
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from umbra_test import *

def run(*args, stdin=b"", **more):
    need_kernel()
    return umbra("run", *args, stdin=stdin, **more)

def expect(args, out=b"", err=b"", status=0, **more):
    got = run(*args, **more)
    assert got == (status, out, err), (args, got)

def test_uname():
    release = need_kernel()["release"]
    rc, out, err = run("--", "uname", "-a")
    assert rc == 0 and not err and out.startswith(b"Linux umbra " + release.encode()), (rc, out, err)

def test_streams_and_status():
    expect(["--", "sh", "-c", "echo out; echo err >&2; exit 7"], b"out\n", b"err\n", 7)
    expect(["--", "sh", "-c", "kill -9 $$"], status=137)
    expect(["--", "sh", "-c", "kill -15 $$"], status=143)
    expect(["--", "true"])
    expect(["--", "false"], status=1)

def test_cannot_run():
    rc, out, err = run("--", "no-such-command")
    assert (rc, out) == (127, b"") and err == b"umbra: cannot run no-such-command: not found\n", (rc, out, err)
    rc, out, err = run("--", "/etc/passwd")
    assert (rc, out) == (126, b"") and b"Permission denied" in err and err.count(b"\n") == 1, (rc, out, err)
    rc, out, err = run("--workdir", "/nosuch", "--", "true")
    assert (rc, out) == (126, b"") and b"/nosuch" in err, (rc, out, err)

def test_environment():
    rc, out, err = run("--env", "A=b c", "--env", "EMPTY=", "-e", "FROM_HERE", "--env", "NOT_SET_ANYWHERE", "--workdir",
                       "/etc", "--hostname", "some-host", "--", "sh", "-c", "pwd; hostname; env", env={"FROM_HERE": "x=y"})
    lines = out.decode().split("\n")
    assert rc == 0 and lines[:2] == ["/etc", "some-host"], (rc, out, err)
    assert "A=b c" in lines and "EMPTY=" in lines and "FROM_HERE=x=y" in lines and "HOSTNAME=some-host" in lines, lines
    assert not any(l.startswith(("NOT_SET", "XDG_", "TMPDIR")) for l in lines), lines
    expect(["--name", "my-vm", "--", "hostname"], b"my-vm\n")

def test_arguments():
    odd = ["", " ", "a\nb", "'\"\\$`*", "\xe4\u20ac", "-x", "--", "=" * 5000]
    script = 'for a in "$@"; do printf "<%s>" "$a"; done'
    expect(["--", "sh", "-c", script, "sh", *odd], "".join(f"<{a}>" for a in odd).encode())
    expect(["echo", "--memory", "x"], b"--memory x\n")

def test_binary_data():
    data = os.urandom(300000)
    expect(["--", "cat"], data, stdin=data)
    both = "tee /tmp/copy; cat /tmp/copy >&2"
    expect(["--", "sh", "-c", both], data, data, stdin=data)
    rc, out, err = run("--", "sh", "-c", "head -c 3000000 /dev/urandom >/tmp/x; md5sum </tmp/x >&2; cat /tmp/x")
    assert rc == 0 and len(out) == 3000000 and hashlib.md5(out).hexdigest().encode() == err.split()[0], (rc, len(out), err)

def test_stdin():
    expect(["--", "wc", "-c"], b"0\n", stdin=b"")
    expect(["--stdin=no", "--", "wc", "-c"], b"0\n", stdin=b"ignored")
    expect(["--", "sh", "-c", "read a; read b; echo $b$a"], b"twoone\n", stdin=b"one\ntwo\nthree\n")
    expect(["--", "true"], stdin=bytes(1 << 20))

def test_broken_pipe():
    need_kernel()
    sh = subprocess.Popen([UMBRA, "run", "--", "yes"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
    assert sh.stdout.read(4) == b"y\ny\n"
    sh.stdout.close()
    assert sh.wait(60) == 141, sh.returncode
    assert sh.stderr.read() == b""

def test_shell_script_from_stdin():
    expect([], b"5\n", stdin=b"echo $((2+3)); exit 4\n", status=4)

def test_signal():
    need_kernel()
    for number in (signal.SIGTERM, signal.SIGINT):
        p = subprocess.Popen([UMBRA, "run", "--", "sh", "-c", "echo up; exec sleep 60"], stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, start_new_session=True)
        assert p.stdout.read(3) == b"up\n"
        p.send_signal(number)
        assert p.wait(30) == 128 + number, (number, p.returncode, p.stderr.read())
    p = subprocess.Popen([UMBRA, "run", "--", "sh", "-c", "trap 'echo caught; exit 3' TERM; echo up; while :; do sleep 1; done"],
                         stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    assert p.stdout.read(3) == b"up\n"
    p.terminate()
    assert p.stdout.read() == b"caught\n" and p.wait(30) == 3

def test_root():
    busybox = shutil.which("busybox")
    tmp = pathlib.Path(tempfile.mkdtemp(prefix="root-"))
    try:
        (tmp / "bin").mkdir()
        shutil.copy(busybox, tmp / "bin/busybox")
        for name in ("sh", "ls", "cat", "stat", "test"):
            (tmp / "bin" / name).symlink_to("busybox")
        (tmp / "data").mkdir(mode=0o750)
        (tmp / "data/file").write_bytes(b"content\n")
        os.link(tmp / "data/file", tmp / "data/hard")
        (tmp / "data/mode").write_bytes(b"")
        (tmp / "data/mode").chmod(0o4711)
        (tmp / "secret").write_bytes(b"x")
        (tmp / "secret").chmod(0)
        script = ("cat /data/hard; stat -c '%a %u %g' /data/mode /data; stat -c %h /data/file; ls /; "
                  "echo changed >/data/file; cat /data/hard; ls -a / | grep -c umbra; test -c /dev/null && echo dev")
        rc, out, err = run("--root", str(tmp), "--", "sh", "-c", script.replace("grep -c", "busybox grep -c"))
        lines = out.decode().split("\n")
        assert rc == 0 and lines[:4] == ["content", "4711 0 0", "750 0 0", "2"], (rc, out, err)
        assert lines[-5:] == ["tmp", "changed", "0", "dev", ""], lines
        if os.getuid():
            assert b"1 file" in err and b"secret" in err, err
        assert (tmp / "data/file").read_bytes() == b"content\n" # the host's tree stays as it is
    finally:
        (tmp / "secret").chmod(0o600)
        shutil.rmtree(tmp)

def test_own_initrd():
    """A user's initramfs, with a command (agent added) and without (its own init on the console)."""
    k = need_kernel()["path"]
    tool = BUILD / "tests/session/mkinitramfs"
    with tempfile.TemporaryDirectory() as tmp:
        tree = pathlib.Path(tmp, "tree")
        (tree / "bin").mkdir(parents=True)
        shutil.copy(shutil.which("busybox"), tree / "bin/busybox")
        (tree / "bin/sh").symlink_to("busybox")
        (tree / "init").write_text("#!/bin/sh\n/bin/busybox echo own init speaking\n/bin/busybox poweroff -f\n")
        (tree / "init").chmod(0o755)
        initrd = pathlib.Path(tmp, "initrd")
        initrd.write_bytes(subprocess.run([str(tool), str(tree)], check=True, capture_output=True).stdout)
        rc, out, err = run("--kernel", k, "--initrd", str(initrd), "--", "/bin/busybox", "echo", "combined")
        assert (rc, out, err) == (0, b"combined\n", b""), (rc, out, err)
        rc, out, err = run("--kernel", k, "--initrd", str(initrd))
        assert rc == 0 and b"own init speaking" in out and not err, (rc, out[-2000:], err)
        # A damaged initramfs: the guest kernel says so, umbra ends with 125 and a line.
        initrd.write_bytes(os.urandom(100000))
        rc, out, err = run("--kernel", k, "--initrd", str(initrd))
        assert rc == 125 and err.startswith(b"umbra: ") and err.count(b"\n") == 1, (rc, out[-500:], err)

def test_console_ports():
    """On the raw console the second serial port is the guest's own: what it writes there is nobody's business."""
    rc, out, err = run("--console", stdin=b"echo rubbish >/dev/ttyS1; sleep 0.3; echo ali''ve; poweroff -f\n")
    assert rc == 0 and b"\nalive" in out.replace(b"\r", b"") and not err, (rc, out[-500:], err)

def test_panic():
    rc, out, err = run("--append", "rdinit=/nosuch init=/nosuch", "--", "true")
    assert rc == 125 and out == b"" and err.count(b"\n") == 1 and b"panic" in err, (rc, out, err)
    rc, out, err = run("--", "sh", "-c", "echo before; sync; sleep 0.2; echo c >/proc/sysrq-trigger; sleep 9")
    m = re.fullmatch(rb"umbra: the guest kernel panicked: sysrq triggered crash \(report: (.*)\)\n", err)
    assert rc == 125 and out == b"before\n" and m, (rc, out, err)
    report = pathlib.Path(m.group(1).decode())
    text = report.read_text(errors="replace")
    assert "end of the console's output" in text and "Call Trace:" in text and "rip " in text, text
    report.unlink()

def test_memory_sizes():
    for size, low, high in (("128M", 60, 128), ("1G", 850, 1024), ("8G", 7000, 8192)):
        rc, out, err = run("--memory", size, "--", "sh", "-c", "free -m | head -2 | tail -1")
        if rc == 125 and b"far more than this host" in err:
            continue
        assert rc == 0, (size, rc, out, err)
        total = int(out.split()[1])
        assert low <= total <= high, (size, out)

def test_kaslr():
    """The kernel lands somewhere else at each boot (one of about 500 places: four equal ones are no chance), and with
    nokaslr always where it was linked to."""
    def text_address(*args):
        rc, out, err = run(*args, "--", "sh", "-c", "grep -m1 ' _text$\\| T _stext$' /proc/kallsyms")
        assert rc == 0 and re.match(rb"[0-9a-f]{16} ", out), (rc, out, err)
        return out
    seen = [text_address()]
    while len(set(seen)) == 1:
        assert len(seen) < 4, f"the same place at every boot: {seen[0]}"
        seen.append(text_address())
    fixed = [text_address("--append", "nokaslr") for _ in range(2)]
    assert fixed[0] == fixed[1] and fixed[0].startswith(b"ffffffff81000000"), fixed

def test_ordinary_kernel():
    k = need_kernel("amd64")
    expect(["--kernel", k["path"], "--", "uname", "-r"], k["release"].encode() + b"\n")
    expect(["--kernel", k["path"], "--append", "nokaslr", "--memory", "256M", "--", "uname", "-r"], k["release"].encode() + b"\n")

def test_deterministic():
    need_kernel()
    results = []
    for _ in range(2):
        rc, out, err = run("--deterministic=5", "--stats", "--", "sh", "-c", "uname -v; head -c 16 /dev/urandom | od -x; date")
        assert rc == 0, (rc, out, err)
        counts = re.findall(rb"stats: (\S+)\s+(\d+)", err)
        results.append((out, [c for c in counts if not c[0].endswith(b"_ns") and b"signals" not in c[0]]))
    assert results[0][0] == results[1][0], (results[0][0], results[1][0])
    counts = [{k: v for k, v in r[1] if k in (b"instructions", b"blocks", b"interrupts", b"exceptions", b"system-calls")}
              for r in results]
    assert counts[0] == counts[1] and len(counts[0]) == 5, counts

def test_deterministic_compare():
    """Two runs that differ (in the seed): what compare says to do next leads to the first different instruction."""
    need_kernel()
    with tempfile.TemporaryDirectory() as d:
        stop, more, text = "20000000", "", ""
        for _ in range(4):
            for seed in (1, 2):
                rc, out, err = run(f"--deterministic={seed}", "--append", "nokaslr", "--stop-at", stop, "--checkpoints",
                                   f"{d}/{seed}{more}", "--", "true")
                assert (rc, out, err) == (0, b"", b""), (rc, out, err)
            rc, out, err = umbra("compare", f"{d}/1", f"{d}/2")
            text = out.decode()
            assert rc == 1 and not err, (rc, text, err)
            step = re.search(r"--stop-at (\d+) --checkpoints FILE(\S+)", text)
            if not step:
                break
            stop, more = step.groups()
        found = re.search(r"agree up to instruction (\d+) and differ at (\d+)", text)
        assert found and int(found[2]) == int(found[1]) + 1, text
        at = re.search(r"the instruction at rip (\w+) makes .*--stop-at (\d+)\)", text)
        assert at and at[2] == found[1], text
        rc, out, err = run("--deterministic=1", "--append", "nokaslr", "--stop-at", at[2], "--", "true",
                           env={"XDG_STATE_HOME": d})
        name = re.search(rb"the state at the end is in (\S+)", err)
        assert rc == 0 and name, (rc, err)
        report = pathlib.Path(name[1].decode()).read_text()
        assert re.search(rf"^rip +{int(at[1], 16):016x}", report, re.M), report

def test_stats_and_verbose():
    rc, out, err = run("--stats", "--", "true")
    assert rc == 0 and re.search(rb"^stats: instructions +\d{6,}$", err, re.M) and b"boot_ns" in err, err
    rc, out, err = run("-v", "--", "echo", "hi")
    assert rc == 0 and out == b"hi\n" and b"Linux version" in err, err

def test_trace():
    """The trace of a whole boot and its counters tell the same story."""
    with tempfile.TemporaryDirectory() as d:
        file = f"{d}/t"
        rc, out, err = run("--stats", "--trace", "life,exc,interrupt,timer,mode,msr,call,halt,wake", "--trace-file", file,
                           "--", "sh", "-c", "sleep 0.1; true")
        assert rc == 0, err
        stats = {k.decode(): int(v) for k, v in re.findall(rb"^stats: (\S+) +(\d+)$", err, re.M)}
        rc, text, err = umbra("trace", file)
        assert rc == 0 and not err, err
    lines = text.decode().splitlines()
    assert re.match(r"# .* 0 older events were overwritten", lines[0]), lines[0]
    events = [l.split(None, 3) for l in lines[1:]]
    count = {}
    for time_us, vcpu, name, rest in events:
        count[name] = count.get(name, 0) + 1
        assert re.fullmatch(r"([a-z0-9|<]+ )+[0-9a-f]+( ([a-z0-9|<]+ )+[0-9a-f]+)*", rest), (name, rest)
    assert events[0][2] == "start" and events[-1][2] == "stop", (events[0], events[-1])
    assert [float(e[0]) for e in events] == sorted(float(e[0]) for e in events)
    assert count["page-fault"] + count["exception"] == stats["exceptions"], (count, stats)
    assert abs(count["page-fault"] - stats["page-faults"]) <= 2, (count, stats)  # one may become a double fault
    assert count["interrupt"] == stats["interrupts"] and count["syscall"] == stats["system-calls"], (count, stats)
    assert count["halt"] == stats["halts"] == count["wake"] and count["halt"] > 0, (count, stats)
    assert count["rdmsr"] + count["wrmsr"] <= stats["msr-accesses"] <= count["rdmsr"] + count["wrmsr"] + 5, (count, stats)
    assert all(count[k] for k in ("timer", "mode", "cpuid", "sysret")), count

def test_idle():
    """An idle VM sleeps: less than 1 % of a core, all processes and threads together."""
    need_kernel()
    p = subprocess.Popen([UMBRA, "run", "--", "sh", "-c", "echo ready; sleep 9"], stdout=subprocess.PIPE)
    assert p.stdout.readline() == b"ready\n"
    time.sleep(2)
    def cpu_ns():
        tasks = [t for pid in [p.pid, *children(p.pid)] for t in pathlib.Path(f"/proc/{pid}/task").iterdir()]
        return sum(int((t / "schedstat").read_text().split()[0]) for t in tasks), len(tasks)
    before, n = cpu_ns()
    start = time.time()
    time.sleep(5)
    after, n_after = cpu_ns()
    share = (after - before) / (time.time() - start) / 1e9
    assert n == n_after >= 4, (n, n_after)
    assert share < 0.01, f"{share * 100:.2f} % of a core"
    assert p.wait() == 0

def test_nothing_left():
    before = processes()
    run("--", "true")
    time.sleep(0.2)
    assert processes() <= before, processes()

def test_halt():
    """A guest that stops its only processor for good ends the VM instead of sleeping for ever."""
    status, out, err = umbra("run", "--kernel", need_kernel()["path"], "--", "halt", "-f", timeout=60)
    assert status == 125 and b"halted its CPU for good" in err, (status, err)

main(globals())
