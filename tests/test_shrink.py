"""Packed models: equal to their plain versions, the same object, saved and read back."""
import pytest
import torch

from llmnb.decode.generate import generate
from llmnb.model.config import TransformerConfig
from llmnb.model.reader import Reader, quick, readable
from llmnb.model.transformer import Transformer
from llmnb.shrink.quantize import FORMS, QuantizeError, load_quantized, quantize, save_quantized, size_of


def make(family="llama", **more):
    cfg = getattr(TransformerConfig, family)("tiny", **{**dict(vocab_size=96, ctx=64, width=64, layers=2, heads=4), **more})
    return Transformer(cfg, seed=3).eval()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "gemma2"])
def test_packed_in_order_changes_no_id(family, tied):
    model = make(family, tied=tied)
    packed, ids = quantize(model, "packed"), torch.arange(20, 30)
    assert generate(packed, None, ids, max_new_tokens=20).ids == generate(model, None, ids, max_new_tokens=20).ids


@pytest.mark.parametrize("how", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family, tied", [("llama", True), ("gpt2", False)])
def test_the_packed_model_is_what_its_weights_say(tmp_path, how, dtype, family, tied):
    model = make(family, tied=tied).to(dtype)
    before = {n: p.clone() for n, p in model.state_dict().items()}
    small, ids = quantize(model, how), torch.arange(40).view(2, 20)
    plain = make(family, tied=tied)
    plain.load_state_dict({n: t.float() for n, t in small.state_dict().items()}, strict=False)
    if tied and how != "packed": plain.head.weight = torch.nn.Parameter(small.head.weight.float())
    with torch.inference_mode(): a, b = small(ids).float(), plain(ids)
    assert (a - b).norm() / b.norm() < (2e-2 if dtype == torch.bfloat16 or how in ("int8", "int4", "dynamic-int8") else 1e-5)
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())
    again = load_quantized(save_quantized(small, tmp_path / "m"))
    with torch.inference_mode(): assert torch.equal(again(ids), small(ids))
    assert size_of(again) == size_of(small)


def test_shapes_that_four_bits_cannot_take_get_eight():
    model = make(vocab_size=97, width=48)
    small = quantize(model, "int4")
    forms = {(m.in_features % 32 or m.out_features % 16) and 1: m.form for m in small.layers.modules() if hasattr(m, "form")}
    assert forms == {0: "int4", 1: "int8"}
    assert small.head.linear.form in ("int8", "dynamic-int8")        # the words are too dear for four
    assert generate(small, None, [1, 2, 3], max_new_tokens=5).ids


def test_what_cannot_be_packed_is_said():
    model = make()
    with pytest.raises(QuantizeError, match="int8"): quantize(model, "int6")
    with pytest.raises(QuantizeError, match="already"): quantize(quantize(model), "int4")
    with pytest.raises(QuantizeError, match="float"): quantize(make().half())
    with pytest.raises(TypeError): quantize("model")


@pytest.mark.parametrize("how", [None, *FORMS])
def test_the_reader_says_what_the_model_says(how):
    model = make(kv_heads=2) if how is None else quantize(make(kv_heads=2), how)
    assert readable(model) and type(quick(model)) is Reader
    ids, out = torch.arange(36).view(2, 18), []
    mask = torch.ones(2, 18, dtype=torch.long); mask[1, :5] = 0
    with torch.inference_mode():
        for reader in (model, Reader(model)):
            cache = model.new_cache()
            out.append([reader.unembed(reader.hidden(part, mask[:, :end], cache))[:, -1]
                        for part, end in zip(ids.split([10, 1, 1, 6], 1), (10, 11, 12, 18))])
    limit = 1e-5 if how in (None, "packed") else 2e-2
    assert all((a - b).norm() / a.norm() < limit for a, b in zip(*out))


def test_the_reader_leaves_the_model_to_itself_where_it_must():
    model = make()
    seen = []
    with torch.inference_mode(), model.hooks({"layers.0.resid_post": lambda t, name: seen.append(name)}):
        generate(model, None, [1, 2, 3], max_new_tokens=3)
    assert len(seen) == 3
    cache = model.new_cache()
    assert not Reader(model).goes(cache)                        # gradients are on
    assert not readable(make("gemma2"))
