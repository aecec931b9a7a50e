"Sweeps: resumable, without leaks, refused where they cannot be."
import gc, json, weakref

import pytest
import torch

from llmnb.model.config import TransformerConfig
from llmnb.model.transformer import Transformer
from llmnb.settings import settings
from llmnb.text.batches import CausalLM, TextData
from llmnb.text.tokenizer import Tokenizer
from llmnb.train.run import read_log
from llmnb.train.state import TrainingError
from llmnb.train.sweep import Between, Sweep, SweepError, optuna_search, random_search, sweep
from llmnb.train.trainer import Trainer

TEXTS = [f"line {i}: the quick brown fox jumps over the lazy dog, {i * 7919 % 1000} times over.\n" * 4 for i in range(40)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return TextData.pack(TEXTS, Tokenizer.train(TEXTS, vocab_size=300), objective=CausalLM(ctx=16), path=tmp_path_factory.mktemp("sweep")/"data")


@pytest.fixture(autouse=True)
def quiet(tmp_path):
    with settings.override(ui="none", runs_path=tmp_path/"runs", device="cpu"): yield


class Maker:
    "Makes trainers and remembers, weakly, what it made."
    def __init__(self, data, **more): self.data, self.more, self.models, self.trainers = data, more, [], []
    def __call__(self, lr, width=16, *, run):
        model = Transformer(TransformerConfig.llama("tiny", vocab_size=300, ctx=16, width=width, layers=1, heads=2, kv_heads=1), seed=1)
        t = Trainer(model, self.data, **(dict(steps=6, batch_size=4, lr=lr, dtype="float32", valid_every=3, run=run) | self.more))
        self.models.append(weakref.ref(model)); self.trainers.append(weakref.ref(t))
        return t


def test_a_grid_runs_once_and_keeps_nothing_in_memory(data, tmp_path):
    make = Maker(data)
    found = sweep(make, dict(lr=[1e-4, 1e-2], width=[16, 32]), name="a")
    gc.collect()
    assert len(make.models) == 4 and not any(r() for r in [*make.models, *make.trainers])
    assert [t.state for t in found.trials] == ["done"] * 4 and found.best.values["lr"] == 1e-2 and found.best.loss == min(t.loss for t in found.trials)
    again = sweep(make, dict(lr=[1e-4, 1e-2], width=[16, 32]), name="a")
    assert len(make.models) == 4 and again.table.equals(found.table) and Sweep.open("a").table.equals(found.table)
    assert (tmp_path/"runs/sweep/a").is_dir() and Trainer.reopen(found.best.run).valid_loss == found.best.loss
    assert list(found.table["loss"]) == sorted(found.table["loss"]) and "width=32" in found.report().html and "data:image/svg" in found.curves().html


def test_a_sweep_that_was_stopped_goes_on(data):
    class Interrupt:
        def on_step(self, t, row):
            if row["step"] == 4: t.interrupt()
    space, whole = dict(lr=[1e-3, 1e-2]), sweep(Maker(data, save_every=2), dict(lr=[1e-3, 1e-2]), name="whole")
    half = sweep(Maker(data, save_every=2, callbacks=[Interrupt()]), space, name="half")
    assert [t.state for t in half.trials] == ["stopped"] and not (half.trials[0].run/"trial.json").exists()
    make = Maker(data, save_every=2)
    with pytest.warns(UserWarning, match="could not name: Interrupt"): rest = sweep(make, space, name="half")
    assert len(make.models) == 1                                    # the first went on from its checkpoint
    for a, b in zip(rest.trials, whole.trials):
        assert a.loss == b.loss and [r.get("loss") for r in a.rows] == [r.get("loss") for r in b.rows]


def test_a_run_that_a_callback_ended_is_done(data):
    class Enough:
        def on_valid(self, t, row): t.stop()
    found = sweep(Maker(data, callbacks=[Enough()]), dict(lr=[1e-3, 1e-2]), name="early")
    assert [t.state for t in found.trials] == ["done"] * 2 and all(t.rows[-1]["step"] == 3 for t in found.trials)


def test_a_loss_that_is_no_number_is_a_result_and_another_error_is_not(data):
    class Bad:
        def on_gradient(self, t):
            if t.lr > 1: next(t.model.parameters()).grad.fill_(float("nan"))
    found = sweep(Maker(data, callbacks=[Bad()]), dict(lr=[1e-3, 2.0]), name="nan")
    assert [t.state for t in found.trials] == ["done", "failed"] and "gradient" in found.trials[1].error and found.best.values["lr"] == 1e-3
    assert found.table["loss"].isna().sum() == 1 and "failed" in str(found)
    class Broken:
        def on_step(self, t, row): raise RuntimeError("broken")
    with pytest.raises(TrainingError, match="broken"): sweep(Maker(data, callbacks=[Broken()]), dict(lr=[1e-3]), name="broken")


def test_optuna_and_random_are_functions_of_what_is_done(data):
    space, done = dict(lr=Between(1e-4, 1e-1, log=True), width=[16, 32], n=Between(1, 9, whole=True)), []
    for i in range(8):
        p = optuna_search(space, i, done, 5)
        assert p == optuna_search(space, i, list(done), 5) and 1e-4 <= p["lr"] <= 1e-1 and p["width"] in (16, 32) and isinstance(p["n"], int)
        done.append((p, abs(p["lr"] - 1e-2)))
    assert random_search(space, 3, done, 5) == random_search(space, 3, [], 5) != random_search(space, 4, [], 5)
    found = sweep(Maker(data, steps=2, valid_every=2), dict(lr=space["lr"]), "optuna", name="o", trials=5, seed=1)
    assert len(found.trials) == 5 and len({t.values["lr"] for t in found.trials}) == 5


@pytest.mark.parametrize("space, kw, words", [
    (dict(rate=[1]), {}, "takes no 'rate'"), (dict(lr=1e-3), {}, "expected a list"), (dict(lr=Between(1, 2)), {}, "a grid needs a list"), ({}, {}, "expected a dict"),
    (dict(lr=[1]), dict(how="optune"), "Did you mean 'optuna'"), (dict(lr=[1]), dict(how="random"), "no end of its own"), (dict(lr=[object()]), {}, "numbers, text"),
    (dict(lr=[1]), dict(trials=0), "trials = 0: expected a whole number from 1"), (dict(lr=[1]), dict(trials="x"), "trials = 'x'"), (dict(lr=[1]), dict(seed="x"), "seed = 'x'"),
    (dict(lr=[1]), dict(name="../out"), "name = '../out': expected the name of one folder"), (dict(lr=[1]), dict(name=""), "name = ''"), (dict(lr=[1]), dict(name=5), "name = 5")])
def test_what_cannot_be_swept(space, kw, words, data):
    make = Maker(data)
    with pytest.raises(SweepError, match=words): sweep(make, space, **kw)
    assert not make.models


def test_another_sweep_of_the_same_name_and_another_folder_are_refused(data, tmp_path):
    sweep(Maker(data, steps=1), dict(lr=[1e-3]), name="x")
    with pytest.raises(SweepError, match="another sweep \\(space differ"): sweep(Maker(data), dict(lr=[1e-2]), name="x")
    with pytest.raises(SweepError, match="hand on run=run"): sweep(lambda lr, run: Maker(data)(lr, run=tmp_path/"elsewhere"), dict(lr=[1e-3]), name="y")
    with pytest.raises(ValueError, match="above 0"): Between(0, 1, log=True)
    with pytest.raises(ValueError, match="expected numbers"): Between("a", 1)
    with pytest.raises(SweepError, match="not a int"): sweep(5, dict(lr=[1e-3]))
    with pytest.raises(FileNotFoundError, match="no sweep"): Sweep.open("nothing")
