#!/usr/bin/env python3
"""Boots beyond one command: the programs of guest/ inside the VM, how a VM ends, what it costs when idle, two at once,
death of any of its processes at any moment.

usage: boot.py [NAME...]      only checks whose name contains one of the words
       boot.py --loop N [-- run's options...]   N plain boots in a row; the report of every failure is kept
Environment: TEST_ENGINE (--engine of all runs), UMBRA, UMBRA_BUILD."""
import hashlib, os, pathlib, random, re, shutil, signal, struct, subprocess, sys, tempfile, threading, time
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from umbra_test import *

ENGINE = ["--engine", os.environ["TEST_ENGINE"]] if os.environ.get("TEST_ENGINE") else []
PROGRAMS = BUILD / "tests/boot/guest"

def run(*args, kernel="cloud", **more):
    return umbra("run", *ENGINE, "--kernel", need_kernel(kernel)["path"], *args, **more)

class Start:
    """umbra run in the background, its output read by a thread."""
    def __init__(self, *args, kernel="cloud", env=None):
        self.out = b""
        self.p = subprocess.Popen([UMBRA, "run", *ENGINE, "--kernel", need_kernel(kernel)["path"], *args], stdin=subprocess.DEVNULL,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, env={**os.environ, **(env or {})})
        self.reader = threading.Thread(target=self.read)
        self.reader.start()

    def read(self):
        while chunk := os.read(self.p.stdout.fileno(), 65536):
            self.out += chunk

    def wait_for(self, text, seconds=60):
        end = time.time() + seconds
        while text not in self.out:
            assert time.time() < end and self.p.poll() is None, f"no {text!r} within {seconds} s: {self.out!r} {self.end()}"
            time.sleep(0.01)

    def end(self, seconds=60):
        try:
            self.p.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.p.pid, signal.SIGKILL)
            raise
        self.reader.join()
        return self.p.returncode, self.out, self.p.stderr.read()

def cpu_seconds(pid):
    """CPU time of pid and all its descendants, threads included."""
    total = 0
    for p in [pid, *children(pid)]:
        try:
            fields = pathlib.Path(f"/proc/{p}/stat").read_text().rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
        except OSError:
            pass
    return total / os.sysconf("SC_CLK_TCK")

# --- programs inside ---

def guest_programs(kernel, *options):
    if not (PROGRAMS / "runner").exists():
        raise Skip("tests/boot/guest is not built")
    names = sorted(p.name for p in PROGRAMS.iterdir() if p.is_file() and os.access(p, os.X_OK) and p.name != "runner")
    vectors = subprocess.run([PROGRAMS / "vector"], capture_output=True, check=True).stdout
    with tempfile.TemporaryDirectory() as root:
        os.chmod(root, 0o755)
        for n in [*names, "runner"]:
            shutil.copy(PROGRAMS / n, root)
        rc, out, err = run("--root", root, *options, "--", "/runner", "-t", "50", "/", *names, kernel=kernel, timeout=200)
    results = dict(re.findall(rb"^(\S+) (\S+) \d+$", out, re.M))
    bad = [f"{n}: {results.get(n.encode(), b'did not run').decode()}" for n in names if results.get(n.encode()) != b"0"]
    assert not bad and rc == 0, f"inside the guest: {', '.join(bad)} (status {rc})\n{err.decode(errors='replace')}"
    for line in vectors.splitlines():
        assert line in out.splitlines(), f"vector results differ from the host's: {line!r} in\n{out.decode()}"

def test_programs_cloud():
    guest_programs("cloud", "--memory", "256M")

def test_programs_ordinary():
    guest_programs("amd64", "--memory", "3G", "--append", "nokaslr")

# --- endings ---

def one_line(err):
    return err.startswith(b"umbra: ") and err.count(b"\n") == 1 and err.endswith(b"\n")

def ending(command, append, words, report, status=125):
    with tempfile.TemporaryDirectory() as state:
        rc, out, err = run(*(["--append", append] if append else []), "--", "sh", "-c", command, env={"XDG_STATE_HOME": state}, timeout=60)
        assert rc == status, (command, append, rc, out, err)
        assert one_line(err), f"{command}: not one line: {err!r}"
        for w in words:
            assert w in err, f"{command}: {w!r} is not in {err!r}"
        named = re.search(rb"\(report: (\S+)\)", err)
        assert bool(named) == report, f"{command}: {'no ' if report else 'a '}report: {err!r}"
        return pathlib.Path(os.fsdecode(named[1])).read_text(errors="replace") if report else ""

def check_report(text, *sections):
    for w in ("RIP", "RSP", *sections):
        assert w.lower() in text.lower(), f"no {w!r} in the report:\n{text[:4000]}"

def test_ends_by_triple_fault():
    check_report(ending("reboot -f", "reboot=t", [b"triple fault"], True), "triple fault")

def test_ends_by_panic():
    check_report(ending("echo c >/proc/sysrq-trigger", "", [b"panic"], True), "panic", "sysrq")

def test_ends_by_reset():
    ending("reboot -f", "", [b"re"], False)

def test_ends_by_power_off():
    ending("poweroff -f", "", [b"powered off"], False)

def test_ends_by_death_of_init():
    check_report(ending("kill -9 1; kill -SEGV 1; echo c >/proc/sysrq-trigger", "", [b"panic"], True), "panic")

def multiboot(code):
    """A multiboot 1 ELF kernel of these bytes of 32-bit code, at 1 MiB."""
    body = struct.pack("<III", 0x1badb002, 0, -0x1badb002 & 0xffffffff) + bytes(4) + code
    head = struct.pack("<16sHHIIIIIHHHHHH", b"\x7fELF\x01\x01\x01", 2, 3, 1, 0x100010, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    return (head + struct.pack("<IIIIIIII", 1, 0x1000, 0x100000, 0x100000, len(body), len(body), 5, 0x1000)).ljust(0x1000, b"\0") + body

def test_unimplemented_names_itself():
    # mov $stack, %esp; push $0x4000 (NT); popf; iret: the return of a hardware task, which this CPU does not do
    code = bytes.fromhex("bc00001800" "6802400000" "9d" "90" "cf" "f4")
    with tempfile.TemporaryDirectory() as tmp:
        kernel = pathlib.Path(tmp, "kernel")
        kernel.write_bytes(multiboot(code))
        rc, out, err = umbra("run", *ENGINE, "--kernel", str(kernel), "--console", env={"XDG_STATE_HOME": tmp}, timeout=60)
        assert rc == 125 and one_line(err), (rc, out, err)
        for w in (b"unimplemented", b"IRET from a nested task", b"10001c", b"cf"):
            assert w in err, f"{w!r} is not in {err!r}"
        named = re.search(rb"\(report: (\S+)\)", err)
        assert named, err
        text = pathlib.Path(os.fsdecode(named[1])).read_text()
        check_report(text, "nested task", "iretd", "mov esp", "back trace")

# --- cost, company ---

def test_idle():
    vm = Start("--", "sh", "-c", "echo begin; sleep 1; sleep 5; echo end; sleep 1")
    try:
        vm.wait_for(b"begin")
        time.sleep(1)
        start, t0 = cpu_seconds(vm.p.pid), time.time()
        time.sleep(4.5)
        used, t = cpu_seconds(vm.p.pid) - start, time.time() - t0
        assert used < 0.03 * t, f"an idle VM used {used:.2f} s of CPU in {t:.1f} s"
        vm.wait_for(b"end")
    finally:
        got = vm.end()
    assert got[0] == 0 and not got[2], got

def test_two_at_once():
    script = "i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo {0} $i; done; head -c 200000 /dev/zero | tr '\\0' {0} | md5sum"
    vms = [Start("--hostname", f"vm{i}", "--memory", "256M", "--", "sh", "-c", "hostname;" + script.format(i)) for i in range(2)]
    for i, vm in enumerate(vms):
        rc, out, err = vm.end(90)
        want = f"vm{i}\n" + "".join(f"{i} {n}\n" for n in range(1, 301)) + hashlib.md5(str(i).encode() * 200000).hexdigest() + "  -\n"
        assert (rc, out, err) == (0, want.encode(), b""), (i, rc, out[-200:], err)

# --- death of a process ---

def test_kill_at_any_moment():
    """SIGKILL to a random process of the VM at a random moment of its boot: no process and no file stays."""
    seed = int(os.environ.get("UMBRA_TEST_SEED") or random.randrange(1 << 30))
    rnd = random.Random(seed)
    for round in range(int(os.environ.get("KILLS", "12"))):
        with tempfile.TemporaryDirectory() as tmp:
            for d in ("run", "tmp", "state"):
                os.mkdir(f"{tmp}/{d}", 0o700)
            others = processes()
            shm = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
            vm = Start("--", "sh", "-c", "echo up; sleep 100",
                       env={"XDG_RUNTIME_DIR": f"{tmp}/run", "TMPDIR": f"{tmp}/tmp", "XDG_STATE_HOME": f"{tmp}/state"})
            time.sleep(rnd.random() ** 2 * 4)
            tree = {vm.p.pid: "supervisor", **children(vm.p.pid)}
            pid = rnd.choice(sorted(tree))
            what = f"seed {seed} round {round}: SIGKILL to {tree[pid]} of {sorted(tree.values())}"
            os.kill(pid, signal.SIGKILL)
            start = time.time()
            rc, out, err = vm.end(20)
            assert time.time() - start < 10, f"{what}: the end took {time.time() - start:.1f} s"
            if pid == vm.p.pid:
                assert rc == -9, f"{what}: status {rc}"
            else:
                assert rc == 125 and one_line(err), f"{what}: status {rc}, {err!r}"
            end = time.time() + 5
            alive = lambda: {p for p in tree if p in processes()} | (processes() - others if round == 0 else set())
            while alive() and time.time() < end:
                time.sleep(0.02)
            assert not alive(), f"{what}: left {[(p, tree.get(p)) for p in alive()]}"
            left = [str(f) for d in ("run", "tmp") for f in pathlib.Path(tmp, d).rglob("*") if not f.is_dir()]
            if os.path.isdir("/dev/shm"):
                left += [f for f in set(os.listdir("/dev/shm")) - shm if "umbra" in f]
            assert not left, f"{what}: files left {left}"

# --- many ---

def loop(n, options):
    keep = pathlib.Path(tempfile.mkdtemp(prefix="umbra-loop-"))
    release = need_kernel()["release"].encode()
    failed, times = 0, []
    for i in range(n):
        start = time.time()
        rc, out, err = run(*options, "--", "uname", "-r", env={"XDG_STATE_HOME": str(keep / "state")}, timeout=120)
        times.append(time.time() - start)
        if (rc, out, err) != (0, release + b"\n", b""):
            failed += 1
            (keep / f"boot-{i}").write_bytes(b"status %d\n" % rc + out + err)
            print(f"boot {i} FAILED: status {rc}: {err.decode(errors='replace').strip()} (kept in {keep})", flush=True)
    times.sort()
    print(f"{n - failed} of {n} boots passed; median {times[n // 2]:.2f} s, longest {times[-1]:.2f} s")
    if not failed:
        shutil.rmtree(keep)
    return 1 if failed else 0

if sys.argv[1:2] == ["--loop"]:
    sys.exit(loop(int(sys.argv[2]), [a for a in sys.argv[3:] if a != "--"]))
main(globals())
