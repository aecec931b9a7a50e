"What a GPU has to show: `pytest -m gpu`. LLMNB_TEST_DEVICE=cpu runs the same checks where there is none."
import os

import pytest
import torch

from llmnb.all import *

DEVICE = os.environ.get("LLMNB_TEST_DEVICE", "cuda")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no CUDA device")]
TEXTS = [f"line {i}: the quick brown fox jumps over the lazy dog, {i * 7919 % 1000} times over.\n" * 20 for i in range(40)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    tok = Tokenizer.train(TEXTS, vocab_size=400)
    return TextData.pack(TEXTS, tok, objective=CausalLM(ctx=32), path=tmp_path_factory.mktemp("gpu")/"data", valid=0.1)


@pytest.fixture(autouse=True)
def quiet():
    with settings.override(ui="none"): yield


def model(data, family="llama"): return Transformer(getattr(TransformerConfig, family)("tiny", vocab_size=data.vocab_size, ctx=64), seed=3)


def train(data, run, steps=24, **kwargs):
    return Trainer(model(data), data, steps=steps, batch_size=8, lr=2e-3, device=DEVICE, seed=5, valid_every=8, run=run, **kwargs)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_logits_are_those_of_the_cpu(data, family):
    m, ids = model(data, family), data.batch(0, 4).ids
    with torch.no_grad(): here, there = m(ids), m.to(DEVICE)(ids.to(DEVICE)).cpu()
    assert (here - there).abs().max() < 2e-4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_it_learns_in_every_number_format(data, tmp_path, dtype):
    if DEVICE == "cpu" and dtype == "float16": pytest.skip("a loss scale needs a GPU")
    t = train(data, tmp_path/"run", dtype=dtype).fit()
    assert t.history.loss.iloc[-1] < t.history.loss.iloc[0] - 0.5 and t.model.device.type == DEVICE


def test_a_resumed_run_goes_on_bit_for_bit(data, tmp_path):
    whole = train(data, tmp_path/"whole", dtype="float32", save_every=4).fit().history.loss.tolist()
    class StopAt(Callback):
        def on_step(self, t, row):
            if t.step == 10: t.stop()
    train(data, tmp_path/"cut", dtype="float32", save_every=4, callbacks=[StopAt()]).fit()
    rest = Trainer.reopen(tmp_path/"cut", callbacks=())
    assert rest.step == 10 and rest.fit().history.loss.tolist() == whole


def test_replies_are_those_of_the_cpu_and_of_any_batch(data):
    m = model(data)
    prompts = ["the quick", "line 7: the lazy dog"]
    here = [generate(m, data.tok, p, max_new_tokens=16).ids for p in prompts]
    m.to(DEVICE)
    assert [r.ids for r in generate(m, data.tok, prompts, max_new_tokens=16)] == here
    assert generate(m, data.tok, prompts[0], max_new_tokens=16, cache=False).ids == here[0]
    a, b = (generate(m, data.tok, prompts[0], max_new_tokens=16, strategy=Sample(temperature=0.9), seed=1).ids for _ in range(2))
    assert a == b


@pytest.mark.parametrize("how", ["auto", "compiled"])
def test_a_graph_replies_as_python_does(data, how):
    from llmnb.model.recording import _known
    m = model(data).to(DEVICE)
    prompts = ["the quick", "line 7: the lazy dog", "line"]
    def say(batch, how, **more):
        with settings.override(recording=how): return [r.ids for r in generate(m, data.tok, batch, max_new_tokens=32, **more)]
    for batch in (prompts[:1], prompts):
        plain = say(batch, "off")
        assert say(batch, how) == plain and say(batch, how) == plain      # the second time all of it from the graph
    assert say(prompts[:1], how, strategy=Beam(3)) == say(prompts[:1], "off", strategy=Beam(3))
    if DEVICE == "cuda": assert sum(s.free for seats in _known[m].steps.values() for s in seats) >= 3


def test_the_probe_finds_a_format():
    found = probe(DEVICE, refresh=True)
    assert found.rates["float32"] > 0 and found.dtype in found.rates


@pytest.mark.skipif(DEVICE == "cuda" and torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_devices_have_the_losses_of_one(data, tmp_path, strategy):
    one = train(data, tmp_path/"one", dtype="float32").fit()            # this process holds the first GPU meanwhile
    two = launch(train(data, tmp_path/"two", dtype="float32"), processes=2, strategy=strategy)
    assert two.state == "done" and (one.history["loss"] - two.history["loss"]).abs().max() < (1e-4 if DEVICE == "cuda" else 1e-5)
    assert abs(one.valid_loss - two.valid_loss) < 1e-4 and Trainer.reopen(two.run).step == 24
