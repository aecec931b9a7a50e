"Objectives and packed records: what holds for every batch, and what is said when something is wrong."
import json, os, subprocess, sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings as hypothesis_settings, strategies as st

from llmnb.plugins import registry
from llmnb.text.answers import Answer, all_answers, best_answers
from llmnb.text.batches import RecordSplit, TextData
from llmnb.text.corpus import shakespeare
from llmnb.text.objectives import (Batch, CausalLM, MaskedLM, SpanCorruption, block_mask, hide_spans, see_mask, span_sizes, word_starts)
from llmnb.text.order import length_batch, noise, row_keys
from llmnb.text.packing import _ahead, _choose, _chosen, _Digest, _fit, _members, _Numbers, _Stored
from llmnb.text.records import Completion, Dialogue, Labelled, Pair, Question, as_record
from llmnb.text.store import DataError, Ragged, write_file
from llmnb.text.targets import Chat, Classification, Complete, Seq2Seq, SpanQA, token_spans
from llmnb.text.tokenizer import Tokenizer

few = hypothesis_settings(max_examples=60, deadline=None)
special = ("<|endoftext|>", "<|pad|>", "<|mask|>", "<|user|>", "<|assistant|>", *(f"<extra_id_{i}>" for i in range(100)))


@pytest.fixture(scope="module")
def works(): return list(shakespeare())

@pytest.fixture(scope="module")
def tok(works): return Tokenizer.train(works[:8], vocab_size=1500, special_tokens=special)

@pytest.fixture(scope="module")
def pairs(works, tok, tmp_path_factory):
    lines = [l for l in works[3].splitlines() if l.strip()][:600]
    return TextData.pack(list(zip(lines, lines[1:])), tok, Seq2Seq(ctx=40, smoothing=0.1), path=tmp_path_factory.mktemp("pairs")/"d")

@pytest.fixture(scope="module")
def words():
    "BERT's kind of tokenizer: [CLS] and [SEP], ## inside words, offsets that are not bytes."
    from tokenizers import Tokenizer as Rust, decoders, models, normalizers, pre_tokenizers
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "to", "be", "or", "not", ",", "##ing", "##s", "ma", "##sk", ".", "who", "?", "ham", "##let"]
    rust = Rust(models.WordPiece({t: i for i, t in enumerate(names)}, unk_token="[UNK]"))
    rust.normalizer, rust.pre_tokenizer, rust.decoder = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    rust.add_special_tokens(names[:5])
    return Tokenizer(rust)


# -- order and chance ------------------------------------------------------------------------------------------------

@few
@given(st.integers(1, 300), st.integers(1, 9), st.integers(1, 5), st.integers(0, 99), st.integers(0, 3))
def test_length_batches_are_the_epoch_once_for_any_number_of_processes(rows, batch_size, world, seed, epoch):
    lengths = np.random.default_rng(rows).integers(1, 50, rows)
    steps = -(-rows // (batch_size * world))
    parts = [length_batch(lengths, epoch * steps + n, batch_size, seed, r, world, pool=4) for n in range(steps) for r in range(world)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(rows)) and max(map(len, parts)) <= batch_size
    n = epoch * steps + seed % steps
    whole = length_batch(lengths, n, batch_size * world, seed, pool=4)
    shares = [length_batch(lengths, n, batch_size, seed, r, world, pool=4) for r in range(world)]
    assert sorted(whole.tolist()) == sorted(np.concatenate(shares).tolist())

def test_noise_depends_on_row_place_and_use_only():
    keys = row_keys(np.arange(50), 7, 1)
    assert (noise(keys[10:12], 30) == noise(keys, 90)[10:12, :30]).all()
    assert not (noise(keys, 30, 1) == noise(keys, 30, 2)).any() and len(np.unique(noise(keys, 30))) == 1500
    assert not (row_keys(np.arange(50), 7) == row_keys(np.arange(50), 8)).any()


# -- documents of a packed row ---------------------------------------------------------------------------------------

def packed_row(tok, texts):
    return np.array([sum([tok.encode(t) + [tok.eos_id] for t in texts], [])])

def test_packed_equals_separate_in_a_real_model(tok, works):
    "A Llama of transformers, over the packed row and over each document alone."
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=tok.vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)).eval()
    texts = [works[3][1000:1200], "Who's there?", works[4][500:600], "x"]
    row = packed_row(tok, texts)
    b = CausalLM(row.shape[1] - 1, separate=True).batch(row, tok)
    with torch.no_grad():
        together = model(input_ids=b.ids, position_ids=b.positions, attention_mask=see_mask(b), use_cache=False).logits[0]
        for d, text in enumerate(texts):
            here = b.docs[0] == d
            ids = torch.tensor([tok.encode(text) + [tok.eos_id]])[:, :int(here.sum())]
            assert torch.equal(b.ids[0][here], ids[0])
            assert torch.allclose(together[here], model(input_ids=ids, use_cache=False).logits[0], atol=1e-5)
    across = torch.nn.functional.cross_entropy(together, b.labels[0], reduction="sum")
    assert b.n_targets == sum(len(tok.encode(t)) for t in texts) and torch.isfinite(across)

def alone(batch):
    "Each document of each row, or what a row has of it, as a batch of its own: nothing before it, nothing behind."
    for i in range(len(batch)):
        for d in batch.docs[i].unique():
            if d >= 0 and (here := batch.docs[i] == d).any(): yield Batch(batch.ids[i][here][None], batch.labels[i][here][None])

def total(model, batches):
    "The sum of losses over all targets."
    with torch.no_grad(): return sum(float(model.loss(b)) * b.n_targets for b in batches if b.n_targets)

@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "bert"])
def test_a_packed_loss_is_the_sum_of_the_documents_losses(family, tok, works, tmp_path):
    "The real thing, from text to the loss of the Transformer: rows of the stream that hold parts of several documents."
    from llmnb.model.config import TransformerConfig
    from llmnb.model.transformer import Transformer
    texts = [line for line in works[5].splitlines() if line.strip()][:300]
    objective = MaskedLM(48, separate=True) if family == "bert" else CausalLM(48, separate=True)
    d = TextData.pack(texts, tok, objective, path=tmp_path/"d")
    model = Transformer(getattr(TransformerConfig, family)("tiny", vocab_size=tok.vocab_size, ctx=48, width=32, layers=2, heads=2), seed=0).eval()
    packed = [d.batch(n, 4, seed=1) for n in range(3)]
    single = [b for p in packed for b in alone(p)]
    assert len(single) > 3 * sum(map(len, packed)) and sum(b.n_targets for b in single) == sum(b.n_targets for b in packed)
    assert total(model, packed) == pytest.approx(total(model, single), rel=1e-5)
    mixed = [replace(p, docs=None, positions=None) for p in packed]
    assert abs(total(model, mixed) - total(model, single)) > 1e-4 * total(model, single)       # ten times the tolerance: it is not for nothing

@few
@given(st.lists(st.lists(st.integers(1, 9), max_size=6), min_size=1, max_size=6), st.integers(0, 4))
def test_documents_never_see_each_other(tok, docs, padding):
    row = np.array([sum([[i + 200 for i in d] + [tok.eos_id] for d in docs], []) + [-1] * (padding + 1)])
    for objective, causal in ((CausalLM(row.shape[1] - 1, separate=True), True), (MaskedLM(row.shape[1], separate=True), False)):
        b = objective.batch(row, tok, row_keys([3], 1))
        T = b.ids.shape[1]
        owner = sum([[i] * (len(d) + 1) for i, d in enumerate(docs)], [])
        owner = (owner + [-1] * T)[:T]
        place = (sum([list(range(len(d) + 1)) for d in docs], []) + [None] * T)[:T]
        see = see_mask(b, causal)[0, 0]
        for q in range(T):
            for k in range(T):
                may = owner[q] == owner[k] and (k <= q or not causal)
                if owner[q] >= 0: assert bool(see[q, k]) == may
        assert [p for p, o in zip(b.positions[0].tolist(), owner) if o >= 0] == [p for p in place if p is not None]
        assert see.any(1).all()                                # no row of attention is empty

def test_nothing_is_asked_across_documents(tok):
    row = packed_row(tok, ["to be", "or not"])
    plain, apart = CausalLM(row.shape[1] - 1).batch(row), CausalLM(row.shape[1] - 1, separate=True).batch(row, tok)
    assert (plain.labels != apart.labels).sum() == 1 and apart.labels[0][apart.ids[0] == tok.eos_id].tolist() == [-100]
    assert plain.docs is None and plain.positions is None

def test_flex_and_sdpa_agree(tok):
    from torch.nn.attention.flex_attention import create_mask
    from llmnb.text.objectives import see_rule
    row = packed_row(tok, ["to be or not to be"] * 9)
    b = CausalLM(row.shape[1] - 1, separate=True).batch(np.concatenate([row, row[:, ::-1]]), tok)
    T = b.ids.shape[1]
    assert torch.equal(create_mask(see_rule(b), 2, 1, T, T, device="cpu"), see_mask(b))
    assert block_mask(b).shape == (2, 1, T, T) and block_mask(CausalLM(T).batch(row)).shape == (1, 1, T, T)


# -- hidden tokens ---------------------------------------------------------------------------------------------------

@few
@given(st.integers(1, 60), st.integers(0, 10**6), st.booleans(), st.integers(0, 5))
def test_masked_rows(tok, n, seed, whole, padding):
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, tok.vocab_size, (4, n + padding)); rows[:, 0] = 300
    rows[1:3, n:] = -1
    objective = MaskedLM(n + padding, whole_words=whole)
    b = objective.batch(rows, tok, row_keys(np.arange(4), seed))
    asked = b.labels.numpy() != -100
    assert (b.labels.numpy()[asked] == rows[asked]).all() and (b.ids.numpy()[~asked & (rows >= 0)] == rows[~asked & (rows >= 0)]).all()
    assert asked.any(1).all() and not np.isin(rows[asked], sorted(tok.special_ids)).any() and not (asked & (rows < 0)).any()
    assert (b.mask is None) == (rows >= 0).all() and (b.mask is None or (b.mask.numpy() == (rows >= 0)).all())
    if whole:
        first = word_starts(np.maximum(rows, 0), tok)
        assert (np.take_along_axis(asked, first, 1) == asked)[rows >= 0].all()
    again = objective.batch(rows[2:], tok, row_keys(np.arange(2, 4), seed))
    assert torch.equal(again.ids, b.ids[2:]) and torch.equal(again.labels, b.labels[2:])

def test_shares_of_masking(tok, works):
    rows = np.array(tok.encode(works[5])[:30_000]).reshape(-1, 100)
    for share, split in ((0.15, (0.8, 0.1)), (0.4, (0.5, 0.5)), (0.3, (1.0, 0.0))):
        b = MaskedLM(100, share=share, split=split).batch(rows, tok, row_keys(np.arange(len(rows)), 3))
        asked, hidden = b.labels != -100, b.ids == tok.encode("<|mask|>")[0]
        same = asked & (b.ids == b.labels)
        assert abs(asked.float().mean() - share) < 0.01 and abs(hidden.sum() / asked.sum() - split[0]) < 0.02
        assert abs(same.sum() / asked.sum() - (1 - sum(split))) < 0.02

def test_whole_words_in_wordpiece(words):
    ids = np.array([words.encode("who masks Hamlet? to be")])
    assert word_starts(ids, words).tolist() == [[0, 1, 1, 1, 4, 4, 6, 7, 8]]
    MaskedLM().check(words)


# -- hidden spans ----------------------------------------------------------------------------------------------------

@few
@given(st.integers(2, 200), st.floats(0.05, 0.9), st.floats(1, 8), st.integers(0, 10**6))
def test_spans_can_be_put_back(n, share, mean, seed):
    ids = np.arange(1000, 1000 + 3 * n).reshape(3, n)
    hidden, spans = span_sizes(n, share, mean)
    signs = np.arange(spans)
    read, write = hide_spans(ids, share, mean, signs, row_keys(np.arange(3), seed))
    assert read.shape == (3, n - hidden + spans) and write.shape == (3, hidden + spans)
    for original, r, w in zip(ids, read, write):
        parts = {int(p[0]): p[1:].tolist() for p in np.split(w, np.flatnonzero(w < 1000)) if len(p)}
        assert sum([parts[t] if t < 1000 else [t] for t in r.tolist()], []) == original.tolist()
        assert list(parts) == list(range(spans)) and all(parts.values())

@pytest.mark.parametrize("ctx, span", [(512, 568), (114, 126), (1024, 1137)])
def test_span_sizes_are_t5s(ctx, span): assert SpanCorruption(ctx).span == span

def test_span_corruption_as_data(works, tok, tmp_path):
    d = TextData.pack(works[:4], tok, SpanCorruption(ctx=64), path=tmp_path/"d")
    b = d.batch(3, 6, seed=2)
    assert b.src.shape == (6, 64) and torch.equal(b.ids[:, 1:], b.labels[:, :-1]) and (b.ids[:, 0] == tok.bos_id).all()
    halves = [d.batch(3, 3, seed=2, rank=r, world=2) for r in range(2)]
    assert torch.equal(torch.cat([h.src for h in halves]), b.src) and torch.equal(torch.cat([h.labels for h in halves]), b.labels)
    counts = len(d.valid.ids)
    shown = [b for b in d.valid_batches(4)]
    again = [b for b in d.valid_batches(4)]
    assert all(torch.equal(x.src, y.src) for x, y in zip(shown, again))
    signs = set(d.objective.check(tok).tolist()) | {tok.eos_id, tok.pad_id}
    real = sum(sum(i not in signs for i in t.tolist()) for b in shown for t in (b.src[b.src_mask > 0] if b.src_mask is not None else b.src.flatten(), b.labels[b.labels >= 0]))
    eos_inside = int((d.valid.ids == tok.eos_id).sum())
    assert abs(real - (counts - eos_inside)) <= 2              # each token is read or written, once

def test_one_folder_several_objectives(works, tok, tmp_path):
    TextData.pack(works[:3], tok, CausalLM(32), path=tmp_path/"d")
    for objective in (MaskedLM(24), SpanCorruption(48), CausalLM(16, separate=True)):
        d = TextData.open(tmp_path/"d", objective=objective)
        assert d.batch(0, 2).n_targets > 0 and d.objective == objective
    with pytest.raises(DataError, match="packed for the objective 'causal'"): TextData.open(tmp_path/"d", objective=Seq2Seq())


# -- records ---------------------------------------------------------------------------------------------------------

def test_pairs_keep_their_sides_and_shift(pairs, tok, works):
    lines = [l for l in works[3].splitlines() if l.strip()][:600]
    known = set(zip(lines, lines[1:]))
    assert pairs.train.n_docs + pairs.valid.n_docs + sum(pairs.meta[s]["left_out"] for s in ("train", "valid")) == 599
    for b in pairs.valid_batches(7):
        assert (b.ids[:, 0] == tok.bos_id).all() and b.smoothing == 0.1 and b.ids.shape[1] % 8 == b.src.shape[1] % 8 == 0
        for i in range(len(b)):
            source = b.src[i][(b.src_mask[i] if b.src_mask is not None else torch.ones_like(b.src[i])) > 0]
            target = b.labels[i][b.labels[i] >= 0]
            assert source[-1] == target[-1] == tok.eos_id and (tok.decode(source[:-1]), tok.decode(target[:-1])) in known
            assert b.ids[i][1:len(target)].tolist() == target[:-1].tolist()

@few
@given(st.integers(1, 7), st.integers(1, 4), st.integers(0, 50), st.integers(0, 2))
def test_records_are_the_epoch_once(pairs, batch_size, world, seed, epoch):
    steps = pairs.train.n_batches(batch_size, world)
    rows = np.concatenate([length_batch(pairs.train, epoch * steps + n, batch_size, seed, r, world) for n in range(steps) for r in range(world)])
    assert sorted(rows.tolist()) == list(range(pairs.train.n_rows))
    n = epoch * steps
    got = torch.cat([pairs.batch(n, batch_size, seed=seed, rank=r, world=world).rows for r in range(world)])
    assert len(set(got.tolist())) >= min(len(got), 1)

def test_records_are_a_pure_function(pairs):
    a = pairs.batch(5, 8, seed=3)
    for n in (0, 99, 10**6): pairs.batch(n, 8, seed=3)
    again = TextData.open(pairs.path).batch(5, 8, seed=3)
    assert all(torch.equal(getattr(a, f), getattr(again, f)) for f in ("ids", "labels", "src", "rows"))
    assert pairs.batch(5, 8, seed=4).rows.tolist() != a.rows.tolist() and a.to("cpu").smoothing == 0.1
    seen = torch.cat([b.rows for b in pairs.valid_batches(5)])
    assert sorted(seen.tolist()) == list(range(pairs.valid.n_rows))

def test_another_process_draws_the_same(pairs):
    "A restart: another interpreter, with other hashes of strings."
    code = "import sys; from llmnb.text.batches import TextData; d = TextData.open(sys.argv[1]); print([d.batch(n, 3, seed=5, rank=1, world=2).ids.tolist() for n in (7, 0, 10**7)])"
    env = {**os.environ, "PYTHONHASHSEED": "12345"}
    run = subprocess.run([sys.executable, "-c", code, str(pairs.path)], capture_output=True, text=True, env=env)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == [pairs.batch(n, 3, seed=5, rank=1, world=2).ids.tolist() for n in (7, 0, 10**7)]

def test_a_process_without_a_row_asks_nothing(tok, tmp_path):
    d = TextData.pack([(f"line {i}", f"zeile {i}") for i in range(6)], tok, Seq2Seq(16), path=tmp_path/"d", valid=0.2)
    n, world = d.train.n_rows, 8
    batches = [d.batch(0, 1, rank=r, world=world) for r in range(world)]
    assert sum(b.n_targets == 0 for b in batches) == world - n and len({int(b.rows) for b in batches if b.n_targets}) == n

def test_lengths_are_bucketed(pairs, tok):
    def waste(batches):
        real = sum(int(b.src_mask.sum()) if b.src_mask is not None else b.src.numel() for b in batches)
        return 1 - real / sum(b.src.numel() for b in batches)
    near = TextData.open(pairs.path, objective=Seq2Seq(40, multiple=1))
    steps, rows = near.train.n_batches(16), near.train.n_rows
    from llmnb.text.batches import _gather
    mixed = [_gather(near.train, np.arange(rows)[i::steps], tok) for i in range(steps)]
    assert waste([near.batch(n, 16) for n in range(steps)]) < 0.85 * waste(mixed)

def test_too_long_pairs_are_left_out_and_counted(tok, tmp_path):
    records = [Pair(f"short {i}", "kurz") for i in range(20)] + [Pair("long " * 100, "lang"), Pair("x", "lang " * 100)]
    d = TextData.pack(records, tok, Seq2Seq(24), path=tmp_path/"d", valid=0.2)
    assert sum(d.meta[s]["left_out"] for s in ("train", "valid")) == 2 and "left out" in str(d)
    with pytest.raises(DataError, match="None of the 22 records fits"): TextData.pack(records, tok, Seq2Seq(2), path=tmp_path/"e")

def test_no_leak_between_sides(tok, tmp_path):
    contexts = [f"Scene {i}. The king enters with {i} men." for i in range(12)]
    asked = [Question(f"Who enters, {w}?", c, ["king"], [c.index("king")]) for c in contexts for w in ("pray", "say", "tell")]
    d = TextData.pack(asked, tok, SpanQA(64, stride=8, most_question=16), path=tmp_path/"d", valid=0.25)
    def scenes(split): return {tok.decode(split.columns["ids"][i]).split("?<|endoftext|>")[1].split(".")[0] for i in range(split.n_rows)}
    assert not scenes(d.train) & scenes(d.valid) and len(scenes(d.train) | scenes(d.valid)) == 12
    twice = [f"verse {i % 30} is said here" for i in range(90)]
    d = TextData.pack(twice, tok, CausalLM(8), path=tmp_path/"t", valid=0.2)
    left, right = (set(tok.decode(s.ids).split("<|endoftext|>")[:-1]) for s in (d.train, d.valid))
    assert not left & right and len(left | right) == 30

def test_equal_records_alone_cannot_be_divided(tok, tmp_path):
    with pytest.raises(DataError, match="belong to one group"): TextData.pack([("a", "b")] * 5, tok, Seq2Seq(8), path=tmp_path/"d")


class Talker:
    "Something that is no Tokenizer and has a chat form."
    def __init__(self, tok): self.tok, self.eos_id = tok, tok.eos_id
    def chat(self, messages):
        parts = [(self.tok.encode(f"<|{m['role']}|>"), self.tok.encode(m["content"]) + [self.tok.eos_id], m["role"] == "assistant") for m in messages]
        return sum([h + s for h, s, _ in parts], []), sum([[0] * len(h) + [int(a)] * len(s) for h, s, a in parts], [])

@few
@given(st.lists(st.text("abc ?", max_size=12), min_size=2, max_size=6), st.integers(3, 40))
def test_only_the_assistant_is_learned(tok, turns, ctx):
    talker, objective = Talker(tok), Chat(ctx, multiple=1)
    ids, mask = talker.chat(Dialogue.of(*turns).messages)
    made = objective.encode([Dialogue.of(*turns)], talker)[0]
    if not made: assert not any(mask[1:ctx+1]); return
    b = objective.batch({"ids": [made[0][0]], "learn": [made[0][1]]}, tok)
    want = [i if m else -100 for i, m in zip(ids[1:ctx+1], mask[1:ctx+1])]
    assert b.labels[0].tolist()[:len(want)] == want and b.ids[0].tolist() == ids[:ctx][:len(want)]

def test_chat_with_the_tokenizers_own_form(tok, tmp_path):
    talker = tok.with_special(["<|im_start|>", "<|im_end|>"])
    d = TextData.pack([Dialogue.of(f"How many is {i}?", f"It is {i}.") for i in range(30)], talker, Chat(64), path=tmp_path/"d")
    for b in d.valid_batches(3):
        for ids, labels in zip(b.ids, b.labels):
            said = talker.decode(labels[labels >= 0])
            assert said.startswith("It is") and said.endswith(".<|im_end|>") and talker.decode(ids).startswith("<|im_start|>user")
    assert TextData.open(d.path).tok == talker

def unpadded(b):
    "Each document of a batch up to its last target, as (ids, labels, positions)."
    for i in range(len(b)):
        real = torch.ones_like(b.ids[i]) if b.mask is None else b.mask[i]
        docs = torch.zeros_like(b.ids[i]) if b.docs is None else b.docs[i]
        for d in sorted(set(docs[real > 0].tolist())):
            here = (docs == d) & (real > 0)
            n = int((b.labels[i][here] >= 0).nonzero()[-1]) + 1          # behind the last target nothing is asked
            yield b.ids[i][here][:n].tolist(), b.labels[i][here][:n].tolist(), list(range(n)) if b.positions is None else b.positions[i][here][:n].tolist()

@few
@given(st.lists(st.lists(st.text("abc ?", min_size=1, max_size=12), min_size=2, max_size=6), min_size=1, max_size=8), st.integers(3, 60), st.sampled_from([1, 8]))
def test_conversations_of_a_packed_row_ask_what_they_ask_alone(tok, talks, ctx, multiple):
    talker, plain, packed = Talker(tok), Chat(ctx, multiple), Chat(ctx, multiple, pack=True)
    records = [Dialogue.of(*t) for t in talks]
    alone, parts = ([row for made in o.encode(records, talker) for row in made] for o in (plain, packed))
    assert [p[:2] for p in parts] == alone
    if not alone: return
    starts = [*_fit(np.array([len(ids) - 1 for ids, _ in alone]), ctx).tolist(), len(parts)]
    rows = [[sum((p[i] for p in parts[a:b]), []) for i in range(3)] for a, b in zip(starts, starts[1:])]
    together = packed.batch(dict(zip(packed.columns, map(list, zip(*rows)))), tok)
    separate = plain.batch(dict(zip(plain.columns, map(list, zip(*alone)))), tok)
    assert list(unpadded(together)) == list(unpadded(separate)) and together.n_targets == separate.n_targets
    assert -(-together.ids.shape[1] // multiple) * multiple <= -(-ctx // multiple) * multiple
    if together.mask is not None: assert (together.docs[together.mask == 0] == -1).all() and (together.labels[together.mask == 0] == -100).all()

@pytest.mark.parametrize("objective, records", [
    (Chat(96), [Dialogue.of(f"How many is {i}?", "It is " * (i % 5) + f"{i}.") for i in range(60)]),
    (Complete(40), [Completion(f"{i} and {i} is", f" {2*i}") for i in range(60)])])
def test_packed_rows_as_data_and_in_a_real_model(tok, tmp_path, objective, records):
    "The same losses: a Llama over rows of several, and over each alone."
    from transformers import LlamaConfig, LlamaForCausalLM
    talker = tok.with_special(["<|im_start|>", "<|im_end|>"])
    torch.manual_seed(0)
    from llmnb.model.config import TransformerConfig
    from llmnb.model.transformer import Transformer
    model = LlamaForCausalLM(LlamaConfig(vocab_size=talker.vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)).eval()
    own = Transformer(TransformerConfig.gpt2("tiny", vocab_size=talker.vocab_size, ctx=96, width=32, layers=2, heads=2), seed=0).eval()
    def losses(d):
        for b in d.valid_batches(4, "train"):
            with torch.no_grad(): out = model(input_ids=b.ids, position_ids=b.positions, attention_mask=see_mask(b), use_cache=False).logits
            yield torch.nn.functional.cross_entropy(out.flatten(0, 1), b.labels.flatten(), reduction="sum").item()
    plain, packed = (TextData.pack(records, talker, o, path=tmp_path/str(i)) for i, o in enumerate((objective, replace(objective, pack=True))))
    assert packed.train.n_rows < plain.train.n_rows / 2 and packed.train.n_docs == plain.train.n_docs and packed.train.n_tokens == plain.train.n_tokens
    got, want = (sorted(x for b in d.valid_batches(4, "train") for x in unpadded(b)) for d in (packed, plain))
    assert got == want and max(b.ids.shape[1] for b in packed.valid_batches(4, "train")) <= objective.ctx
    assert sum(losses(packed)) == pytest.approx(sum(losses(plain)), rel=1e-5)
    assert total(own, packed.valid_batches(4, "train")) == pytest.approx(total(own, plain.valid_batches(4, "train")), rel=1e-5)
    for a, b in ((packed, objective), (plain, replace(objective, pack=True))):
        with pytest.raises(DataError, match="whose rows .* cannot read"): TextData.open(a.path, objective=b)
    assert TextData.open(packed.path).objective.pack and packed.batch(3, 2).docs is not None

def test_completions_as_data(tok, tmp_path):
    d = TextData.pack([{"prompt": f"{i} and {i} is", "completion": f" {2*i}"} for i in range(40)], tok, Complete(32), path=tmp_path/"d")
    b = d.batch(0, 4)
    for ids, labels in zip(b.ids, b.labels):
        whole = tok.decode(ids[:int((labels >= 0).nonzero()[0]) + 1])
        assert whole.endswith(" is") and tok.decode(labels[labels >= 0]).endswith("<|endoftext|>")
    assert isinstance(d.train, RecordSplit) and TextData.open(d.path).objective == Complete(32)

def test_classes_with_bert_frames(words, tmp_path):
    said = [Labelled("to be", "long"), Labelled("who?", "short", "be or not"), Labelled("to be or not to be, to be", "long", "or not to be. to be?")]
    objective = Classification.of(said, ctx=12, multiple=1)
    rows = [r for rs in objective.encode(said, words) for r in rs]
    b = objective.batch(dict(zip(objective.columns, map(list, zip(*rows)))), words)
    assert objective.labels == ("long", "short") and b.labels.tolist() == [0, 1, 0] and b.labels.shape == (3,)
    assert words.decode(b.ids[1][b.mask[1] > 0]) == "[CLS] who? [SEP] be or not [SEP]" and b.ids.shape[1] == 12
    assert b.types[1].tolist() == [0] * 4 + [1] * 4 + [0] * 4 and b.types[0].sum() == 0
    for line, kinds in zip(b.ids.tolist(), b.types.tolist()): assert line[0] == 2 and sum(kinds) in (0, line[1:].index(3) and sum(kinds))
    d = TextData.pack(said * 10 + [Labelled(f"to be {'be ' * i}", "short") for i in range(9)], words, objective, path=tmp_path/"d", valid=0.3)
    assert TextData.open(d.path).objective == objective

@few
@given(st.text("ab é🎭. ", min_size=0, max_size=60), st.text("ab é🎭", min_size=1, max_size=6), st.text("ab é🎭. ", max_size=200))
def test_answers_are_found_again(tok, before, answer, after):
    context = before + answer + after
    objective = SpanQA(40, stride=8, most_question=8, multiple=1)
    windows = objective.windows(Question("Who?", context, [answer], [len(before)]), tok)
    ids, spans = token_spans(context, tok)
    covered = [s for w in windows for s in w["spans"]]
    assert set(covered) == set(spans)                        # windows cover the whole context
    goal = [i for i, (a, b) in enumerate(spans) if a < len(before) + len(answer) and b > len(before)]
    for w in windows:
        assert len(w["ids"]) <= 40
        begin, end = w["answer"]
        if begin: assert context[w["spans"][begin - w["second"]][0]:w["spans"][end - w["second"]][1]].find(answer) >= 0
    if goal and len(goal) <= 8: assert any(w["answer"] != [0, 0] for w in windows)

def test_questions_with_wordpiece(words):
    context = "to be, or not to be. Hamlet masks who? " * 3
    q = Question("Who?", context, ["Hamlet"], [context.index("Hamlet")])
    objective = SpanQA(40, stride=6, most_question=8)
    first = objective.windows(q, words)[0]
    begin, end = first["answer"]
    assert words.decode(first["ids"][begin:end+1]).replace(" ##", "") == "hamlet" and first["ids"][0] == 2
    none = objective.windows(replace(q, answers=(), starts=()), words)
    assert all(w["answer"] == [0, 0] for w in none)

@few
@given(st.text("ab é🎭. ", min_size=1, max_size=150), st.integers(0, 10**6), st.integers(1, 12), st.booleans())
def test_best_answers_equal_all_pairs(tok, context, seed, most, whole):
    objective = SpanQA(40, stride=8, most_question=8, multiple=1)
    windows = objective.windows(Question("Who?", context), tok)
    rng = np.random.default_rng(seed)
    begin, end = (rng.normal(size=(len(windows), 40)) for _ in range(2))
    if whole: begin, end = torch.tensor(begin), torch.tensor(end)
    plain = all_answers(context, windows, begin, end, most)
    assert best_answers(context, windows, begin, end, n_best=10**4, max_length=most)[:len(plain) or None] == (plain or [Answer("", best_answers(context, windows, begin, end)[0].score)])
    few_ = best_answers(context, windows, begin, end, n_best=3, max_length=most)
    at = {(a.start, a.end): a.score for a in plain}              # tokens of one character share their place: some pairs are the same stretch
    assert all(a.text == context[a.start:a.end] and a.score <= at[a.start, a.end] for a in few_ if a.text) and len(few_) <= 3
    _, spans = token_spans(context, tok)
    for a in plain: assert a.text == a.text.strip() and len({(s, e) for s, e in spans if s < a.end and e > a.start}) <= most

def test_a_token_counts_in_the_window_where_it_has_most_context(tok):
    from llmnb.text.answers import _most_context
    context = " ".join(f"word{i}" for i in range(60))
    windows = SpanQA(40, stride=12, most_question=8).windows(Question("Who?", context), tok)
    total = len(token_spans(context, tok)[0])
    counted = sum((np.bincount(w["start"] + np.flatnonzero(near), minlength=total) for w, near in zip(windows, _most_context(windows))), np.zeros(total, int))
    assert len(windows) > 3 and (counted == 1).all()
    def depth(w, i): return min(i - w["start"], w["start"] + len(w["spans"]) - 1 - i)
    for w, near in zip(windows, _most_context(windows)):
        for i in w["start"] + np.flatnonzero(near):
            assert all(depth(w, i) >= depth(o, i) for o in windows if o["start"] <= i < o["start"] + len(o["spans"]))

def test_no_answer_and_limits(tok):
    context = "The king enters. The queen leaves the hall."
    objective = SpanQA(64, stride=8, most_question=8)
    windows = objective.windows(Question("Who leaves?", context, ["queen"], [context.index("queen")]), tok)
    (w,), (first, last) = windows, windows[0]["answer"]
    begin, end = np.zeros((1, 64)), np.zeros((1, 64))
    begin[0, first], end[0, last] = 3, 4
    assert best_answers(context, windows, begin, end)[0] == Answer("queen", 7.0, context.index("queen"), context.index("queen") + 5)
    begin[0, 0] = end[0, 0] = 4                                  # "not here" is better by 1
    assert best_answers(context, windows, begin, end)[0].text == "queen"
    assert [a.text for a in best_answers(context, windows, begin, end, none=True)[:2]] == ["", "queen"]
    assert [a.text for a in best_answers(context, windows, begin, end, none=True, threshold=1.5)[:2]] == ["queen", ""]
    begin[0, 1] = end[0, w["second"] - 1] = 99                    # in the question, or behind the context: never
    end[0, w["second"] + len(w["spans"])] = 99
    assert best_answers(context, windows, begin, end)[0].text == "queen"
    begin[0, last], end[0, last] = 0, 0
    begin[0, w["second"]], end[0, w["second"] + len(w["spans"]) - 1] = 50, 50
    assert len(best_answers(context, windows, begin, end, max_length=3)[0].text) < len(context) and best_answers(context, windows, begin, end, max_length=64)[0].text == context
    none = objective.windows(Question("Who?", ""), tok)
    assert best_answers("", none, [np.ones(64)], [np.ones(64)]) == [Answer("", 2.0)]
    for wrong, words_ in ((dict(begin=begin[:0]), "0 rows for 1 windows"), (dict(end=end[:, :9]), r"end\[0\] has the shape"), (dict(begin=begin * np.nan), "NaN"), (dict(max_length=0), "max_length=0")):
        with pytest.raises(ValueError, match=words_): best_answers(context, windows, **{"begin": begin, "end": end, **wrong})

def test_answers_of_a_file_are_found_again_by_a_model_that_knows(tok):
    "Where the targets are the numbers, the text of each answer comes back."
    path = Path("/work/shared/data/xquad.en.json")
    if not path.is_file(): pytest.skip("no SQuAD file here")
    from llmnb.text.samples import squad
    objective, right = SpanQA(256, stride=64), 0
    for q in (asked := list(squad(path))[:150:3]):
        windows = objective.windows(q, tok)
        begin, end = np.zeros((2, len(windows), 256))
        for row, w in enumerate(windows): begin[row, w["answer"][0]], end[row, w["answer"][1]] = 5, 5
        right += q.answers[0] in best_answers(q.context, windows, begin, end, max_length=60)[0].text
    assert right == len(asked)

def test_squad_file_end_to_end(tok, tmp_path):
    path = Path("/work/shared/data/xquad.en.json")
    if not path.is_file(): pytest.skip("no SQuAD file here")
    from llmnb.text.samples import squad
    asked = list(squad(path))[:60]
    d = TextData.pack(asked, tok, SpanQA(256, stride=64), path=tmp_path/"d", valid=0.2)
    b = d.batch(0, 4)
    assert b.labels.shape == (4, 2) and (b.labels[:, 0] <= b.labels[:, 1]).all()


# -- the store -------------------------------------------------------------------------------------------------------

@few
@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(0, 99), st.integers(1, 30))
def test_chosen_copies_what_was_picked(lengths, seed, block):
    lengths, pick = np.array(lengths), np.random.default_rng(seed).random(len(lengths)) < 0.5
    values = np.arange(lengths.sum())
    got = list(_chosen(values, lengths, pick, block))
    plain = [v for v, p in zip(np.split(values, np.cumsum(lengths)[:-1]), pick) if p]
    assert (np.concatenate(got).tolist() if got else []) == (np.concatenate(plain).tolist() if plain else [])

def test_damaged_columns_are_found(pairs, tok, tmp_path):
    import shutil
    shutil.copytree(pairs.path, tmp_path/"d")
    good = (tmp_path/"d"/"train.src.ids").read_bytes()
    os.truncate(tmp_path/"d"/"train.src.ids", len(good) - 6)
    with pytest.raises(DataError, match="is truncated"): TextData.open(tmp_path/"d")
    shutil.copy(pairs.path/"valid.src.ids", tmp_path/"d"/"train.src.ids")
    with pytest.raises(DataError, match="do not belong together"): TextData.open(tmp_path/"d")
    for end in ("ids", "ends"): shutil.copy(pairs.path/f"valid.src.{end}", tmp_path/"d"/f"train.src.{end}")
    with pytest.raises(DataError, match="different numbers of rows"): TextData.open(tmp_path/"d")
    (tmp_path/"d"/"train.src.ends").unlink()
    with pytest.raises(DataError, match="is missing"): TextData.open(tmp_path/"d")

def test_an_old_pack_of_records_survives_a_full_disk(tok, tmp_path):
    resource = pytest.importorskip("resource")
    old = TextData.pack([("a b", "c"), ("d", "e"), ("f", "g")], tok, Seq2Seq(8), path=tmp_path/"d", valid=0.3)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (200, 30_000, 100_000):                     # full while encoding, and in later steps
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(DataError, match="Cannot write .*Free some room"): TextData.pack([(f"line {i} " * 9, f"zeile {i} " * 9) for i in range(3000)], tok, Seq2Seq(64), path=tmp_path/"d")
        finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert TextData.open(tmp_path/"d").fingerprint == old.fingerprint and [p.name for p in tmp_path.iterdir()] == ["d"]

def test_ten_gigabytes_open_at_once(works, tok, tmp_path):
    "A file with a hole of 10 GB: opening and drawing touch only what they need."
    resource = pytest.importorskip("resource")
    from llmnb.text.store import _head
    def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt      # pages
    d = TextData.pack(works[:2], tok, CausalLM(64), path=tmp_path/"d")
    count = 5 * 10**9
    with open(d.path/"train.ids", "wb") as f: f.write(_head(2, count, tok.fingerprint)); f.truncate(64 + 2 * count)
    before = faults()
    big = TextData.open(d.path)
    b = big.batch(10**6, 8, seed=1)
    assert faults() - before < 20_000 and big.train.n_tokens == count and b.ids.shape == (8, 64)

def test_many_short_documents(tok, tmp_path):
    "One-line documents, by the hundred thousand (the ten million run as a slow test)."
    d = TextData.pack((f"line {i}" for i in range(100_000)), tok, CausalLM(32), path=tmp_path/"d")
    assert d.train.n_docs + d.valid.n_docs == 100_000 and abs(d.valid.n_docs / 100_000 - 0.1) < 0.01
    assert (d.train.ids == tok.eos_id).sum() == d.train.n_docs


@few
@given(st.lists(st.integers(0, 6), min_size=1, max_size=60))
def test_groups_are_numbered_as_they_come(groups):
    number = {g: i for i, g in enumerate(dict.fromkeys(groups))}
    got = _members(np.array(groups, np.uint64) * np.uint64(2**61))
    assert got is None if len(number) == len(groups) else got.tolist() == [number[g] for g in groups]

@few
@given(st.lists(st.integers(0, 9), max_size=40), st.integers(9, 20))
def test_neighbours_share_a_row_as_long_as_they_fit(sizes, most):
    starts = _fit(np.array(sizes, int), most).tolist()
    rows = [sizes[a:b] for a, b in zip(starts, [*starts[1:], len(sizes)])]
    assert sum(rows, []) == sizes and all(sum(r) <= most for r in rows) and all(sum(a) + b[0] > most for a, b in zip(rows, rows[1:]))

@few
@given(st.lists(st.text("ab é🎭\n", max_size=5), min_size=1, max_size=12), st.data())
def test_a_hash_of_documents_does_not_see_groups_but_borders(texts, data):
    def digest(groups):
        d = _Digest()
        assert [int(n) for g in groups for n in d.add(g)] == [len(t.encode()) for g in groups for t in g]
        return d.hexdigest()
    cuts = sorted(data.draw(st.sets(st.integers(1, len(texts)))) | {0, len(texts)})
    whole = digest([texts])
    assert digest([texts[a:b] for a, b in zip(cuts, cuts[1:])]) == whole
    assert digest([[*texts, ""]]) != whole and (texts[0] == "" or digest([["", *texts]]) != whole != digest([[texts[0][0], texts[0][1:], *texts[1:]]]))

@few
@given(st.integers(0, 50), st.integers(0, 60), st.integers(0, 60))
def test_numbers_on_disk_are_read_in_stretches(tmp_path_factory, n, a, b):
    path = tmp_path_factory.mktemp("s")/"n"
    np.arange(n, dtype="<u2").tofile(path)
    assert _Stored(path, "<u2")[a:b].tolist() == list(range(n))[a:b] and len(_Stored(path, "<u2")) == n

def test_groups_are_worked_on_in_order_and_errors_come_through():
    assert list(_ahead(lambda g: g * 2, iter(range(7)))) == [(i, 2 * i) for i in range(7)]
    def broken():
        yield 1
        raise KeyError("gone")
    with pytest.raises(KeyError, match="gone"): list(_ahead(str, broken()))
    with pytest.raises(ZeroDivisionError): list(_ahead(lambda g: 1 // g, [1, 0, 1]))

def test_numbers_grow_in_a_file(tmp_path):
    kept = _Numbers(tmp_path/"n")
    for i in range(0, 200_000, 1000): kept.add(range(i, i + 1000))
    assert len(kept.new) < 2**16 and kept.read().tolist() == list(range(200_000)) and _Numbers(tmp_path/"none").read().tolist() == []

@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_disk_without_room():
    "What the system itself says: no space left on device."
    for write in (lambda: write_file(Path("/dev/full"), [np.arange(10)], 10, np.dtype("<u2"), "ab" * 32), lambda: [k := _Numbers("/dev/full"), k.add(range(9)), k.write()]):
        with pytest.raises(DataError, match="Cannot write /dev/full: .*No space left on device.*Free some room"): write()

PACK_MANY = """
import sys
from llmnb.text.batches import CausalLM, TextData
from llmnb.text.tokenizer import Tokenizer
tok = Tokenizer.train(["line 0 1 2 3 4 5 6 7 8 9"] * 3, 300)
def peak(): return int(next(l.split()[1] for l in open("/proc/self/status") if l.startswith("VmHWM"))) / 1024    # ru_maxrss knows of the parent, too
before, n = peak(), int(sys.argv[1])
d = TextData.pack((f"line {i % (n - 5)}" for i in range(n)), tok, CausalLM(32), path=sys.argv[2])
assert d.train.n_docs + d.valid.n_docs == n and abs(d.valid.n_docs / n - 0.1) < 0.01 and d.batch(n, 4).ids.shape == (4, 32)
print(peak() - before)
"""

def pack_many(n, folder):
    "MB of memory that packing n documents of one line takes, in a process of its own."
    run = subprocess.run([sys.executable, "-c", PACK_MANY, str(n), str(folder)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return float(run.stdout)

@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured in the units of Linux")
def test_memory_does_not_grow_with_the_number_of_documents(tmp_path):
    "Of a document some 140 bytes are held, pages of mapped files included; lists of them would take five times that."
    assert pack_many(250_000, tmp_path/"d") < 60 + 250_000 * 400 / 1e6

@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured in the units of Linux")
def test_ten_million_documents_of_a_line(tmp_path): assert pack_many(10_000_000, tmp_path/"d") < 60 + 10_000_000 * 400 / 1e6


@pytest.mark.parametrize("text", ["x", "é", "\0", "\0" * 1000, " ", "x" * 1_000_000], ids=["one letter", "two bytes", "NUL", "NULs", "space", "a megabyte without a space"])
def test_tiny_and_odd_texts_pack_or_say_why(tok, tmp_path, text):
    "A single character cannot be divided; ten documents of it can, if they differ."
    if len(text) == 1:
        with pytest.raises(DataError, match="Give more text"): TextData.pack([text], tok, CausalLM(4), path=tmp_path/"a")
        assert not (tmp_path/"a").exists()
    texts = [f"{text}{i}" for i in range(10)] if len(text) < 10**5 else [text]
    d = TextData.pack(texts, tok, CausalLM(2), path=tmp_path/"d")
    back = (tok.decode(d.train.ids) + tok.decode(d.valid.ids)).split("<|endoftext|>")[:-1]
    assert sorted(back) == sorted(texts) and d.train.n_bytes + d.valid.n_bytes == sum(len(t.encode()) for t in texts)

# -- messages --------------------------------------------------------------------------------------------------------

def plain(): return Tokenizer.train(["to be or not to be"] * 3, 300)

@pytest.mark.parametrize("make, error, words_", [
    (lambda t, p: TextData.pack(["x y"] * 9, plain(), MaskedLM(8), path=p), ValueError, r"no mask token \(\[MASK\], <mask>, <\|mask\|>\): tok = tok.with_special"),
    (lambda t, p: TextData.pack(["x y"] * 9, t, MaskedLM(8, mask="<gap>"), path=p), ValueError, "no mask token .<gap>."),
    (lambda t, p: TextData.pack(["x y"] * 9, plain(), SpanCorruption(32), path=p), ValueError, "no '<extra_id_0>': add them with"),
    (lambda t, p: TextData.pack(["x y"] * 9, t, Seq2Seq(), path=p), TypeError, "document 0 is a str, expected Pair"),
    (lambda t, p: TextData.pack([("a", "b"), ("c",)], t, Seq2Seq(), path=p), TypeError, r"document 1 is a tuple of 1, expected Pair\(source, target\)"),
    (lambda t, p: TextData.pack([{"en": "a", "de": "b"}], t, Seq2Seq(), path=p), TypeError, "document 0 has the keys 'en', 'de', expected Pair"),
    (lambda t, p: TextData.pack([Pair("a", "b")], t, CausalLM(4), path=p), TypeError, "document 0 is a Pair, but CausalLM reads running text"),
    (lambda t, p: TextData.pack([Pair("a", "\ud800")], t, Seq2Seq(), path=p), ValueError, "document 0 has the lone surrogate"),
    (lambda t, p: TextData.pack([], t, Seq2Seq(), path=p), DataError, "corpus is empty"),
    (lambda t, p: TextData.pack([Labelled("x", "c"), Labelled("y", "a")], t, Classification(("a", "b")), path=p), ValueError, "label 'c' of 'x' is none of the classes 'a', 'b'"),
    (lambda t, p: Seq2Seq(start="<go>").check(t), ValueError, "start='<go>' is not a special token"),
    (lambda t, p: Classification(("a", "a")), ValueError, "two or more different classes"),
    (lambda t, p: MaskedLM(split=(0.9, 0.3)), ValueError, "two shares that sum to 1 at most"),
    (lambda t, p: MaskedLM(share=0), ValueError, "share=0"),
    (lambda t, p: SpanCorruption(mean=0.5), ValueError, "mean=0.5"),
    (lambda t, p: Seq2Seq(smoothing=1), ValueError, "smoothing=1"),
    (lambda t, p: SpanQA(100), ValueError, "leaves no room"),
    (lambda t, p: Question("q", "abc", ["x"], [1]), ValueError, "does not stand at character 1"),
    (lambda t, p: Dialogue([{"role": "user"}]), ValueError, "message 0 is"),
])
def test_objective_errors(tok, tmp_path, make, error, words_):
    with pytest.raises(error, match=words_): make(tok, tmp_path/"d")
    assert not (tmp_path/"d").exists()

@pytest.mark.parametrize("name", ["causal", "masked", "span-corruption", "seq2seq", "chat", "complete", "classification", "span-qa"])
def test_objectives_are_registered_and_go_to_json_and_back(name):
    from llmnb.text.packing import _describe
    cls = registry("objectives").get(name)
    described = json.loads(json.dumps(_describe(cls())))
    assert described["name"] == name and registry("objectives").resolve(name, **described["fields"]) == cls()


# -- what to validate on, given ---------------------------------------------------------------------------------------

def texts_of(split, tok): return tok.decode(split.ids).split("<|endoftext|>")[:-1]

def test_texts_to_validate_on_are_given(works, tok, tmp_path):
    mine = works[:5], works[5:8]
    data = TextData.pack(mine[0], tok, CausalLM(32), path=tmp_path/"d", valid=mine[1])
    assert (texts_of(data.train, tok), texts_of(data.valid, tok)) == mine
    assert data.valid.n_bytes == sum(len(w.encode()) for w in mine[1])
    made = (data.path/"meta.json").stat().st_mtime_ns
    again = TextData.pack(mine[0], tok, CausalLM(32), path=tmp_path/"d", valid=mine[1])
    assert (again.path/"meta.json").stat().st_mtime_ns == made and TextData.open(data.path).fingerprint == again.fingerprint
    once = TextData.pack(iter(mine[0]), tok, CausalLM(32), path=tmp_path/"once", valid=(w for w in mine[1]))
    assert once.fingerprint == data.fingerprint and np.array_equal(once.valid.ids, data.valid.ids)
    others = [TextData.pack(works[:4], tok, CausalLM(32), path=tmp_path/"o", valid=works[4:8]), TextData.pack(works[:8], tok, CausalLM(32), path=tmp_path/"s", valid=0.3)]
    assert len({d.fingerprint for d in (data, *others)}) == 3            # the same texts, divided elsewhere
    assert texts_of(TextData.pack("a text " * 50, tok, CausalLM(8), path=tmp_path/"one", valid="another text").valid, tok) == ["another text"]


@few
@given(st.lists(st.text("ab\nc", max_size=9), min_size=1, max_size=12), st.lists(st.text("xyz", max_size=9), min_size=1, max_size=12))
def test_given_sides_are_whole(tok, train, valid):
    import tempfile
    with tempfile.TemporaryDirectory() as folder:
        try: data = TextData.pack(train, tok, CausalLM(1), path=Path(folder)/"d", valid=valid)
        except DataError as e: assert "corpus is empty" in str(e) or "too" in str(e) or "needs" in str(e)
        else: assert (texts_of(data.train, tok), texts_of(data.valid, tok)) == ([t for t in train if t], [t for t in valid if t])


def test_records_to_validate_on_are_given(tok, tmp_path):
    train, valid = ([(f"{w} {i}", f"{w} {i} again") for i in range(30)] for w in ("to", "be"))
    data = TextData.pack(train, tok, Seq2Seq(ctx=16), path=tmp_path/"d", valid=[*valid, ("too long " * 20, "x")])
    sources = lambda split: sorted(tok.decode(split.columns["src"][i][:-1]) for i in range(split.n_rows))
    assert sources(data.train) == sorted(a for a, _ in train) and sources(data.valid) == sorted(a for a, _ in valid)
    assert data.meta["valid"]["left_out"] == 1 and data.meta["train"]["left_out"] == 0
    with pytest.raises(DataError, match="None of the 1 records of valid fits"): TextData.pack(train, tok, Seq2Seq(ctx=16), path=tmp_path/"e", valid=[("too long " * 20, "x")])
    with pytest.raises(TypeError, match="document 0 of valid"): TextData.pack(train, tok, Seq2Seq(ctx=16), path=tmp_path/"e", valid=[5])
    assert not (tmp_path/"e").exists()


def test_what_stands_on_both_sides_is_told(tok, tmp_path):
    with pytest.warns(UserWarning, match="^2 of the 3 documents of valid stand in the training text"):
        TextData.pack(["to be", "or not", "that is"] * 3, tok, CausalLM(2), path=tmp_path/"d", valid=["to be", "new", "or not"])


@pytest.mark.parametrize("wrong", [0, 1, 1.5, -0.1, True, None, {"a": "x" * 10**6}, object()])
def test_a_wrong_share_is_told_in_few_words(tok, tmp_path, wrong):
    with pytest.raises(ValueError, match="expected a share between 0 and 1, such as 0.1, or the texts to validate on") as e:
        TextData.pack(["to be " * 99], tok, CausalLM(2), path=tmp_path/"d", valid=wrong)
    assert len(str(e.value)) < 200
