"Beam search: the ids of transformers.generate, one prompt or many, streamed or not, decoder or encoder-decoder."
import math

import pytest
import torch

from llmnb.decode.beam import Beam, Node, common
from llmnb.decode.generate import DecodeError, generate, stream
from llmnb.decode.processors import RepetitionPenalty
from llmnb.decode.strategies import Greedy, Sample
from llmnb.decode.why import trace
from llmnb.model.config import TransformerConfig
from llmnb.model.transformer import Transformer
from llmnb.model.weights import save_model
from llmnb.plugins import registry
from test_decode import PROMPTS, make, tok  # noqa: F401

EOS = [7, 11, 23]
V = 60                                                                      # small, so that texts do end


def small(family, **kw): return make(family, vocab_size=V, **kw)


def prompts(): return [[i % (V - 2) + 2 for i in p] for p in PROMPTS]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def both(request, tmp_path_factory):
    from transformers import AutoModelForCausalLM
    m, path = small(request.param), tmp_path_factory.mktemp("m")
    save_model(m, path)
    return m, AutoModelForCausalLM.from_pretrained(path).eval()


def theirs(model, ids, mask=None, n_best=1, eos=EOS, **how):
    "Lists of (ids, score), the best first."
    ids = torch.tensor(ids) if not isinstance(ids, torch.Tensor) else ids
    mask = torch.ones_like(ids) if mask is None else mask
    out = model.generate(ids, attention_mask=mask, do_sample=False, eos_token_id=eos, pad_token_id=0, num_return_sequences=n_best,
                         return_dict_in_generate=True, output_scores=True, **how)
    start = 1 if model.config.is_encoder_decoder else ids.shape[1]
    rows = [r.tolist() for r in out.sequences[:, start:]]
    return [(cut(r, eos), s) for r, s in zip(rows, out.sequences_scores.tolist())]


def cut(ids, eos): return ids[:next((i + 1 for i, t in enumerate(ids) if t in eos), len(ids))]


def same(ours, expected):
    assert [g.ids for g in ours] == [ids for ids, _ in expected]
    assert [g.score for g in ours] == pytest.approx([s for _, s in expected], abs=2e-4)


@pytest.mark.parametrize("early", [False, True, "never"])
@pytest.mark.parametrize("penalty", [-0.5, 0.0, 1.0, 2.0])
def test_equal_to_transformers(both, early, penalty):
    m, hf = both
    for width in (2, 3, 4, 8):
        for p in prompts()[:3]:
            ours = generate(m, None, p, strategy=Beam(width, penalty, early), stop=EOS, max_new_tokens=14).sequences
            same(ours, theirs(hf, [p], num_beams=width, n_best=width, length_penalty=penalty, early_stopping=early, max_new_tokens=14))


def test_equal_with_a_processor(both):
    m, hf = both
    ours = generate(m, None, prompts()[1], strategy=Beam(4, processors=(RepetitionPenalty(1.5),)), stop=EOS, max_new_tokens=14)
    same([ours], theirs(hf, [prompts()[1]], num_beams=4, repetition_penalty=1.5, max_new_tokens=14))


@pytest.mark.parametrize("how", [Beam(4), Beam(3, 0.0, True), Beam(4, groups=2, diversity=1.0), Beam(3, sample=Sample(2.0, top_k=20))])
def test_batch_is_single_is_uncached_is_streamed(both, how):
    m, _ = both
    some = dict(strategy=how, stop=EOS, max_new_tokens=12)
    many = generate(m, None, prompts(), seed=5, **some)
    for i, (p, g) in enumerate(zip(prompts(), many)):
        one = generate(m, None, p, seed=5 + i, **some)
        pieces = stream(m, None, p, seed=5 + i, **some)
        seen = [x.id for x in pieces]
        assert g.ids == one.ids == seen == pieces.result.ids == generate(m, None, p, seed=5 + i, cache=False, **some).ids
        assert [s.ids for s in g.sequences] == [s.ids for s in one.sequences] and g.score == pytest.approx(one.score, abs=1e-4)
        assert one.sequences[0].ids == one.ids


def test_one_beam_is_greedy(both):
    m, _ = both
    for p in prompts():
        assert generate(m, None, p, strategy=Beam(1), stop=EOS, max_new_tokens=20).ids == generate(m, None, p, stop=EOS, max_new_tokens=20).ids


def test_until_the_context_is_full(both):
    m, _ = both
    long = [[3] * 60, [4] * 40]
    many = generate(m, None, long, strategy=Beam(3), max_new_tokens=24)
    assert [len(g.ids) for g in many] == [4, 24]
    assert [g.ids for g in many] == [generate(m, None, p, strategy=Beam(3), max_new_tokens=24).ids for p in long]


def test_logprobs_are_the_models(both):
    m, _ = both
    g = generate(m, None, prompts()[1], strategy=Beam(4, 0.0), max_new_tokens=10)
    with torch.no_grad(): table = m(torch.tensor([g.prompt_ids + g.ids]))[0, len(g.prompt_ids) - 1:-1].log_softmax(-1)
    assert g.logprobs == pytest.approx([table[i, t].item() for i, t in enumerate(g.ids)], abs=1e-4)
    assert g.score == pytest.approx(math.fsum(g.logprobs), abs=1e-4)


def test_why_shows_what_the_beam_saw(both):
    m, _ = both
    out = generate(m, None, prompts()[1], strategy=Beam(1, processors=(RepetitionPenalty(1.4),)), max_new_tokens=30)
    assert [int(trace(out, i)[-1][1].argmax()) for i in range(len(out.ids))] == out.ids       # log-probabilities are all below 0, logits are not


def groups_plain(m, ids, new, width, groups, diversity):
    "Each group chooses in turn, and pays for what those before it took in this step."
    each, state = width // groups, [[(0.0, ids)] for _ in range(groups)]
    for _ in range(new):
        taken = torch.zeros(V)
        for g in range(groups):
            longer = [(s + p, [*t, i]) for s, t in state[g]
                      for i, p in enumerate((m(torch.tensor([t]))[0, -1].log_softmax(-1) - diversity * taken).tolist())]
            state[g] = sorted(longer, key=lambda b: -b[0])[:each]
            for _, t in state[g]: taken[t[-1]] += 1
    return sorted((b for s in state for b in s), key=lambda b: -b[0])


@torch.no_grad()
def test_groups_equal_the_plain_version(both):
    m, _ = both
    for groups, diversity in ((2, 0.0), (2, 1.5), (4, 3.0)):
        plain = groups_plain(m, prompts()[2], 7, 4, groups, diversity)
        ours = generate(m, None, prompts()[2], strategy=Beam(4, 0.0, groups=groups, diversity=diversity if groups > 1 else 0.0), max_new_tokens=7)
        same(ours.sequences, [(t[len(prompts()[2]):], s) for s, t in plain])


def test_stream_lets_go_of_what_is_certain(both):
    m, _ = both
    pieces = stream(m, None, prompts()[1], strategy=Beam(3), max_new_tokens=30)
    next(pieces)
    assert len(pieces.session.rows[0].ids) < 30                             # before the end


def test_stop_strings(tok):  # noqa: F811
    m = make()
    out = generate(m, tok, "To be", strategy=Beam(3), stop=["e"], max_new_tokens=20)
    assert "e" not in out.text and all("e" not in s.text for s in out.sequences)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_encoder_decoder(family, tmp_path):
    if family not in registry("families"): pytest.skip("no encoder-decoder yet")
    from transformers import AutoModelForSeq2SeqLM
    m = small(family)
    save_model(m, tmp_path/"m")
    hf = AutoModelForSeq2SeqLM.from_pretrained(tmp_path/"m").eval()
    how = dict(max_new_tokens=12)
    start = dict(decoder_start_token_id=m.config.arch.start, forced_eos_token_id=None, forced_bos_token_id=None)
    for p in prompts()[1:4]:
        for width in (2, 4):
            same(generate(m, None, p, strategy=Beam(width), stop=EOS, **how).sequences, theirs(hf, [p], num_beams=width, n_best=width, **how, **start))
        expected = hf.generate(torch.tensor([p]), do_sample=False, num_beams=1, eos_token_id=EOS, pad_token_id=0, **how, **start)[0, 1:].tolist()
        assert generate(m, None, p, stop=EOS, **how).ids == cut(expected, EOS)
    for strategy in (Greedy(), Sample(2.0), Beam(3)):
        many = generate(m, None, prompts(), strategy=strategy, seed=3, stop=EOS, **how)
        assert [g.ids for g in many] == [generate(m, None, p, strategy=strategy, seed=3 + i, stop=EOS, **how).ids for i, p in enumerate(prompts())]
        assert [g.ids for g in many] == [g.ids for g in generate(m, None, prompts(), strategy=strategy, seed=3, stop=EOS, cache=False, **how)]


def test_common():
    a = Node(1, parent=Node(None)); b = Node(2, parent=a); c = Node(2, parent=a); d = Node(5, parent=c)
    assert [n.id for n in common([b, d], a.parent)] == [1, 2] and common([b, a], a) == []


@pytest.mark.parametrize("says, how", [
    ("width = 0", dict(width=0)), ("width = 2.5", dict(width=2.5)), ("groups = 3; expected a divisor", dict(groups=3)), ("n_best = 5", dict(n_best=5)),
    ("early_stopping = 'soon'", dict(early_stopping="soon")), ("length_penalty = nan", dict(length_penalty=math.nan)),
    ("diversity = 1.0, but there is one group", dict(diversity=1.0)), ("sample = 0.5", dict(sample=0.5)), ("processors = ", dict(processors=[1]))])
def test_mistakes(says, how):
    with pytest.raises((ValueError, TypeError), match=says): Beam(**how)


def test_mistakes_of_the_run(both):
    m, _ = both
    class BanAll:
        def __call__(self, logits, history): return torch.full_like(logits, -math.inf)
    with pytest.raises(ValueError, match=f"width = 61; expected at most {V}"): generate(m, None, [1], strategy=Beam(61), max_new_tokens=3)
    with pytest.raises(DecodeError, match="At step 0 every token is banned"): generate(m, None, [1], strategy=Beam(2, processors=(BanAll(),)), max_new_tokens=3)
    with pytest.raises(ValueError, match="sliding=True cannot follow"): generate(m, None, [1], strategy=Beam(2), max_new_tokens=3, sliding=True)
    calls = []
    def third(x, name): calls.append(1); return x * math.nan if len(calls) == 3 else None
    with m.hooks({"logits": third}), pytest.raises(DecodeError, match="logits at step 2 are not finite"): generate(m, None, [1], strategy=Beam(2), max_new_tokens=9)
