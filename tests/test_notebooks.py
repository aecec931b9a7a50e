"Every notebook is its own test: `nbdev-test`, each in a process of its own, small (`LLMNB_SCALE=quick`) and offline."
import os, re, sys
from pathlib import Path

import pytest

from conftest import ROOT, pages
from warm import Warm

NBDEV_TEST = Path(sys.executable).with_name("nbdev-test")
TRAINING = "nbdev.test", "torch", "torch._dynamo", "accelerate"       # what a page imports that trains
ALL = *TRAINING, "evaluate", "datasets", "ipywidgets", "anywidget"    # and with `from llmnb.all import *`, less llmnb itself


@pytest.fixture(scope="session")
def warm():
    "A warm process for each set of modules, made when the first page asks for it."
    made = {}
    yield lambda modules: made[modules] if modules in made else made.setdefault(modules, Warm(*modules))
    for w in made.values(): w.close()


@pytest.mark.parametrize("nb", pages(), ids=lambda p: str(p.relative_to(ROOT/"nbs")))
def test_notebook(nb, tmp_path, warm):
    before = set(nb.parent.iterdir())
    env = {**os.environ, "LLMNB_RUNS_PATH": str(tmp_path/"runs"), "IPYTHONDIR": str(tmp_path/"ipython"), "MPLBACKEND": "agg"}
    modules = ALL if re.search(r"llmnb\.(all|measure)|load_ext|transformers", nb.read_text(encoding="utf-8")) else TRAINING
    code, said = warm(modules).run([NBDEV_TEST, nb, "--n-workers", "0"], ROOT, env, tmp_path/"said", timeout=600)
    assert code == 0, said[-15000:]
    left = {p for p in set(nb.parent.iterdir()) - before if p.suffix != ".ipynb" and p.name[0] not in "._"}
    assert not left, f"{nb.name} leaves files beside itself: write to a temporary folder or under settings.runs_path"
