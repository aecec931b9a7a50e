"Averages, guards, watches, trackers, the rate search: they see everything, change what they should, and nothing else."
import json, math, shutil, statistics, time, warnings

import pytest
import torch
from hypothesis import given, settings as hypothesis_settings, strategies as st
from test_train import At, Until, asked_to_pause, data, interrupt, losses, make, make_model, quiet, same_as, unbroken, valids     # noqa: F401 (fixtures)

from llmnb.plugins import registry
from llmnb.train.averages import EMA, load_averaged
from llmnb.train.callbacks import Callback, EarlyStop, KeepBest, SampleText, looking
from llmnb.train.guard import Guard
from llmnb.train.lr_find import RateSearch, lr_find, smoothed
from llmnb.train.optim import Constant
from llmnb.train.run import CheckpointError, RunError, from_spec, read_log, step_of, to_spec
from llmnb.train.state import LossError, TrainingError
from llmnb.train.trackers import Track
from llmnb.train.trainer import Trainer
from llmnb.train.watches import PROBES, Every, Memory, Norms, Probe, Profile, as_row, by_layer, memory_gb, show_profile, stable_rank, weight_norm


# ---- all of them

def test_watching_changes_no_loss_and_comes_back_with_the_run(data, unbroken, tmp_path):
    watches = [EMA(0.9), KeepBest(), Guard(rollback=1, spike=5.0), Norms(7), Memory(5), Probe("weight-norm", every=4), Probe("stable-rank"), Profile(5), EarlyStop(50), Track("tensorboard")]
    t = make(data, tmp_path / "r", callbacks=[*watches, At(10, interrupt)]).fit()
    with pytest.warns(UserWarning, match="could not name: At"): t = Trainer.reopen(t.run)
    assert t.callbacks == watches or [type(c) for c in t.callbacks] == [type(c) for c in watches]
    t.fit()
    assert losses(t) == losses(unbroken) and valids(t) != valids(unbroken)          # validated with averaged weights
    assert all(map(torch.equal, t.model.state_dict().values(), unbroken.model.state_dict().values()))
    h = t.history
    assert list(h.index[h["weight-norm"].notna()] + 1) == [4, 8, 12, 16, 20, 24] and h["stable-rank"].notna().sum() == 3
    assert list(h.index[h["grad_norm/layers.1"].notna()] + 1) == [7, 14, 21] and list(h.index[h["memory_gb"].notna()] + 1) == [5, 10, 15, 20]
    for s in (7, 14, 21):                       # layer by layer they are the whole
        row = h.loc[h["step"] == s].iloc[0]
        parts = [row[c] for c in h.columns if c.startswith("grad_norm/")]
        assert math.hypot(*parts) == pytest.approx(row["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("made", [EMA(0.9), KeepBest(), Guard(2, 1.0), Norms(7), Memory(5, 2.0), Probe("weight-norm", None, 4), Profile(5, 2), EarlyStop(2), Track("tensorboard", "p")], ids=lambda c: type(c).__name__)
def test_each_has_a_name_and_goes_through_run_json(made):
    spec = json.loads(json.dumps(to_spec(made, registry("callbacks"))))
    again = from_spec(spec, registry("callbacks"))
    assert type(again) is type(made) and to_spec(again, registry("callbacks")) == to_spec(made, registry("callbacks"))


@pytest.mark.parametrize("wrong, said", [
    (lambda: EMA(1.0), "decay = 1.0"), (lambda: EMA(True), "decay = True"), (lambda: Guard(rollback=-1), "rollback = -1"), (lambda: Guard(spike=0), "spike = 0"),
    (lambda: Every(0, len, "x"), "every 0 steps"), (lambda: Every(3, len, "loss"), "name = 'loss'"), (lambda: Every(3, "len", "x"), "fn is a str"),
    (lambda: Probe("wieght-norm"), "weight-norm"), (lambda: Norms(0), "every 0"), (lambda: Track("tensorbord"), "tensorboard"), (lambda: Track("wandb"), "pip install wandb"),
    (lambda: Profile(first=0), "every 0"), (lambda: as_row("x", [1, 2]), "gave a list"), (lambda: as_row("x", torch.ones(2)), "gave a Tensor")])
def test_wrong_arguments(wrong, said):
    with pytest.raises((ValueError, TypeError), match=said): wrong()


# ---- averages

@hypothesis_settings(max_examples=20, deadline=None)
@given(st.floats(0.01, 0.999), st.booleans(), st.integers(1, 30))
def test_ema_is_its_formula(decay, warm, n):
    from types import SimpleNamespace
    w, ema = torch.nn.Linear(2, 2).double(), EMA(decay, warm)
    t = SimpleNamespace(model=w, step=0); ema.on_start(t); mean = w.weight.detach().clone()
    for k in range(1, n + 1):
        w.weight.data += torch.randn(2, 2, dtype=torch.float64); ema.on_update(t, None, None)
        d = min(decay, (1 + k) / (10 + k)) if warm else decay
        mean = d * mean + (1 - d) * w.weight.detach()
    assert torch.allclose(ema.weights["weight"], mean, atol=1e-10)


def test_validation_samples_and_probes_see_the_averages_and_the_training_does_not(data, tmp_path):
    ema, seen = EMA(0.9), []
    t = make(data, tmp_path / "r", steps=8, valid_every=4, callbacks=[ema, SampleText(lambda m: seen.append(m.embed.weight.detach().clone()) or "x"), KeepBest()]).fit()
    assert len(seen) == 2 and torch.equal(seen[-1], ema.weights["embed.weight"]) and not torch.equal(seen[-1], t.model.embed.weight)
    model = load_averaged(t.best)
    total = n = 0
    with torch.no_grad():
        for b in data.valid_batches(4): total, n = total + float(model.eval().loss(b, reduction="sum")), n + b.n_targets
    assert total / n == pytest.approx(min(v for _, v in valids(t)), abs=1e-5)       # the best checkpoint holds what was measured
    assert torch.equal(t.snapshot(averaged=True).embed.weight, seen[-1]) and torch.equal(t.snapshot().embed.weight, t.model.embed.weight)
    plain = make(data, tmp_path / "p", steps=2).fit()
    with pytest.raises(CheckpointError, match="no averaged weights"): load_averaged(plain.folder.checkpoints()[-1])


def test_an_average_that_comes_late_begins_with_the_weights_of_then(data, unbroken, tmp_path):
    make(data, tmp_path / "r", callbacks=[At(10, interrupt)]).fit()
    t = Trainer.reopen(tmp_path / "r", callbacks=[ema := EMA(0.9)]).fit()
    assert losses(t) == losses(unbroken) and ema.n == 14


# ---- the guard

class Trap(torch.nn.Module):
    "Breaks on one pair of ids, forward or backward."
    def __init__(self, pair, how): super().__init__(); self.pair, self.how = pair, how
    def forward(self, x, ids):
        if self.pair is None: return x
        hit = (ids[:, :3] == self.pair).all(1)[:, None, None]
        if self.how == "output": return torch.where(hit, x * 1e38 * 1e3, x)
        if self.how == "gradient":
            x = x.clone()
            if hit.any() and x.requires_grad: x.register_hook(lambda g: g * float("nan"))
            return x
        return torch.where(hit, x * 0 + 40 * torch.arange(x.shape[-1]), x)                    # "leap"


class Broken(torch.nn.Module):
    def __init__(self, pair, how, vocab=300): super().__init__(); self.table = torch.nn.Embedding(vocab, vocab); self.trap = Trap(pair, how)
    def loss(self, batch, reduction="mean"):
        return torch.nn.functional.cross_entropy(self.trap(self.table(batch.ids), batch.ids).flatten(0, 1), batch.labels.flatten(), ignore_index=-100, reduction=reduction)


@pytest.fixture
def trapped(data):
    "Trainers whose step 14 breaks, by one sequence of its second batch; and no step before."
    heads = [[tuple(row) for row in data.batch(n, 4, "train", 3).ids[:, :3].tolist()] for n in range(48)]
    before = {h for batch in heads[:27] for h in batch}
    row = next(r for r, h in enumerate(heads[27]) if h not in before and heads[27].count(h) == 1)
    pair, hits = torch.tensor(heads[27][row]), [n // 2 for n, batch in enumerate(heads) if heads[27][row] in batch]
    def build(run, how="output", pair=pair, **kw):
        torch.manual_seed(0)
        return make(data, run, model=Broken(pair, how), **dict(accumulate=2, save_every=5, valid_every=30, lr=0.02) | kw)
    build.steps, build.row = sorted({s + 1 for s in hits}), row
    return build


@pytest.mark.parametrize("how, where", [("output", "output of trap, for batch 27 .sequence ROW"), ("gradient", "gradient of table.weight, for batch 27")])
def test_the_guard_names_step_batch_sequence_and_layer(trapped, tmp_path, how, where):
    t = trapped(tmp_path / "r", how, callbacks=[Guard()])
    with pytest.raises(LossError, match=rf"step 14 (is|has).*first shows in the {where.replace('ROW', str(trapped.row))}.*step-00000010") as e: t.fit()
    assert t.state == "failed" and t.step == 10 and all(p.isfinite().all() for p in t.model.parameters())
    t.callbacks[:] = [Guard(rollback=9)]
    with pytest.warns(UserWarning, match="Back to step 10; step 14 is left out"): t.fit()
    assert t.state == "done" and t.skipped == set(trapped.steps)


def test_rolled_back_is_the_run_without_that_batch_and_resumes_exactly(trapped, tmp_path):
    n = len(trapped.steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = trapped(tmp_path / "a", callbacks=[Guard(rollback=n), EMA(0.9)]).fit()
        assert sorted(r["step"] for r in whole.rows if r.get("skipped")) == trapped.steps and len(whole.rescues) == n
        sound = trapped(tmp_path / "b", pair=None); sound.skipped = set(trapped.steps); sound.fit()
        assert losses(sound) == losses(whole) and torch.equal(sound.model.table.weight, whole.model.table.weight)
        trapped(tmp_path / "c", callbacks=[Guard(rollback=n), EMA(0.9), At(12, lambda t: shutil.copytree(t.run, tmp_path / "dead", dirs_exist_ok=True)), At(16, interrupt)]).fit()
        for run in ("dead", "c"):               # killed before the broken step, interrupted after it
            t = Trainer.reopen(tmp_path / run, model=Broken(whole.model.trap.pair, "output"), callbacks=[Guard(rollback=n), EMA(0.9)]).fit()
            assert losses(t) == losses(whole) and t.skipped == whole.skipped and len(t.rescues) == n
            assert torch.equal(t.callbacks[1].weights["table.weight"], whole.callbacks[1].weights["table.weight"]) and t.callbacks[1].n == 24 - n
            assert [r["step"] for r in read_log(t.run) if "loss" in r] == [r["step"] for r in whole.rows if "loss" in r]


def test_a_guard_gives_up_after_as_many_times_as_it_may(trapped, tmp_path):
    assert len(trapped.steps) >= 1
    t = trapped(tmp_path / "r", callbacks=[Guard(rollback=0)])
    with pytest.raises(LossError): t.fit()
    assert not t.rescues


def test_a_leap_of_the_loss(trapped, tmp_path):
    first = trapped.steps[0]
    t = trapped(tmp_path / "told", "leap", callbacks=[Guard(spike=3.0, window=8)])
    with pytest.warns(UserWarning, match=f"loss of step {first} leaps"): t.fit()
    assert t.state == "done" and [r["step"] for r in t.rows if "leap" in r][0] == first
    with pytest.warns(UserWarning, match=f"step {first} is left out"): t = trapped(tmp_path / "back", "leap", callbacks=[Guard(rollback=9, spike=3.0, window=8)]).fit()
    assert t.state == "done" and t.skipped == set(trapped.steps) and max(losses(t)) < 8


def test_a_break_from_outside_is_said_to_be_one(data, tmp_path):
    class Poison(Callback):
        done = False
        def on_step(self, t, row):
            if row["step"] == 9 and not self.done:
                self.done = True
                with torch.no_grad(): next(t.model.parameters()).fill_(float("nan"))
    with pytest.warns(UserWarning, match="something outside of the data and the weights broke step 10"): t = make(data, tmp_path / "r", save_every=4, callbacks=[Guard(rollback=1), Poison()]).fit()
    assert t.state == "done" and t.skipped == {10} and t.rescues[0]["back"] == 8


def test_two_way_a_callback_may_change_the_state(data, tmp_path):
    "Freezes the rate, goes back once, and ends the run."
    class Meddle:
        back = False
        def on_step(self, t, row):
            if row["step"] == 6: t.lr = 1e-4
            if row["step"] == 9 and not self.back: self.back = True; t.go_back(); assert t.step == 8
            if row["step"] == 12: t.stop()
    t = make(data, tmp_path / "r", schedule=Constant(), save_every=4, callbacks=[Meddle()]).fit()
    assert t.state == "stopped" and t.step == 12 and list(t.history["lr"]) == [3e-3] * 6 + [1e-4] * 6
    assert [r["step"] for r in read_log(t.run) if "loss" in r] == list(range(1, 13))


# ---- watches

def test_every_is_on_its_own_schedule_and_sees_a_model_at_rest(data, tmp_path):
    modes = []
    def look(model): modes.append((model.training, torch.is_grad_enabled(), torch.is_inference_mode_enabled())); torch.rand(3); return {"a": torch.tensor(2.0), "b": "text"}
    t = make(data, tmp_path / "r", steps=10, valid_every=5, callbacks=[Every(4, look, "x"), Every(None, lambda m: 1.5, "y")]).fit()
    assert [r["step"] for r in t.rows if "x/a" in r] == [4, 8, 10] and {r["x/b"] for r in t.rows if "x/b" in r} == {"text"}
    assert [r["step"] for r in t.rows if "y" in r] == [5, 10] and set(modes) == {(False, False, False)}
    with looking(t) as model: assert model is t.model and not model.training


def test_every_resumes_where_it_was(data, tmp_path):
    norm = lambda m: weight_norm(m)
    whole = make(data, tmp_path / "a", callbacks=[Every(5, norm, "n")]).fit()
    make(data, tmp_path / "b", callbacks=[Every(5, norm, "n"), At(10, interrupt)]).fit()
    t = Trainer.reopen(tmp_path / "b", callbacks=[Every(5, norm, "n")]).fit()
    rows = lambda t: [(r["step"], r["n"]) for r in t.rows if "n" in r]
    assert rows(t) == rows(whole) and len(rows(t)) == 5 and same_as(t, whole)


def test_probes_against_formulas(data):
    model = make_model(data)
    assert weight_norm(model) == pytest.approx(math.sqrt(sum(float((p.detach()**2).sum()) for p in model.parameters())), rel=1e-5)
    eye = torch.nn.Linear(8, 8, bias=False); eye.weight.data = torch.eye(8)
    one = torch.nn.Linear(8, 8, bias=False); one.weight.data = torch.ones(8, 8)
    assert stable_rank(eye) == pytest.approx(8) and stable_rank(one) == pytest.approx(1)
    ids = [id(p) for ps in by_layer(model).values() for p in ps]
    assert len(ids) == len(set(ids)) == len(list(model.parameters())) and {"layers.0", "layers.1"} <= set(by_layer(model))
    assert 0.05 < memory_gb(torch.device("cpu")) < 60


def test_a_memory_limit_stops_with_a_checkpoint(data, tmp_path):
    t = make(data, tmp_path / "r", callbacks=[Memory(4, limit_gb=0.001)]).fit()
    assert t.state == "stopped" and t.step == 4 and step_of(t.folder.checkpoints()[-1]) == 4 and any("GB of memory" in r.get("note", "") for r in t.rows)


def test_a_profile_is_a_table_and_a_trace(data, tmp_path):
    t = make(data, tmp_path / "r", steps=8, callbacks=[Profile(first=4, steps=2)]).fit(background=True).wait(300)
    rows = json.loads((t.run / "profile_table.json").read_text())
    assert {"aten::mm", "aten::bmm"} & {r["operation"] for r in rows} and sum(r["share"] for r in rows) == pytest.approx(1, abs=0.1)
    assert json.loads((t.run / "profile.json").read_text())["traceEvents"] and "aten::" in show_profile(t).text
    with pytest.raises(FileNotFoundError, match=r"Profile\(\)"): show_profile(tmp_path)


def test_tensorboard_has_the_rows_across_a_resume(data, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    make(data, tmp_path / "r", callbacks=[Track("tensorboard"), At(9, interrupt)]).fit()
    t = Trainer.reopen(tmp_path / "r", callbacks=["track"]).fit()
    found = {}
    for p in (tmp_path / "r").rglob("events*"):
        for e in EventAccumulator(str(p)).Reload().Scalars("loss"): found[e.step] = e.value
    assert [found[s] for s in sorted(found)] == pytest.approx(losses(t), rel=1e-6) and sorted(found) == list(range(1, 25))


def test_a_tracker_that_fails_does_not_end_a_run(data, tmp_path):
    track = Track("tensorboard")
    def lost(t): raise ConnectionError("no network")
    track._send = lost
    with pytest.warns(UserWarning, match="Track failed.*no network.*goes on"): t = make(data, tmp_path / "r", steps=4, callbacks=[track]).fit()
    assert t.state == "done"


# ---- the rate search

def test_lr_find_leaves_everything_as_it_was(data, unbroken, tmp_path):
    t = make(data, tmp_path / "r", callbacks=[At(10, interrupt)])
    torch.manual_seed(11); expected = torch.rand(2); torch.manual_seed(11)
    found = lr_find(t, steps=30)
    assert torch.equal(torch.rand(2), expected) and not t.run.exists() and t.model.training
    assert 1e-6 <= found.steepest <= found.lowest <= 1 and found.suggestion == found.lowest / 10 and found.rates == sorted(found.rates)
    t.fit(); lr_find(t, steps=12); t.callbacks.clear()          # in the middle of a run
    assert same_as(t.fit(), unbroken)
    assert "suggestion" in found.show().text and "<img" in found._repr_html_()


def test_lr_find_while_paused_but_not_while_running(data, unbroken, tmp_path):
    t = make(data, tmp_path / "r", callbacks=[Until(asked_to_pause, 3)]).fit(background=True)
    with pytest.raises(RunError, match="pause"): lr_find(t)
    while t.step < 3: time.sleep(0.002)
    t.pause(); lr_find(t, steps=10); t.resume().wait(300)
    assert same_as(t, unbroken)
    for wrong in (dict(low=1.0, high=0.1), dict(steps=3), dict(low=0)):
        with pytest.raises(ValueError, match="expected"): lr_find(t, **wrong)


@hypothesis_settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 20), min_size=1, max_size=40), st.floats(0, 0.95))
def test_smoothing_is_a_weighted_mean(losses, memory):
    for n, s in enumerate(smoothed(losses, memory), 1):
        w = [memory**(n - 1 - i) for i in range(n)]
        assert s == pytest.approx(sum(a * b for a, b in zip(w, losses)) / sum(w), abs=1e-6)


# ---- number formats

@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "fp8", "int8", "float16"])
def test_formats_that_are_not_real_here_are_refused(data, dtype):
    with pytest.raises((ValueError, TypeError), match=dtype): make(data, dtype=dtype)


def test_label_smoothing_of_the_batch_is_in_the_loss(data):
    model, batch = make_model(data, dropout=0), data.batch(0, 4, "train", 3)
    from dataclasses import replace
    logits = model(batch.ids).flatten(0, 1)
    want = torch.nn.functional.cross_entropy(logits, batch.labels.flatten(), ignore_index=-100, label_smoothing=0.2)
    assert model.loss(replace(batch, smoothing=0.2)).item() == pytest.approx(want.item(), rel=1e-5)
