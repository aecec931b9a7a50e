"Optimizers, schedules, watchers, guards: equal to the references, and exactly resumed."
import json, math

import pytest
import torch
from hypothesis import given, settings as hypothesis_settings, strategies as st
from test_train import At, data, interrupt, losses, make, make_model, quiet, same_as     # noqa: F401 (fixtures)

from llmnb.plugins import registry
from llmnb.train.optim import AdamW, Constant, Cosine, Linear, StateError, decay_groups, depths, load_optimizer, save_optimizer
from llmnb.train.optimizers import SGD, Adafactor, Adam, AdamW8bit, Lion, Muon, Together
from llmnb.train.schedules import WSD, InverseSqrt, OneCycle
from llmnb.train.trainer import Trainer

OPTIMIZERS = [SGD(), SGD(momentum=0.0), SGD(nesterov=True, weight_decay=0.1), Adam(), AdamW(), AdamW(layer_decay=0.7), Adafactor(), Adafactor(weight_decay=0.1), Lion(), Muon(), Muon(layer_decay=0.8)]
SCHEDULES = ["constant", "cosine", "inverse-sqrt", "linear", "one-cycle", "wsd"]


# ---- resume: each optimizer, each schedule

@pytest.mark.parametrize("recipe", OPTIMIZERS, ids=repr)
def test_each_optimizer_resumes_exactly(data, tmp_path, recipe):
    kw = dict(steps=9, valid_every=9, optimizer=recipe, accumulate=2, batch_size=2)
    whole = make(data, tmp_path / "a", **kw).fit()
    make(data, tmp_path / "b", **kw, callbacks=[At(2, interrupt)]).fit()
    Trainer.reopen(tmp_path / "b", callbacks=[At(6, interrupt)]).fit()
    t = Trainer.reopen(tmp_path / "b", callbacks=())
    assert t.optimizer == recipe and t.step == 6
    assert same_as(t.fit(), whole) and losses(t)[-1] != losses(t)[0]


@pytest.mark.parametrize("name", SCHEDULES)
def test_each_schedule_resumes_exactly(data, tmp_path, name):
    kw = dict(steps=10, valid_every=10, schedule=name, optimizer="sgd", lr=0.05)
    whole = make(data, tmp_path / "a", **kw).fit()
    make(data, tmp_path / "b", **kw, callbacks=[At(4, interrupt)]).fit()
    t = Trainer.reopen(tmp_path / "b", callbacks=()).fit()
    assert same_as(t, whole) and list(t.history["lr"]) == [0.05 * t.schedule(s) for s in range(10)]


def test_names():
    assert set(SCHEDULES) <= set(registry("schedules").names())
    assert {"sgd", "adam", "adamw", "adafactor", "lion", "muon", "adamw-8bit"} <= set(registry("optimizers").names())


def test_8bit_says_what_it_needs(data):
    try: import torchao     # noqa: F401
    except ImportError:
        with pytest.raises(StateError, match="pip install torchao"): AdamW8bit()(make_model(data), 1e-3)
    else: assert "8bit" in type(AdamW8bit()(make_model(data), 1e-3)).__name__


@pytest.mark.slow
def test_8bit_goes_on_bit_for_bit(data, tmp_path):
    pytest.importorskip("torchao")
    whole = make(data, tmp_path / "whole", steps=12, optimizer="adamw-8bit").fit()
    make(data, tmp_path / "cut", steps=12, optimizer="adamw-8bit", callbacks=[At(6, lambda t: t.stop())]).fit()
    assert same_as(Trainer.reopen(tmp_path / "cut", callbacks=()).fit(), whole)


# ---- groups

def test_layerwise_rates_keep_their_shares_under_a_schedule(data, tmp_path):
    seen = []
    class Rates:
        def on_update(self, t, loss, norm): seen.append(sorted({g["lr"] for g in t._engine.plain_optimizer.param_groups}))
    t = make(data, tmp_path / "r", steps=4, optimizer=AdamW(layer_decay=0.5), schedule=Linear(4), callbacks=[Rates()]).fit()
    assert len(seen) == 4
    for step, rates in enumerate(seen): assert rates == pytest.approx([t.lr * t.schedule(step) * 0.5**k for k in (3, 2, 1, 0)])


def test_groups_are_the_parameters_once_each(data):
    model = make_model(data)
    for decay in (1.0, 0.5):
        groups = decay_groups(model, 0.1, 1.0, decay)
        ids = [id(p) for g in groups for p in g["params"]]
        assert len(ids) == len(set(ids)) == len(list(model.parameters()))
        assert all(p.ndim >= 2 for g in groups if g["weight_decay"] for p in g["params"])
    assert set(depths(model).values()) == {0, 1, 2, 3}


@pytest.mark.parametrize("make_groups, said", [
    (lambda m: decay_groups(m, 0.1, layer_decay=0.5), "need the rate"), (lambda m: decay_groups(m, 0.1, 1.0, 0.0), "layer_decay = 0.0"),
    (lambda m: decay_groups(m.requires_grad_(False), 0.1), "requires_grad_")])
def test_wrong_groups(data, make_groups, said):
    with pytest.raises(ValueError, match=said): make_groups(make_model(data))


# ---- optimizers against references

def _reach(make_optimizer, model, steps=6):
    optimizer, g = make_optimizer(model), torch.Generator().manual_seed(5)
    for _ in range(steps):
        for p in model.parameters(): p.grad = torch.randn(p.shape, generator=g)
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("ours, theirs", [
    (SGD(0.8, True), lambda ps: torch.optim.SGD(ps, lr=0.01, momentum=0.8, nesterov=True)),
    (Adam(), lambda ps: torch.optim.Adam(ps, lr=0.01)),
    (AdamW(weight_decay=0.0), lambda ps: torch.optim.AdamW(ps, lr=0.01, betas=(0.9, 0.95), weight_decay=0.0, fused=True)),
    (Adafactor(), lambda ps: torch.optim.Adafactor(ps, lr=0.01))], ids=lambda x: type(x).__name__)
def test_equal_to_torch(data, ours, theirs):
    a = _reach(lambda m: ours(m, 0.01), make_model(data)); b = _reach(lambda m: theirs(m.parameters()), make_model(data))
    assert torch.equal(a, b)


def test_muon_is_torchs_inside_and_adamw_outside(data):
    model, twin = make_model(data), make_model(data)
    inside = {n for n, p in model.named_parameters() if n.startswith("layers.") and p.ndim == 2}
    optimizer = Muon(weight_decay=0.1)(model, 0.01)
    assert isinstance(optimizer, Together) and {id(p) for g in optimizer.parts[0].param_groups for p in g["params"]} == {id(p) for n, p in model.named_parameters() if n in inside}
    pick = lambda yes: [p for n, p in twin.named_parameters() if (n in inside) == yes]
    references = [torch.optim.Muon(pick(True), lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
                  torch.optim.AdamW(pick(False), lr=0.01, betas=(0.9, 0.95), weight_decay=0.0)]
    g = torch.Generator().manual_seed(5)
    for _ in range(5):
        for p, q in zip(model.parameters(), twin.parameters()): p.grad = torch.randn(p.shape, generator=g); q.grad = p.grad.clone()
        for o in (optimizer, *references): o.step()
    assert all(map(torch.equal, model.state_dict().values(), twin.state_dict().values()))


def test_together_goes_through_disk_and_keeps_its_parts(data, tmp_path):
    model = make_model(data); optimizer = Muon()(model, 0.01)
    _reach(lambda m: optimizer, model, 2)
    save_optimizer(optimizer, tmp_path)
    twin = make_model(data, seed=2); twin.load_state_dict(model.state_dict()); again = Muon()(twin, 0.5)
    load_optimizer(again, tmp_path)
    assert all(part.state is again.state for part in again.parts) and again.param_groups[0] is again.parts[0].param_groups[0]
    assert again.param_groups[0]["lr"] == 0.01
    assert torch.equal(_reach(lambda m: optimizer, model, 2), _reach(lambda m: again, twin, 2))
    with pytest.raises(StateError, match="another one"): load_optimizer(AdamW()(twin, 0.1), tmp_path)


@hypothesis_settings(max_examples=30, deadline=None)
@given(lr=st.floats(1e-5, 0.1), decay=st.floats(0, 1), betas=st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)), seed=st.integers(0, 99))
def test_lion_is_its_formula(lr, decay, betas, seed):
    from llmnb.train.optimizers import LionOptimizer
    g = torch.Generator().manual_seed(seed)
    p = torch.nn.Parameter(torch.randn(3, 4, generator=g, dtype=torch.float64)); w, m = p.detach().clone(), torch.zeros_like(p)
    optimizer = LionOptimizer([p], lr, betas, decay)
    for _ in range(3):
        p.grad = torch.randn(3, 4, generator=g, dtype=torch.float64)
        w = w - lr * decay * w - lr * torch.sign(betas[0] * m + (1 - betas[0]) * p.grad)
        m = betas[1] * m + (1 - betas[1]) * p.grad
        optimizer.step()
    assert torch.allclose(p, w, atol=1e-12)


# ---- schedules

@st.composite
def lengths(draw):
    steps = draw(st.integers(2, 3000))
    return steps, draw(st.integers(0, steps - 1))


@hypothesis_settings(max_examples=60, deadline=None)
@given(lengths(), st.sampled_from(["1-sqrt", "linear", "cosine"]), st.floats(0.01, 1.0), st.floats(0, 1))
def test_schedules_rise_to_one_and_fall(pair, shape, decay, floor):
    steps, warmup = pair
    for s in (WSD(steps, warmup, decay, floor, shape), InverseSqrt(steps, warmup), OneCycle(steps, warmup), Cosine(steps, warmup), Linear(steps, warmup), Constant(steps, warmup)):
        at = [s(n) for n in range(steps + 20)]
        top = max(0, warmup - 1)
        assert all(-1e-12 <= x <= 1 + 1e-12 for x in at) and at[0] > 0
        assert at[top] == pytest.approx(1.0) or (isinstance(s, WSD) and warmup == 0 and s.falling == steps)
        assert all(a <= b + 1e-12 for a, b in zip(at[:top], at[1:top + 1])) and all(a >= b - 1e-12 for a, b in zip(at[top:], at[top + 1:]))
        assert at == [s(n) for n in range(steps + 20)]


@hypothesis_settings(max_examples=25, deadline=None)
@given(st.integers(20, 400), st.integers(1, 9), st.sampled_from(["1-sqrt", "linear", "cosine"]), st.floats(0, 0.5))
def test_wsd_is_transformers(steps, warmup, shape, floor):
    from transformers import get_wsd_schedule
    ours = WSD(steps, warmup, 0.25, floor, shape)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = get_wsd_schedule(optimizer, warmup, ours.falling, num_training_steps=steps, decay_type=shape, min_lr_ratio=floor)
    for step in range(steps + 1):
        if step >= warmup: assert optimizer.param_groups[0]["lr"] == pytest.approx(ours(step), abs=1e-12)
        optimizer.step(); theirs.step()


@hypothesis_settings(max_examples=25, deadline=None)
@given(st.integers(20, 300), st.integers(2, 15))
def test_one_cycle_is_torchs(steps, warmup):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0, momentum=0.9)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=steps, pct_start=warmup / steps)
    for step in range(steps):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(OneCycle(steps, warmup)(step), abs=1e-9)
        optimizer.step()
        if step < steps - 1: theirs.step()


def test_a_schedule_with_its_own_warmup_keeps_it(data):
    assert make(data, steps=1000, schedule="one-cycle").schedule == OneCycle(1000)
    assert make(data, steps=1000, schedule="one-cycle", warmup=50).schedule == OneCycle(1000, 50)
    assert make(data, steps=1000, schedule="wsd").schedule == WSD(1000, 100)
    for wrong in (dict(shape="round"), dict(decay=0.0), dict(decay=1.5)):
        with pytest.raises(ValueError, match="expected"): WSD(100, **wrong)


# ---- z-loss, recomputed layers

def test_zloss_is_in_training_and_not_in_validation(data, tmp_path):
    plain = make(data, tmp_path / "a", steps=3, valid_every=3, model=make_model(data, dropout=0)).fit()
    with_z = make(data, tmp_path / "b", steps=3, valid_every=3, model=make_model(data, dropout=0), zloss=0.1).fit()
    model, batch = make_model(data, dropout=0), data.batch(0, 4, "train", 3)
    assert losses(plain)[0] == pytest.approx(float(model.loss(batch)), rel=1e-5) and losses(with_z)[0] == pytest.approx(float(model.loss(batch, zloss=0.1)), rel=1e-5)
    assert losses(with_z)[0] > losses(plain)[0] and with_z.valid_loss < losses(with_z)[-1] - 1
    assert Trainer.reopen(with_z.run).config.zloss == 0.1
    for wrong in (-1.0, math.nan, True, "1e-4"):
        with pytest.raises(ValueError, match="zloss"): make(data, zloss=wrong)


def test_recomputed_layers_change_nothing(data, tmp_path):
    plain = make(data, tmp_path / "a", steps=6).fit()
    t = make(data, tmp_path / "b", steps=6, recompute=True, callbacks=[At(3, interrupt)]).fit()
    assert not any("forward" in vars(m) for m in t.model.modules())
    t = Trainer.reopen(t.run, callbacks=()).fit()
    assert t.config.recompute and same_as(t, plain)


def test_run_json_of_before_opens(data, tmp_path):
    "Without zloss and recompute, without what callbacks remember."
    whole = make(data, tmp_path / "a", steps=6).fit()
    t = make(data, tmp_path / "b", steps=6, callbacks=[At(3, interrupt)]).fit()
    said = json.loads((t.run / "run.json").read_text())
    for k in ("zloss", "recompute"): del said["train"][k]
    (t.run / "run.json").write_text(json.dumps(said))
    from llmnb.train.run import seal
    checkpoint = t.folder.checkpoints()[-1]; kept = json.loads((checkpoint / "trainer.json").read_text())
    for k in ("skipped", "rescues"): del kept[k]
    (checkpoint / "trainer.json").write_text(json.dumps(kept)); seal(checkpoint)
    assert same_as(Trainer.reopen(t.run, callbacks=()).fit(), whole)
