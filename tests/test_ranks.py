"Several processes train one model: the losses of one process, exact checkpoints, and no process left behind. gloo on 127.0.0.1."
import os, signal, subprocess, sys, time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llmnb.model.config import TransformerConfig
from llmnb.model.transformer import Transformer
from llmnb.settings import settings
from llmnb.text.batches import CausalLM, TextData
from llmnb.text.records import Completion
from llmnb.text.targets import Complete
from llmnb.text.tokenizer import Tokenizer
from llmnb.train import launch as launching
from llmnb.train.__main__ import RunFileError, main, read_run_file
from llmnb.train.callbacks import Callback
from llmnb.train.launch import Team, launch
from llmnb.train.ranks import RankError, Ranks, lost, rounds, rows_each
from llmnb.train.run import damage, newest, read_log, step_of
from llmnb.train.shards import in_shards, merge
from llmnb.train.state import TrainingError
from llmnb.train.trainer import Trainer

WORDS = "the king of winter speaks no word to us and all his ships are gone with summer wind".split()


def _texts(n=40):
    g = torch.Generator().manual_seed(0)
    return [" ".join(WORDS[i] for i in torch.randint(len(WORDS), (40 + 7 * (k % 13),), generator=g)) + "." for k in range(n)]


@pytest.fixture(scope="module")
def datas(tmp_path_factory):
    "Running text, and completions of very unequal lengths: ranks have unequal numbers of targets."
    folder, tok = tmp_path_factory.mktemp("packed"), Tokenizer.train(_texts(), vocab_size=300)
    pairs = [Completion(t[:20], t[20:20 + 3 * (k % 17)] or "so") for k, t in enumerate(_texts(90))]
    return dict(text=str(TextData.pack(_texts(), tok, objective=CausalLM(ctx=16), path=folder/"text").path),
                records=str(TextData.pack(pairs, tok, objective=Complete(ctx=64), path=folder/"records", valid=0.3).path))


@pytest.fixture(autouse=True)
def quiet(tmp_path):
    with settings.override(ui="none", runs_path=tmp_path/"runs", device="cpu"): yield


def make(path, run, **kw):
    data = TextData.open(path)
    model = Transformer(TransformerConfig.llama("tiny", vocab_size=data.vocab_size, ctx=64, width=32, layers=2, heads=2, kv_heads=1), seed=1)
    kw = dict(steps=8, batch_size=8, accumulate=2, valid_every=4, save_every=3, dtype="float32", device="cpu", lr=3e-3, seed=3) | kw
    return Trainer(model, data, run=run, **kw)


def curve(t): return [r["loss"] for r in t.rows if "loss" in r], [r["valid_loss"] for r in t.rows if "valid_loss" in r]
def norms(t): return [r["grad_norm"] for r in t.rows if "loss" in r]
def apart(a, b):
    "The largest difference of two curves, as a share of the loss: an absolute one would be one rounding of a loss of eight."
    return max(abs(x - y) / abs(x) for x, y in zip([*a[0], *a[1]], [*b[0], *b[1]], strict=True))


def _forms(paths, folder, size):
    "What each process of a launch does: every data set with DDP and with FSDP2; one run with the latter is stopped at step 5."
    from llmnb.train import ranks
    def sharded(yes):
        ranks.join(torch.device("cpu"))
        ranks._joined[0] = replace(ranks._joined[0], sharded=yes)
    class Stop(Callback):
        def on_step(self, t, row):
            if row["step"] == 5 and t.ranks.rank == size - 1: t.stop()           # told to one, done by all
    out = {}
    for name, path in paths.items():
        sharded(False)
        out[name, "ddp"] = curve(make(path, f"{folder}/{name}-ddp").fit())
        sharded(True)
        out[name, "fsdp"] = curve(make(path, f"{folder}/{name}-fsdp", compile=True).fit())
    t = make(paths["text"], f"{folder}/text-half", callbacks=[Stop()]).fit()
    out["half"] = t.state, t.step, in_shards(newest(t.folder))
    return out


@pytest.fixture(scope="module")
def one(datas, tmp_path_factory):
    "The same runs in one process."
    with settings.override(ui="none", device="cpu"):
        return {name: make(path, tmp_path_factory.mktemp("one")/name).fit() for name, path in datas.items()}


@pytest.fixture(scope="module")
def two(datas, tmp_path_factory):
    "Everything that two processes have to show, in one launch."
    folder = tmp_path_factory.mktemp("two")
    with settings.override(ui="none", device="cpu"): return folder, launch(_forms, 2, args=(datas, str(folder), 2), timeout=180)


# ---- equal to one process

def check_equal(one, said):
    for name, t in one.items():
        for form in ("ddp", "fsdp"):
            for rank in said: assert apart(rank[name, form], curve(t)) < 1e-6, (name, form)


def test_two_processes_have_the_losses_of_one(one, two): check_equal(one, two[1])


def test_the_targets_were_unequal(datas):
    data = TextData.open(datas["records"])
    counts = [[data.batch(n, 4, "train", 3, rank=r, world=2).n_targets for r in range(2)] for n in range(12)]
    assert sum(a != b for a, b in counts) >= 10
    mean = lambda n: sum(sum(data.batch(n, 4, "train", 3, rank=r, world=2).n_targets for r in range(2)) for _ in [0])
    assert [data.batch(n, 8, "train", 3).n_targets for n in range(12)] == [mean(n) for n in range(12)]


def test_norms_and_weights_are_those_of_one(one, two):
    for name, t in one.items():
        for form in ("ddp", "fsdp"):
            back = Trainer.reopen(two[0]/f"{name}-{form}")
            assert max(abs(a - b) for a, b in zip(norms(back), norms(t), strict=True)) < 1e-5
            for a, b in zip(back.model.state_dict().values(), t.model.state_dict().values(), strict=True):
                assert (a - b).abs().max() < 1e-4       # AdamW divides by the root of tiny squares: 8 steps of 3e-3


def test_what_divided_weights_cannot_have_is_said_once(two):
    said = [r["notice"] for r in Trainer.reopen(two[0]/"text-fsdp").rows if "notice" in r]
    assert len(said) == 1 and "compile = True has no effect" in said[0] and "strategy='ddp' compiles" in said[0]
    assert not any("notice" in r for r in Trainer.reopen(two[0]/"text-ddp").rows)


def test_a_run_that_is_done_left_plain_files(two):
    for name in ("text-ddp", "text-fsdp"):
        last = newest(Trainer.reopen(two[0]/name).folder)
        assert step_of(last) == 8 and damage(last) is None and not (last/"shards").exists()
        assert {"model.safetensors", "optimizer.safetensors", "optimizer.json", "trainer.json"} <= {p.name for p in last.iterdir()}
        assert not [p for p in (two[0]/name).rglob("*") if p.suffix in (".pt", ".pkl", ".distcp", ".bin", ".metadata")]


@pytest.mark.filterwarnings("ignore:callbacks of run")
def test_parts_of_two_processes_go_on_in_one(one, two):
    assert all(rank["half"] == ("stopped", 5, True) for rank in two[1])
    back = Trainer.reopen(two[0]/"text-half")
    last = merge(newest(back.folder))                               # on request: plain files, the same run
    assert damage(last) is None and not in_shards(last) and (last/"model.safetensors").exists()
    plain = Trainer.reopen(back.run)
    assert all(map(torch.equal, plain.model.state_dict().values(), back.model.state_dict().values()))
    assert back.step == 5 and apart(curve(back.fit()), curve(one["text"])) < 1e-6 and back.state == "done"


# ---- a process is killed

class _Kill(Callback):
    def __init__(self, rank, step): self.rank, self.step = rank, step
    def on_update(self, t, loss, norm):
        if t.ranks.rank == self.rank and t.step == self.step: os.kill(os.getpid(), signal.SIGKILL)


def _killed(run, rank, step): Trainer.reopen(run, callbacks=[_Kill(rank, step)]).fit()


def alive(pids): return [p for p in pids if Path(f"/proc/{p}").exists() and "Z" not in Path(f"/proc/{p}/stat").read_text().split(")")[1].split()[0]]


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_killed_process_ends_the_run_with_a_checkpoint(rank, datas, two, tmp_path, monkeypatch):
    t, pids = make(datas["text"], tmp_path/"run"), []
    launching.lay_out(t)
    monkeypatch.setattr(Team, "watch", lambda self, real=Team.watch: (pids.extend(p.pid for p in self.members), real(self))[1])
    start = time.monotonic()
    with pytest.raises(RankError, match=f"process {rank} of 2 was ended by SIGKILL"): launch(_killed, 2, args=(str(t.run), rank, 5), timeout=180)
    assert time.monotonic() - start < 600 and len(pids) == 2 and not alive(pids)
    last, rows = newest(t.folder), read_log(t.run)
    assert step_of(last) in (4, 5) and damage(last) is None             # the state of the last whole step, not that of step 3
    assert [r["step"] for r in rows if "loss" in r][:step_of(last)] == list(range(1, step_of(last) + 1))
    back = launch(Trainer.reopen(t.run), 2)
    assert back.state == "done" and curve(back) == two[1][0]["text", "ddp"]     # bit for bit the unbroken run of two processes
    assert read_log(t.run) == back.rows


def test_an_interrupt_stops_all_and_a_killed_one_is_named(datas, tmp_path, monkeypatch):
    t, asked, teams = make(datas["text"], tmp_path/"run", steps=9000, valid_every=9000, save_every=10), [], []
    def show(self, real=Team._show):
        real(self)
        if self not in teams: teams.append(self)
        if len(asked) == len(teams): return                                 # a team is disturbed once
        n = max((r["step"] for r in read_log(t.run)), default=0)
        if len(teams) == 1 and n > 10: asked.append(n); raise KeyboardInterrupt
        if len(teams) == 2 and n > t.step + 15: asked.append(n); self.members[1].kill()
    monkeypatch.setattr(Team, "_show", show)
    assert launch(t, 2) is t
    assert t.state == "stopped" and 10 < t.step < 9000 and step_of(newest(t.folder)) == t.step >= t.rows[-1]["step"] >= asked[0]
    with pytest.raises(TrainingError, match=r"process 1 of 2 was ended by SIGKILL\. The last checkpoint is .*launch\(trainer, processes=2\)"):
        launch(t, 2, strategy="fsdp")
    assert t.state == "failed" and step_of(newest(t.folder)) == t.step > asked[0] and not alive(p.pid for p in teams[-1].members)
    assert in_shards(newest(t.folder)) and len(asked) == 2              # the model came into this process from its parts


# ---- what goes wrong is said

def _fails():
    from llmnb.train.ranks import join
    ranks = join(torch.device("cpu"))
    if ranks.rank == 1: raise ZeroDivisionError("the second one divides")
    ranks.wait()


@pytest.mark.slow
def test_the_traceback_is_that_of_the_process_that_failed():
    with pytest.raises(RankError, match=r"(?s)process 1 of 2 failed.*in _fails.*ZeroDivisionError: the second one divides"): launch(_fails, 2, timeout=180)


@pytest.mark.parametrize("kw, error, words", [
    (dict(processes=3), RankError, "batch_size = 8 does not divide among 3 processes.*6 or 9"), (dict(processes=0), ValueError, "whole number from 1"),
    (dict(processes=2, strategy="fdsp"), ValueError, "Did you mean 'fsdp'")])
def test_what_cannot_be_launched(kw, error, words, datas, tmp_path):
    with pytest.raises(error, match=words): launch(make(datas["text"], tmp_path/"run"), **kw)
    assert not (tmp_path/"run").exists()


def test_a_model_without_a_folder_cannot_be_launched(datas, tmp_path):
    class Own(torch.nn.Module):
        def __init__(self): super().__init__(); self.w = torch.nn.Parameter(torch.zeros(4, 4))
        def loss(self, batch, reduction="mean"): return self.w.square().sum()
    t = Trainer(Own(), TextData.open(datas["text"]), steps=2, run=tmp_path/"run", dtype="float32", lr=1e-3)
    with pytest.raises(RankError, match="launch\\(function"): launch(t, 2)
    with pytest.raises(TypeError, match="expected a Trainer or a function"): launch(7)


def test_callbacks_that_swap_weights_do_not_go_with_parts(datas, tmp_path):
    class Average(Callback):
        def during_valid(self, t): ...
    t = make(datas["text"], tmp_path/"run", callbacks=[Average()])
    with pytest.raises(RankError, match="Average changes the weights.*use strategy='ddp'"): launch(t, 2, strategy="fsdp")


def test_a_lost_peer_is_told_from_other_errors(monkeypatch):
    assert not lost(RuntimeError("Connection closed by peer"))
    for k, v in dict(WORLD_SIZE="2", RANK="0", MASTER_ADDR="127.0.0.1").items(): monkeypatch.setenv(k, v)
    assert lost(RuntimeError("[../gloo/transport] Connection closed by peer")) and not lost(ValueError("gloo")) and not lost(RuntimeError("shape"))


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_rounds_give_each_batch_once(size, datas):
    batches = list(TextData.open(datas["text"]).valid_batches(3))
    given = [list(rounds(batches, Ranks(r, size))) for r in range(size)]
    assert len({len(g) for g in given}) == 1 and sum(b.n_targets for g in given for b in g) == sum(b.n_targets for b in batches)
    assert rows_each(12, size) * size == 12


# ---- from a file

FILE = """
[data]
path = {path!r}
[model]
family = "llama"
width = 32
layers = 2
heads = 2
kv_heads = 1
ctx = 64
seed = 1
[train]
steps = 8
batch_size = 8
accumulate = 2
valid_every = 4
save_every = 3
dtype = "float32"
device = "cpu"
lr = 3e-3
seed = 3
"""


def write_file(tmp_path, datas, text=FILE):
    file = tmp_path/"run.toml"
    file.write_text(text.format(path=datas["text"]))
    return file


def test_a_file_is_the_same_run(one, datas, tmp_path, capsys):
    file = write_file(tmp_path, datas)
    words = [str(file), f"run={tmp_path/'run'}"]
    assert main(words) == 0 and curve(Trainer.reopen(tmp_path/"run")) == curve(one["text"])
    with settings.override(ui="text"): assert main(words) == 0 and main([str(tmp_path/"run")]) == 0                # done: nothing to do
    assert capsys.readouterr().out.count("done already, at step 8 of 8") == 2
    assert main([*words, "train.steps=20"]) == 1 and "differ: train.steps" in capsys.readouterr().err
    with pytest.raises(SystemExit) as e: main(["--help"])
    assert e.value.code == 0 and "accelerate launch" in capsys.readouterr().out


@pytest.mark.parametrize("wrong, words", [
    ("[train]\nstep = 3", "no key 'step'. Did you mean 'steps'"), ("[modell]", "no key 'modell'. Did you mean 'model'"), ("[model]\nfamily = 1\nwidht = 3", "Did you mean 'width'"),
    ("[data]\ncorpus = 'a'\npath = 'b'", "one of the two"), ("[data]\ncorpus =", "Invalid value"), ("", "table \\[data\\] is missing")])
def test_a_wrong_key_is_named_with_the_nearest(wrong, words, tmp_path):
    full = {"data": "[data]\ncorpus = 'shakespeare'", "model": "[model]\nfamily = 'llama'", "train": "[train]\nsteps = 1"}
    text = "\n".join([wrong, *(v for k, v in full.items() if wrong and f"[{k}]" not in wrong)])
    (tmp_path/"x.toml").write_text(text)
    with pytest.raises(RunFileError, match=words): read_run_file(tmp_path/"x.toml")


def test_what_is_no_file_and_no_run(tmp_path, capsys):
    assert main([str(tmp_path/"nothing.toml")]) == 1 and "neither a run folder nor a .toml file" in capsys.readouterr().err
    assert main([str(tmp_path)]) == 1 and "has no run.json" in capsys.readouterr().err


# ---- slow: a real kernel, four processes, the shell

@pytest.mark.slow
def test_in_a_kernel_an_interrupt_reaches_the_cell_and_its_death_ends_the_processes(datas, tmp_path):
    from jupyter_client.manager import start_new_kernel
    run = tmp_path/"run"
    km, kc = start_new_kernel(kernel_name="python3", env={**os.environ, "LLMNB_UI": "text", "PYTHONPATH": str(Path(__file__).parent.parent)})
    def said(msg_id):
        while True:
            m = kc.get_iopub_msg(timeout=240)
            if m["parent_header"].get("msg_id") != msg_id: continue
            if m["msg_type"] == "error": return "".join(m["content"]["traceback"])
            if m["msg_type"] == "stream": out.append(m["content"]["text"])
            if m["content"].get("execution_state") == "idle": return None
    def rows(n):
        while len(read_log(run)) <= n: time.sleep(0.1)
    out = []
    try:
        code = (Path(__file__).read_text().split("def make(")[1].split("def curve(")[0])
        start = "import sys; from llmnb.all import *\nfrom llmnb.train.launch import Team\ndef make(" + code
        start += f"t = make({datas['text']!r}, {str(run)!r}, steps=1900, valid_every=1900, save_every=1900)\n"
        start += "real = Team.watch\ndef watch(self): print('pids', *(p.pid for p in self.members), flush=True); return real(self)\nTeam.watch = watch"
        assert said(kc.execute(start)) is None
        going = kc.execute("launch(t, 2)")
        rows(20); km.interrupt_kernel()
        assert said(going) is None, "the cell ends as if the run were done"
        assert said(kc.execute("print(t.state, t.step == len(t.history))")) is None and "stopped True" in "".join(out)
        before, going = len(read_log(run)), kc.execute("launch(t, 2)")
        rows(before + 20)
        while True:
            m = kc.get_iopub_msg(timeout=300)
            if m["msg_type"] == "stream" and m["content"]["text"].startswith("pids"): break
        pids = [int(p) for p in m["content"]["text"].split()[1:3]]
    finally: km.shutdown_kernel(now=True)
    end = time.monotonic() + 60
    while alive(pids) and time.monotonic() < end: time.sleep(0.2)
    t = Trainer.reopen(run)
    assert not alive(pids) and t.step > before and t.step == len(curve(t)[0])



@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:callbacks of run")
def test_four_processes_have_the_losses_of_one_and_their_parts_go_on_in_two_and_one(one, datas, tmp_path):
    said = launch(_forms, 4, args=(datas, str(tmp_path), 4), timeout=300)
    check_equal(one, said)
    run = tmp_path/"text-half"
    assert said[0]["half"] == ("stopped", 5, True)
    def one_more(run):
        class Stop(Callback):
            def on_step(self, t, row): t.stop()
        t = Trainer.reopen(run, callbacks=[Stop()]).fit()
        return t.step, in_shards(newest(t.folder))
    assert launch(one_more, 2, strategy="fsdp", args=(str(run),)) == [(6, True)] * 2
    assert apart(curve(Trainer.reopen(run).fit()), curve(one["text"])) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("words", [["accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0", "-m"],
                                   ["torchrun", "--standalone", "--nproc_per_node", "2", "-m"]])
def test_the_same_run_from_a_shell(words, one, datas, tmp_path):
    file = write_file(tmp_path, datas)
    command = [str(Path(sys.executable).with_name(words[0])), *words[1:], "llmnb.train", str(file), f"run={tmp_path/'run'}"]
    env = {**os.environ, "LLMNB_UI": "text", "GLOO_SOCKET_IFNAME": "lo"}
    ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout.count("validation loss") == 2                             # the main one writes, and nobody else
    assert apart(curve(Trainer.reopen(tmp_path/"run")), curve(one["text"])) < 1e-6
