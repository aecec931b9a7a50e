"""Weights in and out: layouts both ways, folders, shards, GGUF and ONNX, each against the library whose format it is."""
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings as hyp, strategies as st
from torch import nn

from conftest import model_of
from llmnb.model.config import TransformerConfig
from llmnb.model.families import Family, llama
from llmnb.model.ggufs import PACKINGS, save_gguf, tokenizer_fields
from llmnb.model.layouts import AnyOf, ByHeads, Changed, Fixed, Layout, Pairs, Turned, WeightsError, from_theirs, read_rope, to_theirs, write_rope
from llmnb.model.onnx_out import save_onnx
from llmnb.model.positions import RoPE
from llmnb.model.scaling import NTK, Linear, Llama3, YaRN
from llmnb.model.transformer import Transformer
from llmnb.model.weights import find_layout, layout_of, load_model, load_weights, model_type, save_model
from llmnb.plugins import registry

V, CTX = 97, 48


def tiny(family="llama", **kw):
    return getattr(TransformerConfig, family)("tiny", **dict(vocab_size=V, ctx=CTX, width=32, layers=2, heads=4) | kw)


def draw(B=3, T=20, seed=0):
    return torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(seed))


def bits(t): return t.contiguous().view(torch.int32 if t.dtype == torch.float32 else torch.int16)


def same_bits(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(bits(a[k]), bits(b[k])) for k in a)


# ---- layouts

class Toy(nn.Module):
    "Every way of lying differently, in one module."
    def __init__(self, heads=2, kv_heads=1, size=4, layers=2, tied=True, fill=None):
        super().__init__()
        D, M = heads * size, 6
        self.config = SimpleNamespace(heads=heads, kv_heads=kv_heads, head_size=size, tied=tied, mlp_width=M)
        self.embed, self.encoder = nn.Embedding(5, D), nn.Module()
        self.layers = nn.ModuleList(nn.Module() for _ in range(layers))
        self.encoder.layers = nn.ModuleList(nn.Module() for _ in range(layers))
        for layer in self.layers:
            layer.attn, layer.cross, layer.mlp = nn.Module(), nn.Module(), nn.Module()
            layer.attn.qkv, layer.cross.q, layer.cross.kv = nn.Linear(D, (heads + 2 * kv_heads) * size), nn.Linear(D, D), nn.Linear(D, 2 * D)
            layer.mlp.up, layer.mlp.down = nn.Linear(D, 2 * M), nn.Linear(M, D)
            layer.attn.sinks = nn.Parameter(torch.zeros(heads))
        for layer in self.encoder.layers: layer.attn = nn.Module(); layer.attn.qkv = nn.Linear(D, 3 * D)
        if not tied: self.head = nn.Linear(D, 5, bias=False)
        if fill is not None:
            with torch.no_grad():
                for p in self.parameters(): p.copy_(fill(p.shape))
        for layer in self.layers: layer.cross.kv.bias.data[:D] = 0


TOY = Layout("Toy", prefix="toy.", ignored=("*.pooler.*",), constants={"final_bias": lambda c: torch.zeros(1, 5)}, names={
    "embed": AnyOf("toy.shared", "toy.encoder.embed", "toy.decoder.embed"),
    "head": "lm_head",
    "layers.{}.attn.qkv": (Pairs("toy.h.{}.q"), Pairs("toy.h.{}.k", "kv_heads"), "toy.h.{}.v"),
    "layers.{}.attn.sinks": "toy.h.{}.sinks",
    "layers.{}.cross.q": "toy.h.{}.cross.q_proj",
    "layers.{}.cross.kv": ("toy.h.{}.cross.k_proj", "toy.h.{}.cross.v_proj"),
    "layers.{}.cross.kv.bias": (Fixed(0), "toy.h.{}.cross.v_proj.bias"),
    "layers.{}.mlp.up": (Turned("toy.h.{}.gate"), Turned("toy.h.{}.up")),
    "layers.{}.mlp.down": Changed(Turned("toy.h.{}.down"), lambda t, c: t / 2, lambda t, c: t * 2),
    "encoder.layers.{}.attn.qkv": ByHeads("toy.encoder.{}.query_key_value"),
})


@hyp(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.sampled_from([1, 2]), st.sampled_from([2, 4, 6]), st.integers(1, 11), st.booleans(), st.integers(0, 10**6))
def test_there_and_back_is_the_identity_bit_for_bit(groups, kv_heads, size, layers, tied, seed):
    g = torch.Generator().manual_seed(seed)
    def any_bits(shape): # every float but those that doubling changes: zeros of both signs, tiny and large ones
        return torch.randn(shape, generator=g) * 10.0 ** torch.randint(-20, 20, shape, generator=g)
    toy = Toy(groups * kv_heads, kv_heads, size, layers, tied, any_bits)
    theirs = to_theirs(toy, TOY)
    assert theirs["final_bias"].shape == (1, 5) and ("lm_head.weight" in theirs) == (not tied) and "toy.h.0.cross.k_proj.bias" not in theirs
    again = Toy(groups * kv_heads, kv_heads, size, layers, tied)
    from_theirs(again, theirs, TOY)
    assert same_bits(toy, again)
    bare = {k.removeprefix("toy."): v for k, v in theirs.items()}        # the bare model's file
    from_theirs(again := Toy(groups * kv_heads, kv_heads, size, layers, tied), bare, TOY)
    assert same_bits(toy, again)


def test_by_heads_is_what_gpt_neox_computes():
    H, K, D = 3, 4, 12
    theirs, x = torch.randint(-9, 10, (3 * D + 5, D), generator=torch.Generator().manual_seed(0)).float().split((3 * D, 5))    # whole numbers: exact in any order
    c = SimpleNamespace(heads=H, kv_heads=H, head_size=K)
    ours = ByHeads("w").take(lambda names: theirs, torch.empty(3 * D, D, device="meta"), c)
    q, k, v = (x @ theirs.T).view(5, H, 3 * K).chunk(3, -1)               # as GPTNeoXAttention cuts it
    assert torch.equal(x @ ours.T, torch.cat([t.reshape(5, D) for t in (q, k, v)], 1))
    [(_, back)] = ByHeads("w").give(ours, c)
    assert torch.equal(back, theirs)


def test_all_that_does_not_fit_is_told_at_once():
    toy, theirs = Toy(), to_theirs(Toy(), TOY)
    theirs["extra"], theirs["toy.h.1.v.weight"] = torch.ones(1), torch.ones(3, 8)
    del theirs["toy.h.0.q.bias"], theirs["toy.shared.weight"]
    theirs["toy.pooler.dense.weight"] = torch.ones(2)                     # may be left aside
    with pytest.raises(WeightsError) as e: from_theirs(toy, theirs, TOY, "here")
    for words in ("here does not hold", "missing: toy.shared.weight, toy.h.0.q.bias\n", "not known: extra\n", "toy.h.1.v.weight (3, 8), expected (4, 8)"): assert words in str(e.value)
    assert "pooler" not in str(e.value)


def test_names_for_one_tensor_must_agree():
    toy, theirs = Toy(), to_theirs(Toy(fill=torch.randn), TOY)
    theirs["toy.decoder.embed.weight"] = theirs["lm_head.weight"] = theirs["toy.shared.weight"].clone()
    from_theirs(toy, theirs, TOY)
    del theirs["toy.shared.weight"]                                       # any of the names will do
    from_theirs(toy, theirs, TOY)
    assert torch.equal(toy.embed.weight, theirs["lm_head.weight"])
    theirs["lm_head.weight"] = theirs["lm_head.weight"] + 1
    with pytest.raises(WeightsError, match="here holds the embedding and lm_head.weight.*tie_word_embeddings"): from_theirs(toy, theirs, TOY, "here")
    theirs.pop("lm_head.weight"); theirs["toy.encoder.embed.weight"] = theirs["toy.decoder.embed.weight"] * 2
    with pytest.raises(WeightsError, match="toy.encoder.embed.weight and toy.decoder.embed.weight.*differ"): from_theirs(toy, theirs, TOY)


def test_constants_and_fixed_values_are_checked():
    toy, theirs = Toy(), to_theirs(Toy(), TOY)
    theirs["final_bias"] = torch.ones(1, 5)
    with pytest.raises(WeightsError, match="holds final_bias.*no place for"): from_theirs(toy, theirs, TOY)
    del theirs["final_bias"]
    from_theirs(toy, theirs, TOY)
    toy.layers[1].cross.kv.bias.data[0] = 1
    with pytest.raises(WeightsError, match=r"layers.1.cross.kv.bias: they have no place for it, and it is not 0"): to_theirs(toy, TOY)


def test_layers_that_share_one_tensor():
    shared = Layout("Albert", names={k: v.replace("h.{}", "group.0") if isinstance(v, str) else v for k, v in {"layers.{}.o": "h.{}.o"}.items()})
    class Model(nn.Module):
        def __init__(self, one):
            super().__init__()
            self.config, first = SimpleNamespace(tied=False), nn.Module()
            first.o = nn.Linear(3, 3)
            self.layers = nn.ModuleList()
            for _ in range(4):
                layer = nn.Module(); layer.o = first.o if one else nn.Linear(3, 3)
                self.layers.append(layer)
    model, again = Model(True), Model(False)
    theirs = to_theirs(model, shared)
    assert set(theirs) == {"group.0.o.weight", "group.0.o.bias"}
    from_theirs(again, theirs, shared)
    assert same_bits(model, again) and to_theirs(again, shared).keys() == theirs.keys()
    again.layers[2].o.bias.data += 1
    with pytest.raises(WeightsError, match="layers.2.o.bias: .* one tensor group.0.o.bias .* differ"): to_theirs(again, shared)


def test_a_place_that_the_table_lacks_is_said():
    with pytest.raises(WeightsError, match="no place for layers.0.norm1.weight"): to_theirs(Transformer(tiny()), Layout("X", names={"embed": "e"}))


def test_a_new_head_on_a_published_body(tmp_path):
    body, folder = model_of(tiny()), tmp_path / "body"
    save_model(body, folder)
    model = Transformer(tiny(tied=False), seed=5)
    head = model.head.weight.clone()
    with pytest.raises(WeightsError, match="missing: lm_head.weight"): load_weights(model, folder)
    load_weights(model, folder, fresh=("head.*",))
    assert torch.equal(model.head.weight, head) and torch.equal(model.embed.weight, body.embed.weight)


@pytest.mark.parametrize("family", registry("families").names())
def test_every_family_goes_to_its_files_and_back(family, tmp_path):
    c = registry("families").get(family)("tiny", vocab_size=V)
    layout = layout_of(c)
    if find_layout(family) is None: assert model_type(c) == "llmnb"; return # a family without published files
    assert layout is find_layout(family) and layout.fits(c) and model_type(c) != "llmnb"
    json.dumps(layout.write(c))
    model = model_of(c)
    theirs = to_theirs(model, layout)
    again = Transformer(c, seed=9)
    from_theirs(again, theirs, layout)
    assert same_bits(model, again)
    loaded = load_model(save_model(model, tmp_path / "m"))
    kinds = [loaded.config.attention_of(i) for i in range(c.layers)]      # a cycle may be written in several ways
    assert loaded.config.replace(attention=c.attention) == c and kinds == [c.attention_of(i) for i in range(c.layers)]
    assert same_bits(model, loaded)


def test_a_strangers_family_brings_its_own_files(tmp_path):
    from dataclasses import replace
    names = {k: v.replace("model.", "trunk.") if isinstance(v, str) else tuple(n.replace("model.", "trunk.") for n in v) for k, v in llama.layout.names.items()}
    mine = Family("mine", llama.base, llama.sizes, replace(llama.layout, architecture="MineForCausalLM", names=names, prefix="trunk.",
                  read=lambda d: llama.layout.read(d).replace(family="mine")))
    registry("families").register("mine", mine)
    try:
        model = model_of(TransformerConfig.mine("tiny", vocab_size=V))
        folder = save_model(model, tmp_path / "m")
        said = json.loads((folder / "config.json").read_text())
        assert (said["model_type"], said["architectures"]) == ("mine", ["MineForCausalLM"])
        assert load_model(folder).config == model.config and same_bits(load_model(folder), model)
        from safetensors import safe_open
        with safe_open(folder / "model.safetensors", "pt") as f: assert "trunk.norm.weight" in f.keys()
    finally: registry("families").session.pop("mine")
    with pytest.raises(WeightsError, match=r"model_type = 'mine' .*adapt\(AutoModelForCausalLM"): load_model(folder)


@pytest.mark.parametrize("scaling", [None, Linear(2.5), Llama3(4.0, original=16), YaRN(4.0, 16), YaRN(2.0, 24, slow=2.0, truncate=False), YaRN(3.0, 16, attention=1.25)])
@torch.no_grad()
def test_rope_scalings_through_config_json(scaling, tmp_path):
    from transformers import AutoModelForCausalLM
    c = tiny(positions=RoPE(500.0, scaling=scaling))
    model, ids = model_of(c), draw(2, CTX)
    save_model(model, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert (theirs(ids).logits - model(ids)).abs().max() < 1e-5
    theirs.save_pretrained(tmp_path / "theirs")                           # and as transformers writes it
    assert load_model(tmp_path / "theirs").config == c


def test_rope_as_it_was_written_over_the_years():
    want = RoPE(5e5, scaling=Llama3(8.0))
    old = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
    for d in (dict(rope_theta=5e5, rope_scaling=dict(old, rope_type="llama3")), dict(rope_theta=5e5, rope_scaling=dict(old, type="llama3")),
              dict(rope_parameters=dict(old, rope_type="llama3", rope_theta=5e5))):
        assert read_rope(d) == want
    assert read_rope({}) == RoPE() and read_rope(dict(rope_theta=7.0, rope_scaling=None)) == RoPE(7.0)
    assert read_rope(dict(rope_parameters=write_rope(RoPE(share=0.5)))) == RoPE(share=0.5)
    with pytest.raises(WeightsError, match="longrope.*adapt"): read_rope(dict(rope_scaling=dict(type="longrope")))
    assert model_type(tiny(positions=RoPE(scaling=NTK()))) == "llmnb"      # config.json has no word for it


# ---- folders

@torch.no_grad()
def test_shards_as_transformers_writes_and_reads_them(tmp_path):
    from transformers import AutoModelForCausalLM
    model, ids = model_of(tiny("llama", layers=3, tied=False)), draw()
    folder = save_model(model, tmp_path / "m", max_shard_size="20KB")
    files = sorted(f.name for f in folder.glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05}.safetensors" and not (folder / "model.safetensors").exists()
    assert all((folder / f).stat().st_size < 24_000 for f in files)
    assert same_bits(load_model(folder), model)
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert (theirs(ids).logits - model(ids)).abs().max() < 1e-5
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="30KB")
    assert same_bits(load_model(tmp_path / "theirs"), model)


def test_a_smaller_model_takes_the_place_of_shards(tmp_path):
    one, two = model_of(tiny(), 1), model_of(tiny(), 2)
    save_model(one, tmp_path, max_shard_size="20KB")
    (tmp_path / "notes.txt").write_text("mine")
    save_model(two, tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["config.json", "generation_config.json", "model.safetensors", "notes.txt"]
    assert same_bits(load_model(tmp_path), two)
    save_model(one, tmp_path, max_shard_size="20KB")
    assert not (tmp_path / "model.safetensors").exists() and same_bits(load_model(tmp_path), one)


def test_shards_that_are_damaged(tmp_path):
    save_model(model_of(tiny()), tmp_path, max_shard_size="20KB")
    index, shard = tmp_path / "model.safetensors.index.json", sorted(tmp_path.glob("model-*"))[1]
    whole, text = shard.read_bytes(), index.read_text()
    shard.write_bytes(whole[:-1])
    with pytest.raises(WeightsError, match=f"{shard.name} is truncated"): load_model(tmp_path)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=f"index.json names {shard.name}, which is not there"): load_model(tmp_path)
    shard.write_bytes(whole)
    for bad in ("[]", "{", "{}", '{"weight_map": {}}', '{"weight_map": {"a": "../x"}}', '{"weight_map": ["a"]}'):
        index.write_text(bad)
        with pytest.raises(WeightsError, match="index.json"): load_model(tmp_path)
    index.write_text(text)
    load_model(tmp_path)


def test_generation_config_says_what_ends_a_text(tmp_path):
    from transformers import GenerationConfig
    from llmnb.text.tokenizer import Tokenizer
    texts = ["to be or not to be"] * 4
    for specials, ends in ((["<|endoftext|>"], 0), (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], [0, 2])):
        tok = Tokenizer.train(texts, vocab_size=280, special_tokens=specials)
        save_model(model_of(tiny(vocab_size=280)), tmp_path, tok)
        said = GenerationConfig.from_pretrained(tmp_path)
        assert tok.eos_id == 0
        assert said.eos_token_id == (ends if tok.turn_end_id not in (None, 0) else 0) and said.pad_token_id == tok.pad_id
    save_model(model_of(tiny()), tmp_path / "none")
    assert GenerationConfig.from_pretrained(tmp_path / "none").eos_token_id is None


def test_configurations_that_contradict_themselves(tmp_path):
    save_model(model_of(tiny()), tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    for wrong, words in ((dict(num_key_value_heads=3), "heads = 4"), (dict(hidden_size="32"), "width = '32'"), (dict(num_hidden_layers=0), "layers = 0")):
        (tmp_path / "config.json").write_text(json.dumps(said | wrong))
        with pytest.raises(WeightsError, match=f"config.json contradicts itself: {words}"): load_model(tmp_path)
    for wrong in ("[1]", "\xff\xfe", ""):
        (tmp_path / "config.json").write_bytes(wrong.encode("latin-1"))
        with pytest.raises(WeightsError, match="config.json"): load_model(tmp_path)


def test_a_bin_file_that_is_no_state_dict(tmp_path):
    save_model(model_of(tiny()), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    for wrong in ([torch.ones(2)], {"model": {"a": torch.ones(1)}}):
        torch.save(wrong, tmp_path / "pytorch_model.bin")
        with pytest.raises(WeightsError, match="does not hold tensors by name"): load_model(tmp_path)


def test_the_stored_dtype_is_that_of_the_weights(tmp_path):
    from safetensors.torch import load_file, save_file
    save_model(model_of(tiny()).to(torch.bfloat16), tmp_path)
    assert load_model(tmp_path).dtype == torch.bfloat16
    state = load_file(tmp_path / "model.safetensors")
    save_file({k: v.float() if "norm" in k else v for k, v in state.items()}, tmp_path / "model.safetensors")
    assert load_model(tmp_path).dtype == torch.bfloat16


# ---- GGUF

def theirs_from(file):
    from transformers import AutoModelForCausalLM, GgufConfig
    return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)).eval()


GGUF_MODELS = {
    "llama": tiny(width=64), "llama-gqa-untied": tiny(width=64, kv_heads=2, tied=False, positions=RoPE(5e4)), "llama-head-size": tiny(width=64, heads=2, kv_heads=1, head_size=16),
    "qwen2": tiny("qwen2", width=64), "qwen3": tiny("qwen3", width=64, tied=False, head_size=128), # transformers takes 128 whatever the file says
    "gpt2": tiny("gpt2", width=64, ctx=1024, vocab_size=300),             # transformers takes GPT-2's context to be 1024 whatever the file says,
}                                                                         # and its vocabulary to be the tokenizer's


@pytest.mark.parametrize("name", GGUF_MODELS)
@torch.no_grad()
def test_gguf_comes_back_and_transformers_reads_the_same(name, tmp_path):
    from llmnb.text.tokenizer import Tokenizer
    model, ids = model_of(GGUF_MODELS[name]), draw()
    tok = Tokenizer.train(["to be or not to be"], vocab_size=260) if name == "gpt2" else None
    for packing in (None, "f16", "q8_0"):
        file = save_model(model, tmp_path / "m.gguf", tok) if packing is None else save_gguf(model, tmp_path / "m.gguf", tok, packing)
        ours = load_model(file)
        assert ours.config == model.config and ours.dtype == torch.float32
        if packing is None: assert same_bits(ours, model)
        assert (theirs_from(file)(ids).logits - ours(ids)).abs().max() < 1e-5


@pytest.mark.parametrize("packing", PACKINGS)
def test_gguf_packs_as_the_library_does(packing, tmp_path):
    import gguf
    kind = gguf.GGMLQuantizationType[packing.upper()]
    model = model_of(tiny(width=64, mlp_width=96))
    load = load_model(save_gguf(model, tmp_path / "m.gguf", packing=packing))
    def packed(w): return torch.from_numpy(gguf.dequantize(gguf.quantize(w.detach().numpy(), kind), kind)).reshape(w.shape)
    assert torch.equal(load.embed.weight, packed(model.embed.weight)) and torch.equal(load.layers[0].mlp.up.weight, packed(model.layers[0].mlp.up.weight))
    assert torch.equal(load.norm.weight, model.norm.weight)               # small ones stay whole
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    assert {t.tensor_type for t in reader.tensors if len(t.shape) > 1} == {kind}


@pytest.mark.filterwarnings("ignore:invalid value")
def test_gguf_reads_k_quants(tmp_path):
    "The library does not pack K-quants, but any bytes are a packed tensor: ours are what it unpacks."
    import gguf, numpy as np
    model = model_of(tiny(width=256, heads=4, mlp_width=256))
    save_gguf(model, tmp_path / "m.gguf")
    for name in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"):
        kind, rng = gguf.GGMLQuantizationType[name], np.random.default_rng(0)
        block, size = gguf.GGML_QUANT_SIZES[kind]
        raw = rng.integers(0, 256, (256, 256 // block * size), dtype=np.uint8)
        reader, w = gguf.GGUFReader(tmp_path / "m.gguf"), gguf.GGUFWriter(tmp_path / "k.gguf", "llama")
        for key, f in reader.fields.items():
            if key.startswith("llama."): (w.add_float32 if isinstance(f.contents(), float) else w.add_uint32)(key, f.contents())
        for t in reader.tensors:
            if t.name == "blk.0.ffn_down.weight": w.add_tensor(t.name, raw, raw_dtype=kind)
            else: w.add_tensor(t.name, t.data)
        w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()
        got = load_model(tmp_path / "k.gguf").layers[0].mlp.down.weight
        assert torch.equal(torch.nan_to_num(got), torch.nan_to_num(torch.from_numpy(gguf.dequantize(raw, kind))))


def test_gguf_rope_scalings_come_back(tmp_path):
    for scaling in (None, Linear(2.0), YaRN(4.0, 32), Llama3(8.0), Llama3(32.0)):
        model = model_of(tiny(positions=RoPE(5e5, scaling=scaling)))
        again = load_model(save_gguf(model, tmp_path / "m.gguf"))
        assert again.config == model.config and torch.equal(again(draw()), model(draw()))


@pytest.mark.parametrize("pattern", ["gpt2", "smollm", "cl100k", "o200k"])
def test_gguf_carries_the_tokenizer(pattern, tmp_path):
    from transformers import AutoTokenizer
    from llmnb.text.tokenizer import Tokenizer
    text = "It's 1984, isn't it?  WE'LL see\n\n  naïve 東京 12345 + hello_World"
    tok = Tokenizer.train([text] * 5, vocab_size=320, pattern=pattern, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    model = model_of(tiny(vocab_size=tok.vocab_size + 7))                 # a table padded to a round number
    file = save_model(model, tmp_path / "m.gguf", tok)
    again = Tokenizer.load(file, pattern=pattern)
    assert again.encode(text + "<|im_end|>") == tok.encode(text + "<|im_end|>") and again.eos_id == tok.eos_id
    if pattern != "smollm":                                               # transformers reads that one as GPT-2's
        assert AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)(text).input_ids == tok.encode(text)
    with pytest.raises(WeightsError, match="tokens, and the model only 97"): save_gguf(model_of(tiny()), tmp_path / "x.gguf", tok)
    assert not (tmp_path / "x.gguf").exists()


def test_gguf_tokenizers_that_do_not_fit():
    from llmnb.text.tokenizer import Tokenizer
    texts = ["to be or not to be"] * 4
    for kind in ("unigram", "wordpiece", "char"):
        with pytest.raises(WeightsError, match="byte-level BPE"): tokenizer_fields(Tokenizer.train(texts, vocab_size=300, kind=kind), 1000)
    with pytest.raises(WeightsError, match="cuts text into words by a pattern"): tokenizer_fields(Tokenizer.train(texts, vocab_size=300, pattern=r"\S+|\s+"), 1000)


def test_gguf_that_cannot_be_written(tmp_path):
    for c in (tiny("gpt2", positions=RoPE()), tiny("llama", norm="layernorm"), tiny("llama", positions=RoPE(scaling=NTK()))):
        with pytest.raises(WeightsError, match="cannot express this configuration"): save_gguf(model_of(c), tmp_path / "m.gguf")
    with pytest.raises(WeightsError, match="packing = 'q2_k'; expected one of f32"): save_gguf(model_of(tiny()), tmp_path / "m.gguf", packing="q2_k")
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match="cannot write the model to"): save_gguf(model_of(tiny()), tmp_path / "file" / "m.gguf")
    assert [f.name for f in tmp_path.iterdir()] == ["file"]


def test_gguf_that_is_damaged(tmp_path):
    file = save_gguf(model_of(tiny()), tmp_path / "m.gguf")
    whole = file.read_bytes()
    for cut in (0, 3, 10, 100, 700, len(whole) // 2, len(whole) - 40):
        file.write_bytes(whole[:cut])
        with pytest.raises(WeightsError, match="m.gguf is truncated, or no GGUF"): load_model(file)
    file.write_bytes(whole.replace(b"general.architecture", b"general.architectume"))
    with pytest.raises(WeightsError, match="architecture 'None' is not one"): load_model(file)
    file.write_bytes(whole.replace(b"llama.block_count", b"llama.bl0ck_count"))
    with pytest.raises(WeightsError, match="do not describe a llama model.*num_hidden_layers"): load_model(file)
    file.write_bytes(whole.replace(b"blk.1.ffn_up", b"blk.7.ffn_up"))
    with pytest.raises(WeightsError, match=r"missing: blk.1.ffn_up.weight\n  not known: blk.7.ffn_up.weight"): load_model(file)


@hyp(max_examples=40, deadline=None)
@given(st.integers(0, 2**30), st.integers(0, 255))
def test_a_flipped_byte_never_breaks_the_reader(tmp_path_factory, at, value):
    folder = tmp_path_factory.getbasetemp() / "flip"
    folder.mkdir(exist_ok=True)
    if not (folder / "good").exists(): save_gguf(model_of(tiny(width=16, layers=1)), folder / "good.gguf").rename(folder / "good")
    data = bytearray((folder / "good").read_bytes())
    data[at % 1500] = value                                               # in the header and the list of tensors
    (folder / "bad.gguf").write_bytes(data)
    try: load_model(folder / "bad.gguf")
    except WeightsError: pass


@pytest.mark.parametrize("key, at, value, words", [("general.architecture", 0, 9, "past the end of the file"),          # a list longer than the file
                                                   ("llama.block_count", 7, 1, "16,777,217 layers and holds 11 tensors"),
                                                   ("llama.context_length", 7, 0x7f, "context of 2,130,706,480 tokens.*expected at most 1.1 GB"),
                                                   ("llama.embedding_length", 7, 0x7f, "of another shape")])
def test_a_header_that_lies_is_refused_before_memory_is_taken(tmp_path, key, at, value, words):
    data = bytearray(save_gguf(model_of(tiny(width=16, layers=1)), tmp_path / "m.gguf").read_bytes())
    data[data.index(key.encode()) + len(key) + at] = value
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(WeightsError, match=f"(?s)m.gguf .*{words}"): load_model(tmp_path / "m.gguf")        # not MemoryError, nor a killed process


@pytest.mark.slow
@pytest.mark.parametrize("family, kw", [("llama", dict(kv_heads=2)), ("llama", dict(positions=RoPE(5e3, scaling=Llama3(8.0)))),
                                        ("llama", dict(positions=RoPE(5e3, scaling=YaRN(4.0, 32)))), ("gpt2", {}), ("qwen2", {}), ("qwen3", {})])
@torch.no_grad()
def test_llama_cpp_itself_reads_our_files(family, kw, tmp_path):
    "pip install xllamacpp: llama.cpp inside a wheel. It rounds activations on its way, so equal means near."
    xl = pytest.importorskip("xllamacpp")
    from llmnb.text.tokenizer import Tokenizer
    text = "It's 1984, isn't it?  hello"
    tok = Tokenizer.train([text] * 4, vocab_size=300)
    model = model_of(tiny(family, vocab_size=tok.vocab_size + 4, width=64, **kw))
    params = xl.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup = str(save_gguf(model, tmp_path / "m.gguf", tok, "f32")), CTX, 1, False
    params.cpuparams.n_threads = 1
    server, ids, seen = xl.Server(params), tok.encode(text), 0
    def ask(prompt): return server.handle_completions(dict(prompt=prompt, max_tokens=1, temperature=0.0, logprobs=300, cache_prompt=False))
    assert ask(text)["usage"]["prompt_tokens"] == len(ids)
    for n in range(2, len(ids) + 1):
        if not (found := ask(ids[:n])["choices"][0]["logprobs"]): continue # half a character has none
        ours, theirs = model(torch.tensor([ids[:n]]))[0, -1].log_softmax(-1), found["content"][0]["top_logprobs"]
        assert len(theirs) > 250 and all(abs(ours[t["id"]] - t["logprob"]) < 0.01 for t in theirs)
        seen += 1
    assert seen > 2


# ---- ONNX

@torch.no_grad()
def check_onnx(model, file):
    import onnxruntime
    graph = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for B, T in ((1, 1), (2, 7), (3, CTX)):
        ids, mask = draw(B, T), torch.ones(B, T, dtype=torch.int64)
        mask[0, :T // 3] = 0
        out, = graph.run(None, dict(input_ids=ids.numpy(), attention_mask=mask.numpy()))
        assert (torch.from_numpy(out) - model(ids, mask))[mask.bool()].abs().max() < 1e-5


def test_onnx_gives_the_models_logits(tmp_path):
    pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    model = model_of(tiny("llama", kv_heads=2)).train()
    check_onnx(model, save_model(model, tmp_path / "m.onnx"))
    assert model.training and [f.name for f in tmp_path.iterdir()] == ["m.onnx"]


@torch.no_grad()
def test_onnx_with_a_cache(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime"); pytest.importorskip("onnxscript")
    model, ids = model_of(tiny("gpt2")), draw(2)
    graph = onnxruntime.InferenceSession(save_onnx(model, tmp_path / "m.onnx", cache=True), providers=["CPUExecutionProvider"])
    names, c = [i.name for i in graph.get_inputs()], model.config
    mask = torch.ones_like(ids); mask[0, :4] = 0
    past, outs, n = [torch.zeros(2, c.kv_heads, 0, c.head_size).numpy()] * (2 * c.layers), [], 0
    for part in ids.split([9, 1, 1, 9], 1):
        n += part.shape[1]
        logits, *past = graph.run(None, dict(zip(names, [part.numpy(), mask[:, :n].numpy(), *past])))
        outs.append(torch.from_numpy(logits))
    assert (torch.cat(outs, 1) - model(ids, mask))[mask.bool()].abs().max() < 1e-5 and past[0].shape == (2, c.kv_heads, 20, c.head_size)


@pytest.mark.slow
@pytest.mark.parametrize("family", registry("families").names())
def test_onnx_of_every_family(family, tmp_path):
    pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    save_onnx(model_of(registry("families").get(family)("tiny", vocab_size=V)), tmp_path / "m.onnx")  # compares by itself


def test_onnx_that_is_wrong_or_cannot_be_written(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    import llmnb.model.onnx_out as onnx_out
    model, other = model_of(tiny("gpt2", layers=1), 1), model_of(tiny("gpt2", layers=1), 2)
    export = onnx_out._export
    monkeypatch.setattr(onnx_out, "_export", lambda m, cache: export(other, cache))
    with pytest.raises(WeightsError, match="computes other numbers than the model"): save_onnx(model, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []
    class Odd(nn.Module):
        def forward(self, ids, mask): return ids if ids.sum() > 3 else mask
    monkeypatch.setattr(onnx_out, "_export", export)
    monkeypatch.setattr(onnx_out, "_Plain", lambda m: Odd())
    with pytest.raises(WeightsError, match="torch.onnx cannot follow this model"): save_onnx(model, tmp_path / "m.onnx")
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(onnx_out, "_export", lambda m, cache: None)
    with pytest.raises(WeightsError, match="cannot write the model to"): save_onnx(model, tmp_path / "file" / "m.onnx")
