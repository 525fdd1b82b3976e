"""What the test scripts share: each check is one function named test_*; a script ends with main(globals())."""
import ctypes, os, pathlib, subprocess, sys, tempfile, time, traceback

UMBRA = os.environ.get("UMBRA", "build/umbra")
BUILD = pathlib.Path(os.environ.get("UMBRA_BUILD", "build"))
SOURCE = pathlib.Path(os.environ.get("UMBRA_SOURCE", pathlib.Path(__file__).resolve().parents[2]))

class Skip(Exception):
    pass

def umbra(*args, stdin=b"", timeout=120, env=None, **more):
    """Runs umbra; returns (status, stdout, stderr) as bytes.  TEST_ENGINE: the engine of every VM."""
    if args and args[0] == "run" and os.environ.get("TEST_ENGINE"):
        args = ("run", "--engine", os.environ["TEST_ENGINE"], *args[1:])
    p = subprocess.run([UMBRA, *args], input=stdin, capture_output=True, timeout=timeout,
                       env={**os.environ, **(env or {})}, **more)
    return p.returncode, p.stdout, p.stderr

def kernels():
    out = subprocess.run([UMBRA, "kernel", "list", "--json"], capture_output=True, check=True).stdout
    import json
    return json.loads(out)

def need_kernel(pattern="cloud"):
    for k in kernels():
        if ("cloud" in k["release"]) == (pattern == "cloud"):
            return k
    raise Skip(f"no {pattern} kernel here (make setup fetches it)")

# Orphans of what a test starts become children of the test, so that it can tell them from those of others.
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER

# Orphans of what a test starts become children of the test, so that they are found, and nobody else's are.
PR_SET_CHILD_SUBREAPER = 36
ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

def processes():
    """Process ids of umbra that this script has started, orphans included."""
    found = set()
    for pid, name in children(os.getpid()).items():
        try:
            if name.startswith("umbra") and \
                    pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
                found.add(pid)
        except OSError:
            pass
    return found

def children(pid):
    """All descendants of pid: {pid: comm}."""
    parent, name = {}, {}
    for p in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            text = (p / "stat").read_text()
            parent[int(p.name)] = int(text.rsplit(")", 1)[1].split()[1])
            name[int(p.name)] = text.split("(", 1)[1].rsplit(")", 1)[0]
        except OSError:
            pass
    out, todo = {}, [pid]
    while todo:
        top = todo.pop()
        for c in [c for c, p in parent.items() if p == top]:
            out[c] = name[c]
            todo.append(c)
    return out

def main(names):
    wanted = sys.argv[1:]
    failed = skipped = passed = 0
    for name, fn in list(names.items()):
        if not name.startswith("test_") or not callable(fn) or (wanted and not any(w in name for w in wanted)):
            continue
        start = time.time()
        try:
            fn()
            passed += 1
            result = "ok"
        except Skip as e:
            skipped += 1
            result = f"skip: {e}"
        except Exception:
            failed += 1
            result = "FAILED\n" + traceback.format_exc()
        print(f"{name} {time.time() - start:.1f} s {result}", flush=True)
    print(f"{passed} ok, {failed} failed, {skipped} skipped")
    sys.exit(1 if failed else 0 if passed or not skipped else 77)
