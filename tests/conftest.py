"What all tests share: small and offline by default, nothing written outside temporary folders."
import gc, os, sys
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = str(ROOT/"tools"), str(ROOT/"tests/browser")      # the tools are tested as modules
from lab import house, lab  # noqa: E402,F401  (fixtures: here, so that all files have the same)

os.environ.setdefault("LLMNB_SCALE", "quick")
os.environ.setdefault("LLMNB_OFFLINE", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")    # two tests at a time on two cores
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# The same examples in each run, however slow the machine is; `pytest --hypothesis-profile=default` draws others.
hypothesis.settings.register_profile("llmnb", derandomize=True, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("llmnb")


@pytest.fixture(scope="session")
def root():
    "The top of the repository."
    return ROOT


@pytest.fixture(scope="session", autouse=True)
def temporary_places(tmp_path_factory):
    "Runs and caches of a test session go to a temporary folder, also those of subprocesses."
    folder = tmp_path_factory.mktemp("places")
    for name in ("runs", "cache"): os.environ[f"LLMNB_{name.upper()}_PATH"] = str(folder/name)
    return folder


def pages():
    "Every notebook of nbs/."
    return sorted(p for p in (ROOT/"nbs").rglob("*.ipynb") if not any(part[0] in "._" for part in p.relative_to(ROOT).parts))


def model_of(config, seed=1):
    "A Transformer for tests: every weight off its first value, biases and norms too."
    import torch
    from llmnb.model.transformer import Transformer
    model = Transformer(config, seed=seed).eval()
    with torch.no_grad():
        g = torch.Generator().manual_seed(seed)
        for p in model.parameters(): p.add_(torch.randn(p.shape, generator=g) * 0.1)
    return model


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from schedule import Schedule
    return Schedule(config, log)


def pytest_collection_finish(session):
    "What is imported by now stays: the collector, which each training asks for at its end, need not go through it again and again."
    gc.collect()
    gc.freeze()
