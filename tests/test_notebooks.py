"Every notebook is its own test: `nbdev-test`, each in a process of its own, small (`LLMNB_SCALE=quick`) and offline."
import os, subprocess, sys
from pathlib import Path

import pytest

from conftest import ROOT, pages

NBDEV_TEST = Path(sys.executable).with_name("nbdev-test")


@pytest.mark.parametrize("nb", pages(), ids=lambda p: str(p.relative_to(ROOT/"nbs")))
def test_notebook(nb, tmp_path):
    before = set(nb.parent.iterdir())
    env = {**os.environ, "LLMNB_RUNS_PATH": str(tmp_path/"runs"), "IPYTHONDIR": str(tmp_path/"ipython"), "MPLBACKEND": "agg"}
    run = subprocess.run([NBDEV_TEST, str(nb), "--n-workers", "0"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, f"{run.stdout[-3000:]}\n{run.stderr[-12000:]}"
    left = {p for p in set(nb.parent.iterdir()) - before if p.suffix != ".ipynb" and p.name[0] not in "._"}
    assert not left, f"{nb.name} leaves files beside itself: write to a temporary folder or under settings.runs_path"
