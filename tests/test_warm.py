"The process that becomes one page after the other: each as if it had been started for itself."
import os, signal, time
from pathlib import Path

import pytest

from warm import Warm


@pytest.fixture(scope="module")
def warm():
    with Warm("fractions") as w: yield w


@pytest.fixture
def run(warm, tmp_path):
    def run(code, *words, timeout=300, **env):
        (tmp_path/"script.py").write_text(code)
        return warm.run([tmp_path/"script.py", *words], tmp_path, {**os.environ, **env}, tmp_path/"said", timeout)
    return run


def test_a_script_has_its_arguments_folder_environment_and_output(run, tmp_path):
    code = "import os, sys\nprint(__name__, sys.argv, os.getcwd(), os.environ['HAMLET'], 'fractions' in sys.modules, sys.path[0])\nsys.stderr.write('and this')"
    said = ["__main__", str([str(tmp_path/"script.py"), "to", "be"]), str(tmp_path), "prince", "True", str(tmp_path)]
    assert run(code, "to", "be", HAMLET="prince") == (0, " ".join(said) + "\nand this")


@pytest.mark.parametrize("code, ended, words", [
    ("raise SystemExit(3)", 3, ""), ("1 / 0", 1, "ZeroDivisionError"), ("import os; os._exit(9)", 9, ""), ("import atexit; atexit.register(print, 'last'); print('first')", 0, "first\nlast\n"),
    ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""), ("print(input())", 1, "EOFError")])
def test_it_ends_as_a_process_ends(run, code, ended, words):
    code, said = run(code)
    assert code == ended and words in said


def test_nothing_of_one_is_found_by_the_next(run):
    look = "import builtins, fractions, os, sys\nprint(os.getpid(), os.getcwd(), 'LEFT' in os.environ, hasattr(builtins, 'left'), hasattr(fractions, 'left'), 'json.tool' in sys.modules, signal.getsignal(signal.SIGTERM))"
    leave = "\nos.environ['LEFT'] = 'x'; builtins.left = fractions.left = 1; os.chdir('/'); import json.tool; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    first, second = (run("import signal\n" + look + leave)[1].split(maxsplit=1) for _ in range(2))
    assert first[0] != second[0] and first[1] == second[1] and "True" not in first[1]


def test_one_that_hangs_is_ended_with_its_children_and_the_next_one_runs(run, tmp_path):
    hang = "import os, subprocess, sys, time\np = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\nopen('pids', 'w').write(f'{os.getpid()} {p.pid}'); time.sleep(600)"
    with pytest.raises(TimeoutError, match="5 s"): run(hang, timeout=5)
    pids, end = [int(p) for p in (tmp_path/"pids").read_text().split()], time.monotonic() + 60
    while any(map(alive, pids)) and time.monotonic() < end: time.sleep(0.02)         # nobody waits for the child's end
    assert not any(map(alive, pids))
    assert run("print('on')") == (0, "on\n")


def alive(pid):
    "Whether a process runs: one that ended and that nobody waited for yet does not."
    try: return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError): return False


def test_it_is_told_when_the_warm_process_is_gone(tmp_path):
    (tmp_path/"script.py").write_text("import os, signal; os.kill(os.getppid(), signal.SIGKILL)")
    with Warm() as warm, pytest.raises(RuntimeError, match="gone"): warm.run([tmp_path/"script.py"], tmp_path, os.environ, tmp_path/"said")


def test_two_answers_that_come_at_once_are_both_heard(warm, tmp_path):
    "A fork that ends before its number is read: both lines lie there, and none is waited for."
    read = warm._hear
    def late(seconds): time.sleep(0.3); return read(seconds)
    warm._hear = late
    try: assert warm.run([tmp_path/"none.py"], tmp_path, os.environ, tmp_path/"said", timeout=30)[0] == 1
    finally: del warm._hear
