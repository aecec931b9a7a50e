"Recorded steps: the same numbers to the last bit, as long as they are those of the model that is asked."
import gc
import threading
import weakref

import pytest
import torch
from hypothesis import given, settings as rules, strategies as st

from llmnb.all import *
from llmnb.model import recording
from llmnb.model.reader import Reader, _things

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
    assert not _things([b.norm1 for b in m.layers], [(b.mlp.up,) for b in m.layers]) and reply(m, [torch.arange(5)]) == reply(m, [torch.arange(5)], "off")
    assert recording.record(lambda x: {}["no such"], (torch.ones(2),)) is None


@pytest.fixture
def seated(monkeypatch):
    "Fixed places on a CPU, too: all but the launching of a graph."
    import llmnb.model.reader as reader
    monkeypatch.setattr(reader, "_sits", lambda x: True)


def seats(model): return [s for kept in recording._known[model].steps.values() for s in kept]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_seat_reads_what_python_reads(seated, family):
    m = decoder(family)
    prompts = [torch.arange(n) % V for n in (5, 9, 7)]
    for batch in (prompts[:1], prompts):
        for (ids, logp), (wanted, theirs) in zip(reply(m, batch), reply(m, batch, "off")):
            assert ids == wanted and torch.allclose(torch.tensor(logp), torch.tensor(theirs), atol=1e-4)
    assert len(seats(m)) == 2
    reply(m, prompts)
    assert len(seats(m)) == 2 and all(s.free for s in seats(m))           # used again, and left


def test_beams_keep_their_seat(seated):
    m = decoder()
    plain = reply(m, [torch.arange(5)], "off", n=24, strategy=Beam(3))
    assert [ids for ids, _ in reply(m, [torch.arange(5)], n=24, strategy=Beam(3))] == [ids for ids, _ in plain]
    assert len(seats(m)) == 1


@torch.inference_mode()
def test_several_caches_at_once_that_grow_are_copied_and_cut(seated):
    import copy
    m = decoder(ctx=400)
    plain, ids = Reader(m), torch.randint(0, V, (3, 330), generator=torch.Generator().manual_seed(0))
    plain.recordings = False
    fixed, a, b = Reader(m), m.new_cache(), m.new_cache()
    theirs = [m.new_cache(), m.new_cache()]
    def both(mine, other, part):
        got, wanted = fixed.hidden(part, None, mine), plain.hidden(part, None, other)
        assert torch.allclose(got, wanted, atol=2e-5)
    both(a, theirs[0], ids[:1, :8]); both(b, theirs[1], ids[1:2, :20])
    for t in range(20, 300):                                              # beyond 256: to a larger seat
        both(a, theirs[0], ids[:1, t:t + 1]); both(b, theirs[1], ids[1:2, t:t + 1])
        if t == 60: c, their = copy.deepcopy(a), copy.deepcopy(theirs[0])
        if t == 90: a.trim(30); theirs[0].trim(30)
    both(c, their, ids[2:, :1]); both(c, their, ids[2:, 1:6]); both(c, their, ids[2:, 6:7])
    assert len({id(x.store) for x in (a, b, c)}) == 3 and {s.store.shape[4] for s in seats(m)} == {256, 512}


@pytest.mark.slow
def test_a_compiled_step_reads_the_same(seated):
    m = decoder(layers=1)
    wanted, got = reply(m, [torch.arange(5)], "off", n=12), reply(m, [torch.arange(5)], "compiled", n=12)
    assert [ids for ids, _ in got] == [ids for ids, _ in wanted] and len(seats(m)) == 1


def test_what_was_recorded_in_one_mode_is_played_in_the_other():
    m, ids = decoder(), torch.arange(30)[None] % V
    def states(mode):
        cache, out = m.new_cache(), []
        with mode():
            r = Reader(m)
            r.hidden(ids[:, :8], None, cache)
            for t in range(8, 30): out.append(r.hidden(ids[:, t:t + 1], None, cache))
        return torch.cat(out).clone()
    first, other = states(torch.inference_mode), states(torch.no_grad)
    assert all(steps(m)) and torch.equal(first, other) and not other.requires_grad
    m.bfloat16().float()
    assert torch.equal(states(torch.no_grad), states(torch.inference_mode)) and all(steps(m))
