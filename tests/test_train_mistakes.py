"Plain mistakes: each is refused at once, with the value, what was expected and the fix, before a folder is made."
import re

import numpy as np
import pytest
import torch

from llmnb.model.config import TransformerConfig
from llmnb.model.heads import ClassHead
from llmnb.model.transformer import Transformer
from llmnb.notebook.watch import watch
from llmnb.text.batches import TextData
from llmnb.text.objectives import CausalLM, SpanCorruption
from llmnb.text.records import Labelled, Pair
from llmnb.text.targets import Classification, Seq2Seq
from llmnb.text.tokenizer import Tokenizer
from llmnb.train.callbacks import Callback, EarlyStop
from llmnb.train.guard import Guard
from llmnb.train.launch import launch
from llmnb.train.lora import lora
from llmnb.train.lr_find import lr_find
from llmnb.train.optim import AdamW, Constant, Cosine, Linear
from llmnb.train.optimizers import SGD, Adam, Adafactor, AdamW8bit, Lion, Muon
from llmnb.train.preference import DPO, Preference
from llmnb.train.run import Keep, RunError
from llmnb.train.schedules import WSD, InverseSqrt, OneCycle
from llmnb.train.trainer import Trainer
from llmnb.train.watches import Memory

TEXT = ["to be or not to be that is the question whether it is nobler in the mind to suffer"] * 30
SPECIAL = ("<|endoftext|>", "[CLS]", "[SEP]", "[PAD]", *(f"<extra_id_{i}>" for i in range(20)))


@pytest.fixture(scope="module")
def packs(tmp_path_factory):
    home, tok = tmp_path_factory.mktemp("packs"), Tokenizer.train(TEXT, vocab_size=290, special_tokens=SPECIAL)
    wanted = {CausalLM(ctx=16): TEXT, SpanCorruption(ctx=16): TEXT, Seq2Seq(ctx=16): [Pair("to be", f"or not {n}") for n in range(40)],
              Classification((0, 1), ctx=16): [Labelled(f"to be {n}", n % 2) for n in range(40)]}
    return {o.name: TextData.pack(texts, tok, objective=o, valid=0.2, path=home / o.name) for o, texts in wanted.items()}


@pytest.fixture(scope="module")
def choices(packs, tmp_path_factory):
    home = tmp_path_factory.mktemp("choices")
    return TextData.pack([Preference("to be", f"or not {n}", "no") for n in range(40)], packs["causal"].tok, objective=DPO(ctx=16), valid=0.2, path=home / "dpo")


def net(family="gpt2", **more): return Transformer(getattr(TransformerConfig, family)("tiny", vocab_size=300, ctx=32, layers=1, width=16, heads=1, **more), seed=1)


@pytest.mark.parametrize("make,said", [
    (lambda: AdamW(weight_decay=-1), "AdamW(weight_decay=-1): expected a number from 0"), (lambda: Adam(betas=0.9), "Adam(betas=0.9): expected two shares"),
    (lambda: Adafactor(weight_decay="x"), "weight_decay='x'"), (lambda: SGD(momentum=1.0), "SGD(momentum=1.0): expected a share"), (lambda: Muon(momentum=-0.1), "momentum=-0.1"),
    (lambda: Lion(betas=(0.9, 2)), "betas=(0.9, 2)"), (lambda: AdamW8bit(layer_decay=2), "layer_decay=2"), (lambda: AdamW(weight_decay=float("nan")), "weight_decay=nan"),
    (lambda: Cosine(0), "Cosine(steps=0): expected a whole number from 1"), (lambda: Cosine(9, warmup=-1), "warmup=-1"), (lambda: Linear("ten"), "steps='ten'"), (lambda: Cosine(9, floor=2), "floor=2"),
    (lambda: WSD(9, decay="x"), "WSD(decay='x'): expected a share of the run"), (lambda: OneCycle(9, start=0), "start=0"), (lambda: InverseSqrt(timescale=-1), "timescale=-1"), (lambda: Constant(warmup=1.5), "warmup=1.5"),
    (lambda: EarlyStop(by="x"), "by = 'x': expected nats"), (lambda: EarlyStop(by=-1), "by = -1"), (lambda: Guard(spike="x"), "spike = 'x'"), (lambda: Guard(window=0), "window = 0"),
    (lambda: Memory(limit_gb="x"), "limit_gb = 'x'"), (lambda: Memory(limit_gb=-1), "limit_gb = -1"), (lambda: Keep(best=3), "Keep(best=3)"),
])
def test_numbers_are_refused_where_they_are_written(make, said):
    with pytest.raises(ValueError, match=re.escape(said)): make()


def test_what_is_good_stays_good():
    for made in (AdamW(), AdamW8bit(), Adafactor(), Constant(), InverseSqrt(None, 3), OneCycle(6, None), Cosine(6, 9), WSD(5, 0, 1.0), SGD(momentum=0)): assert made == made


@pytest.mark.parametrize("kw,error,said", [
    (dict(schedule=Cosine), TypeError, "Cosine is a class; make one"), (dict(schedule=lambda: 1), TypeError, "a function of the step's number"), (dict(schedule=None), TypeError, "schedule = None: expected a name"), (dict(schedule=lambda step: "x"), ValueError, "gives 'x' for step 0"),
    (dict(schedule=lambda step: float("nan")), ValueError, "gives nan"), (dict(schedule=lambda step: -1), ValueError, "gives -1"), (dict(recompute="x"), TypeError, "recompute = 'x'"),
    (dict(callbacks=[3]), TypeError, "3 has none of the methods"), (dict(callbacks=[None]), TypeError, "None has none"), (dict(callbacks=["probe"]), TypeError, "probe has to be told name; make one, Probe(name=...)"),
    (dict(batch_size=10**12), ValueError, "batch_size = 1000000000000: it takes"), (dict(run=5), TypeError, "run = 5: expected a folder"), (dict(run=""), RunError, "run = '': expected a folder"),
])
def test_of_a_trainer(packs, tmp_path, kw, error, said):
    with pytest.raises(error, match=re.escape(said)): Trainer(net(), packs["causal"], **{**dict(steps=4, batch_size=2, run=tmp_path / "r"), **kw})
    assert not (tmp_path / "r").exists()


def test_an_optimizer_that_is_none_is_told_and_leaves_no_run(packs, tmp_path):
    t = Trainer(net(), packs["causal"], steps=4, batch_size=2, optimizer=lambda model, lr: None, run=tmp_path / "r")
    with pytest.raises(TypeError, match="gave a NoneType; expected a torch.optim.Optimizer"): t.fit()
    assert t.state == "new" and not (tmp_path / "r/run.json").exists()


def test_numbers_of_other_kinds_serve(packs, tmp_path):
    c = Trainer(net(), packs["causal"], steps=np.int64(4), batch_size=np.int32(2), lr=np.float32(0.5), run=tmp_path / "r").config
    assert (c.steps, c.batch_size, c.lr) == (4, 2, 0.5) and [type(x) for x in (c.steps, c.batch_size, c.lr)] == [int, int, float]


def test_the_batch_that_could_fit_is_accepted(packs, tmp_path):
    with pytest.raises(ValueError) as e: Trainer(net(), packs["causal"], steps=1, batch_size=10**12, run=tmp_path / "r")
    most = int(re.search(r"GB\. (\d+) is the most", str(e.value))[1])
    assert Trainer(net(), packs["causal"], steps=1, batch_size=most, run=tmp_path / "r").config.batch_size == most
    with pytest.raises(ValueError, match="is the most"): Trainer(net(), packs["causal"], steps=1, batch_size=most + 1, run=tmp_path / "r")
    assert Trainer(net("t5"), packs["seq2seq"], steps=1, batch_size=10**12, run=tmp_path / "r").config.batch_size == 10**12      # of records at most


@pytest.mark.parametrize("family,objective,said", [
    ("gpt2", "seq2seq", "only an encoder-decoder reads the first"), ("bert", "span-corruption", "only an encoder-decoder"), ("t5", "causal", "pack pairs with Seq2Seq()"),
    ("bert", "causal", "pack the text with MaskedLM(), or take a decoder"), ("gpt2", "classification", "model.with_head(ClassHead(labels=2))"),
])
def test_data_for_another_kind_of_model(packs, tmp_path, family, objective, said):
    with pytest.raises(ValueError, match=re.escape(said)): Trainer(net(family), packs[objective], steps=2, batch_size=2, run=tmp_path / "r")


def test_preferences_want_adapters(choices, tmp_path):
    with pytest.raises(ValueError, match=re.escape("lora(model) first")): Trainer(net(), choices, steps=2, batch_size=2, run=tmp_path / "r")
    assert Trainer(lora(net()), choices, steps=1, batch_size=2, run=tmp_path / "r").fit().state == "done"
    with pytest.raises(ValueError, match="beta = 'x'"): DPO(beta="x")


def test_data_for_this_kind_of_model(packs, tmp_path):
    for n, (model, objective) in enumerate([(net("t5"), "seq2seq"), (net("t5"), "span-corruption"), (net(head=ClassHead(2)), "classification"), (net("bert", head=ClassHead(2)), "classification")]):
        assert Trainer(model, packs[objective], steps=1, batch_size=2, run=tmp_path / f"{n}").fit().state == "done"


def test_a_schedule_that_has_its_numbers_when_the_run_begins(packs, tmp_path):
    "An object that also looks at the run, and a function of something that is not there yet, are not asked before the first step."
    class Clock(Callback):
        def on_start(self, t): self.whole = t.steps
        def __call__(self, step): return 1 - step / self.whole
    clock, later = Clock(), {}
    class Late(Callback):
        def on_start(self, t): later["whole"] = t.steps
    for n, (schedule, callback) in enumerate([(clock, clock), (lambda step: 1 - step / later["whole"], Late())]):
        t = Trainer(net(), packs["causal"], steps=4, batch_size=2, lr=1.0, schedule=schedule, callbacks=[callback], run=tmp_path / f"{n}").fit()
        assert t.history["lr"].dropna().tolist() == [1.0, 0.75, 0.5, 0.25]


@pytest.fixture
def stopped(packs, tmp_path):
    class Stop(Callback):
        def on_update(self, t, loss, norm):
            if t.step == 2: t.stop()
    return Trainer(net(), packs["causal"], steps=4, batch_size=2, lr=1e-3, valid_every=2, callbacks=Stop(), run=tmp_path / "r").fit()


def test_of_a_run_that_is_reopened(stopped, monkeypatch):
    reopen = lambda **kw: Trainer.reopen(stopped.run, **kw)
    with pytest.warns(UserWarning, match="could not name: Stop"):
        for kw, said in [(dict(schedule="linear"), "schedule.name: cosine -> linear"), (dict(schedule=lambda step: 1.0), "schedule.name: cosine -> without a name"),
                         (dict(optimizer=lambda m, lr: torch.optim.SGD(m.parameters(), lr)), "optimizer.name: adamw -> without a name")]:
            with pytest.raises(RunError, match=re.escape(said)): reopen(**kw)
        t = reopen(schedule="linear", changed=True)
    assert t.schedule == Linear(4) and t.fit().state == "done"
    for kw, said in [(dict(epochs=3), "the number of all its updates"), (dict(warmup=2), "a part of the schedule"), (dict(batchsize=2), "no such option. Did you mean 'batch_size'? It has:")]:
        with pytest.raises(TypeError, match=re.escape(said)): reopen(**kw)
    for wrong, said in [(None, "run = None: expected a folder"), (5, "run = 5"), (stopped, "expected its folder, trainer.run")]:
        with pytest.raises(TypeError, match=re.escape(said)): Trainer.reopen(wrong)
        with pytest.raises(TypeError, match=re.escape(said)): watch(wrong)
    monkeypatch.setenv("HOME", str(stopped.run.parent))
    with pytest.raises(RunError, match="holds a run"): Trainer(stopped.model, stopped.data, steps=1, run="~/r")
    assert Trainer.reopen("~/r", callbacks=()).run == stopped.run and not (stopped.run.parent / "~").exists()


def test_of_one_that_is_not_under_way(stopped):
    for f, said in [(stopped.validate, "evaluate_loss(model, data)"), (stopped.go_back, "fit() goes on from the newest checkpoint")]:
        with pytest.raises(RunError, match=re.escape(said)): f()
    for f, said in [(lambda: stopped.fit(100), "background = 100: expected True or False"), (lambda: stopped.wait("x"), "timeout = 'x'"), (lambda: lr_find(stopped.model), "expected a Trainer, not a Transformer"),
                    (lambda: launch(stopped.model), "expected a Trainer or a function, not Transformer"), (lambda: launch(print, processes=2, args=3), "args = 3")]:
        with pytest.raises(TypeError, match=re.escape(said)): f()
    for f, said in [(lambda: lr_find(stopped, low="x"), "low = 'x'"), (lambda: lr_find(stopped, stop=0), "stop above 1"), (lambda: launch(stopped, processes=2, timeout="x"), "timeout = 'x'"), (lambda: launch(stopped, threads=-1), "threads = -1")]:
        with pytest.raises(ValueError, match=re.escape(said)): f()


def test_a_validation_asked_for_from_outside_is_made_between_two_steps(packs, tmp_path):
    t = Trainer(net(), packs["causal"], steps=10**5, batch_size=2, valid_every=10**5, run=tmp_path / "r").fit(background=True)
    try: assert t.validate() == t.valid_loss == t.history.valid_loss.dropna().tolist()[-1]
    finally: t.stop().wait()
