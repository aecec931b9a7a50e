"Live control: the rate, snapshots, saving on request; what a run is, and what may be another one."
import json, shutil, threading, time, warnings

import pytest
import torch
from test_train import At, Until, asked_to_pause, asked_to_stop, data, interrupt, losses, make, make_model, quiet, same_as, valids, _texts     # noqa: F401 (fixtures)

from llmnb.decode.strategies import Greedy
from llmnb.text.batches import CausalLM, TextData
from llmnb.train.callbacks import Callback, KeepBest
from llmnb.train.config import pick_schedule
from llmnb.train.identity import differences
from llmnb.train.optim import Cosine, Constant
from llmnb.train.run import Keep, RunError, read_log, step_of
from llmnb.train.trainer import Trainer


def shrink(t): t.lr = t.lr / 2


# ---- the rate

def test_a_changed_rate_is_part_of_the_run(data, tmp_path):
    "Changed at steps 5 and 13; killed at 15, before a checkpoint saw either; taken up, killed again at 9, taken up."
    kw = dict(schedule=Constant(), steps=18)
    copies = lambda n: At(n, lambda t: shutil.copytree(t.run, tmp_path / f"dead-{n}"))
    whole = make(data, tmp_path / "r", callbacks=[At(5, shrink), At(13, shrink), copies(15)], **kw).fit()
    assert list(whole.history["lr"]) == [3e-3] * 5 + [1.5e-3] * 8 + [7.5e-4] * 5
    assert [(r["step"], r["set_lr"]) for r in whole.rows if "set_lr" in r] == [(5, 1.5e-3), (13, 7.5e-4)]
    t = Trainer.reopen(tmp_path / "dead-15", callbacks=[At(9, lambda t: shutil.copytree(t.run, tmp_path / "dead-9"))])
    assert t.step == 0 and t.lr == 3e-3
    assert same_as(t.fit(), whole)
    t = Trainer.reopen(tmp_path / "dead-9", callbacks=()).fit()
    assert same_as(t, whole) and [(r["step"], r["set_lr"]) for r in read_log(t.run) if "set_lr" in r] == [(5, 1.5e-3), (13, 7.5e-4)]


def test_a_new_rate_takes_the_place_of_those_ahead(data, tmp_path):
    make(data, tmp_path / "r", steps=12, schedule=Constant(), callbacks=[At(4, lambda t: t.save()), At(6, shrink), At(8, lambda t: shutil.copytree(t.run, tmp_path / "dead"))]).fit()
    t = Trainer.reopen(tmp_path / "dead", callbacks=())
    assert t.step == 4 and t.changes == {6: 1.5e-3}
    t.lr = 1e-3
    assert t.lr == 1e-3
    t.fit()
    assert list(t.history["lr"]) == [3e-3] * 4 + [1e-3] * 8 and json.loads((t.run / "changes.json").read_text()) == [dict(step=4, lr=1e-3)]


def test_the_rate_from_another_thread(data, tmp_path):
    t = make(data, tmp_path / "r", steps=60, schedule=Constant(), callbacks=[Until(lambda t: t.changes, 20)]).fit(background=True)
    while t.step < 5: time.sleep(0.002)
    t.lr = 1e-4
    assert t.lr == 1e-4
    t.wait(300)
    at = t.rows[[("set_lr" in r) for r in t.rows].index(True)]["step"]
    assert list(t.history["lr"]) == [3e-3] * at + [1e-4] * (60 - at) and 5 <= at <= 20
    with pytest.raises(ValueError, match="lr = -1"): t.lr = -1


# ---- snapshots

class Mean(torch.nn.Module):
    "All weights are one number; a step adds one to each."
    def __init__(self): super().__init__(); self.w = torch.nn.ParameterList([torch.nn.Parameter(torch.zeros(64)) for _ in range(8)])
    def loss(self, batch, reduction="mean"): return sum(p.sum() for p in self.w) * 0 + batch.n_targets


class Plus:
    "An update that waits in its middle until somebody asks for a snapshot."
    def __init__(self): self.half, self.asked = threading.Event(), None
    def __call__(self, model, lr):
        class Plus1(torch.optim.SGD):
            def step(this, closure=None):
                for i, p in enumerate(this.param_groups[0]["params"]):
                    if i == 4: self.half.set(); self.wait(); self.half.clear()
                    p.data.add_(1.0)
        return Plus1(model.parameters(), lr=lr)
    def wait(self):
        while not self.asked(): time.sleep(0.001)


def test_a_snapshot_is_never_torn(data, tmp_path):
    seen, into, plus = [], None, Plus()
    plus.asked = lambda: t._jobs or len(seen) == 10
    t = make(data, tmp_path / "r", steps=20, model=Mean(), optimizer=plus, clip=None, valid_every=20)
    t.fit(background=True)
    while len(seen) < 10:
        assert plus.half.wait(300) and {float(x) for p in t.model.w for x in p.detach()} == {t.step, t.step + 1}       # looking at the model itself
        into = t.snapshot(into=into)
        assert {float(x) for p in into.w for x in p} == {into.step} and not into.training and not into.w[0].requires_grad
        seen.append(into.step)
    t.wait(300)
    assert seen == list(range(1, 11)) and t.snapshot().step == 20


def test_looking_at_a_model_that_learns_changes_nothing(data, tmp_path):
    "Dropout, recomputed layers, generating, a paused model: the losses are those of a run that nobody looked at."
    from llmnb.decode.generate import generate
    whole = make(data, tmp_path / "a", recompute=True).fit()
    said, copies = [], None
    t = make(data, tmp_path / "b", recompute=True, callbacks=[Until(lambda t: len(said) > 2 or t._jobs or asked_to_pause(t))]).fit(background=True)
    while t.alive:
        copies = t.snapshot(into=copies)
        said.append(generate(copies, None, [1, 2, 3], max_new_tokens=4).ids)
        if len(said) == 2: t.pause(); held = t.step; assert t.snapshot().step == held; t.save(wait=True); assert step_of(t.folder.checkpoints()[-1]) == held; t.resume()
    t.wait(300)
    assert len(said) > 2 and same_as(t, whole)
    assert not any("forward" in vars(m) for m in copies.modules())


def test_generating_from_the_model_itself_while_it_trains(data, tmp_path):
    "Whoever gives `generate` the model that trains gets the reply of a whole model, and the training keeps its dropout."
    from llmnb.decode.generate import generate
    from llmnb.model.rest import at_rest
    kept = {}
    class Keep(Callback):
        def on_update(self, t, loss, norm): kept[t.step] = t.snapshot()
    whole = make(data, tmp_path / "a", steps=40, valid_every=40).fit()
    said = []
    t = make(data, tmp_path / "b", steps=40, valid_every=40, callbacks=[Until(lambda t: len(said) > 2 or t._jobs), Keep()]).fit(background=True)
    t.call(lambda: None); own = at_rest(t.model)
    assert own is not t.model and not own.training
    while t.alive:
        g = generate(t.model, None, [1, 2, 3], max_new_tokens=12, strategy=Greedy())
        said.append(g.ids); assert g.why(3)
    t.wait(300)
    assert len(said) > 2 and same_as(t, whole) and at_rest(t.model) is t.model
    of_a_step = [generate(m, None, [1, 2, 3], max_new_tokens=12, strategy=Greedy()).ids for m in [make_model(data), *kept.values()]]
    assert all(ids in of_a_step for ids in said)


def test_call_runs_between_steps_and_raises_here(data, tmp_path):
    t = make(data, tmp_path / "r", callbacks=[Until(lambda t: t._jobs or asked_to_stop(t))]).fit(background=True)
    assert t.call(lambda: threading.current_thread()) is t._thread
    with pytest.raises(ZeroDivisionError): t.call(lambda: 1 / 0)
    assert t.alive; t.stop().wait(300)
    assert t.call(lambda: threading.current_thread()) is threading.current_thread()


def test_an_error_in_one_callback_keeps_no_step_from_another(data, tmp_path):
    "Who counts updates counts all of them, whoever fails, and a run that goes on has every row."
    class Count:
        n = 0
        def on_update(self, t, loss, norm): self.n += 1
        def state_dict(self): return dict(n=self.n)
        def load_state(self, state): self.n = state.get("n", 0)
    class Fail:
        def on_update(self, t, loss, norm):
            if t.step == 7: raise OSError("no network")
    whole = make(data, tmp_path / "a", steps=12).fit()
    with pytest.raises(RuntimeError, match="no network"): make(data, tmp_path / "b", steps=12, callbacks=[Fail(), Count()]).fit()
    t = Trainer.reopen(tmp_path / "b", callbacks=[c := Count()])
    assert t.step == 7
    assert same_as(t.fit(), whole) and c.n == 12


# ---- what a run is

def test_what_is_another_one_is_refused_and_listed(data, tmp_path):
    make(data, tmp_path / "r", callbacks=[At(4, interrupt)]).fit()
    other = TextData.pack(_texts()[:30], data.tok, objective=CausalLM(ctx=16), path=tmp_path / "other")
    reopen = lambda **kw: Trainer.reopen(tmp_path / "r", callbacks=(), **kw)
    with pytest.raises(RunError, match=r"other data.*\n  data.fingerprint: \w+ -> \w+\n  data.tokens: \d+ -> \d+\n.*changed=True"): reopen(data=other)
    with pytest.raises(RunError, match=r"other settings.*\n  batch_size: 4 -> 8\n  seed: 3 -> 5\n"): reopen(batch_size=8, seed=5)
    with pytest.raises(RunError, match=r"other settings.*\n  schedule.steps: 24 -> 48\n  steps: 24 -> 48"): reopen(steps=48)
    with pytest.raises(RunError, match=r"another model.*\n  model.config.dropout: 0.1 -> 0.0"): reopen(model=make_model(data, dropout=0.0))
    with pytest.raises(RunError, match="optimizer.name: adamw -> lion|optimizer"): reopen(optimizer="lion")
    said = json.loads((tmp_path / "r" / "run.json").read_text()); said["train"]["accumulate"] = 2
    (tmp_path / "r" / "run.json").write_text(json.dumps(said))
    with pytest.raises(RunError, match=r"accumulate: 1 -> 2"): reopen()


def test_what_changes_no_loss_may_be_another_one(data, tmp_path):
    whole = make(data, tmp_path / "a").fit()
    make(data, tmp_path / "b", callbacks=[At(4, interrupt)]).fit()
    t = Trainer.reopen(tmp_path / "b", callbacks=(), valid_every=6, save_every=3, recompute=True, keep=3).fit()
    assert losses(t) == losses(whole) and [s for s, _ in valids(t)] == [6, 12, 18, 24] and len(t.folder.checkpoints()) >= 3


def test_a_wanted_change_is_noted_and_goes_on_exactly(data, tmp_path):
    make(data, tmp_path / "r", callbacks=[At(4, interrupt)]).fit()
    t = Trainer.reopen(tmp_path / "r", callbacks=[At(9, lambda t: shutil.copytree(t.run, tmp_path / "dead"))], batch_size=2, steps=30, changed=True).fit()
    assert t.state == "done" and t.step == 30 and t.schedule == pick_schedule("cosine", 24, None).__class__(steps=30, warmup=2)
    assert t.folder.config["changed"] == [dict(step=4, what=["schedule.steps: 24 -> 30", "steps: 24 -> 30", "batch_size: 4 -> 2"])]
    assert [r["changed"] for r in t.rows if "changed" in r] == ["schedule.steps: 24 -> 30; steps: 24 -> 30; batch_size: 4 -> 2"]
    again = Trainer.reopen(tmp_path / "dead", callbacks=())
    assert again.config.batch_size == 2 and again.step == 4 and same_as(again.fit(), t)


def test_a_model_that_does_not_fit_is_refused_whatever_is_wanted(data, tmp_path):
    from llmnb.model.transformer import Transformer
    make(data, tmp_path / "r", callbacks=[At(4, interrupt)]).fit()
    wide = Transformer(make_model(data).config.replace(mlp_width=64))
    with pytest.raises(RunError, match="model.config.mlp_width"): Trainer.reopen(tmp_path / "r", callbacks=(), model=wide)
    with pytest.raises(RunError, match="do not fit"): Trainer.reopen(tmp_path / "r", callbacks=(), model=wide, changed=True)


@pytest.mark.parametrize("kw, said", [(dict(lr=1e-3), "t.lr = 0.001"), (dict(batchsize=3), "batch_size"), (dict(batch_size=0), "batch_size = 0")])
def test_wrong_changes(data, tmp_path, kw, said):
    make(data, tmp_path / "r", steps=2).fit()
    with pytest.raises((TypeError, ValueError), match=said): Trainer.reopen(tmp_path / "r", callbacks=(), **kw)


def test_differences_know_only_what_both_know():
    assert differences(dict(a=1, b=2), dict(a=1, c=3)) == [] and differences(dict(a=1), dict(a=2)) == ["a: 1 -> 2"]


# ---- which checkpoints stay

def test_keep_rules(data, tmp_path):
    t = make(data, tmp_path / "r", valid_every=5, save_every=2, keep=Keep(last=1, best=None, every=8)).fit()
    assert [step_of(p) for p in t.folder.checkpoints()] == [8, 16, 24]
    t = make(data, tmp_path / "s", steps=14, valid_every=4, save_every=3, keep=Keep(last=1, every=5), callbacks=[At(11, interrupt)]).fit()
    assert [step_of(p) for p in t.folder.checkpoints()] == [5, 10, 11]
    assert Trainer.reopen(t.run, callbacks=()).keep == Keep(last=1, every=5)
    for wrong in (0, -1, True, 1.5):
        with pytest.raises(ValueError, match="expected a whole number"): make(data, keep=wrong)


@pytest.mark.parametrize("higher", [False, True])
def test_the_best_checkpoint_stays_with_its_weights(data, tmp_path, higher):
    "A measure that is best at step 9: no checkpoint falls there by itself."
    class Measure:
        order = 20
        def on_valid(self, t, row): t.log(score=-abs(t.step - 9) * (1 if higher else -1))
    t = make(data, tmp_path / "r", steps=18, valid_every=3, keep=Keep(last=1, best="score", higher=higher), callbacks=[KeepBest(), Measure(), At(12, interrupt)]).fit()
    t = Trainer.reopen(t.run, callbacks=[KeepBest(), Measure()]).fit()
    assert step_of(t.best) == 9 and [step_of(p) for p in t.folder.checkpoints()] == [9, 18]
    from llmnb.model.weights import load_model
    plain = make(data, tmp_path / "p", steps=18, valid_every=3, callbacks=[At(9, interrupt)]).fit()
    assert all(map(torch.equal, load_model(t.best).state_dict().values(), plain.model.state_dict().values()))
