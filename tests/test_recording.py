"Recorded steps: the same numbers to the last bit, as long as they are those of the model that is asked."
import gc
import threading
import weakref

import pytest
import torch
from hypothesis import given, settings as rules, strategies as st

from llmnb.all import *
from llmnb.model import recording
from llmnb.model.reader import Reader

V = 64
FAMILIES = ("gpt2", "llama", "qwen2")
FORMS = (None, "packed", "int8", "int4", "dynamic-int8")


def decoder(family="llama", form=None, dtype=torch.float32, **more):
    torch.manual_seed(1)
    shape = dict(vocab_size=V, ctx=96, width=64, layers=2, heads=4) | more
    if family != "gpt2": shape["kv_heads"] = 2
    m = Transformer(getattr(TransformerConfig, family)("tiny", **shape), seed=0).to(dtype).eval()
    return m if form is None else quantize(m, form)


def reply(model, prompts, how="auto", n=40, **more):
    with settings.override(recording=how, ui="none"):
        return [(r.ids, r.logprobs) for r in generate(model, None, prompts, max_new_tokens=n, **more)]


def steps(model): return [s for s in recording._known[model].steps.values()] if model in recording._known else []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_played_is_bit_for_bit_what_python_does(family, form, dtype):
    m = decoder(family, form, dtype)
    prompts = [torch.arange(n) % V for n in (5, 9, 7)]
    for batch in (prompts[:1], prompts):                                  # without a mask, and with one
        plain, played = reply(m, batch, "off"), reply(m, batch)
        assert played == plain and reply(m, batch) == plain
    assert len(steps(m)) >= 2 and all(steps(m))


@given(rows=st.lists(st.integers(1, 30), min_size=1, max_size=5), n=st.integers(18, 40), family=st.sampled_from(FAMILIES))
@rules(max_examples=12, deadline=None)
def test_whatever_the_lengths(rows, n, family):
    m = decoder(family)
    prompts = [torch.randint(0, V, (r,), generator=torch.Generator().manual_seed(r)) for r in rows]
    assert reply(m, prompts, n=n) == reply(m, prompts, "off", n=n)


def test_a_change_inside_the_weights_is_played():
    m = decoder()
    before = reply(m, [torch.arange(5)])
    with torch.no_grad():
        for p in m.parameters(): p.mul_(1.5)
    after = reply(m, [torch.arange(5)])
    assert after == reply(m, [torch.arange(5)], "off") != before


def test_weights_that_move_are_recorded_anew():
    m = decoder()
    reply(m, [torch.arange(5)])
    old = recording._known[m]
    m.bfloat16()
    assert reply(m, [torch.arange(5)]) == reply(m, [torch.arange(5)], "off") and recording._known[m] is not old


def test_who_listens_is_heard():
    m, heard = decoder(), []
    reply(m, [torch.arange(5)])
    with m.hooks({"layers.0.mlp.out": lambda t, name: heard.append(len(t))}): reply(m, [torch.arange(5)], n=3)
    assert len(heard) == 3
    handle = m.layers[1].attn.qkv.register_forward_hook(lambda *_: heard.append("qkv"))
    reply(m, [torch.arange(5)], n=3)
    assert heard[3:] == ["qkv"] * 3
    handle.remove()


def test_adapters_are_read_by_python():
    m = decoder()
    reply(m, [torch.arange(5)])
    base = reply(m, [torch.arange(5)], "off")
    lora(m, rank=2)
    with torch.no_grad():
        for p in m.parameters():
            if p.requires_grad: p.add_(0.05)
    assert reply(m, [torch.arange(5)]) == reply(m, [torch.arange(5)], "off") != base


def test_it_lives_as_long_as_its_model():
    m = decoder()
    reply(m, [torch.arange(5)])
    assert all(steps(m))
    gone = weakref.ref(m)
    del m
    gc.collect()
    assert gone() is None


def test_several_threads_play_at_once():
    m, prompts = decoder(form="dynamic-int8"), [[torch.arange(k) % V] for k in (3, 6, 9, 12)]
    wanted, got = [reply(m, p, "off") for p in prompts], [None] * 4
    def work(i): got[i] = [[(r.ids, r.logprobs) for r in generate(m, None, prompts[i], max_new_tokens=40)] for _ in range(3)]
    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    with settings.override(ui="none"):
        for t in threads: t.start()
        for t in threads: t.join()
    assert got == [[w] * 3 for w in wanted]


def test_what_cannot_be_recorded_is_done_by_python():
    class Strange(torch.nn.Linear):
        def forward(self, x): return super().forward(x) * 1.25
    m = decoder()
    old = m.layers[0].mlp.up
    m.layers[0].mlp.up = new = Strange(old.in_features, old.out_features, bias=False)
    new.weight = old.weight
    assert not Reader(m).things and reply(m, [torch.arange(5)]) == reply(m, [torch.arange(5)], "off")
    assert recording.record(lambda x: torch.tensor(float("nan")) if x.sum() > 1e9 else {}["no such"], (torch.ones(2),)) is None
