"Speculation, contrast, and the processors of the second page: equal to greedy, to plain versions and to transformers, alone and in a batch."
import math

import pytest
import torch

from llmnb.decode.bans import (BadWords, DRY, Epsilon, Eta, Forced, LogitBias, MinLength, MinNewTokens, NoRepeatNGram, Suppress, TopNSigma, XTC)
from llmnb.decode.contrast import Contrastive, ContrastWith, Guided, best_of, majority
from llmnb.decode.generate import DecodeError, generate, stream
from llmnb.decode.processors import History, RepetitionPenalty
from llmnb.decode.speculative import PromptLookup, Speculative, leave_early, look_up, verdict
from llmnb.decode.strategies import Greedy, Sample
from test_decode import PROMPTS, V, BanAll, make


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request): return make(request.param)


@pytest.fixture(scope="module")
def other(): return make("gpt2", seed=9, layers=1)


STRATEGIES = {"draft": lambda o, b: Speculative(o, base=b), "early": lambda o, b: Speculative(1, ahead=3, base=b), "lookup": lambda o, b: PromptLookup(base=b)}


@pytest.mark.parametrize("how", STRATEGIES)
@pytest.mark.parametrize("base", [Greedy(), Greedy((RepetitionPenalty(1.4),))])
def test_speculation_is_greedy(model, other, how, base):
    strategy = STRATEGIES[how](other, base)
    outs = generate(model, None, PROMPTS, strategy=strategy, stop=[5, 60], max_new_tokens=70)
    expected = generate(model, None, PROMPTS, strategy=base, stop=[5, 60], max_new_tokens=70)
    assert [o.ids for o in outs] == [o.ids for o in expected] and [o.finish_reason for o in outs] == [o.finish_reason for o in expected]
    for o, e in zip(outs, expected): assert o.logprobs == pytest.approx(e.logprobs, abs=1e-3)
    assert all(0 <= a <= n for o in outs for a, n in o.steps)
    assert all(len(o.ids) <= sum(a + 1 for a, _ in o.steps) for o in outs)


def test_a_perfect_draft_is_always_accepted(model):
    out = generate(model, None, PROMPTS[1], strategy=Speculative(model, ahead=4), max_new_tokens=20)
    assert out.steps == [(4, 4)] * 4
    out = generate(model, None, PROMPTS[1], strategy=Speculative(model, ahead=4, base=Sample()), max_new_tokens=20, seed=0)
    assert out.steps == [(4, 4)] * 4


@pytest.mark.parametrize("strategy", [lambda o: Speculative(o, base=Sample(0.8, top_k=20)), lambda o: PromptLookup(base=Sample()), lambda o: Contrastive(3), lambda o: ContrastWith(o, base=Sample()), lambda o: Guided(2.0)])
def test_batch_is_single_is_streamed(model, other, strategy):
    some = dict(strategy=strategy(other), max_new_tokens=12)
    many = generate(model, None, PROMPTS, seed=4, **some)
    for i, (p, g) in enumerate(zip(PROMPTS, many)):
        pieces = stream(model, None, p, seed=4 + i, **some)
        assert g.ids == [x.id for x in pieces] == generate(model, None, p, seed=4 + i, **some).ids


def test_any_two_distributions_give_the_models():
    g = torch.Generator().manual_seed(0)
    p, q = (4 * torch.randn(2, 200, 10, dtype=torch.float64, generator=g)).softmax(-1)
    q[:50] = torch.nn.functional.one_hot(torch.arange(50) % 10, 10).double()
    for a, b in zip(p, q):
        accept, rest = verdict(a, b)
        assert torch.allclose(b * accept + (1 - (b * accept).sum()) * rest / rest.sum(), a)


@pytest.mark.parametrize("how", ["draft", "early", "lookup"])
def test_sampled_distribution(how):
    m, o = make("llama", ctx=16, vocab_size=4), make("llama", seed=3, ctx=16, vocab_size=4)
    strategy, n, prompt = STRATEGIES[how](o, Sample()), 700, [1, 2, 1]
    with torch.no_grad():
        first = m(torch.tensor([prompt]))[0, -1].softmax(-1)
        second = m(torch.tensor([[*prompt, i] for i in range(4)]))[:, -1].softmax(-1)
    expected = n * (first[:, None] * second).flatten()
    seen = torch.tensor([4 * o.ids[0] + o.ids[1] for o in generate(m, None, [prompt] * n, strategy=strategy, max_new_tokens=2, seed=0)]).bincount(minlength=16)
    assert ((seen - expected) ** 2 / expected).sum() < 37.7                  # 15 degrees of freedom, once in a thousand


def test_early_exit_shares_the_weights(model):
    early = leave_early(model, 1)
    assert {id(p) for p in early.parameters()} < {id(p) for p in model.parameters()}
    assert look_up([1, 2, 3, 1, 2], 3, 8) == [3, 1, 2] and look_up([1, 2, 3], 3, 8) == []


def test_why(model):
    strategy = Sample(0.7, top_k=3, repetition_penalty=1.3)
    out = generate(model, None, PROMPTS[1], strategy=strategy, max_new_tokens=5)
    text = out.why(3)._repr_mimebundle_()["text/html"]
    assert all(repr(p).split("(")[0] in text for p in strategy.chain.processors) and "the model" in text and f"{out.ids[3]} ←" in text
    with pytest.raises(IndexError, match="the reply has 5 tokens"): out.why(5)


def test_sample_keywords():
    from transformers.generation import logits_process as hf
    g = torch.Generator().manual_seed(1)
    logits, ids = 3 * torch.randn(8, 300, generator=g), torch.randint(0, 5, (8, 12), generator=g)
    theirs = hf.LogitsProcessorList([hf.NoRepeatNGramLogitsProcessor(2), hf.EpsilonLogitsWarper(1e-3), hf.EtaLogitsWarper(0.01)])
    assert torch.equal(Sample(no_repeat_ngram=2, epsilon=1e-3, eta=0.01).chain(logits, History(ids)), theirs(ids, logits))
    assert Sample(top_n_sigma=1.0).chain(logits, History(ids)).isfinite().sum() < logits.numel()


@pytest.mark.parametrize("p", [XTC(0.01, 0.5), NoRepeatNGram(2), DRY(), LogitBias({3: 1.0, (4, 2): -2.0}), MinLength(6, (1,)), Eta(0.1), TopNSigma(1.0), Epsilon(0.1)])
def test_padding_is_not_history(p):
    g = torch.Generator().manual_seed(2)
    for _ in range(20):
        rows = [torch.randint(0, 5, (n,), generator=g).tolist() for n in (2, 6, 9)]
        padded = torch.tensor([[-1] * (9 - len(r)) + r for r in rows])
        logits = torch.randn(3, 5, generator=g)
        alone = torch.cat([p(logits[i:i + 1], History(torch.tensor([r]))) for i, r in enumerate(rows)])
        assert torch.equal(p(logits, History(padded)), alone)


def test_best_of_and_majority(model):
    best = best_of(model, None, PROMPTS[0], n=5, score=lambda o: o.ids[0], max_new_tokens=3, seed=1)
    assert best.ids[0] == max(o.ids[0] for o in best.sequences)
    said, votes = majority(model, None, PROMPTS[0], n=20, answer=lambda o: o.ids[0] % 3, max_new_tokens=1, seed=1)
    assert votes[said] == max(votes.values())


@pytest.mark.parametrize("says, make_it", [
    ("draft = None", lambda: Speculative()), ("ahead = 0", lambda: Speculative(1, ahead=0)), ("ngram = 0", lambda: PromptLookup(0)), ("base = ", lambda: Speculative(1, base="x")),
    ("k = 0", lambda: Contrastive(0)), ("alpha = 2", lambda: Contrastive(alpha=2)), ("model = None", lambda: ContrastWith()), ("scale = nan", lambda: Guided(math.nan)),
    ("negative is empty", lambda: Guided(negative=())), ("expected a strategy that chooses", lambda: Guided(base=PromptLookup())), ("epsilon = 0", lambda: Epsilon(0)),
    ("eta = 1", lambda: Eta(1)), ("top_n_sigma = 0", lambda: Sample(top_n_sigma=0)), ("no_repeat_ngram = 0", lambda: NoRepeatNGram(0)), ("bias = {}", lambda: LogitBias({})),
    ("words = 5", lambda: BadWords(5)), ("ids = ", lambda: Suppress(())), ("counts from the end", lambda: Forced(3, -1)), ("n = -1", lambda: MinNewTokens(-1, (2,))), ("threshold = 2", lambda: XTC(2)),
    ("bias has 5: inf", lambda: LogitBias({5: math.inf})), ("temperature = 1e-40", lambda: Sample(1e-40))])
def test_mistakes(says, make_it):
    with pytest.raises((ValueError, TypeError), match=says): make_it()


def test_mistakes_of_the_run(model):
    small = make("llama", vocab_size=100)
    for strategy in (Speculative(small), ContrastWith(small)):
        with pytest.raises(ValueError, match=f"vocabulary of 100 tokens, the model one of {V}"): generate(model, None, [1], strategy=strategy, max_new_tokens=3)
    with pytest.raises(ValueError, match="layers = 2; expected 1 to 1"): generate(model, None, [1], strategy=Speculative(2), max_new_tokens=3)
    with pytest.raises(ValueError, match="sliding=True"): generate(model, None, [1], strategy=PromptLookup(), max_new_tokens=3, sliding=True)
    with pytest.raises(ValueError, match="id 900"): generate(model, None, [1], strategy=Greedy((Suppress((900,)),)), max_new_tokens=3)
    for base in (Greedy((BanAll(),)), Sample(processors=(BanAll(),))):
        for strategy in (Speculative(1, base=base), PromptLookup(base=base), Guided(base=base)):
            with pytest.raises(DecodeError, match="banned"): generate(model, None, [1, 1, 1], strategy=strategy, max_new_tokens=3)
    wild = make("llama", seed=9, layers=1)
    for p in wild.parameters(): p.data.mul_(math.nan)
    with pytest.raises(DecodeError, match="second opinion at step 0"): generate(model, None, [1], strategy=ContrastWith(wild), max_new_tokens=3)
    assert len(generate(model, None, [1], strategy=Speculative(wild, base=Sample(0.8)), max_new_tokens=9).ids) == 9      # bad guesses, and no more
    for strategy in (Speculative(1), Contrastive(), Guided()):
        with model.hooks({"final": lambda x, name: x * math.nan}), pytest.raises(DecodeError): generate(model, None, [1], strategy=strategy, max_new_tokens=3)
