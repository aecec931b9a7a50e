"Watching a run from its folder alone: going on in another process, killed, finished."
import json
import subprocess
import sys
import textwrap
import time

import pytest

from llmnb.notebook.watch import Tail, Watch, run_state, watch

WRITER = textwrap.dedent("""
    import sys, time
    from llmnb.train.run import Log, locked
    with locked(sys.argv[1]):
        log = Log(sys.argv[1] + "/log.jsonl")
        for step in range(1, 10_000):
            log.append(dict(step=step, loss=5 / step, lr=1e-3, seconds=step / 50)); time.sleep(0.02)
""")


@pytest.fixture
def folder(tmp_path):
    run = tmp_path / "hamlet"
    run.mkdir()
    config = dict(train=dict(steps=10_000, device="cpu", dtype="float32"), model=dict(parameters=1000, config=dict(family="gpt2")))
    (run / "run.json").write_text(json.dumps(config))
    return run


def until(ask, wanted, seconds=120):
    end = time.monotonic() + seconds
    while (got := ask()) != wanted and time.monotonic() < end: time.sleep(0.05)
    return got


def test_a_run_in_another_process_is_followed_until_it_is_killed(folder, capsys):
    other = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)])
    try:
        w = Watch(folder)
        assert until(lambda: w.frame()["state"], "running") == "running"
        before = w.picture.now["step"] or 0
        assert until(lambda: w.frame() and (w.picture.now["step"] or 0) > before, True)
        assert watch(folder, ui="text").thread is None and "hamlet running, step" in capsys.readouterr().out      # in a terminal: as it is now, in words
        assert w.frame()["controls"] is False and "gpt2" in w.frame()["about"]
    finally: other.kill(); other.wait()
    assert run_state(folder, 5, 10_000, quiet=0) == "ended early"
    w.frame()
    assert [r["step"] for r in Tail(folder / "log.jsonl").read()[0]][-1] == w.picture.now["step"]


def test_watch_finds_a_run_by_name_and_says_where_there_is_none(folder, monkeypatch, capsys):
    monkeypatch.setenv("LLMNB_RUNS_PATH", str(folder.parent))
    assert watch("hamlet", ui="none").folder.name == "hamlet"
    assert "hamlet" in repr(watch(folder, ui="static")) and "hamlet" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="There are: hamlet"): watch("ophelia")


def test_the_verb_is_there():
    from llmnb.plugins import registry
    assert "watch" in registry("verbs").names() and registry("verbs").get("watch").__doc__


def test_a_rate_that_was_set_is_in_the_curve_of_rates_and_no_probe_of_its_own():
    from llmnb.notebook.frames import _probes
    assert _probes(dict(step=3, lr=1e-3, set_lr=1e-3, stable_rank=2.0, sample="x")) == ["stable_rank"]
