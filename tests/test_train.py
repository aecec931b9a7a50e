"The trainer: equalities, interruptions, damage on disk, wrong arguments."
import json, os, signal, subprocess, sys, textwrap, threading, time, warnings
from pathlib import Path

import pytest
import torch

from llmnb import LLMNBError
from llmnb.model.config import TransformerConfig
from llmnb.model.transformer import Transformer
from llmnb.settings import settings
from llmnb.text.batches import CausalLM, TextData
from llmnb.text.tokenizer import Tokenizer
from llmnb.train.callbacks import Callback, EarlyStop, SampleText
from llmnb.train.optim import AdamW, Constant, Cosine
from llmnb.train.run import CheckpointError, RunError, RunFolder, damage, read_log, step_of
from llmnb.train.trainer import Trainer
from llmnb.train.state import LossError, TrainingError

WORDS = "the king of winter speaks no word to us and all his ships are gone with summer wind".split()


def _texts():
    g = torch.Generator().manual_seed(0)
    return [" ".join(WORDS[i] for i in torch.randint(len(WORDS), (120,), generator=g)) + "." for _ in range(40)]


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    tok = Tokenizer.train(_texts(), vocab_size=300)
    return TextData.pack(_texts(), tok, objective=CausalLM(ctx=16), path=tmp_path_factory.mktemp("packed") / "data")


@pytest.fixture(autouse=True)
def quiet(tmp_path):
    with settings.override(ui="none", runs_path=tmp_path / "runs", device="cpu"): yield


def make_model(data, dropout=0.1, seed=1):
    return Transformer(TransformerConfig.llama("tiny", vocab_size=data.vocab_size, ctx=16, width=32, layers=2, heads=2, kv_heads=1, dropout=dropout), seed=seed)


def make(data, run=None, *, steps=24, model=None, **kw):
    kw = dict(batch_size=4, valid_every=8, dtype="float32", seed=3, lr=3e-3) | kw
    return Trainer(model or make_model(data), data, steps=steps, run=run, **kw)


def losses(t): return [r["loss"] for r in t.rows if "loss" in r]
def valids(t): return [(r["step"], r["valid_loss"]) for r in t.rows if "valid_loss" in r]


@pytest.fixture(scope="session")
def unbroken(data, tmp_path_factory):
    "A run that nothing happens to."
    with settings.override(ui="none", device="cpu"): return make(data, tmp_path_factory.mktemp("unbroken") / "run").fit()


class At(Callback):
    "Does something after a certain step."
    def __init__(self, step, what): self.step, self.what = step, what
    def on_step(self, t, row):
        if row["step"] == self.step: self.what(t)


class Until(Callback):
    "Holds the thread that trains, after one step or after each, until something is true: what other threads do meanwhile has all its time."
    def __init__(self, true, step=None): self.true, self.step = true, step
    def on_step(self, t, row):
        while self.step in (None, row["step"]) and not self.true(t): time.sleep(0.002)


def asked_to_pause(t): return not t._go.is_set()
def asked_to_stop(t): return t._stop.is_set()
def interrupt(t): raise KeyboardInterrupt
def same_as(t, other): return losses(t) == losses(other) and valids(t) == valids(other) and all(map(torch.equal, t.model.state_dict().values(), other.model.state_dict().values()))


# ---- the ordinary run

def test_run_learns_and_leaves_a_folder(data, unbroken):
    t = unbroken
    assert t.state == "done" and t.step == 24 and losses(t)[-1] < losses(t)[0]
    assert [s for s, _ in valids(t)] == [8, 16, 24] and t.valid_loss == valids(t)[-1][1]
    h = t.history
    assert list(h["step"]) == list(range(1, 25)) and {"loss", "lr", "grad_norm", "tokens_per_second", "valid_loss"} <= set(h.columns)
    assert read_log(t.run) == t.rows and json.loads((t.run / "run.json").read_text())["train"]["steps"] == 24
    assert (t.run / "tokenizer").is_dir() and step_of(t.folder.checkpoints()[-1]) == 24
    assert not list(t.run.rglob("*.pkl")) and not list(t.run.rglob("*.bin"))
    assert {"step", "log", "callbacks", "save", "valid"} == set(t.overhead)


def test_default_folder_and_derived_numbers(data):
    a, b = (Trainer(make_model(data), data, steps=2) for _ in range(2))
    assert a.run.parent == settings.runs_path and not a.run.exists()
    assert a.config.batch_size >= 1 and a.config.lr > 0 and a.config.dtype in ("float32", "bfloat16", "float16")
    a.fit(); b = Trainer(make_model(data), data, steps=2)
    assert a.run.exists() and a.run != b.run


def test_runs_without_a_name_do_not_collide(data):
    "Made in the same second, trained one after the other, as in a sweep."
    made = [Trainer(make_model(data), data, steps=1) for _ in range(3)]
    assert len({t.fit().run for t in made}) == 3


def test_the_working_folder_may_change(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    t = make(data, "runs/hamlet", steps=6, callbacks=[At(3, lambda t: os.chdir("/"))]).fit()
    assert t.state == "done" and t.run == tmp_path / "runs" / "hamlet" and t.folder.trained()


def test_epochs_count_batches(data):
    assert make(data, steps=None, epochs=2).steps == 2 * data.train.n_batches(4)
    assert make(data, steps=None, epochs=0.5, accumulate=2).steps == round(0.25 * data.train.n_batches(4))


def test_validation_is_exact_whatever_the_batch_size(data, unbroken):
    found = set()
    for size in (1, 3, 7):
        total = n = 0
        for b in data.valid_batches(size):
            with torch.no_grad(): total, n = total + float(unbroken.model.eval().loss(b, reduction="sum")), n + b.n_targets
        found.add(round(total / n, 4))
    assert found == {round(unbroken.valid_loss, 4)}


def test_accumulated_is_one_large_batch(data):
    large = make(data, batch_size=8, steps=8, model=make_model(data, dropout=0)).fit()
    parts = make(data, batch_size=2, accumulate=4, steps=8, model=make_model(data, dropout=0)).fit()
    assert max(abs(a - b) for a, b in zip(losses(large), losses(parts))) < 1e-5


def test_bf16_is_near_and_leaves_the_model_alone(data):
    a = make(data, steps=8, model=make_model(data, dropout=0)).fit()
    b = make(data, steps=8, model=make_model(data, dropout=0), dtype="bfloat16").fit()
    assert 0 < max(abs(x - y) for x, y in zip(losses(a), losses(b))) < 0.1
    assert b.model.dtype == torch.float32 and "forward" not in vars(b.model)
    assert Trainer.reopen(b.run).config.dtype == "bfloat16"


def test_clip_none_and_objects(data):
    t = make(data, steps=4, clip=None, optimizer=AdamW(weight_decay=0.0), schedule=Constant()).fit()
    assert set(t.history["lr"]) == {3e-3} and (t.history["grad_norm"] > 0).all()
    again = Trainer.reopen(t.run)
    assert again.optimizer == AdamW(weight_decay=0.0) and again.schedule == Constant() and again.config.clip is None


def test_user_random_numbers_are_left_alone(data):
    torch.manual_seed(11); expected = torch.rand(2)
    t = make(data, steps=2); torch.manual_seed(11); t.fit()
    assert torch.equal(torch.rand(2), expected)


# ---- stop, resume, kill

def test_interrupt_from_a_callback_saves_and_resumes_exactly(data, unbroken, tmp_path):
    t = make(data, tmp_path / "r", callbacks=[At(5, interrupt)]).fit()
    assert t.state == "stopped" and t.step == 5 and step_of(t.folder.checkpoints()[-1]) == 5
    t.callbacks.clear()
    assert t.fit() is t and t.state == "done" and same_as(t, unbroken)


def test_reopen_after_two_interruptions(data, unbroken, tmp_path):
    make(data, tmp_path / "r", callbacks=[At(5, interrupt)]).fit()
    t = Trainer.reopen(tmp_path / "r", callbacks=[At(8, lambda t: t.stop())])
    assert t.state == "stopped" and t.step == 5
    t.fit(); assert t.step == 8 and not [v for v in valids(t) if v[0] == 8]     # stopped before the validation of step 8
    t = Trainer.reopen(str(tmp_path / "r"), callbacks=()).fit()
    assert same_as(t, unbroken) and [r["step"] for r in read_log(t.run) if "loss" in r] == list(range(1, 25))


def test_nothing_in_between_disturbs_a_run(data, unbroken, tmp_path):
    "Random numbers drawn by others, samples of text, and a model in evaluation mode."
    noise = SampleText(lambda m: str(m(torch.randint(10, (1, 4))).sum() * torch.rand(1)), every=3)
    t = make(data, tmp_path / "r", callbacks=[At(5, interrupt), noise]).fit()
    t.model.eval(); torch.rand(100); t.callbacks.pop(0)
    t.fit()
    assert same_as(t, unbroken) and [r["step"] for r in t.rows if "sample" in r] == list(range(3, 25, 3))


def test_accumulation_resumes_exactly(data, tmp_path):
    whole = make(data, tmp_path / "a", accumulate=3, steps=10).fit()
    make(data, tmp_path / "b", accumulate=3, steps=10, callbacks=[At(7, interrupt)]).fit()
    assert same_as(Trainer.reopen(tmp_path / "b", callbacks=()).fit(), whole)


CHILD = """
import signal; signal.signal(signal.SIGINT, signal.default_int_handler)      # whoever started the tests in the background had it ignored
import os, sys, time
from llmnb.settings import settings
from llmnb.text.batches import TextData
sys.path.insert(0, {tests!r})
import torch; torch.set_num_threads(1)
from test_train import make, At
settings.override(ui="none", device="cpu")
data = TextData.open({data!r})
def tell(t):
    print("step", t.step, flush=True)
    while t.step == {hold} and not os.path.exists({run!r} + ".go"): time.sleep(.005)
t = make(data, {run!r}, save_every=4, callbacks=[At(n, tell) for n in range(1, 25)])
t.fit()
print(t.state, t.step, flush=True)
"""


def _child(data, run, hold):
    "A run that waits after step `hold` until there is a file run.go."
    code = CHILD.format(tests=str(Path(__file__).parent), data=str(data.path), run=str(run), hold=hold)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _read_until(p, line):
    for said in p.stdout:
        if said.strip() == line: return
    pytest.fail(f"the child ended before {line!r}: {p.stderr.read()[-2000:]}")


@pytest.fixture
def one_thread():
    n = torch.get_num_threads(); torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)


def test_sigkill_loses_nothing(data, one_thread, tmp_path):
    "Killed in the middle of a run; reopened; the same losses as an unbroken run, bit for bit."
    whole = make(data, tmp_path / "whole").fit()
    p = _child(data, tmp_path / "killed", hold=14)
    _read_until(p, "step 14"); p.send_signal(signal.SIGKILL); p.wait(300)
    assert p.returncode == -signal.SIGKILL
    with open(tmp_path / "killed" / "log.jsonl", "a") as f: f.write('{"step": 15, "lo')      # the line that it was writing
    (tmp_path / "killed" / "checkpoints" / ".step-00000016.1.tmp").mkdir()                     # and the checkpoint
    t = Trainer.reopen(tmp_path / "killed", callbacks=())
    assert t.step == 12 and t.state == "stopped"
    t.fit()
    assert same_as(t, whole) and read_log(t.run) == t.rows
    assert not list((t.run / "checkpoints").glob(".*"))


def test_a_run_that_died_before_its_second_checkpoint(data, unbroken, tmp_path):
    "By the clock the first checkpoint after step 0 comes after a minute; until then step 0 is what a dead run goes back to."
    import shutil
    t = make(data, tmp_path / "r", callbacks=[At(5, lambda t: shutil.copytree(t.run, tmp_path / "dead"))]).fit()
    t = Trainer.reopen(tmp_path / "dead", callbacks=())
    assert t.step == 0 and t.rows == [] and len(read_log(tmp_path / "dead")) == 5
    assert same_as(t.fit(), unbroken)


def test_sigint_stops_after_the_step(data, one_thread, tmp_path):
    whole = make(data, tmp_path / "whole").fit()
    p = _child(data, tmp_path / "r", hold=6)
    _read_until(p, "step 6"); p.send_signal(signal.SIGINT); (tmp_path / "r.go").touch()
    out, err = p.communicate(timeout=300)
    assert p.returncode == 0 and "stopped" in out and "Traceback" not in err, err
    t = Trainer.reopen(tmp_path / "r", callbacks=())
    assert 6 <= t.step < 24 and same_as(t.fit(), whole)


def test_second_sigint_goes_back_to_a_checkpoint(data, unbroken, tmp_path):
    "An interrupt between two weights: the model is torn, so the last checkpoint counts."
    class Torn(Callback):
        def on_save(self, t, path):
            if t.step == 8:
                step = t._engine.plain_optimizer.step
                def broken(*a, **k):
                    step(*a, **k)
                    raise KeyboardInterrupt
                t._engine.plain_optimizer.step = broken
    t = make(data, tmp_path / "r", save_every=8, callbacks=[Torn()]).fit()
    assert t.state == "stopped" and t.step == 8
    t.callbacks.clear()
    assert same_as(t.fit(), unbroken)


def test_a_stopped_trainer_holds_no_optimizer(data, tmp_path):
    import gc, weakref
    refs = []
    t = make(data, tmp_path / "r", callbacks=[At(3, lambda t: refs.append(weakref.ref(t._engine.plain_optimizer))), At(5, interrupt)]).fit()
    gc.collect()
    assert t.state == "stopped" and refs[0]() is None and all(p.grad is None for p in t.model.parameters())


@pytest.mark.slow
def test_compiled_is_near_and_resumes(data, tmp_path):
    plain = make(data, steps=8, model=make_model(data, dropout=0)).fit()
    fast = make(data, tmp_path / "r", steps=8, model=make_model(data, dropout=0), compile=True, callbacks=[At(4, interrupt)]).fit()
    again = Trainer.reopen(fast.run, callbacks=()).fit()
    assert again.config.compile and max(abs(a - b) for a, b in zip(losses(plain), losses(again))) < 1e-4


# ---- in the background

def test_background_pause_resume_stop(data, unbroken, tmp_path):
    t = make(data, tmp_path / "r", callbacks=[Until(asked_to_pause, 3), Until(asked_to_stop, 5)])
    assert t.fit(background=True) is t and t.alive
    with pytest.raises(RunError, match="being trained already"): t.fit()
    while t.step < 3: time.sleep(0.002)
    t.pause(); at = t.step
    assert t.state == "paused"; time.sleep(0.1); assert t.step == at == 3
    t.model.eval()                                                  # whoever looks at a paused model may forget to put it back
    with pytest.raises(RunError, match="another trainer"): Trainer.reopen(tmp_path / "r", callbacks=()).fit()
    t.resume(); assert t.state == "running"
    t.stop().wait(300)
    assert t.state == "stopped" and t.step > at and not t.alive
    t.callbacks.clear()
    t.fit(background=True).wait(300)
    assert t.state == "done" and same_as(t, unbroken)


def test_controls_from_callbacks(data, tmp_path):
    "Pausing from inside does not wait for itself; saving works at once; a changed rate lasts."
    seen = []
    class Inside(Callback):
        def on_start(self, t): t.pause(); t.resume()
        def on_step(self, t, row):
            if row["step"] == 3: t.lr = 1e-4; t.save()
        def on_save(self, t, path): seen.append(step_of(path))
    t = make(data, tmp_path / "r", steps=6, schedule=Constant(), callbacks=[Inside(), At(5, interrupt)]).fit()
    assert seen == [3, 5] and list(t.history["lr"]) == [3e-3] * 3 + [1e-4] * 2
    assert list(Trainer.reopen(t.run, callbacks=()).fit().history["lr"]) == [3e-3] * 3 + [1e-4] * 3


def test_stop_while_paused(data, tmp_path):
    t = make(data, tmp_path / "r", callbacks=[At(3, lambda t: t.pause())]).fit(background=True)
    while t.state != "paused": time.sleep(0.005)
    t.stop().wait(300)
    assert t.state == "stopped" and t.step == 3


def test_an_error_in_the_background_is_raised_by_wait(data, tmp_path):
    def fail(t): raise ValueError("my own mistake")
    t = make(data, tmp_path / "r", callbacks=[At(3, fail)]).fit(background=True)
    with pytest.raises(TrainingError, match="my own mistake"): t.wait(300)
    assert t.state == "failed"


# ---- errors inside a run

def test_an_error_names_the_checkpoint_and_loses_nothing(data, unbroken, tmp_path):
    def fail(t): raise ValueError("my own mistake")
    t = make(data, tmp_path / "r", callbacks=[At(5, fail)])
    with pytest.raises(TrainingError, match=r"my own mistake.*step-00000005.*Trainer.reopen") as e: t.fit()
    assert isinstance(e.value.__cause__, ValueError) and t.state == "failed"
    t.callbacks.clear()
    assert same_as(t.fit(), unbroken)


def test_a_loss_that_is_not_a_number(data, tmp_path):
    class Poison(Callback):
        def on_step(self, t, row):
            if row["step"] == 9:
                with torch.no_grad(): next(t.model.parameters()).fill_(float("nan"))
    t = make(data, tmp_path / "r", save_every=4, callbacks=[Poison()])
    with pytest.raises(LossError, match=r"loss of step 10 is nan.*rate.*step-00000008"): t.fit()
    assert t.state == "failed" and step_of(t.folder.checkpoints()[-1]) == 8
    t.callbacks.clear(); t.fit()
    assert t.state == "done"


def test_out_of_memory_names_a_batch_that_fits(data, tmp_path):
    model = make_model(data)
    plain = model.loss
    def cramped(batch, reduction="mean"):
        if len(batch.ids) > 5: raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return plain(batch, reduction=reduction)
    model.loss = cramped
    with pytest.raises(TrainingError, match=r"batch_size = 16\. batch_size = 4 fits; with accumulate = 4"): make(data, tmp_path / "r", batch_size=16, model=model).fit()
    assert make(data, tmp_path / "r", batch_size=4, accumulate=4, steps=2, model=model).fit().state == "done"     # nothing was trained: the name is still free


def test_a_failing_dashboard_does_not_end_a_run(data, tmp_path, monkeypatch):
    from llmnb.plugins import registry
    class Broken:
        def on_start(self, t): pass
        def on_step(self, t, row): raise RuntimeError("no front end")
    monkeypatch.setitem(registry("callbacks").session, "dashboard", None)
    registry("callbacks").register("dashboard", Broken)
    with settings.override(ui="static"), pytest.warns(UserWarning, match="no front end.*training goes on"): t = make(data, tmp_path / "r", steps=4).fit()
    assert t.state == "done"


def test_a_full_disk_keeps_the_state_in_memory(data, unbroken, tmp_path, monkeypatch):
    import llmnb.train.run as state
    real = state.save_checkpoint
    def full(folder, step, fill): raise OSError(28, "No space left on device")
    t = make(data, tmp_path / "r", callbacks=[At(9, lambda t: (monkeypatch.setattr(state, "save_checkpoint", full), t.stop()))])
    with pytest.raises(TrainingError, match="No space left"): t.fit()
    assert t.step == 9 and t.state == "failed"
    monkeypatch.setattr(state, "save_checkpoint", real); t.callbacks.clear()
    assert same_as(t.fit(), unbroken)


def test_early_stop(data, tmp_path):
    t = make(data, tmp_path / "r", lr=1e-9, valid_every=2, callbacks=[EarlyStop(patience=2, by=1.0)]).fit()
    assert t.state == "stopped" and t.step == 6


# ---- damage on disk

def _cut(path): path.write_bytes(path.read_bytes()[:100])


def test_damaged_newest_falls_back_with_a_warning(data, unbroken, tmp_path):
    make(data, tmp_path / "r", save_every=4, callbacks=[At(14, lambda t: t.stop())]).fit()
    folder = RunFolder(tmp_path / "r")
    assert [step_of(p) for p in folder.checkpoints()][-2:] == [12, 14]
    _cut(folder.checkpoints()[-1] / "model.safetensors")
    with pytest.warns(UserWarning, match="step-00000014.*damaged.*100 bytes"): t = Trainer.reopen(tmp_path / "r", callbacks=())
    assert t.step == 12
    with warnings.catch_warnings():
        warnings.simplefilter("ignore"); t.fit()
    assert same_as(t, unbroken)


def test_no_whole_checkpoint(data, tmp_path):
    make(data, tmp_path / "r", callbacks=[At(4, interrupt)]).fit()
    for p in RunFolder(tmp_path / "r").checkpoints(): _cut(p / "optimizer.safetensors") if (p / "optimizer.safetensors").stat().st_size > 100 else (p / "manifest.json").unlink()
    with warnings.catch_warnings(), pytest.raises(CheckpointError, match="no whole checkpoint.*step-00000004"):
        warnings.simplefilter("ignore"); Trainer.reopen(tmp_path / "r")


def test_reopen_of_something_that_is_no_run(data, tmp_path):
    make(data, tmp_path / "hamlet", steps=1).fit()
    with pytest.raises(RunError, match="not a run.*Runs in.*hamlet"): Trainer.reopen(tmp_path / "hamlt")
    (tmp_path / "hamlet" / "run.json").write_text("{")
    with pytest.raises(RunError, match="cannot be read as JSON"): Trainer.reopen(tmp_path / "hamlet")


def test_an_existing_run_is_not_destroyed(data, tmp_path):
    make(data, tmp_path / "r", steps=2).fit()
    before = sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "r").rglob("*"))
    with pytest.raises(RunError, match=r"holds a run already.*step 2.*Trainer\.reopen.*r-2"): make(data, tmp_path / "r")
    assert before == sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "r").rglob("*"))


def test_a_run_that_moved_on_elsewhere(data, tmp_path):
    t = make(data, tmp_path / "r", callbacks=[At(4, interrupt)]).fit()
    Trainer.reopen(tmp_path / "r", callbacks=[At(6, interrupt)]).fit()
    t.callbacks.clear()
    with pytest.raises(RunError, match="at step 6.*this trainer at step 4.*reopen"): t.fit()


@pytest.mark.parametrize("where", ["file", "proc"])
def test_unwritable_folder(data, tmp_path, where):
    (tmp_path / "a-file").write_text("mine")
    run = {"file": tmp_path / "a-file" / "run", "proc": Path("/proc/1/run")}[where]
    with pytest.raises(RunError, match="cannot be written.*run=.*runs_path"): make(data, run)
    assert (tmp_path / "a-file").read_text() == "mine"


def test_other_data_is_refused(data, tmp_path):
    make(data, tmp_path / "r", callbacks=[At(4, interrupt)]).fit()
    other = TextData.pack(_texts()[:30], data.tok, objective=CausalLM(ctx=16), path=tmp_path / "other")
    with pytest.raises(RunError, match="other data"): Trainer.reopen(tmp_path / "r", data=other)


def test_data_that_is_gone_and_a_folder_that_moved(data, tmp_path):
    import shutil
    shutil.copytree(data.path, tmp_path / "a" / "data")
    make(TextData.open(tmp_path / "a" / "data"), tmp_path / "a" / "r", callbacks=[At(4, interrupt)]).fit()
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert Trainer.reopen(tmp_path / "b" / "r", callbacks=()).step == 4
    shutil.rmtree(tmp_path / "b" / "data")
    with pytest.raises(RunError, match="data of run.*pack the same text.*data=data"): Trainer.reopen(tmp_path / "b" / "r", callbacks=())
    assert Trainer.reopen(tmp_path / "b" / "r", callbacks=(), data=data).fit().state == "done"


def test_checkpoint_is_a_native_transformers_folder(data, unbroken):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(unbroken.folder.checkpoints()[-1]).eval()
    ids = torch.arange(12)[None]
    with torch.no_grad(): assert torch.allclose(theirs(ids).logits, unbroken.model.eval()(ids), atol=1e-4)


def test_any_module_with_a_loss(data, tmp_path):
    class Bigram(torch.nn.Module):
        def __init__(self): super().__init__(); self.table = torch.nn.Embedding(300, 300)
        def loss(self, batch, reduction="mean"): return torch.nn.functional.cross_entropy(self.table(batch.ids).flatten(0, 1), batch.labels.flatten(), ignore_index=-100, reduction=reduction)
    torch.manual_seed(0); first = Bigram()
    import copy
    whole = make(data, tmp_path / "a", model=copy.deepcopy(first)).fit()
    make(data, tmp_path / "b", model=copy.deepcopy(first), callbacks=[At(4, interrupt)]).fit()
    with pytest.raises(RunError, match="model=..."): Trainer.reopen(tmp_path / "b", callbacks=())
    assert losses(Trainer.reopen(tmp_path / "b", callbacks=(), model=Bigram()).fit()) == losses(whole)


# ---- arguments

@pytest.mark.parametrize("kw, message", [
    (dict(steps=None), r"steps=.*or epochs="),
    (dict(steps=5, epochs=1), "give one of them"),
    (dict(steps=0), r"steps = 0: expected a whole number from 1"),
    (dict(steps=2.5), r"steps = 2\.5"),
    (dict(steps=None, epochs=-1), r"epochs = -1"),
    (dict(batch_size=0), r"batch_size = 0: expected a whole number from 1"),
    (dict(lr=0), r"lr = 0: expected a number above 0"),
    (dict(accumulate=0), "accumulate = 0"),
    (dict(clip=0), "clip = 0"),
    (dict(warmup=24), "warmup = 24.*fewer than"),
    (dict(warmup=-1), "warmup = -1"),
    (dict(valid_every=0), "valid_every = 0"),
    (dict(save_every=0), "save_every = 0"),
    (dict(seed=-1), "seed = -1"),
    (dict(optimizer="adamv"), "adamw"),
    (dict(schedule="cosin"), "cosine"),
    (dict(schedule=Cosine(24), warmup=3), "the schedule is an object"),
    (dict(callbacks=["progres"]), "progress"),
    (dict(device="cuda:99"), "cuda:99"),
    (dict(dtype="float64"), "float64"),
    (dict(compile="yes"), "compile = 'yes'"),
])
def test_wrong_values(data, tmp_path, kw, message):
    with pytest.raises((ValueError, LLMNBError), match=message): make(data, tmp_path / "r", **kw)
    assert not (tmp_path / "r").exists()


def test_wrong_kinds(data):
    with pytest.raises(TypeError, match="no loss"): make(data, model=torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match="TextData"): Trainer(make_model(data), "hamlet.txt", steps=2)
    with pytest.raises(TypeError, match="has to make it again"): make(data, optimizer=torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1))
    with pytest.raises(TypeError, match="schedule"): make(data, schedule=3)


@pytest.mark.parametrize("call, says", [
    (lambda m, d: Trainer(m, d, step=2), "Trainer has no argument 'step'. Did you mean 'steps'"),
    (lambda m, d: Trainer(m, d, learning_rate=1e-3, steps=2), "no argument 'learning_rate'. Here it is lr"),
    (lambda m, d: Trainer(m, d, weight_decay=0.1, steps=2), r"a part of the optimizer, AdamW\(weight_decay=0.1\)"),
    (lambda m, d: Trainer(d, m, steps=2), "model and data changed places"),
    (lambda m, d: Trainer("gpt2", d, steps=2), r"a str has no loss.*load_model\(name or folder\)"),
    (lambda m, d: Trainer(m.config, d, steps=2), r"Transformer\(config\) makes one"),
    (lambda m, d: Trainer(m, ["a text"], steps=2), r"a list has no batch.*TextData.pack\(texts, tok\)"),
    (lambda m, d: Trainer(m, d.path, steps=2), r"TextData.open\(path\) of a folder")])
def test_who_writes_the_wrong_thing_is_told_the_right_one(data, call, says):
    with pytest.raises(TypeError, match=says): call(make_model(data), data)


def test_the_signature_is_the_trainers_own():
    import inspect
    assert [*inspect.signature(Trainer).parameters][:5] == ["model", "data", "steps", "epochs", "lr"]


def test_model_and_data_that_do_not_fit(data):
    small = Transformer(TransformerConfig.gpt2("tiny", vocab_size=100, ctx=16, width=32, layers=1, heads=2))
    with pytest.raises(ValueError, match=f"vocab_size={data.vocab_size}"): make(data, model=small)
    short = Transformer(TransformerConfig.gpt2("tiny", vocab_size=data.vocab_size, ctx=8, width=32, layers=1, heads=2))
    with pytest.raises(ValueError, match="sequences of 16.*ctx is 8"): make(data, model=short)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3, float("nan")])
def test_clipping_is_torchs_where_the_gradient_is_short_too(size):
    from types import SimpleNamespace

    from llmnb.train.step import Engine
    ours, theirs = (torch.nn.Linear(5, 3) for _ in range(2))
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True): a.grad = size * torch.randn_like(a); b.grad = a.grad.clone()
    engine = SimpleNamespace(accelerator=SimpleNamespace(scaler=None), saw_gradient=None, clip=1.0, model=ours)
    engine._short = lambda norm: Engine._short(engine, norm)
    assert torch.equal(Engine._clip(engine).nan_to_num(-1), torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0).nan_to_num(-1))
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True): assert torch.equal(a.grad.nan_to_num(-1), b.grad.nan_to_num(-1))
