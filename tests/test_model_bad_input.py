"""What a newcomer gets wrong with a model: each mistake is one clear error that names the values and the way out."""
import json
import re
from types import SimpleNamespace

import pytest
import torch

from llmnb.model.attention import Heads
from llmnb.model.biases import ALiBi, T5Bias
from llmnb.model.blocks import Parallel, PreNorm
from llmnb.model.cache import KVCache
from llmnb.model.caches import StaticCache, WindowCache
from llmnb.model.config import EncoderDecoder, FeedForward, LayerNorm, RMSNorm, TransformerConfig
from llmnb.model.feedforward import Experts
from llmnb.model.ggufs import save_gguf
from llmnb.model.heads import ClassHead, LMHead, MaskedLMHead, NoHead, SentenceHead, SpanHead, TokenClassHead, Tokens
from llmnb.model.layouts import WeightsError
from llmnb.model.positions import Learned, RoPE, Sinusoidal
from llmnb.model.transformer import Memory, Transformer
from llmnb.model.weights import load_model, save_model

V, CTX, D = 97, 48, 32


def config(**kw): return TransformerConfig(**dict(vocab_size=V, ctx=CTX, width=D, layers=2, heads=4) | kw)
def draw(B=2, T=10): return torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(0))
def batch(**kw): return SimpleNamespace(**kw)


MODELS = dict(
    decoder=config(), rope=config(positions=RoPE()), alibi=config(positions=ALiBi()),
    encoder=config(arch="encoder", embed=Tokens(types=2), head=MaskedLMHead()),
    pair=config(arch="encoder-decoder"), t5=config(arch="encoder-decoder", positions=T5Bias()))
KEPT = {}


def model_of(name):
    if name not in KEPT: KEPT[name] = Transformer(MODELS[name], seed=0).eval()
    return KEPT[name]


def says(kind, *words):
    "The error, with all these words in it."
    return pytest.raises(kind, match="(?s)" + "".join(f"(?=.*{re.escape(w)})" for w in words))


# ---- configurations that contradict themselves: both values are named

@pytest.mark.parametrize("make, words", [
    (lambda: dict(heads=3), ["width = 32", "heads = 3"]),
    (lambda: dict(heads=64), ["width = 32", "heads = 64"]),
    (lambda: dict(kv_heads=8), ["heads = 4", "kv_heads = 8"]),
    (lambda: dict(kv_heads=3), ["heads = 4", "kv_heads = 3"]),
    (lambda: dict(positions=RoPE(), head_size=5), ["RoPE", "head_size = 5"]),
    (lambda: dict(positions=RoPE(share=0.01)), ["head_size = 8", "share = 0.01"]),
    (lambda: dict(positions=Sinusoidal(), width=33, heads=3), ["Sinusoidal", "width = 33"]),
    (lambda: dict(positions=T5Bias(buckets=32, distance=9)), ["buckets=32", "distance=9"]),
    (lambda: dict(mlp=Experts()), ["mlp = Experts(n=8", "bias = True", "bias=False"]),
    (lambda: dict(mlp=Experts(n=2, top=3)), ["n=2", "top=3"]),
    (lambda: dict(attention=Heads(theta=10.0)), ["theta=10.0", "positions = Learned", "RoPE()"]),
    (lambda: dict(arch="encoder-decoder", head=ClassHead(2)), ["head = ClassHead(labels=2", "arch = EncoderDecoder"]),
    (lambda: dict(arch="encoder-decoder", head=NoHead()), ["head = NoHead", "arch = EncoderDecoder"]),
    (lambda: dict(arch="encoder-decoder", block=Parallel()), ["block = Parallel", "arch = EncoderDecoder", "cross attention"]),
    (lambda: dict(block=PreNorm(shared=True)), ["block = PreNorm(shared=True)", "arch = Decoder()"]),
    (lambda: dict(embed=Tokens(size=16)), ["size=16", "tied = True", "width = 32", "tied=False"]),
    (lambda: dict(embed=Tokens(types=2), arch="encoder-decoder"), ["types=2", "arch = EncoderDecoder"]),
    (lambda: dict(arch=EncoderDecoder(start=V)), [f"start={V}", f"vocab_size = {V}"]),
])
def test_a_contradiction_names_both_values(make, words):
    with says(ValueError, *words): config(**make())


@pytest.mark.parametrize("kind, make, words", [
    *[(ValueError, lambda n=n: {n: 0}, [f"{n} = 0", "at least 1"]) for n in ("vocab_size", "ctx", "width", "layers", "heads", "kv_heads", "head_size", "mlp_width")],
    *[(TypeError, lambda n=n: {n: 2.5}, [f"{n} = 2.5", "whole number"]) for n in ("vocab_size", "ctx", "width", "layers", "heads")],
    (TypeError, lambda: dict(bias=1), ["bias = 1", "True or False"]),
    (TypeError, lambda: dict(tied="yes"), ["tied = 'yes'"]),
    (TypeError, lambda: dict(dropout="0.1"), ["dropout = '0.1'", "number"]),
    (TypeError, lambda: dict(dropout=True), ["dropout = True"]),
    (ValueError, lambda: dict(dropout=-0.1), ["dropout = -0.1"]),
    (ValueError, lambda: dict(arch=EncoderDecoder(decoder_layers=0)), ["decoder_layers = 0", "at least 1"]),
    (ValueError, lambda: dict(arch=EncoderDecoder(decoder_layers=2.5)), ["decoder_layers = 2.5", "whole number"]),
    (ValueError, lambda: dict(arch=EncoderDecoder(start=1.5)), ["start = 1.5"]),
    (ValueError, lambda: dict(embed=Tokens(types=-1)), ["types=-1"]),
    (ValueError, lambda: dict(embed=Tokens(size=0)), ["size=0"]),
    (ValueError, lambda: dict(attention=Heads(window=0)), ["window = 0"]),
    (ValueError, lambda: dict(attention=(Heads(), Heads(window=2.5))), ["window = 2.5", "whole number"]),
    (ValueError, lambda: dict(attention=Heads(softcap=-1.0)), ["softcap = -1.0"]),
    (ValueError, lambda: dict(attention=Heads(qk_norm="x")), ["qk_norm = 'x'", "'head'"]),
    (ValueError, lambda: dict(attention=()), ["attention = ()"]),
    (ValueError, lambda: dict(norm=LayerNorm(-1)), ["eps=-1", "above 0"]),
    (ValueError, lambda: dict(norm=RMSNorm(0)), ["eps=0"]),
    (ValueError, lambda: dict(positions=RoPE(theta=-1)), ["theta=-1"]),
    (ValueError, lambda: dict(positions=Learned(offset=-1)), ["offset = -1"]),
    (ValueError, lambda: dict(head=LMHead(softcap=0)), ["softcap = 0"]),
    (ValueError, lambda: dict(head=MaskedLMHead(act="foo")), ["act = 'foo'", "gelu"]),
    (ValueError, lambda: dict(head=ClassHead(0)), ["labels = 0"]),
    (ValueError, lambda: dict(head=ClassHead(pool="max")), ["pool = 'max'", "first, last or mean"]),
    (ValueError, lambda: dict(head=SentenceHead(pool="max")), ["pool = 'max'"]),
    (ValueError, lambda: dict(mlp=FeedForward("foo")), ["act = 'foo'", "silu"]),
    (ValueError, lambda: dict(arch="encodr"), ["arch = 'encodr'", "'encoder'"]),
    (TypeError, lambda: dict(norm=None), ["norm = None"]),
])
def test_a_value_that_cannot_be_is_named(kind, make, words):
    with says(kind, *words): config(**make())


@pytest.mark.parametrize("wrong", [None, "gpt2", dict(width=3), TransformerConfig.gpt2])
def test_a_model_wants_a_configuration(wrong):
    with says(TypeError, "config = ", "TransformerConfig.gpt2('tiny')"): Transformer(wrong)


# ---- ids, masks, places

READ = {"decoder": lambda ids, m=None: model_of("decoder")(ids, m), "encoder": lambda ids, m=None: model_of("encoder")(ids, m),
        "src": lambda ids, m=None: model_of("pair")(ids, draw(), m), "tgt": lambda ids, m=None: model_of("pair")(draw(), ids, None, m)}
NAMES = dict(decoder=("ids", "mask"), encoder=("ids", "mask"), src=("src", "src_mask"), tgt=("tgt", "tgt_mask"))


@pytest.mark.parametrize("which", READ)
def test_ids_and_masks_that_do_not_fit(which):
    (ids, mask), read = NAMES[which], READ[which]
    with says(TypeError, f"{ids} is a list"): read([[1, 2], [3, 4]])
    with says(TypeError, f"{ids} has dtype torch.float32", f"{ids}.long()"): read(draw().float())
    with says(TypeError, f"{ids} has dtype torch.bool"): read(draw().bool())
    with says(ValueError, f"{ids} has shape (2,)", "(B, T)", f"{ids}[None]"): read(draw()[:, 0])
    with says(ValueError, f"{ids} has shape (2, 10, 1)"): read(draw()[..., None])
    with says(ValueError, f"id {V} is outside the vocabulary of {V}"): read(torch.full((2, 10), V))
    with says(ValueError, "id -1 is outside"): read(torch.full((2, 10), -1))
    with says(ValueError, "49 tokens", "ctx = 48", f"{ids}[:, -48:]"): read(torch.zeros(2, 49).long())
    for wrong in (torch.ones(2, 9), torch.ones(10), torch.ones(1, 10), torch.ones(2, 1, 10, 10)):
        with says(ValueError, f"{mask} has shape {tuple(wrong.shape)}", "expected (2, 10)"): read(draw(), wrong)
    with says(TypeError, f"{mask} is a list"): read(draw(), [[1] * 10] * 2)
    with says(ValueError, f"{mask} has numbers from", "1 for a real token"): read(draw(), draw() + 1)
    with says(ValueError, f"{mask} has numbers from -1"): read(draw(), torch.full((2, 10), -1e9))
    for good in (torch.ones(2, 10), torch.ones(2, 10).bool(), torch.ones(2, 10).int()):
        assert torch.equal(read(draw(), good), read(draw(), torch.ones(2, 10).long()))


def test_without_a_table_there_is_no_end():
    assert model_of("alibi")(torch.zeros(1, 60).long()).shape == (1, 60, V)
    assert model_of("t5")(torch.zeros(1, 60).long(), draw(1)).shape == (1, 10, V)


@pytest.mark.parametrize("name", ["decoder", "rope"])
def test_places_that_do_not_fit(name):
    model, ids = model_of(name), draw()
    with says(ValueError, "positions go from 40 to 49", "0 to 47"): model(ids, positions=torch.arange(40, 50))
    with says(ValueError, "positions go from -5"): model(ids, positions=torch.arange(-5, 5))
    with says(ValueError, "positions has shape (9,)", "(10,)"): model(ids, positions=torch.arange(9))
    with says(TypeError, "positions has dtype torch.float32"): model(ids, positions=torch.arange(10.0))
    assert torch.equal(model(ids, positions=torch.arange(10)), model(ids))


@pytest.mark.parametrize("shape", [(10,), (2, 9), (2, 11), (3, 10)])
def test_documents_and_segments_that_do_not_fit(shape):
    with says(ValueError, f"docs has shape {shape}", "(2, 10)"): model_of("decoder")(draw(), docs=torch.ones(shape))
    with says(ValueError, f"types has shape {shape}", "(2, 10)"): model_of("encoder")(draw(), types=torch.ones(shape).long())


def test_segments_and_prefixes():
    decoder, encoder, ids = model_of("decoder"), model_of("encoder"), draw()
    for wrong in (2, -1):
        with says(ValueError, f"types go from {wrong}", "0 to 1"): encoder(ids, types=torch.full_like(ids, wrong))
    with says(TypeError, "types has dtype torch.float32"): encoder(ids, types=torch.zeros(2, 10))
    with says(ValueError, "types were given", "types=0"): decoder(ids, types=torch.zeros_like(ids))
    with says(ValueError, "prefix has shape (3,)", "(2,)"): decoder(ids, prefix=torch.tensor([1, 2, 3]))
    with says(TypeError, "prefix = '3'"): decoder(ids, prefix="3")
    assert torch.equal(decoder(ids, prefix=3), decoder(ids, prefix=torch.tensor([3, 3])))


# ---- one architecture taken for another

def test_a_decoder_is_given_a_source():
    model, ids = model_of("decoder"), draw()
    with says(TypeError, "'ids'"): model(src=ids, tgt=ids)
    with says(TypeError, "src is not an input", "arch = Decoder()", "docs"): model(ids, src=ids)
    with says(ValueError, "mask has numbers", "Are these ids"): model(ids, ids + 1)
    with says(ValueError, "memory was given", "arch = Decoder()"): model.hidden(ids, memory=Memory(torch.zeros(2, 5, D)))


def test_an_encoder_is_given_a_cache():
    with says(ValueError, "arch = Encoder() reads in both directions", "Leave cache out"): model_of("encoder")(draw(), cache=KVCache(2))


def test_a_pair_without_its_source_or_with_another():
    model, ids = model_of("pair"), draw()
    with says(TypeError, "'tgt'"): model(ids)
    with says(ValueError, "model(src, tgt)"): model.hidden(ids)
    with says(ValueError, "the memory has 2 rows, tgt has 1"): model(ids, ids[:1])
    with says(TypeError, "memory is a Tensor", "model.read(src, src_mask)"): model.hidden(ids, memory=torch.zeros(2, 5, D))
    with says(ValueError, "states (2, 5, 16)", f"(B, S, {D})"): model.hidden(ids, memory=Memory(torch.zeros(2, 5, 16)))
    with says(ValueError, "a mask (2, 4)"): model.hidden(ids, memory=Memory(torch.zeros(2, 5, D), torch.ones(2, 4)))
    cache = model.new_cache()
    model.hidden(ids, cache=cache, memory=model.read(ids))
    with says(ValueError, "holds 2 rows, but 1 came"): model.hidden(ids[:1], cache=cache, memory=model.read(ids[:1]))


# ---- caches

def test_a_cache_of_another_model():
    model, ids = model_of("decoder"), draw()
    for wrong in (True, {}):
        with says(TypeError, f"cache is a {type(wrong).__name__}", "new_cache()"): model(ids, cache=wrong)
    for layers in (1, 3):
        with says(ValueError, f"made for {layers} layers, the model has 2"): model(ids, cache=KVCache(layers))
    cache = model.new_cache()
    model(ids, cache=cache)
    for other, words in ((config(width=64), "4 of 16"), (config(kv_heads=2), "2 of 8")):
        with says(ValueError, "holds 4 heads of 8", words): Transformer(other)(ids, cache=cache)
    with says(ValueError, "torch.float64", "one dtype"): Transformer(config()).double()(ids, cache=cache)
    assert cache.length == 10


@pytest.mark.parametrize("kind", ["plain", "static", "int8"])
def test_a_cache_that_is_full(kind):
    model, ids = model_of("decoder"), draw()
    cache = model.new_cache(max_len=12, kind=kind)
    first = model(ids, cache=cache)
    with says(ValueError, "max_len = 12", "20 are needed"): model(ids, cache=cache)
    assert cache.length == 10                                            # as it was, and goes on
    assert model(ids[:, :2], cache=cache).shape == (2, 2, V) and first.shape == (2, 10, V)
    with says(ValueError, "holds 2 rows, but 1 came"): model(ids[:1, :0 + 1], cache=cache.trim(5))


def test_caches_made_or_cut_wrongly():
    with says(ValueError, "cache = 'foo'", "static"): model_of("decoder").new_cache(kind="foo")
    with says(ValueError, "max_len = 0"): StaticCache(2, 0)
    with says(ValueError, "max_len = None", "slots"): StaticCache(2, None)
    with says(ValueError, "slack = -1"): WindowCache([4], slack=-1)
    model, ids = Transformer(config(attention=(Heads(window=4), Heads()))).eval(), draw(2, 20)
    cache = WindowCache([4, None], slack=2)
    model(ids, cache=cache)
    with says(ValueError, "trim(15)", "slack=5"): cache.trim(15)
    with says(ValueError, "trim(21)", "0 to 20"): cache.trim(21)
    assert torch.allclose(model(ids[:, 18:], cache=cache.trim(18)), model(ids)[:, 18:], atol=1e-5)
    with says(ValueError, "window = 4", "[None, None]"): model(ids, cache=WindowCache([None, None]))
    for wrong in ([0, 2], [-1], [[0, 1]], [0.5]):
        with says(ValueError, "reorder(", "holds 2 rows", "0 to 1"): cache.reorder(wrong)
        plain = model.new_cache(kind="plain"); model(ids, cache=plain)
        with says(ValueError, "reorder(", "holds 2 rows", "0 to 1"): plain.reorder(wrong)


# ---- losses

@pytest.mark.parametrize("head, good, wrongs", [
    (None, (2, 10), [((2, 9), 0), ((2,), 0), ((10, 2), 0), ((2, 10), V), ((2, 10), -1)]),
    (ClassHead(3), (2,), [((2, 10), 0), ((2, 1), 0), ((3,), 0), ((2,), 3), ((2,), -1)]),
    (TokenClassHead(3), (2, 10), [((2,), 0), ((2, 9), 0), ((2, 10), 3), ((2, 10), -7)]),
    (SpanHead(), (2, 2), [((2,), 0), ((2, 10), 0), ((1, 2), 0), ((2, 2), 10), ((2, 2), -1)]),
])
@pytest.mark.parametrize("grad", [True, False])
def test_labels_that_do_not_fit_the_head(head, good, wrongs, grad):
    model, ids = model_of("encoder" if head else "decoder"), draw()
    if head: model = model.with_head(head)
    with torch.set_grad_enabled(grad):
        for shape, value in wrongs:
            words = [f"label {value} does not fit"] if shape == good else [f"labels have shape {shape}", f"expected {good}"]
            with says(ValueError, *words): model.loss(batch(ids=ids, labels=torch.full(shape, value)))
        with says(TypeError, "labels are torch.float32", "int64"): model.loss(batch(ids=ids, labels=torch.zeros(good)))
        with says(TypeError, "labels are list"): model.loss(batch(ids=ids, labels=[0, 1]))
        with says(ValueError, "no labels"): model.loss(batch(ids=ids))
        with says(ValueError, "no ids"): model.loss(batch(labels=torch.zeros(good).long()))
        assert torch.isfinite(model.loss(batch(ids=ids, labels=torch.zeros(good).long())))
        assert model.loss(batch(ids=ids, labels=torch.full(good, -100))) == 0


def test_losses_that_cannot_be():
    encoder, pair, ids = model_of("encoder"), model_of("pair"), draw()
    mask = torch.ones_like(ids); mask[:, 8:] = 0
    with says(ValueError, "label 9", "no padding"): encoder.with_head(SpanHead()).loss(batch(ids=ids, mask=mask, labels=torch.tensor([[0, 9], [0, 1]])))
    with says(ValueError, "no loss", "ClassHead(labels)"): encoder.with_head(SentenceHead()).loss(batch(ids=ids, labels=ids))
    with says(ValueError, "no head", "MaskedLMHead()"): encoder.with_head(NoHead()).loss(batch(ids=ids, labels=ids))
    with says(ValueError, "no src"): pair.loss(batch(ids=ids, labels=ids))
    with says(ValueError, "labels have shape (2, 9)"): pair.loss(batch(src=ids, ids=ids, labels=ids[:, 1:]))
    with says(ValueError, "'clas'", "classhead"): encoder.with_head("clas")
    with says(ValueError, "head = ClassHead", "arch = EncoderDecoder"): pair.with_head(ClassHead(2))


# ---- files

@pytest.mark.parametrize("name", ["gpt2", "bert", "t5"])
def test_files_that_are_damaged(name, tmp_path):
    c = getattr(TransformerConfig, name)("tiny", vocab_size=V, layers=1)
    folder = save_model(Transformer(c, seed=0), tmp_path / "m")
    file, settings = folder / "model.safetensors", folder / "config.json"
    whole, said = file.read_bytes(), settings.read_text()
    for cut in (0, 4, 300, len(whole) - 7):
        file.write_bytes(whole[:cut])
        with says(WeightsError, "model.safetensors is truncated"): load_model(folder)
    file.write_bytes(whole[:8] + b"#" + whole[9:])                       # a header that is no JSON
    with says(WeightsError, "model.safetensors"): load_model(folder)
    file.write_bytes(whole)
    settings.write_text(json.dumps(json.loads(said) | dict(model_type="rwkv")))
    with says(WeightsError, "model_type = 'rwkv'", "gpt2, ", "adapt"): load_model(folder)
    settings.write_text(said[:40])
    with says(WeightsError, "not JSON"): load_model(folder)
    settings.write_text(said)
    assert torch.equal(load_model(folder).embed.weight, Transformer(c, seed=0).embed.weight)


def test_a_gguf_that_is_damaged(tmp_path):
    file = save_gguf(Transformer(TransformerConfig.llama("tiny", vocab_size=V, layers=1)), tmp_path / "m.gguf")
    whole = file.read_bytes()
    for bad in (b"", whole[:3], whole[:200], whole[:-50], b"XXXX" + whole[4:]):
        file.write_bytes(bad)
        with says(WeightsError, "m.gguf"): load_model(file)


def test_a_pickle_with_code_is_refused(tmp_path):
    import os
    folder = save_model(Transformer(TransformerConfig.bert("tiny", vocab_size=V, layers=1)), tmp_path / "m")
    (folder / "model.safetensors").unlink()
    class Evil:
        def __reduce__(self): return os.mkdir, (str(tmp_path / "it-ran"),)
    torch.save({"x": Evil()}, folder / "pytorch_model.bin")
    with says(WeightsError, "refused", "could run code"): load_model(folder)
    assert not (tmp_path / "it-ran").exists()
