"The decode floor: equal to transformers, equal along every path, and clear about mistakes."
import gc, json, math, weakref
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings as hyp, strategies as st

from llmnb import LLMNBError
from llmnb.decode.generate import DecodeError, Session, evaluating, generate, left_pad, next_logits, stream
from llmnb.decode.processors import (Chain, FrequencyPenalty, History, MinP, PresencePenalty, RepetitionPenalty, Temperature, TopK,
    TopP, Typical, counts, nucleus, nucleus_plain)
from llmnb.decode.reply import Piece, Row, cut_plain, find_stop, open_end
from llmnb.decode.strategies import Draws, Greedy, Sample, Strategy, draw_token, pick_strategy
from llmnb.model.config import TransformerConfig
from llmnb.model.transformer import Transformer
from llmnb.model.weights import save_model
from llmnb.plugins import registry
from llmnb.settings import settings
from llmnb.text.tokenizer import Tokenizer

V, CTX = 300, 64
TEXTS = ["To be, or not to be: that is the question.\n\nWhether 'tis nobler in the mind to suffer", "Enter ROMEO and JULIET. 🎭 naïve"] * 3


@pytest.fixture(scope="module")
def tok(): return Tokenizer.train(TEXTS, vocab_size=V, min_frequency=1)


def make(family="llama", seed=0, **kw):
    "Random weights, large enough that the next token is not always the same."
    model = Transformer(getattr(TransformerConfig, family)("tiny", **dict(vocab_size=V, ctx=CTX, width=32, layers=2, heads=4) | kw), seed=seed)
    with torch.no_grad():
        for p in model.parameters(): p.mul_(3)
    return model.eval()


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request): return make(request.param)


def some_ids(n, seed=0): return torch.randint(2, V, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


PROMPTS = [some_ids(n, n) for n in (1, 9, 4, 20, 13)]


def greedy_plain(model, ids, new):
    with torch.no_grad():
        for _ in range(new): ids = [*ids, int(model(torch.tensor([ids]))[0, -1].argmax())]
    return ids


# Processors

@st.composite
def logit_rows(draw):
    B, size, seed, scale = draw(st.integers(1, 4)), draw(st.integers(2, 60)), draw(st.integers(0, 10**6)), draw(st.sampled_from([0.1, 1.0, 5.0, 30.0]))
    return scale * torch.randn(B, size, generator=torch.Generator().manual_seed(seed))


shares = st.floats(0.01, 1.0)
CUTS = [lambda p: TopP(p), lambda p: Typical(p), lambda p: MinP(p), lambda p: TopK(max(1, int(10 * p)))]


@pytest.mark.parametrize("make_cut", CUTS)
@given(logits=logit_rows(), p=shares)
@hyp(max_examples=60, deadline=None)
def test_a_cut_keeps_something_and_changes_nothing_else(make_cut, logits, p):
    before = logits.clone()
    after = make_cut(p)(logits)
    kept = after > -math.inf
    assert torch.equal(logits, before) and after.shape == logits.shape        # the input is left alone
    assert kept.any(-1).all() and torch.equal(after[kept], logits[kept])


@given(logits=logit_rows(), p=st.floats(0.01, 0.99))
@hyp(max_examples=60, deadline=None)
def test_top_p_keeps_the_share_and_no_token_too_many(logits, p):
    probs = logits.softmax(-1)
    for row, kept in zip(probs, TopP(p)(logits) > -math.inf):
        mass = row[kept].sum().item()
        assert mass >= p - 1e-5
        assert mass - row[kept].min().item() < p + 1e-5                       # without the least of them it would not be enough
        assert not (~kept).any() or row[~kept].max() <= row[kept].min()


@given(seed=st.integers(0, 10**6), p=st.floats(0.001, 0.999), scale=st.sampled_from([0.1, 1.0, 4.0]))
@hyp(max_examples=40, deadline=None)
def test_the_fast_nucleus_is_the_plain_one(seed, p, scale):
    probs = (scale * torch.randn(3, 2000, generator=torch.Generator().manual_seed(seed))).softmax(-1)
    assert torch.equal(nucleus(probs, p, head=64), nucleus_plain(probs, p))


def test_equal_to_transformers():
    from transformers.generation import logits_process as hf
    g = torch.Generator().manual_seed(1)
    for size in (50, 5000):
        for scale in (0.5, 3.0):
            logits, ids = scale * torch.randn(16, size, generator=g), torch.randint(0, size, (16, 30), generator=g)
            for ours, theirs in [*((Temperature(t), hf.TemperatureLogitsWarper(t)) for t in (0.3, 1.7)), *((TopK(k), hf.TopKLogitsWarper(k)) for k in (1, 7, 10**6)),
                                 *((TopP(p), hf.TopPLogitsWarper(p)) for p in (0.1, 0.5, 0.95)), *((MinP(p), hf.MinPLogitsWarper(p)) for p in (0.02, 0.3)),
                                 *((Typical(p), hf.TypicalLogitsWarper(p)) for p in (0.2, 0.9)), *((RepetitionPenalty(p), hf.RepetitionPenaltyLogitsProcessor(p)) for p in (0.8, 1.5))]:
                assert torch.equal(ours(logits, History(ids)), theirs(ids, logits)), (ours, size, scale)
    chain = Sample(0.7, 40, 0.9, min_p=0.05, repetition_penalty=1.2).chain
    theirs = hf.LogitsProcessorList([hf.RepetitionPenaltyLogitsProcessor(1.2), hf.TemperatureLogitsWarper(0.7), hf.TopKLogitsWarper(40), hf.TopPLogitsWarper(0.9), hf.MinPLogitsWarper(0.05)])
    assert torch.equal(chain(logits, History(ids)), theirs(ids, logits))


def test_padding_is_not_history():
    logits = torch.randn(2, 10, generator=torch.Generator().manual_seed(0))
    padded = History(torch.tensor([[-1, -1, 3], [0, 4, 4]]))
    for p in (RepetitionPenalty(2.0), PresencePenalty(1.0), FrequencyPenalty(1.0)):
        alone = [p(logits[:1], History(torch.tensor([[3]]))), p(logits[1:], History(torch.tensor([[0, 4, 4]])))]
        assert torch.equal(p(logits, padded), torch.cat(alone))
    assert counts(torch.tensor([[-1, 4, 4]]), 6).tolist() == [[0, 0, 0, 0, 2, 0]]


@given(st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=0, max_size=9))
@hyp(max_examples=30, deadline=None)
def test_penalties_count_only_the_reply(steps):
    history = History(torch.tensor([[0], [1], [2]]))
    for ids in steps: history.add(torch.tensor(ids))
    logits = torch.zeros(3, 5)
    for r in range(3):
        said = [s[r] for s in steps]
        assert FrequencyPenalty(0.5)(logits, history)[r].tolist() == [-0.5 * said.count(i) for i in range(5)]
        assert PresencePenalty(0.5)(logits, history)[r].tolist() == [-0.5 * (i in said) for i in range(5)]


def test_history_grows_and_keeps_rows():
    h = History(torch.tensor([[1], [2]]))
    for i in range(200): h.add(torch.tensor([i, -i]))
    h.keep([1, 1])
    assert h.ids.shape == (2, 201) and h.new[0].tolist() == h.new[1].tolist() == [-i for i in range(200)]


def test_a_chain_shows_its_order():
    c = Chain(Temperature(0.5), TopK(2))
    logits = torch.tensor([[1.0, 2, 3]])
    assert repr(c) == "Temperature(temperature=0.5) → TopK(k=2)" and [p for p, _ in c.trace(logits)] == [None, *c.processors]
    assert torch.equal(c.trace(logits)[-1][1], c(logits))


@pytest.mark.parametrize("wrong, says", [
    (lambda: Temperature(0), "temperature = 0; expected a number above 0. .*Greedy"), (lambda: Temperature(-1.0), "temperature = -1.0"),
    (lambda: Temperature(math.nan), "temperature = nan"), (lambda: Temperature("hot"), "temperature = 'hot'"), (lambda: Temperature(math.inf), "temperature = inf"),
    (lambda: TopK(0), "top_k = 0; expected a whole number"), (lambda: TopK(2.5), "top_k = 2.5"), (lambda: TopP(0), "top_p = 0; expected a number above 0 and at most 1"),
    (lambda: TopP(1.01), "top_p = 1.01"), (lambda: MinP(-0.1), "min_p = -0.1"), (lambda: MinP(2), "min_p = 2"), (lambda: Typical(0), "typical_p = 0"),
    (lambda: RepetitionPenalty(0), "repetition_penalty = 0"), (lambda: PresencePenalty(None), "presence_penalty = None"), (lambda: FrequencyPenalty(math.inf), "frequency_penalty"),
    (lambda: Chain(TopK), "is not a processor.*TopK()"), (lambda: Chain(3), "3 is not a processor"),
    (lambda: Sample(temperature=0), "Greedy()"), (lambda: Sample(top_p=1.5), "top_p = 1.5"), (lambda: Sample(top_k=0), "top_k = 0"), (lambda: Sample(min_p=7), "min_p = 7"),
    (lambda: Sample(processors=[TopK(3)]), "expected a tuple"), (lambda: Greedy(TopK(3)), "expected a tuple"), (lambda: Greedy(("no-such",)), "processors has no 'no-such'"),
    (lambda: pick_strategy(Greedy), r"write Greedy\(\)"), (lambda: pick_strategy("gredy"), "Did you mean 'greedy'"), (lambda: pick_strategy(7), "strategy = 7; expected Greedy"),
])
def test_wrong_numbers_are_refused_at_once(wrong, says):
    with pytest.raises((ValueError, TypeError), match=says): wrong()


# Strategies

def test_draws_follow_the_distribution():
    p = torch.tensor([0.5, 0.0, 0.3, 0.15, 0.05])
    n = 200_000
    seen = draw_token(p.log().expand(n, -1), torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(3))).bincount(minlength=5)
    assert seen[1] == 0
    assert ((seen - n * p)[p > 0] ** 2 / (n * p)[p > 0]).sum() < 16.3          # 3 degrees of freedom, once in a thousand


@given(dart=st.floats(0, 1, exclude_max=True), seed=st.integers(0, 999))
@hyp(max_examples=60, deadline=None)
def test_a_draw_never_has_probability_zero(dart, seed):
    logits = TopK(3)(torch.randn(1, 50, generator=torch.Generator().manual_seed(seed)))
    assert logits[0, draw_token(logits, torch.tensor([dart], dtype=torch.float64))] > -math.inf


def test_rows_draw_alone():
    a, b = Draws([1, 2, 3], block=8), Draws([3], block=8)
    first = [a() for _ in range(5)]
    a.keep([2])
    assert [x[2].item() for x in first] + [a().item() for _ in range(20)] == [b().item() for _ in range(25)]


def test_strategies_are_values():
    assert Sample(0.8) == Sample(temperature=0.8) != Sample() and len({Greedy(), Greedy()}) == 1
    assert repr(Sample(0.5, top_k=3).chain) == "Temperature(temperature=0.5) → TopK(k=3)" and len(Sample().chain) == 0
    assert pick_strategy(None) == Greedy() and isinstance(pick_strategy("sample"), Sample)
    with pytest.raises(AttributeError): Sample().temperature = 2


# Stop strings and pieces

class Cut:
    "A tokenizer in name only: its ids are places in a list of strings."
    eos_id = None
    def __init__(self, parts): self.parts = parts
    def stream(self): return self
    def push(self, id): return self.parts[id]
    def flush(self): return ""
    def piece(self, id): return self.parts[id]


@given(st.lists(st.text("ab\n", max_size=4), min_size=1, max_size=8), st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3))
@hyp(max_examples=300, deadline=None)
def test_stop_strings_across_any_borders(parts, stops):
    text, row = "".join(parts), Row([0], tok=Cut(parts), limit=len(parts), stops=tuple(stops))
    shown = ""
    for id in range(len(parts)):
        if row.finish: break
        row.add(id, 0.0)
        shown += "".join(row.released())
        assert cut_plain(text, stops).startswith(shown)
        if not row.finish:                                                    # nothing waits without need
            held = sum(len(h[0]) for h in row.held)
            assert held == 0 or open_end("".join(parts[:id+1]), tuple(stops)) > held - len(row.held[0][0])
    assert shown == cut_plain(text, stops) and len(row.pieces) == len(row.ids)
    assert row.finish == ("stop" if shown != text or any(s in text for s in stops) else "length")


def test_find_stop_and_open_end():
    assert find_stop("abcd", ("abcd", "bc")) == 1 and find_stop("xabc", ("c", "abc")) == 1 and find_stop("abc", ()) is None
    assert open_end("x\n", ("\n\n",)) == 1 and open_end("aab", ("aabb", "bc")) == 3 and open_end("abc", ("x",)) == 0


def test_a_piece_is_a_string_that_knows_its_token():
    p = Piece("be", 5, math.log(0.5), ((5, 6), (math.log(0.5), math.log(0.25))))
    assert p == "be" and p.upper() == "BE" and p.id == 5 and p.prob == pytest.approx(0.5)
    assert [(n, round(q, 2)) for n, q in p.alternatives] == [("5", 0.5), ("6", 0.25)]


# Generate

def test_cached_is_uncached_is_plain(model):
    for prompt in PROMPTS:
        a, b = (generate(model, None, prompt, max_new_tokens=25, cache=c) for c in (True, False))
        assert a.ids == b.ids == greedy_plain(model, prompt, 25)[len(prompt):] and a.text is None and a.prompt_ids == prompt
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


@pytest.mark.parametrize("strategy", [Greedy(), Sample(), Sample(0.7, top_k=20, top_p=0.9, repetition_penalty=1.2, frequency_penalty=0.3), Greedy((RepetitionPenalty(1.4),))])
def test_batched_is_single(model, tok, strategy):
    how = dict(strategy=strategy, max_new_tokens=30, stop=["e", "\n"])
    singles = [generate(model, tok, p, seed=5 + i, **how) for i, p in enumerate(PROMPTS)]
    for size in (None, 1, 2, 4):
        batch = generate(model, tok, PROMPTS, seed=5, batch_size=size, **how)
        assert [g.ids for g in batch] == [g.ids for g in singles] and [g.text for g in batch] == [g.text for g in singles]
        assert [g.finish_reason for g in batch] == [g.finish_reason for g in singles] and [g.seed for g in batch] == [5, 6, 7, 8, 9]
    assert batch == singles


def test_rows_that_fill_the_context_do_not_stop_the_others(model):
    prompts = [some_ids(CTX - 2), some_ids(2), some_ids(CTX - 20)]
    batch = generate(model, None, prompts)
    assert [len(g.ids) for g in batch] == [2, CTX - 2, 20] and {g.finish_reason for g in batch} == {"length"}
    assert batch == [generate(model, None, p, cache=False) for p in prompts]


def test_more_tokens_than_the_context_holds_end_at_its_end(model):
    out = generate(model, None, some_ids(60), max_new_tokens=500)
    assert len(out.ids) == CTX - 60 and out.finish_reason == "length"


@pytest.mark.parametrize("sample", [False, True])
def test_sliding(model, sample):
    strategy = Sample(0.9) if sample else Greedy()
    prompts = [some_ids(3), some_ids(CTX + 30), some_ids(CTX)]
    how = dict(max_new_tokens=2 * CTX, sliding=True, strategy=strategy)
    batch = generate(model, None, prompts, **how)
    assert [g.ids for g in batch] == [generate(model, None, p, seed=settings.seed + i, **how).ids for i, p in enumerate(prompts)]
    assert [g.ids for g in batch] == [g.ids for g in generate(model, None, prompts, cache=False, **how)]
    if sample: return
    ids, begin = prompts[1], 0
    for _ in range(2 * CTX):
        if len(ids) - begin > CTX: begin = len(ids) - CTX // 2
        ids = ids + greedy_plain(model, ids[begin:], 1)[-1:]
    assert batch[1].ids == ids[len(prompts[1]):]


@pytest.mark.parametrize("how", [{}, dict(strategy=Sample(1.3), seed=4), dict(stop=["th", "e "], strategy=Sample(1.5), seed=9), dict(strategy=Sample(2.0), cache=False)])
def test_streamed_is_generated(model, tok, how):
    pieces = stream(model, tok, "To be", max_new_tokens=40, **how)
    assert pieces.result is None
    seen = list(pieces)
    out = generate(model, tok, "To be", max_new_tokens=40, **how)
    assert pieces.result == out and "".join(seen) == out.text and [p.id for p in seen] == out.ids and [p.logprob for p in seen] == out.logprobs
    assert "�" not in "".join(seen[:-1]) or "�" in tok.decode(out.ids)


def test_prompts_in_every_form(model, tok):
    import numpy as np
    ids = tok.encode("To be, or")
    outs = [generate(model, tok, p, max_new_tokens=5) for p in ("To be, or", ids, tuple(ids), torch.tensor(ids), np.array(ids), [np.int64(i) for i in ids])]
    assert len({tuple(o.ids) for o in outs}) == 1 and {o.prompt for o in outs} == {"To be, or"}
    assert all(isinstance(i, int) for i in outs[3].prompt_ids + outs[3].ids)
    many = generate(model, tok, ["To", torch.tensor(ids), ids], max_new_tokens=3)
    assert isinstance(many, list) and len(many) == 3 and many[1].ids == many[2].ids
    assert generate(model, tok, []) == [] and generate(model, tok, ["To"], max_new_tokens=2)[0] == generate(model, tok, "To", max_new_tokens=2)


def test_an_empty_prompt_starts_from_the_start_token(model, tok):
    a, b = generate(model, tok, "", max_new_tokens=5), generate(model, tok, [tok.bos_id], max_new_tokens=5)
    assert a.ids == b.ids and a.prompt_ids == [tok.bos_id] and a.prompt == ""
    assert generate(model, tok, torch.tensor([], dtype=torch.long), max_new_tokens=5).ids == a.ids


class Parrot(Strategy):
    "Says given ids, whatever the model thinks."
    def __init__(self, ids): self.ids = ids
    def choose(self, logits, history, draw): return torch.tensor([self.ids[history.new.shape[1]]] * len(logits))


def test_eos_stop_ids_and_length(model, tok):
    said = [*tok.encode("be"), tok.eos_id, *tok.encode("to")]
    out = generate(model, tok, "To", strategy=Parrot(said), max_new_tokens=9)
    assert out.finish_reason == "eos" and out.text == "be" and out.ids[-1] == tok.eos_id
    ids = tok.encode("To be, or not")
    out = generate(model, tok, "To", strategy=Parrot(ids), max_new_tokens=len(ids), stop=[ids[2]])
    assert out.finish_reason == "stop" and out.ids == ids[:3] and out.text == tok.decode(ids[:2])
    out = generate(model, None, [5], strategy=Parrot(ids), max_new_tokens=9, stop=ids[2])
    assert out.finish_reason == "stop" and out.ids == ids[:3]
    out = generate(model, tok, "To", strategy=Parrot(ids), max_new_tokens=3, stop="never said")
    assert out.finish_reason == "length" and out.text == tok.decode(ids[:3])


@pytest.mark.parametrize("text, stop, left", [("To be\n\nExit", "\n\n", "To be"), ("mask 🎭🎭 end", "🎭 e", "mask 🎭"), ("or not", ["not", "or n"], ""), ("naïve", "ï", "na"), ("aab", "b", "aa")])
def test_a_stop_string_is_cut_and_never_shown(model, tok, text, stop, left):
    ids = tok.encode(text)
    pieces = stream(model, tok, "To", strategy=Parrot(ids), max_new_tokens=len(ids), stop=stop)
    shown = ""
    for p in pieces:
        shown += p
        assert left.startswith(shown)
    assert shown == left == pieces.result.text and pieces.result.finish_reason == "stop"


@given(st.text(min_size=1, max_size=12))
@hyp(max_examples=40, deadline=None)
def test_text_is_whole_characters(text):
    tok = Tokenizer.train(TEXTS, vocab_size=V, min_frequency=1) if not hasattr(test_text_is_whole_characters, "tok") else test_text_is_whole_characters.tok
    test_text_is_whole_characters.tok = tok
    model = make()
    ids = tok.encode(text)[:CTX - 2]
    if tok.eos_id in ids: return
    pieces = list(stream(model, tok, "To", strategy=Parrot(ids), max_new_tokens=len(ids)))
    assert "".join(pieces) == tok.decode(ids)
    assert "�" not in "".join(pieces[:-1]) or "�" in text


def test_half_a_character_at_the_end(model, tok):
    ids = tok.encode("🎭")[:-1]
    out = generate(model, tok, "To", strategy=Parrot(ids), max_new_tokens=len(ids))
    assert out.text == tok.decode(ids) == "�" and len(out.pieces) == len(ids)


def test_seeds(model, tok):
    how = dict(strategy=Sample(2.0), max_new_tokens=20)
    a, b, c = (generate(model, tok, "To be", seed=s, **how) for s in (7, 7, 8))
    assert a.ids == b.ids != c.ids
    state = torch.get_rng_state()
    with settings.override(seed=8): assert generate(model, tok, "To be", **how) == c
    assert torch.equal(state, torch.get_rng_state())                         # nobody else's numbers are disturbed
    many = generate(model, tok, ["To be"] * 3, seed=7, **how)
    assert many[0] == a and many[1].ids == c.ids and many[2].ids not in (a.ids, c.ids)


def test_sampling_has_the_models_distribution(model):
    n, prompt = 4000, some_ids(5)
    with torch.no_grad(): p = Sample(top_k=8).chain(next_logits(model, torch.tensor([prompt])))[0].softmax(-1)
    seen = torch.tensor([g.ids[0] for g in generate(model, None, [prompt] * n, strategy=Sample(top_k=8), max_new_tokens=1, batch_size=1000, alternatives=0)]).bincount(minlength=V)
    live = p > 0
    assert seen[~live].sum() == 0 and ((seen - n * p)[live] ** 2 / (n * p)[live]).sum() < 24.4   # 7 degrees of freedom, once in a thousand


def test_logprobs_and_alternatives_are_the_models(model, tok):
    out = generate(model, tok, "To be", strategy=Sample(0.5, top_k=2), max_new_tokens=10, alternatives=4)
    with torch.no_grad(): table = model(torch.tensor([out.prompt_ids + out.ids]))[0, len(out.prompt_ids) - 1:-1].log_softmax(-1)
    assert out.logprobs == pytest.approx([table[i, t].item() for i, t in enumerate(out.ids)], abs=1e-4)
    best = table.topk(4)
    for i, others in enumerate(out.alternatives):
        assert [n for n, _ in others] == [tok.piece(t) for t in best.indices[i].tolist()]
        assert [p for _, p in others] == pytest.approx(best.values[i].exp().tolist(), abs=1e-4)
    assert out.score == pytest.approx(sum(out.logprobs)) and out.sequences == [out] and out.tokens_per_second > 0
    assert generate(model, tok, "To be", max_new_tokens=2, alternatives=0).alternatives == [[], []]


def test_ids_that_the_tokenizer_lacks_are_never_chosen(tok):
    wide = make(vocab_size=V + 200)
    assert max(max(g.ids) for g in generate(wide, tok, ["To be"] * 4, strategy=Sample(5.0), max_new_tokens=40)) < tok.vocab_size
    assert max(max(g.ids) for g in generate(wide, None, [[5]] * 4, strategy=Sample(5.0), max_new_tokens=40)) >= tok.vocab_size


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_any_dtype(dtype, tok):
    m = make().to(dtype)
    for strategy in (Greedy(), Sample(0.8, top_p=0.9)):
        outs = generate(m, tok, ["To be", "Enter"], strategy=strategy, max_new_tokens=8)
        assert all(len(o.ids) == 8 and all(math.isfinite(p) for p in o.logprobs) for o in outs)


def test_the_model_is_left_as_it_was(tok):
    m = make(dropout=0.5)
    expected = generate(m, tok, "To be", max_new_tokens=12)
    m.train(); m.layers[0].eval()
    before = {n: x.training for n, x in m.named_modules()}
    assert generate(m, tok, "To be", max_new_tokens=12) == expected
    pieces = stream(m, tok, "To be", max_new_tokens=12)
    next(pieces)
    assert {n: x.training for n, x in m.named_modules()} == before and torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    m(torch.tensor([[1, 2]])).sum().backward()                               # may be trained between two pieces
    list(pieces)
    assert pieces.result == expected and {n: x.training for n, x in m.named_modules()} == before
    with pytest.raises(DecodeError), m.hooks({"final": lambda x, n: x * math.nan}): generate(m, tok, "To be", max_new_tokens=3)
    assert {n: x.training for n, x in m.named_modules()} == before


def test_closing_a_stream_frees_the_cache(model, tok):
    for end in ("close", "with", "del", "exhaust"):
        pieces = stream(model, tok, "To be", max_new_tokens=10, strategy=Sample(1.0))
        next(pieces); next(pieces)
        cache = weakref.ref(pieces.session.cache)
        if end == "close": pieces.close(); pieces.close(); assert pieces.result.finish_reason == "cancelled" and len(pieces.result.ids) == 2
        elif end == "with":
            with pieces: pass
            assert list(pieces) == []
        elif end == "exhaust": list(pieces); assert pieces.result.finish_reason == "length"
        else: del pieces
        gc.collect()
        assert cache() is None, end
    never = stream(model, tok, "To be")
    never.close()
    assert never.result.ids == [] and never.result.text == "" and list(never) == []


def test_two_streams_at_once(model, tok):
    whole = [generate(model, tok, p, max_new_tokens=12) for p in ("To be", "Enter")]
    a, b = (stream(model, tok, p, max_new_tokens=12) for p in ("To be", "Enter"))
    for _ in zip(a, b): pass
    list(a), list(b)
    assert [a.result, b.result] == whole


def test_the_head_is_asked_about_the_last_place_only(model):
    shapes = []
    with model.hooks({"logits": lambda x, n: shapes.append(tuple(x.shape)), "embed": lambda x, n: shapes.append(tuple(x.shape[:2]))}):
        generate(model, None, PROMPTS[:2], max_new_tokens=3)
    assert shapes == [(2, 9), (2, V), (2, 1), (2, V), (2, 1), (2, V)]


def test_rows_that_are_done_leave(model):
    sizes = []
    with model.hooks({"embed": lambda x, n: sizes.append(x.shape[0])}):
        generate(model, None, [some_ids(CTX - n) for n in (1, 2, 3, 30)])
    assert sizes == [4] + [3] * 1 + [2] * 1 + [1] * 27


def test_a_strategy_may_own_the_loop(model, tok):
    class Twice(Strategy):
        "Takes each token two at a time, as speculation would."
        def decode(self, session):
            while session.live:
                for _ in range(2):
                    if session.live: session.take(session.logits().argmax(-1))
                yield
    assert generate(model, tok, ["To be", "Enter"], strategy=Twice(), max_new_tokens=9) != [] 
    assert [g.ids for g in generate(model, tok, ["To be", "Enter"], strategy=Twice(), max_new_tokens=9)] == [g.ids for g in generate(model, tok, ["To be", "Enter"], max_new_tokens=9)]
    with pytest.raises(NotImplementedError, match="Strategy needs a method"): generate(model, tok, "To", strategy=Strategy())
    choose = SimpleNamespace(choose=lambda logits, history, draw: logits.argmax(-1))       # no base class needed
    assert generate(model, tok, "To", strategy=choose, max_new_tokens=5).ids == generate(model, tok, "To", max_new_tokens=5).ids


def test_a_strategy_by_name(model, tok):
    registry("strategies").register("parrot-test", lambda: Parrot(tok.encode("be")))
    try: assert generate(model, tok, "To", strategy="parrot-test", max_new_tokens=1).ids == tok.encode("be")[:1]
    finally: registry("strategies").session.pop("parrot-test")
    assert generate(model, tok, "To", strategy="greedy", max_new_tokens=4) == generate(model, tok, "To", max_new_tokens=4)


# The same as transformers

@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_equal_to_transformers_generate(family, tmp_path):
    from transformers import AutoModelForCausalLM
    m = make(family)
    save_model(m, tmp_path/"m")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path/"m").eval()
    how = dict(do_sample=False, max_new_tokens=30, eos_token_id=None, pad_token_id=0)
    for prompt in PROMPTS:
        expected = theirs.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), **how)[0, len(prompt):].tolist()
        assert generate(m, None, prompt, max_new_tokens=30).ids == expected
    ids, mask = left_pad(PROMPTS)
    expected = theirs.generate(ids, attention_mask=mask, **how)[:, ids.shape[1]:].tolist()
    assert [g.ids for g in generate(m, None, PROMPTS, max_new_tokens=30)] == expected
    expected = theirs.generate(torch.tensor([PROMPTS[1]]), repetition_penalty=1.5, **how)[0, len(PROMPTS[1]):].tolist()
    assert generate(m, None, PROMPTS[1], strategy=Greedy((RepetitionPenalty(1.5),)), max_new_tokens=30).ids == expected


# What it looks like

def test_the_static_form(model, tok):
    out = generate(model, tok, "<script>To be</script>", max_new_tokens=6, strategy=Parrot(tok.encode('<b onclick="x">') + [3]))
    page = out._repr_mimebundle_()
    html = page["text/html"]
    assert "<script" not in html and "<b " not in html and "&lt;script&gt;" in html and 'title="chosen:' in html
    assert str(out) == out.text and "Generation(" in repr(out) and out.text in page["text/plain"]
    long = generate(model, None, some_ids(3), max_new_tokens=700, sliding=True)
    bare = long._repr_mimebundle_()
    assert "the first 400 are shown" in bare["text/html"] and len(bare["text/html"]) < 150_000


# Mistakes

class Bare:
    "A tokenizer without a start token."
    bos_id = eos_id = None
    vocab_size = 10
    def encode(self, text): return []
    def stream(self): return self


class BanAll:
    def __init__(self, to=-math.inf): self.to = to
    def __call__(self, logits, history): return torch.full_like(logits, self.to)


@pytest.mark.parametrize("says, how", [
    ("the prompt has 70 tokens, but the context is 64.*at most 63 tokens.*sliding=True", dict(prompt=[5] * 70)),
    ("prompt 1 has 64 tokens, but the context is 64", dict(prompt=[[5], [5] * 64])),
    ("the prompt is a string, but tok is None", dict(tok=None)),
    ("prompt 1 is a string, but tok is None", dict(tok=None, prompt=[[3], "a"])),
    ("the prompt is empty.*neither bos nor eos", dict(tok=Bare(), prompt="")),
    ("prompt 0 is empty.*tok is None", dict(tok=None, prompt=[[]])),
    (r"id 300, but the model knows ids 0 to 299", dict(prompt=[1, 300])), ("id -1, but the model knows", dict(prompt=[-1, 3])),
    ("prompt 0 is 3.5", dict(prompt=[3.5])), ("integers", dict(prompt=torch.tensor([1.5]))), (r"shape \(1, 2\)", dict(prompt=torch.tensor([[1, 2]]))),
    ("prompt is int", dict(prompt=7)), ("prompt is NoneType", dict(prompt=None)),
    ("max_new_tokens = 0", dict(max_new_tokens=0)), ("max_new_tokens = 2.5", dict(max_new_tokens=2.5)), ("batch_size = 0", dict(batch_size=0)),
    ("stop has an empty string", dict(stop=[""])), ("stop = 2.5; expected a string, a token id, a rule or a function", dict(stop=[2.5])), ("stop = 2.5; expected", dict(stop=2.5)), ("alternatives = -1; expected a whole number of at least 0", dict(alternatives=-1)), ("stop = 'x' is a string, but tok is None", dict(tok=None, prompt=[1], stop="x")),
    ("seed = -1", dict(seed=-1)), ("seed = 'a'", dict(seed="a")), ("give max_new_tokens", dict(sliding=True, max_new_tokens=None)),
    ("strategies has no 'smaple'. Did you mean 'sample'", dict(strategy="smaple")), (r"write Sample\(\)", dict(strategy=Sample)),
    ("tok is str; expected a Tokenizer", dict(tok="gpt2")),
])
def test_mistakes_are_named_before_the_model_is_asked(tok, says, how):
    m = make()
    def asked(x, name): raise RuntimeError("the model was asked")
    with m.hooks({"embed": asked}), pytest.raises((ValueError, TypeError), match=says): generate(**{**dict(model=m, tok=tok, prompt="To be", max_new_tokens=5), **how})
    if "batch_size" in how or says.startswith("prompt "): return              # a matter of lists
    with pytest.raises((ValueError, TypeError), match=says): stream(**{**dict(model=m, tok=tok, prompt="To be", max_new_tokens=5), **how})


def test_a_tokenizer_that_does_not_belong(tok):
    with pytest.raises(ValueError, match=f"the tokenizer has {tok.vocab_size} tokens, but the model only 100"): generate(make(vocab_size=100), tok, "To be")


def test_stream_takes_one_prompt(model, tok):
    with pytest.raises(TypeError, match="stream takes one prompt, but here is a list of 2"): stream(model, tok, ["a", "b"])


@pytest.mark.parametrize("strategy", [Greedy(), Sample()])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_gone_bad_name_the_step(tok, strategy, bad):
    m, calls = make(), []
    def third(x, name):
        calls.append(1)
        return x * bad if len(calls) == 3 else None
    with m.hooks({"logits": third}), pytest.raises(DecodeError, match=r"logits at step 2 \(new token 2\) are not finite"): generate(m, tok, "To be", strategy=strategy, max_new_tokens=9)
    assert issubclass(DecodeError, LLMNBError)


@pytest.mark.parametrize("strategy", [make(processors=(BanAll(to),)) for make in (Greedy, Sample) for to in (-math.inf, math.nan)])
def test_everything_banned(model, tok, strategy):
    with pytest.raises(DecodeError, match=r"At step 0 \(new token 0 of prompt [01]\) every token is banned"): generate(model, tok, ["To", "be"], strategy=strategy, max_new_tokens=3)


@pytest.mark.parametrize("call, says", [
    (lambda m, t: generate(m, t, "To be", temperature=0.5), r"no argument 'temperature'. Here it is a part of the strategy: strategy=Sample\(temperature=...\)"),
    (lambda m, t: stream(m, t, "To be", top_k=3), r"stream has no argument 'top_k'.*strategy=Sample\(top_k=...\)"),
    (lambda m, t: generate(m, t, "To be", num_beams=3), r"strategy=Beam\(width=4\)"), (lambda m, t: generate(m, t, "To be", max_length=3), "Here it is max_new_tokens"),
    (lambda m, t: generate(m, t, "To be", max_new_token=3), "Did you mean 'max_new_tokens'"),
    (lambda m, t: generate(t, m, "To be"), r"model is a tokenizer; expected generate\(model, tok, prompt\)"),
    (lambda m, t: generate("gpt2", t, "To be"), r"model is 'gpt2'; expected a model: load_model"),
    (lambda m, t: generate(m, t, [dict(role="user", content="hi " * 10**5)]), "^prompt 0 is .{,70}Messages of a conversation: Chat"),
    (lambda m, t: generate(m, t, dict(role="user", content="hi")), "encode_chat")])
def test_who_writes_the_wrong_thing_is_told_the_right_one(tok, call, says):
    with pytest.raises(TypeError, match=says): call(make(), tok)


def test_a_trainer_is_no_model(tok):
    from llmnb.train.trainer import Trainer
    with pytest.raises(TypeError, match=r"model is a Trainer; expected the model in it: trainer\.model"): generate(Trainer.__new__(Trainer), tok, "To be")
