"Exact resume, for every objective: really killed at the worst moments, interrupted, with a full disk; bit for bit."
import json, os, resource, shutil, signal, subprocess, sys, warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from test_train import At, data, interrupt, losses, make, make_model, one_thread, quiet, same_as, valids, _texts     # noqa: F401 (fixtures)

from llmnb.model.config import TransformerConfig
from llmnb.model.heads import ClassHead, SpanHead
from llmnb.model.transformer import Transformer
from llmnb.settings import settings
from llmnb.text.batches import TextData
from llmnb.text.objectives import CausalLM, MaskedLM, SpanCorruption
from llmnb.text.records import Dialogue, Labelled, Pair, Question
from llmnb.text.targets import Chat, Classification, Seq2Seq, SpanQA
from llmnb.text.tokenizer import Tokenizer
from llmnb.train.averages import EMA
from llmnb.train.run import newest, RunFolder
from llmnb.train.state import TrainingError
from llmnb.train.trainer import Trainer

NAMES = ("king", "queen", "fool"); LANDS = ("France", "Spain", "Rome"); WINDS = ("summer", "winter")


@dataclass
class Case:
    "An objective with records and a model for it; each with another optimizer and another schedule."
    objective: object; records: list; model: object; optimizer: str; schedule: str

def cases(tok):
    sentence = [f"the {a} of {b} speaks no word in {c}." for a in NAMES for b in LANDS for c in WINDS]
    form = lambda family, **kw: getattr(TransformerConfig, family)("tiny", vocab_size=tok.vocab_size, ctx=48, width=16, layers=1, heads=2, dropout=0.1, **kw)
    bert = lambda head=None: (lambda m: m if head is None else m.with_head(head))(Transformer(form("bert"), seed=1))
    llama, t5 = lambda: Transformer(form("llama"), seed=1), lambda: Transformer(form("t5"), seed=1)
    asked = [Question(f"Who speaks in {c}?", f"the {a} of {b} speaks in {c}.", [a], [4]) for a in NAMES for b in LANDS for c in WINDS]
    return dict(
        causal=Case(CausalLM(16), sentence * 3, llama, "adamw", "cosine"),
        masked=Case(MaskedLM(16), sentence * 3, bert, "lion", "linear"),
        span=Case(SpanCorruption(16), sentence * 3, t5, "adafactor", "wsd"),
        seq2seq=Case(Seq2Seq(40, smoothing=0.1), [Pair(s, " ".join(reversed(s.split()[:4]))) for s in sentence], t5, "adam", "inverse-sqrt"),
        chat=Case(Chat(48), [Dialogue.of(f"Who is {a}?", f"{a} of {b}.") for a in NAMES for b in LANDS] * 2, llama, "muon", "one-cycle"),
        classes=Case(Classification(("good", "bad"), ctx=24), [Labelled(s, "good" if "king" in s else "bad") for s in sentence], lambda: bert(ClassHead(2)), "sgd", "constant"),
        answer=Case(SpanQA(48, stride=8, most_question=16), asked, lambda: bert(SpanHead()), "adamw", "linear"))

OBJECTIVES = ["causal", "masked", "span", "seq2seq", "chat", "classes", "answer"]
MOMENTS = dict(zip(OBJECTIVES, ["row", "update", "files", "seal", "rename", "valid", "row"]))


@pytest.fixture(scope="session")
def packed(tmp_path_factory):
    "Each objective's data, on disk."
    tok = Tokenizer.train(_texts(), vocab_size=320).with_special(["[MASK]", "[CLS]", "[SEP]", *(f"<extra_id_{i}>" for i in range(8)), "<|im_start|>", "<|im_end|>"])
    top = tmp_path_factory.mktemp("objectives")
    return {name: TextData.pack(c.records, tok, c.objective, path=top / name, valid=0.2) for name, c in cases(tok).items()}


def trainer(d, name, run, callbacks=(), **kw):
    "7 updates of 2 batches: more than one epoch, with checkpoints in its middle."
    c = cases(d.tok)[name]
    kw = dict(steps=7, lr=3e-3, batch_size=3, accumulate=2, valid_every=3, save_every=2, dtype="float32", seed=3, optimizer=c.optimizer, schedule=c.schedule) | kw
    return Trainer(c.model(), d, run=run, callbacks=[EMA(0.8), *callbacks], **kw)


def all_equal(a, b):
    ema, other = ([c for c in t.callbacks if isinstance(c, EMA)][0] for t in (a, b))
    return same_as(a, b) and ema.n == other.n == a.step and all(torch.equal(v, other.weights[k]) for k, v in ema.weights.items())


@pytest.fixture(scope="session")
def whole(packed, tmp_path_factory):
    "The runs that nothing happens to, on one thread."
    n = torch.get_num_threads(); torch.set_num_threads(1)
    with settings.override(ui="none", device="cpu"): out = {name: trainer(d, name, tmp_path_factory.mktemp("whole") / name).fit() for name, d in packed.items()}
    torch.set_num_threads(n)
    return out


# ---- killed

CHILD = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import torch; torch.set_num_threads(1)
import test_train_resume as r
from llmnb.settings import settings
from llmnb.text.batches import TextData
settings.override(ui="none", device="cpu")
for name in r.OBJECTIVES:                       # a process for each: forked, so that torch is imported once
    child = os.fork()
    if not child: r.train_and_die(TextData.open({data!r} + "/" + name), name, {runs!r} + "/" + name)
    print(name, os.waitpid(child, 0)[1], flush=True)
"""


def die(*a, **k): os.kill(os.getpid(), signal.SIGKILL)


def train_and_die(d, name, run):
    "SIGKILL in step 5, or while its checkpoint is written, at the moment that MOMENTS names."
    import llmnb.train.run as folder
    import llmnb.train.pieces as pieces
    moment = MOMENTS[name]
    class Die:
        def on_step(self, t, row):
            if row["step"] == 5 and moment == "row": die()
            if row["step"] == 4 and moment == "update":
                step = t._engine.plain_optimizer.step
                t._engine.plain_optimizer.step = lambda *a, **k: (step(*a, **k), die())
            if row["step"] == 4 and moment == "files": pieces.save_optimizer = die
            if row["step"] == 4 and moment == "seal": folder.seal = die
            if row["step"] == 4 and moment == "rename":
                whole = folder.seal
                folder.seal = lambda p: (whole(p), die())
            if row["step"] == 5 and moment == "valid": t._notify = die
    trainer(d, name, run, [Die()]).fit()
    os._exit(1)


@pytest.fixture(scope="session")
def killed(packed, tmp_path_factory):
    runs = tmp_path_factory.mktemp("killed")
    code = CHILD.format(tests=str(Path(__file__).parent), data=str(packed["causal"].path.parent), runs=str(runs))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == [x for name in OBJECTIVES for x in (name, str(int(signal.SIGKILL)))], done.stderr[-3000:]
    return runs


@pytest.mark.parametrize("name", OBJECTIVES)
def test_each_objective_goes_on_bit_for_bit_after_kill_and_interrupt(packed, whole, killed, one_thread, tmp_path, name):
    run = tmp_path / "r"; shutil.copytree(killed / name, run)
    found = RunFolder(run).checkpoints()
    at = 4 if MOMENTS[name] in ("row", "update", "valid") else 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        t = Trainer.reopen(run)
        assert t.step == at and isinstance(t.callbacks[0], EMA) and t.data.path == packed[name].path
        t.callbacks.append(At(6, interrupt)); t.fit()
        assert t.state == "stopped" and t.step == 6
        t = Trainer.reopen(run).fit()
    assert t.state == "done" and all_equal(t, whole[name])
    assert [r["step"] for r in t.rows if "loss" in r] == list(range(1, 8)) and len(set(losses(t))) == 7
    assert not list((run / "checkpoints").glob(".*")) and found


def test_the_runs_are_more_than_an_epoch_and_not_all_alike(packed, whole):
    assert any(d.train.n_batches(3) < 14 for d in packed.values())
    assert len({t.rows[-1]["valid_loss"] for t in whole.values()}) == len(OBJECTIVES)


# ---- exceptions, in every place of a step

@pytest.mark.parametrize("where", ["data.batch", "model.loss", "optimizer", "on_update", "on_valid", "on_save", "during_valid"])
def test_an_exception_anywhere_loses_nothing(packed, whole, one_thread, tmp_path, where):
    d = packed["causal"]
    class Fail:
        armed = True
        def go(self, *a, **k):
            if self.armed: self.armed = False; raise OSError("unplugged")
        def on_step(self, t, row):
            if row["step"] != 3: return
            if where == "model.loss": plain = t.model.loss; t._engine.net.fast = lambda *a, **k: (self.go(), plain(*a, **k))[1]
            if where == "optimizer":
                step = t._engine.plain_optimizer.step
                t._engine.plain_optimizer.step = lambda *a, **k: (step(*a, **k), self.go())
            if where == "data.batch": self.batch = t._batches; t._batches = lambda: (self.go(), self.batch())[1]
    def at_three(self, t, *a):
        if t.step >= 3: self.go()
    if where.startswith("on_"): setattr(Fail, where, at_three)
    if where == "during_valid":
        from contextlib import contextmanager
        @contextmanager
        def during(self, t): yield; self.go()
        Fail.during_valid = during
    t = trainer(d, "causal", tmp_path / "r", [Fail()])
    with pytest.raises(TrainingError, match="unplugged.*Trainer.reopen"): t.fit()
    assert t.state == "failed"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore"); again = Trainer.reopen(t.run).fit()
    assert all_equal(again, whole["causal"])
    t._engine, t.callbacks = None, t.callbacks[:1]          # and in the same process
    if "_batches" in vars(t): del t._batches


# ---- a full disk

FULL = """
import resource, signal, sys
sys.path.insert(0, {tests!r})
import torch; torch.set_num_threads(1)
import test_train_resume as r
from llmnb.settings import settings
from llmnb.text.batches import TextData
from llmnb.train.state import TrainingError
settings.override(ui="none", device="cpu")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def room(n): resource.setrlimit(resource.RLIMIT_FSIZE, (n, resource.RLIM_INFINITY))
t = r.trainer(TextData.open({data!r}), "causal", {run!r}, [r.At(3, lambda t: room({bytes}))])
try: t.fit()
except TrainingError as e: print(t.state, t.step, "large" in str(e).lower(), flush=True)
room(resource.RLIM_INFINITY)
t.callbacks.pop(); t.fit()
print(t.state, t.step, flush=True)
"""


@pytest.mark.parametrize("room, step", [(4096, 4), (300, 3)], ids=["no checkpoint fits", "not even a row fits"])
def test_a_disk_that_is_really_full(packed, whole, one_thread, tmp_path, room, step):
    "The system refuses to let files grow; the same process goes on when there is room again, and so does another one."
    run, run_after = tmp_path / "r", tmp_path / "after"
    code = FULL.format(tests=str(Path(__file__).parent), data=str(packed["causal"].path), run=str(run), bytes=room)
    code = code.replace("room(resource.RLIM_INFINITY)\n", f"import shutil; room(resource.RLIM_INFINITY); shutil.copytree({str(run)!r}, {str(run_after)!r})\n", 1)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines() == [f"failed {step} True", "done 7"], done.stdout + done.stderr[-3000:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for folder in (run, run_after):
            t = Trainer.reopen(folder).fit()
            assert t.state == "done" and same_as(t, whole["causal"])


# ---- damage

@pytest.mark.parametrize("name, how", [("optimizer.safetensors", "cut"), ("callbacks.safetensors", "flip"), ("trainer.json", "gone"), ("manifest.json", "cut"), ("model.safetensors", "flip")])
def test_any_damage_to_the_newest_falls_back_and_goes_on_exactly(packed, whole, one_thread, tmp_path, name, how):
    shutil.copytree(whole["causal"].run, tmp_path / "r")
    folder = RunFolder(tmp_path / "r"); last, before = folder.checkpoints()[-1], folder.checkpoints()[-2]
    path = last / name
    raw = bytearray(path.read_bytes())
    if how == "flip": raw[len(raw) // 2] ^= 1; path.write_bytes(raw)
    elif how == "cut": path.write_bytes(raw[:len(raw) // 3])
    else: path.unlink()
    with pytest.warns(UserWarning, match=f"{last.name}' is damaged"): t = Trainer.reopen(tmp_path / "r")
    assert t.step == int(before.name[-8:]) < 7
    with warnings.catch_warnings():
        warnings.simplefilter("ignore"); assert all_equal(t.fit(), whole["causal"])
