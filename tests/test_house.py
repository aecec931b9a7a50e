"The house keeps its shape: arrows between floors, notebooks and package in step, light imports, honest metadata."
import configparser, re, shutil, subprocess, sys, textwrap
from importlib.metadata import distribution, packages_distributions, requires

import pytest
from packaging.requirements import Requirement

import export, extra, house
from conftest import ROOT, pages

MODULES = house.modules(ROOT/"llmnb")
SOURCES = {name: path.read_text(encoding="utf-8") for name, path in MODULES.items()}


def is_package(name): return MODULES[name].name == "__init__.py"


# Arrows

@pytest.mark.parametrize("name", SOURCES)
def test_imports_point_up_the_house(name):
    assert not list(house.wrong_arrows(name, SOURCES[name], is_package(name)))


@pytest.mark.parametrize("name, source, ok", [
    ("llmnb.decode.generate", "from llmnb.train.trainer import Trainer", False),
    ("llmnb.decode.generate", "from ..train import trainer", False),
    ("llmnb.decode.generate", "def f():\n    from ..train.trainer import Trainer", False),
    ("llmnb.decode.generate", "import llmnb.train.run as r", False),
    ("llmnb.decode.generate", "import importlib\nm = importlib.import_module('llmnb.train.run')", False),
    ("llmnb.text.bpe", "from ..model.transformer import Transformer", False),
    ("llmnb.settings", "from .plugins import registry", True),
    ("llmnb.settings", "from .text import bpe", False),
    ("llmnb.settings", "from . import LLMNBError, text", False),
    ("llmnb.train.trainer", "from ..decode.generate import generate", False),
    ("llmnb.measure.perplexity", "from ..decode.generate import generate", True),
    ("llmnb.model.cache", "from .. import all", False),
    ("llmnb.train.callbacks", "import ipywidgets", False),
    ("llmnb.notebook.dashboard", "import anywidget\nfrom ..train.callbacks import Callback", True),
    ("llmnb.decode.generate", "from .. import LLMNBError\nfrom ..display import table\nfrom .strategies import Greedy\nimport torch", True)])
def test_a_planted_arrow_is_caught(name, source, ok):
    assert bool(list(house.wrong_arrows(name, source))) != ok


def test_every_module_stands_on_a_floor():
    assert not house.strangers(SOURCES)
    assert house.strangers(["llmnb.cellar.wine"])


def test_only_all_star_imports():
    assert not [s for name, source in SOURCES.items() for s in house.star_imports(name, source)]
    assert house.star_imports("llmnb.text.bpe", "def f(): pass\nfrom math import *")


@pytest.mark.parametrize("name", SOURCES)
def test_a_module_fits_in_a_head(name):
    assert name in house.HAND_WRITTEN or SOURCES[name].count("\n") <= 500, "split it: DESIGN asks for less than about 400 lines"


# Imports

def python(code, **kw):
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=300, **kw)


@pytest.mark.parametrize("module, absent", [
    ("llmnb", "torch transformers datasets pandas numpy matplotlib ipywidgets IPython"),
    ("llmnb.settings", "torch transformers"), ("llmnb.plugins", "torch transformers"), ("llmnb.display", "torch transformers pandas matplotlib"),
    ("llmnb.text.tokenizer", "torch transformers datasets pandas"), ("llmnb.text.bpe", "torch transformers")])
def test_import_is_light(module, absent):
    if module not in MODULES: pytest.skip(f"no {module}")
    run = python(f"import {module}, sys; print([m for m in {absent.split()!r} if m in sys.modules])")
    assert run.stdout.strip() == "[]", run.stdout + run.stderr


def test_every_import_is_declared():
    declared = {re.sub(r"[-_.]+", "-", Requirement(r).name.lower()) for r in requires("llmnb")}
    makers = packages_distributions()
    used = {t.split(".")[0] for name, source in SOURCES.items() for t in house.imports(name, source, is_package(name))} - set(sys.stdlib_module_names) - {"llmnb"}
    missing = {m for m in used if not {re.sub(r"[-_.]+", "-", d.lower()) for d in makers.get(m, [m])} & declared}
    brought = {"IPython", "traitlets", "huggingface_hub", "ipykernel", "pyarrow"}       # by jupyterlab, transformers and datasets
    assert not missing - brought, "add it to pyproject.toml"


def test_import_llmnb_is_fast():
    took = [float(python("import time; t = time.perf_counter(); import llmnb; print(time.perf_counter() - t)").stdout) for _ in range(3)]
    assert min(took) < 0.25, f"import llmnb took {min(took):.2f} s"


# Notebooks and package

def test_every_module_has_its_notebook():
    assert not export.stale(ROOT/"llmnb")
    assert not [name for name in SOURCES if name not in house.HAND_WRITTEN and not is_package(name) and not export.source(MODULES[name])]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    "A copy of the notebooks, cleaned and exported from nothing."
    top = tmp_path_factory.mktemp("exported")
    shutil.copytree(ROOT/"nbs", top/"nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints", "_proc"))
    shutil.copytree(ROOT/"llmnb", top/"llmnb", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT/"pyproject.toml", top)
    for module in top.glob("llmnb/**/*.py"):
        if export.source(module) or module.name == "_modidx.py": module.unlink()
    export.nbdev("nbdev-export", root=top)
    export.nbdev("nbdev-clean", root=top)
    return top


def differences(a, b):
    "Files that only one of two folders has, or that differ."
    def files(top): return {p.relative_to(top): p.read_bytes() for p in top.rglob("*") if p.is_file() and not {"__pycache__", ".ipynb_checkpoints", "_proc"} & set(p.parts)}
    a, b = files(a), files(b)
    return sorted(str(n) for n in a.keys() | b.keys() if a.get(n) != b.get(n))


def test_package_is_in_step_with_the_notebooks(exported):
    assert not differences(exported/"llmnb", ROOT/"llmnb"), "run `make export`"


def test_notebooks_are_clean(exported):
    assert not differences(exported/"nbs", ROOT/"nbs"), "run `make export`"


def test_readme_is_in_step():
    if not (ROOT/"nbs/index.ipynb").exists(): pytest.skip("no nbs/index.ipynb")
    run = subprocess.run([sys.executable, ROOT/"tools/readme.py", "--check"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_links_between_pages_lead_somewhere():
    for page in pages():
        for link in re.findall(r"\]\(([^)#\s]+\.(?:ipynb|md|png|svg|py))(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert re.match(r"https?:", link) or (page.parent/link).exists(), f"{page.relative_to(ROOT)}: {link}"


# Metadata

def pins():
    lines = (ROOT/"constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_constraints_satisfy_pyproject():
    locked = {k.lower().replace("_", "-"): v for k, v in pins().items()}
    for text in requires("llmnb"):
        req = Requirement(text)
        name = req.name.lower().replace("_", "-")
        assert name in locked, f"{name} is not in constraints.txt: run `make lock`"
        assert req.specifier.contains(locked[name], prereleases=True), f"{name}=={locked[name]} of constraints.txt is outside {req.specifier} of pyproject.toml"
    assert locked["torch"] == "2.13.0"


def test_samples_are_pinned_to_one_version():
    assert all(r.count("==") == 1 for r in extra.extra("samples"))


@pytest.mark.parametrize("ep", distribution("llmnb").entry_points, ids=lambda ep: f"{ep.group}:{ep.name}")
def test_entry_points_resolve(ep):
    assert ep.load() is not None


def test_settings_ini_and_settings_agree():
    from llmnb.settings import _settings
    ini = configparser.ConfigParser()
    ini.read(ROOT/"settings.ini", encoding="utf-8")
    assert ini.sections() == ["llmnb"]
    assert list(ini["llmnb"]) == [s.name for s in _settings]
    for s in _settings: s.parse(ini["llmnb"][s.name])


def test_the_two_configurations_name_each_other():
    assert "settings.ini" in (ROOT/"pyproject.toml").read_text() and "pyproject.toml" in (ROOT/"settings.ini").read_text()


def test_make_help_is_the_default_and_lists_all():
    if not shutil.which("make"): pytest.skip("no make")
    run = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True)
    assert all(f"make {t}" in run.stdout for t in "help demo test lab docs export notebooks clean".split()), run.stdout + run.stderr
