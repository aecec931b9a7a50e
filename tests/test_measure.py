"The measure floor: exact against one token at a time, and clear about mistakes."
import math, pickle
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings as hyp, strategies as st

from llmnb.measure.perplexity import Perplexity, bigram_baseline, bits_per_byte, evaluate_loss, perplexity, unigram_baseline, windows
from llmnb.model.config import TransformerConfig
from llmnb.model.transformer import Transformer
from llmnb.text.batches import CausalLM, TextData
from llmnb.text.tokenizer import Tokenizer

V, CTX = 300, 16
TEXTS = ["To be, or not to be: that is the question. 🎭", "Whether 'tis nobler in the mind to suffer\nthe slings and arrows", "Enter ROMEO."]


@pytest.fixture(scope="module")
def tok(): return Tokenizer.train(TEXTS, vocab_size=V, min_frequency=1)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request):
    m = Transformer(getattr(TransformerConfig, request.param)("tiny", vocab_size=V, ctx=CTX, width=32, layers=2, heads=4), seed=0)
    with torch.no_grad():
        for p in m.parameters(): p.mul_(3)
    return m.eval()


@torch.no_grad()
def plain(model, ids, ctx, stride):
    "Each token alone: (sum, how many)."
    total = 0.0
    for t in range(1, len(ids)):
        begin = max(0, math.ceil((t - ctx) / stride)) * stride
        total -= model(torch.tensor([ids[begin:t]]))[0, -1].double().log_softmax(-1)[ids[t]].item()
    return total, len(ids) - 1


@given(st.integers(0, 60), st.integers(1, 20), st.data())
@hyp(max_examples=100, deadline=None)
def test_windows_count_each_token_once(n, ctx, data):
    stride = data.draw(st.integers(1, ctx))
    spans = list(windows(n, ctx, stride))
    assert [t for b, e, new in spans for t in range(e - new + 1, e + 1)] == list(range(1, n))
    for b, e, new in spans:
        assert 0 < e - b <= ctx and 0 < new <= e - b
        assert b == 0 or e - new + 1 - b > ctx - stride                       # how much the first counted token sees


@pytest.mark.parametrize("ctx, stride", [(None, None), (16, 16), (16, 1), (7, 3), (1, 1)])
def test_equal_to_one_token_at_a_time(model, tok, ctx, stride):
    sums = [plain(model, tok.encode(t), ctx or CTX, stride or CTX // 2) for t in TEXTS]
    expected, count = sum(s for s, _ in sums) / sum(n for _, n in sums), sum(n for _, n in sums)
    for size in (1, 2, 50):
        p = perplexity(model, tok, TEXTS, ctx=ctx, stride=stride, batch_size=size)
        assert p.loss == pytest.approx(expected, abs=1e-4) and p.tokens == count and p == pytest.approx(math.exp(expected), rel=1e-4)
    assert perplexity(model, tok, (t for t in TEXTS), ctx=ctx, stride=stride) == pytest.approx(p)   # a generator, read once


def test_bytes(model, tok):
    p = perplexity(model, tok, TEXTS)
    assert p.bytes == sum(len(t.encode()) - len(tok.token_bytes(tok.encode(t)[0])) for t in TEXTS)
    assert p.bits_per_byte == pytest.approx(p.loss * p.tokens / p.bytes / math.log(2))
    q = perplexity(model, tok, TEXTS, bos=True)
    assert q.bytes == sum(len(t.encode()) for t in TEXTS) and q.tokens == sum(len(tok.encode(t)) for t in TEXTS)
    total = [plain(model, [tok.bos_id, *tok.encode(t)], CTX, CTX // 2) for t in TEXTS]
    assert q.loss == pytest.approx(sum(s for s, _ in total) / q.tokens, abs=1e-4)


def test_any_model_that_gives_logits(model, tok):
    class Wrapped(torch.nn.Module):
        "As a transformers model: called with ids, gives an object with logits."
        def __init__(self): super().__init__(); self.inner = model
        def forward(self, ids): return type("Out", (), {"logits": self.inner(ids)})
    assert perplexity(Wrapped(), tok, TEXTS, ctx=CTX).loss == pytest.approx(perplexity(model, tok, TEXTS).loss, abs=1e-5)
    with pytest.raises(ValueError, match="the model has no config.ctx; give ctx="): perplexity(Wrapped(), tok, TEXTS)


def test_the_model_is_left_as_it_was(tok):
    m = Transformer(TransformerConfig.gpt2("tiny", vocab_size=V, ctx=CTX, width=32, layers=2, heads=4, dropout=0.5), seed=0)
    a = perplexity(m.eval(), tok, TEXTS)
    assert perplexity(m.train(), tok, TEXTS) == a and m.training and all(x.training for x in m.modules())


def test_numbers_of_numpy_serve(model, tok): assert perplexity(model, tok, TEXTS, ctx=np.int64(8), stride=np.int64(4)) == perplexity(model, tok, TEXTS, ctx=8, stride=4)


def test_a_perplexity_is_a_number():
    p = Perplexity(2.0, 10, 40)
    assert isinstance(p, float) and p > 7 and p + 1 == math.exp(2) + 1 and "2.0000 nats" in repr(p)
    q = pickle.loads(pickle.dumps(p))
    assert q == p and (q.loss, q.tokens, q.bytes) == (2.0, 10, 40)
    assert Perplexity(1e6, 1, 1) == math.inf
    assert bits_per_byte(math.log(2), 8, 8) == pytest.approx(1)


def test_evaluate_loss(model, tok, tmp_path):
    data = TextData.pack(TEXTS * 20, tok, CausalLM(ctx=CTX), path=tmp_path/"d", valid=0.2)
    with torch.no_grad(): sums = [(model.loss(b, reduction="sum").item(), b.n_targets) for b in data.valid_batches(1)]
    expected = sum(s for s, _ in sums) / sum(n for _, n in sums)
    assert sum(n for _, n in sums) == data.valid.n_tokens - 1
    for size in (1, 3, 64): assert evaluate_loss(model, data, batch_size=size) == pytest.approx(expected, abs=1e-4)


def bigram_plain(train, valid, V):
    pairs, firsts = Counter(zip(train, train[1:])), Counter(train[:-1])
    return sum(-math.log((pairs[a, b] + 1) / (firsts[a] + V)) for a, b in zip(valid, valid[1:])) / (len(valid) - 1)


def unigram_plain(train, valid, V):
    seen = Counter(train)
    return sum(-math.log((seen[b] + 1) / (len(train) + V)) for b in valid[1:]) / (len(valid) - 1)


ids = st.lists(st.integers(0, 9), min_size=2, max_size=60)


@given(ids, ids)
@hyp(max_examples=100, deadline=None)
def test_baselines_are_the_plain_ones(train, valid):
    for fast, slow in ((bigram_baseline, bigram_plain), (unigram_baseline, unigram_plain)):
        expected = slow(train, valid, 10)
        for form in (list, torch.tensor, lambda x: np.array(x, np.uint16)): assert fast(form(train), form(valid), 10) == pytest.approx(expected, abs=1e-9)


def test_a_bigram_sums_to_one():
    "Probabilities of all that may follow: exp(-loss) over every continuation."
    for first in (0, 3): assert sum(math.exp(-bigram_baseline([0, 1, 0, 2], [first, b], 5)) for b in range(5)) == pytest.approx(1)


@pytest.mark.parametrize("says, wrong", [
    ("text 1 is empty", lambda m, t: perplexity(m, t, ["To be", ""])), ("text 0 is empty", lambda m, t: perplexity(m, t, "")),
    ("nothing to measure: 0 texts", lambda m, t: perplexity(m, t, [])), ("nothing to measure: 1 text", lambda m, t: perplexity(m, t, "q")),
    ("model is 'gpt2'; expected a model", lambda m, t: perplexity("gpt2", t, TEXTS)), ("tok is None", lambda m, t: perplexity(m, None, TEXTS)),
    ("ctx = 2.5; expected a whole number", lambda m, t: perplexity(m, t, TEXTS, ctx=2.5)), ("text is a list", lambda m, t: token_losses(m, t, TEXTS)),
    ("is one token, with nothing before it", lambda m, t: token_losses(m, t, "q")), ("texts is int", lambda m, t: perplexity(m, t, 3)), ("text 1 is NoneType", lambda m, t: perplexity(m, t, ["a b", None])),
    ("ctx = 17; expected 1 to 16", lambda m, t: perplexity(m, t, TEXTS, ctx=17)), ("ctx = 0", lambda m, t: perplexity(m, t, TEXTS, ctx=0)),
    ("stride = 17; expected 1 to ctx = 16", lambda m, t: perplexity(m, t, TEXTS, stride=17)), ("stride = 0", lambda m, t: perplexity(m, t, TEXTS, stride=0)),
    ("batch_size = 0", lambda m, t: perplexity(m, t, TEXTS, batch_size=0)), ("bytes = 0", lambda m, t: bits_per_byte(1.0, 1, 0)),
    ("train_ids has 1 tokens", lambda m, t: bigram_baseline([1], [1, 2], 3)), ("valid_ids has 0 tokens", lambda m, t: unigram_baseline([1, 2], [], 3)),
    ("valid_ids has id 3, but vocab_size = 3", lambda m, t: bigram_baseline([1, 2], [1, 3], 3)), ("train_ids has id -1", lambda m, t: bigram_baseline([1, -1], [1, 2], 3)),
])
def test_mistakes(model, tok, says, wrong):
    with pytest.raises((ValueError, TypeError), match=says): wrong(model, tok)


# Token by token, text by text, and models of other kinds

from llmnb.measure.metrics import metric
from llmnb.measure.surprise import pair_perplexity, pieces_of, pseudo_perplexity, text_losses, token_losses
from llmnb.text.records import Pair


def test_each_token_and_each_text(model, tok):
    for stride in (None, 1, 16):
        for text in TEXTS:
            found, ids = token_losses(model, tok, text, stride=stride, batch_size=3), tok.encode(text)
            with torch.no_grad():
                begins = [max(0, math.ceil((t - CTX) / (stride or CTX // 2))) * (stride or CTX // 2) for t in range(1, len(ids))]
                expected = [-model(torch.tensor([ids[b:t]]))[0, -1].log_softmax(-1)[ids[t]].item() for t, b in zip(range(1, len(ids)), begins)]
            assert found.losses[0] is None and found.losses[1:] == pytest.approx(expected, abs=1e-4) and found.ids == ids
            assert found.loss == pytest.approx(perplexity(model, tok, text, stride=stride).loss, abs=1e-4)
    sums = text_losses(model, tok, TEXTS, batch_size=2)
    for t, (nats, n, size) in zip(TEXTS, sums):
        p = perplexity(model, tok, t)
        assert (nats / n, n, size) == (pytest.approx(p.loss, abs=1e-4), p.tokens, p.bytes)
    m = metric("perplexity", model=model, tok=tok)
    for t in TEXTS: m.add_batch(predictions=[t])
    found = m.compute()
    assert found["perplexity"] == pytest.approx(perplexity(model, tok, TEXTS), rel=1e-4) and found["bits_per_byte"] == pytest.approx(perplexity(model, tok, TEXTS).bits_per_byte, rel=1e-4)
    assert float(metric("bits-per-byte", model=model, tok=tok).compute(predictions=TEXTS)) == pytest.approx(found["bits_per_byte"])
    worst = token_losses(model, tok, TEXTS[0]).worst(2)
    assert worst[0][2] >= worst[1][2] and "nats a token" in str(token_losses(model, tok, TEXTS[0]).show())


@given(st.integers(1, 60), st.integers(1, 20), st.data())
@hyp(max_examples=100, deadline=None)
def test_masked_windows_ask_each_token_once(n, room, data):
    found = pieces_of(n, room, data.draw(st.integers(1, room)))
    assert sorted(t for *_, ts in found for t in ts) == list(range(n))
    assert all(0 <= a <= t < b <= n and b - a <= room for a, b, ts in found for t in ts)


def test_pseudo_perplexity_is_one_mask_at_a_time():
    from llmnb.text.targets import _frame
    tok = Tokenizer.train(TEXTS, vocab_size=V, min_frequency=1).with_special("<|mask|>")
    m = Transformer(TransformerConfig.bert("tiny", vocab_size=tok.vocab_size, ctx=CTX, width=32, layers=2, heads=4), seed=0).eval()
    with torch.no_grad():
        for p in m.parameters(): p.mul_(3)
    mask, text = tok.encode("<|mask|>")[0], TEXTS[2][:8]
    ids = _frame(tok, tok.encode(text))
    before, total = len(_frame(tok, [])) - 1, []
    for i in range(before, len(ids) - 1):
        with torch.no_grad(): total.append(-m(torch.tensor([[*ids[:i], mask, *ids[i+1:]]]))[0, i].log_softmax(-1)[ids[i]].item())
    for size in (1, 4): assert pseudo_perplexity(m, tok, text, batch_size=size).loss == pytest.approx(np.mean(total), abs=1e-4)
    alone = token_losses(m, tok, text)
    assert alone.losses == pytest.approx(total, abs=1e-4) and alone.ids == tok.encode(text)            # the report of an encoder
    long = token_losses(m, tok, TEXTS[2], batch_size=5)
    assert long.ids == tok.encode(TEXTS[2]) and long.loss == pytest.approx(pseudo_perplexity(m, tok, TEXTS[2]).loss, abs=1e-4)
    for f in (lambda: text_losses(m, tok, TEXTS), lambda: metric("perplexity", model=m, tok=tok).compute(predictions=TEXTS)):
        with pytest.raises(ValueError, match="does not read on"): f()                                  # no nonsense from a model that sees all
    parts = [pseudo_perplexity(m, tok, t) for t in TEXTS]
    whole = perplexity(m, tok, (t for t in TEXTS))                                                     # dispatched; a generator
    assert whole.loss == pytest.approx(sum(p.loss * p.tokens for p in parts) / whole.tokens, abs=1e-4)
    assert whole.bytes == sum(len(t.encode()) for t in TEXTS) and whole.tokens == sum(len(tok.encode(t)) for t in TEXTS)
    for says, kw in (("text 0 is empty", dict(texts="")), ("stride = 99", dict(texts="a", stride=99)), ("ctx = 17", dict(texts="a", ctx=17)), ("has no room", dict(texts="a", ctx=1))):
        with pytest.raises(ValueError, match=says): pseudo_perplexity(m, tok, **kw)


def test_models_of_transformers_of_each_kind(tok):
    "They go to the computation of their kind by themselves, and give what their own forward gives."
    from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration
    torch.manual_seed(0)
    masked = Tokenizer.train(TEXTS, vocab_size=V, min_frequency=1).with_special("<|mask|>")
    bert = BertForMaskedLM(BertConfig(vocab_size=masked.vocab_size, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, max_position_embeddings=CTX)).eval()
    from llmnb.text.targets import _frame
    ids, mask, total = _frame(masked, masked.encode("To be")), masked.encode("<|mask|>")[0], []
    for i in range(len(_frame(masked, [])) - 1, len(ids) - 1):
        with torch.no_grad(): total.append(-bert(torch.tensor([[*ids[:i], mask, *ids[i+1:]]])).logits[0, i].log_softmax(-1)[ids[i]].item())
    assert perplexity(bert, masked, "To be").loss == pytest.approx(np.mean(total), abs=1e-4)
    assert token_losses(bert, masked, "To be").losses == pytest.approx(total, abs=1e-4)
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=tok.vocab_size, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=2, decoder_start_token_id=0, pad_token_id=0)).eval()
    src, tgt = [*tok.encode("To be"), tok.eos_id], [*tok.encode("or not"), tok.eos_id]
    with torch.no_grad(): found = t5(input_ids=torch.tensor([src]), labels=torch.tensor([tgt])).loss
    assert perplexity(t5, tok, [("To be", "or not")]).loss == pytest.approx(float(found), abs=1e-4)
    assert token_losses(t5, tok, ("To be", "or not")).loss == pytest.approx(float(found), abs=1e-4)


def test_pair_perplexity_is_one_token_at_a_time(tok):
    m = Transformer(TransformerConfig.vaswani("tiny", vocab_size=tok.vocab_size, ctx=40, width=32, layers=2, heads=4), seed=0).eval()
    pairs = [("To be", "or not"), Pair("Enter", "ROMEO, and a friend."), ("a", "")]
    total = n = 0
    for p in pairs:
        s, t = (p.source, p.target) if isinstance(p, Pair) else p
        src, tgt = torch.tensor([[*tok.encode(s), tok.eos_id]]), [*tok.encode(t), tok.eos_id]
        start = m.config.arch.start if m.config.arch.start is not None else tok.bos_id
        for i in range(len(tgt)):
            with torch.no_grad(): total -= m(src, torch.tensor([[start, *tgt[:i]]]))[0, -1].log_softmax(-1)[tgt[i]].item()
            n += 1
    for size in (1, 2, 8): assert pair_perplexity(m, tok, pairs, batch_size=size).loss == pytest.approx(total / n, abs=1e-4)
    assert perplexity(m, tok, iter(pairs)).tokens == n
    alone = token_losses(m, tok, pairs[1])
    assert alone.ids == [*tok.encode(pairs[1].target), tok.eos_id] and alone.loss == pytest.approx(pair_perplexity(m, tok, pairs[1:2]).loss, abs=1e-4)
    for says, f in (("leave out ctx", lambda: perplexity(m, tok, pairs, ctx=8)), ("no text in their targets", lambda: perplexity(m, tok, [("a", "")])),
                    ("pairs is 'a b'", lambda: perplexity(m, tok, "a b"))):
        with pytest.raises((TypeError, ValueError), match=says): f()
    for says, wrong in (("the source of pair 1 has .* tokens with its end, but the context is 40", [("a", "b"), ("long " * 50, "x")]), ("no pairs", []), ("pair 0 is a str", ["text"])):
        with pytest.raises((ValueError, TypeError), match=says): pair_perplexity(m, tok, wrong)
