"A worker that is killed costs the test that killed it, and nothing else: the others run, and the session ends."
import os, subprocess, sys

import pytest

from conftest import ROOT

TESTS = """
import os, time, pytest
@pytest.mark.parametrize("i", range(40))
def test_one(i):
    if i in {dead}: time.sleep(1); os._exit(9)          # what was done before has been told by then
"""


@pytest.mark.parametrize("dead", [{0}, {39}, {5, 20}])
def test_the_session_ends(tmp_path, dead):
    (tmp_path/"conftest.py").write_text(f"import sys; sys.path.insert(0, {str(ROOT/'tests')!r})\n"
        "def pytest_xdist_make_scheduler(config, log):\n    from schedule import Schedule\n    return Schedule(config, log)\n")
    (tmp_path/"test_many.py").write_text(TESTS.format(dead=dead))
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    run = subprocess.run([sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert f"{len(dead)} failed, {40 - len(dead)} passed" in run.stdout, run.stdout[-3000:]
    for i in dead: assert f"crashed while running 'test_many.py::test_one[{i}]'" in run.stdout
