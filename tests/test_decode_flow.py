"Batches that are filled up, rules that stop, streams at once, chats and fillings: each equal to its plain version."
import asyncio, gc, math, threading, weakref

import pytest
import torch
from hypothesis import given, settings as hyp, strategies as st

from llmnb.decode.bans import DRY, Forced, MinNewTokens, NoRepeatNGram
from llmnb.decode.beam import Beam
from llmnb.decode.chat import Chat, chat_ids
from llmnb.decode.contrast import Contrastive, ContrastWith, Guided
from llmnb.decode.fill import fill, refine
from llmnb.decode.generate import generate, stream
from llmnb.decode.pictures import Tree, beam_tree, speculation_strip
from llmnb.decode.reply import Row
from llmnb.decode.session import Kept, first_ids
from llmnb.decode.speculative import PromptLookup, Speculative
from llmnb.decode.stopping import Rule, Seconds, Sentences
from llmnb.decode.strategies import Greedy, Sample, Strategy
from llmnb.model.adapter import adapt
from llmnb.settings import settings
from llmnb.text.tokenizer import Tokenizer
from test_decode import CTX, Cut, TEXTS, V, make, some_ids, tok  # noqa: F401

MANY = [some_ids(1 + 7 * i % 23, i) for i in range(22)]
STOP = list(range(2, 40))


@pytest.fixture(scope="module")
def model(): return make("llama")


# Batches that are filled up

@pytest.mark.parametrize("family, more", [("gpt2", {}), ("mistral", {}), ("t5", {}), *(pytest.param(f, {}, marks=pytest.mark.slow) for f in ("llama", "gemma3", "bart", "qwen3"))])
def test_filled_up_is_single(family, more):
    m = make(family, **more)
    for strategy in (Greedy(), Sample(1.5, repetition_penalty=1.2, frequency_penalty=0.5, processors=(NoRepeatNGram(3), DRY(), MinNewTokens(2, (5,))))):
        some = dict(strategy=strategy, stop=STOP, max_new_tokens=25)
        single = [generate(m, None, p, seed=3 + i, **some) for i, p in enumerate(MANY)]
        for size, cache in ((4, True), (3, False)):
            many = generate(m, None, MANY, seed=3, batch_size=size, cache=cache, **some)
            assert [g.ids for g in many] == [g.ids for g in single] and [g.finish_reason for g in many] == [g.finish_reason for g in single]
        for a, b in zip(many, single): assert a.logprobs == pytest.approx(b.logprobs, abs=2e-4)


def test_in_float64_the_logprobs_are_the_same_to_the_last_digits(model):
    m = make("llama").double()
    many = generate(m, None, MANY, batch_size=5, stop=STOP, max_new_tokens=25)
    for i, p in enumerate(MANY): assert many[i].logprobs == pytest.approx(generate(m, None, p, stop=STOP, max_new_tokens=25).logprobs, abs=1e-11)


@pytest.mark.parametrize("kind", ["window", "int8", "static"])
def test_other_caches_are_filled_up(kind):
    m = make("mistral")
    plain = m.new_cache
    m.new_cache = lambda batch_size=None, max_len=None: plain(batch_size, CTX, kind)
    try:
        many = generate(m, None, MANY[:9], batch_size=3, stop=STOP, max_new_tokens=15)
        single = [generate(m, None, p, stop=STOP, max_new_tokens=15) for p in MANY[:9]]
    finally: del m.new_cache
    assert [len(g.ids) for g in many] == [len(g.ids) for g in single]
    if kind != "int8": assert [g.ids for g in many] == [g.ids for g in single]


@pytest.mark.parametrize("cls, kw", [("Llama", dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)), pytest.param("GPT2", dict(n_embd=32, n_layer=2, n_head=4), marks=pytest.mark.slow),
                                     ("T5", dict(d_model=32, d_ff=48, num_layers=2, num_heads=4, d_kv=8, decoder_start_token_id=0))])
def test_adapted_models(cls, kw, tok):
    import transformers as hf
    torch.manual_seed(0)
    theirs = getattr(hf, cls + ("ForConditionalGeneration" if cls == "T5" else "LMHeadModel" if cls == "GPT2" else "ForCausalLM"))(getattr(hf, cls + "Config")(vocab_size=V, **kw)).eval()
    with torch.no_grad():
        for p in theirs.parameters(): p.mul_(3)
    m, some = adapt(theirs), dict(stop=STOP, max_new_tokens=12)
    single = [generate(m, None, p, **some) for p in MANY[:9]]
    assert [g.ids for g in generate(m, None, MANY[:9], batch_size=3, **some)] == [g.ids for g in single]
    for p, g in zip(MANY[:3], single):
        more = {} if cls != "T5" else dict(decoder_start_token_id=0)
        out = theirs.generate(torch.tensor([p]), attention_mask=torch.ones(1, len(p), dtype=torch.long), do_sample=False, eos_token_id=STOP, pad_token_id=0, max_new_tokens=12, **more)
        assert g.ids == out[0, 1 if more else len(p):].tolist()
        beams = theirs.generate(torch.tensor([p]), attention_mask=torch.ones(1, len(p), dtype=torch.long), do_sample=False, num_beams=3, eos_token_id=STOP, pad_token_id=0, max_new_tokens=12, **more)[0, 1 if more else len(p):].tolist()
        ours = generate(m, None, p, strategy=Beam(3), **some).ids
        assert ours == beams[:len(ours)] and not any(beams[len(ours):])
    if cls == "T5": return
    for strategy in (Speculative(make(), ahead=3), PromptLookup(), Guided(1.5), ContrastWith(make())):
        assert generate(m, None, MANY[3], strategy=strategy, **some).finish_reason in ("stop", "length")
    assert generate(m, None, MANY[3], strategy=Speculative(make()), **some).ids == single[3].ids == generate(m, None, MANY[3], strategy=PromptLookup(), **some).ids
    with pytest.raises(TypeError, match="leaving early works with llmnb's own"): generate(m, None, MANY[3], strategy=Speculative(1), **some)
    assert "the model" in single[3].why(0).text
    chat = Chat(m, tok, max_new_tokens=6)
    chat("To be"); chat("or not")
    assert chat.turns[-1].reply.ids == generate(m, tok, chat_ids(tok, chat.turns[:3]), max_new_tokens=6, stop=chat.stop).ids and chat.turns[-1].read < len(chat.turns[-1].reply.prompt_ids)


@pytest.mark.parametrize("cls, kw", [
    ("MarianMT", dict(d_model=32, encoder_ffn_dim=48, decoder_ffn_dim=48, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
                      decoder_attention_heads=4, decoder_start_token_id=0, forced_eos_token_id=None)),
    ("Mistral", dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, sliding_window=5)),
    ("SwitchTransformers", dict(d_model=32, d_ff=48, num_layers=2, num_heads=4, d_kv=8, decoder_start_token_id=0, num_experts=2, expert_capacity=64)),
    ("Bloom", dict(hidden_size=32, n_layer=2, n_head=4)), ("Rwkv", dict(hidden_size=32, num_hidden_layers=2, attention_hidden_size=32))])
def test_adapted_models_of_all_kinds(cls, kw):
    "Who counts every place, who has a window, who has no context length, who keeps a state: batches are single runs all the same."
    import transformers as hf
    torch.manual_seed(0)
    config = getattr(hf, cls.removesuffix("MT") + "Config")(vocab_size=V, bos_token_id=None, eos_token_id=None, pad_token_id=0, **kw)
    theirs = getattr(hf, cls + dict(MarianMT="Model", SwitchTransformers="ForConditionalGeneration").get(cls, "ForCausalLM"))(config).eval()
    with torch.no_grad():
        for n, p in theirs.named_parameters(): p.mul_(1 if p.dim() == 1 or "position" in n else 4)
    m, some = adapt(theirs), dict(stop=STOP, max_new_tokens=10)
    single = [generate(m, None, p, **some).ids for p in MANY[:9]]
    assert len({tuple(ids) for ids in single}) > 2
    for size in (9, 3): assert [g.ids for g in generate(m, None, MANY[:9], batch_size=size, **some)] == single
    beams = [generate(m, None, p, strategy=Beam(2), **some).ids for p in MANY[:4]]
    assert [g.ids for g in generate(m, None, MANY[:4], strategy=Beam(2), **some)] == beams
    if cls == "Rwkv":
        with pytest.raises(ValueError, match="needs a cache"): generate(m, None, MANY[3], strategy=PromptLookup(), **some)
        return
    for how in (PromptLookup(), Speculative(m), Guided(1.0)): assert [generate(m, None, p, strategy=how, **some).ids for p in MANY[:3]] == single[:3]
    kept = Kept()
    for p, ids in zip(MANY[:3], single): assert generate(m, None, [*p[:-1], 9, 5], kept=kept, **some) and generate(m, None, p, kept=kept, **some).ids == ids


def test_a_thousand_prompts_keep_the_batch_full(tok):
    m, widths = make("llama", layers=1, width=16), []
    prompts = [[3 + i % 290] * (1 + i % 5) for i in range(1000)]
    with m.hooks({"embed": lambda x, name: widths.append(len(x)) if x.shape[1] == 1 and len(x) > 1 else None}):
        out = generate(m, None, prompts, strategy=Sample(2.0), stop=STOP, max_new_tokens=12, batch_size=50, alternatives=0)
    assert len(out) == 1000 and all(g.finish_reason in ("stop", "length") for g in out)
    assert sum(widths[:-12]) / len(widths[:-12]) > 0.75 * 50
    for i in (0, 499, 999): assert out[i].ids == generate(m, None, prompts[i], strategy=Sample(2.0), stop=STOP, max_new_tokens=12, seed=settings.seed + i).ids


def test_the_bar_counts(model, monkeypatch):
    import tqdm
    seen = []
    class Bar:
        def __init__(self, total, **kw): self.n = 0; seen.append(total)
        def update(self, k): self.n += k; seen.append(self.n)
        def close(self): seen.append("closed")
    monkeypatch.setattr(tqdm, "tqdm", Bar)
    generate(model, None, MANY, batch_size=4, stop=STOP, max_new_tokens=9, progress=True)
    assert seen[0] == 22 and seen[-2:] == [22, "closed"] and seen[1:-1] == sorted(seen[1:-1]) and len(set(seen)) > 6
    seen.clear(); generate(model, None, MANY[:2], max_new_tokens=2); assert not seen


def test_forced_tokens_count_from_each_rows_own_beginning(model):
    out = generate(model, None, MANY, batch_size=3, strategy=Greedy((Forced(7, 2),)), stop=STOP[10:], max_new_tokens=8)
    assert all(g.ids[2] == 7 for g in out if len(g.ids) > 2) and any(len(g.ids) > 2 for g in out)


# Rules that stop

@given(st.lists(st.text("aB.! \n", min_size=1, max_size=4), min_size=1, max_size=9), st.integers(1, 2), st.lists(st.text("aB.", min_size=1, max_size=2), max_size=1))
@hyp(max_examples=200, deadline=None)
def test_sentences_end_at_the_same_place_however_the_text_is_cut(parts, n, stops):
    whole = "".join(parts)
    def run(parts):
        row = Row([0], tok=Cut(parts), limit=len(parts), rules=(Sentences(n),), stops=tuple(stops))
        for id in range(len(parts)):
            if not row.finish: row.add(id, 0.0)
            assert "".join(row.pieces) == whole[:len("".join(row.pieces))]
        assert len(row.pieces) == len(row.ids)
        return "".join(row.pieces), row.finish
    assert run(parts) == run(list(whole))


class Talk(Strategy):
    def __init__(self, ids): self.ids = ids
    def choose(self, logits, history, draw): return torch.tensor([self.ids[n] for n in history.said.tolist()])


def test_every_reason_is_told(model, tok):
    ids = tok.encode("To be. Or not to be! That") + [tok.eos_id]
    def ends(**kw): return generate(model, tok, "To", **{**dict(strategy=Talk(ids), max_new_tokens=len(ids)), **kw})
    assert ends().finish_reason == "eos" and ends(max_new_tokens=2).finish_reason == "length"
    assert (ends(stop="not").finish_reason, ends(stop=ids[1]).finish_reason) == ("stop", "stop")
    assert ends(stop=Sentences(2)).text == "To be. Or not to be!" and ends(stop=[Sentences(2), "Or"]).text == "To be. "
    assert ends(stop=lambda text: "Or" in text).finish_reason == "function" and ends(stop=[Seconds(1e-9)]).finish_reason == "time"
    class Third(Rule):
        def look(self, row): return ("third", len(row.text) - 1) if len(row.ids) == 3 else None
    assert (ends(stop=Third()).finish_reason, ends(stop=Third()).text) == ("third", tok.decode(ids[:3])[:-1])
    assert generate(model, None, [3], stop=lambda ids: len(ids) == 4, max_new_tokens=9).finish_reason == "function"
    out = ends(stop="never said")
    assert out.finish_reason == "eos"                                       # a stop string that never comes


@pytest.mark.parametrize("how", [Beam(3), Beam(4, groups=2, diversity=1.0), Speculative(1), PromptLookup()])
def test_rules_hold_for_strategies_with_a_loop_of_their_own(model, tok, how):
    out = generate(model, tok, "To be", strategy=how, stop=lambda text: len(text) > 12, max_new_tokens=40)
    assert out.finish_reason == "function" and len(out.text) > 12 >= len(out.text) - len(out.pieces[-1])
    out = generate(model, tok, "To be", strategy=how, stop=Seconds(1e-9), max_new_tokens=40)
    assert out.finish_reason == "time" and len(out.ids) <= 5
    assert generate(model, tok, ["To be", "Or"], strategy=how, max_new_tokens=3)[1].finish_reason == "length"


# Streams

def test_streams_in_threads_with_a_model_in_training(tok):
    m = make(dropout=0.5)
    some = dict(strategy=Sample(1.3), max_new_tokens=25)
    wanted = [generate(m, tok, "To be", seed=i, **some).ids for i in range(6)]
    m.train()
    found = [None] * 6
    def read(i): found[i] = [p.id for p in stream(m, tok, "To be", seed=i, **some)]
    threads = [threading.Thread(target=read, args=(i,)) for i in range(6)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert found == wanted and all(x.training for x in m.modules())


def test_async_streams(model, tok):
    some, beats = dict(strategy=Sample(1.3), max_new_tokens=25), []
    async def read(i): return [p.id async for p in stream(model, tok, "To be", seed=i, **some)]
    async def beat():
        while True: beats.append(1); await asyncio.sleep(0)                # once a turn of the loop
    async def all_():
        b = asyncio.create_task(beat())
        out = await asyncio.gather(*map(read, range(3)))
        b.cancel()
        return out
    assert asyncio.run(all_()) == [generate(model, tok, "To be", seed=i, **some).ids for i in range(3)] and len(beats) > 5


def test_a_cancelled_task_frees_the_cache(model, tok):
    kept = {}
    async def read():
        kept["s"] = s = stream(model, tok, "To be", strategy=Sample(1.3), max_new_tokens=50)
        async for _ in s: kept.setdefault("cache", weakref.ref(s.session.cache)); await asyncio.sleep(0.001)
    async def main():
        t = asyncio.create_task(read())
        while "cache" not in kept: await asyncio.sleep(0.001)
        t.cancel()
        with pytest.raises(asyncio.CancelledError): await t
    asyncio.run(main())
    kept["s"].close()
    gc.collect()
    assert kept["cache"]() is None and kept["s"].result.finish_reason == "cancelled" and len(kept["s"].result.ids) < 50


# Kept caches and chats

@pytest.mark.parametrize("strategy", [Greedy(), Sample(1.2), Speculative(1), PromptLookup(), Guided(1.5), Beam(3)])
def test_kept_is_not_kept(model, tok, strategy):
    kept, ids = Kept(), some_ids(12)
    for n, prompt in enumerate([ids, ids + some_ids(5, 1), ids[:6] + some_ids(9, 2), some_ids(4, 3), ids, ids]):
        some = dict(strategy=strategy, max_new_tokens=10, seed=n)
        assert generate(model, None, prompt, kept=kept, **some).ids == generate(model, None, prompt, **some).ids
        assert isinstance(strategy, Beam) or kept.ids[:len(prompt)] == prompt


def test_what_is_kept_goes_when_the_weights_change():
    m, kept, ids = make(), Kept(), some_ids(12)
    generate(m, None, ids, kept=kept, max_new_tokens=3)
    with torch.no_grad(): m.embed.weight.mul_(-1)
    assert generate(m, None, ids, kept=kept, max_new_tokens=8).ids == generate(m, None, ids, max_new_tokens=8).ids


def test_a_chat_reads_only_what_is_new():
    tok = Tokenizer.train(TEXTS, vocab_size=V, min_frequency=1, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    m, seen = make(ctx=400), []
    for strategy in (Greedy(), Sample(1.0), Speculative(1, ahead=2)):
        chat, before = Chat(m, tok, "Be brief.", max_new_tokens=4, strategy=strategy, seed=1), 0
        for n, text in enumerate(("To", "or", "not")):
            seen.clear()
            with m.hooks({"layers.1.resid_post": lambda x, name: seen.append(x.shape[1])}): out = chat(text)
            if n: assert sum(seen[:1]) == len(out.prompt_ids) - before + (strategy.ahead if isinstance(strategy, Speculative) else 0) and seen[0] < len(out.prompt_ids) / 2
            assert chat.turns[-1].read == sum(seen)
            before = len(chat.kept.ids)
            assert out.ids == generate(m, tok, out.prompt_ids, strategy=strategy, max_new_tokens=4, stop=chat.stop, seed=1 + n).ids
    assert [x["role"] for x in chat.messages] == ["system"] + ["user", "assistant"] * 3


def test_branches_do_not_touch_each_other(model, tok):
    a = Chat(model, tok, max_new_tokens=4)
    a("To be")
    b = a.branch()
    x, y = b("Who"), a("What")
    fresh = Chat(model, tok, max_new_tokens=4)
    fresh("To be")
    assert fresh.branch()("Who").ids == x.ids and fresh("What").ids == y.ids and a.messages[:2] == b.messages[:2] and a.messages[2] != b.messages[2]
    assert a.regenerate().ids == y.ids and a.edit(0, "Or").ids == Chat(model, tok, max_new_tokens=4)("Or").ids and len(a) == 2
    assert a.edit(-1, "I said this.") is None and a.messages[-1]["content"] == "I said this."
    assert a("x").prompt_ids == tok.encode_chat(a.messages[:-1], prompt=True)  # nothing of the old reply's ids is left


def test_what_a_user_writes_is_escaped(model, tok):
    chat = Chat(model, tok, "<b>&", max_new_tokens=3)
    chat("<script>alert(1)</script>")
    html = chat._repr_mimebundle_()["text/html"]
    assert "<script>" not in html and "<b>" not in html and "&lt;script&gt;" in html and repr(chat).startswith("system: <b>&")


def test_smollm2s_template():
    from test_decode_constrain import smol_tok
    tok, m = smol_tok(), make("llama", vocab_size=49152, ctx=256, width=16, layers=1, heads=2)
    chat = Chat(m, tok, "You are kind.", max_new_tokens=5, seed=2, strategy=Sample())
    chat("Hello!"); chat("Who are you?")
    assert tok.chat_text(chat.messages[:2], prompt=True) == "<|im_start|>system\nYou are kind.<|im_end|>\n<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n"
    assert chat.turns[-1].read < 35 and tok.turn_end_id in (tok.eos_id, *chat.stop)
    assert tok.decode(chat.turns[-1].reply.prompt_ids) == tok.chat_text(chat.messages[:-1], prompt=True)


# Fillings

@pytest.mark.parametrize("family", ["bert", "albert"])
def test_fill(family):
    m = make(family, layers=2)
    rows = [[5, 4, 7, 9], [4, 8, 4, 11, 12, 4, 4], [4]]
    many = fill(m, None, rows, mask_id=4, steps=None)
    for r, f in zip(rows, many):
        one, ids = fill(m, None, r, mask_id=4, steps=None), list(r)
        while 4 in ids:                                                      # the surest hole first, in plain code
            with torch.no_grad(): p = m(torch.tensor([ids]))[0].index_fill(-1, torch.tensor([4]), -math.inf).softmax(-1)
            at = max((i for i, t in enumerate(ids) if t == 4), key=lambda i: p[i].max())
            ids[at] = int(p[at].argmax())
        assert f.ids == one.ids == ids and f.holes == [i for i, t in enumerate(r) if t == 4] and f.probs == pytest.approx(one.probs, abs=1e-4)
    assert fill(m, None, rows[1], mask_id=4, strategy=Sample(3.0), seed=1).ids != fill(m, None, rows[1], mask_id=4, strategy=Sample(3.0), seed=2).ids
    r = refine(m, None, [5, 6, 7, 8], mask_id=4, steps=3)
    assert len(r.ids) == 4 and 4 not in r.ids and "%" in r._repr_mimebundle_()["text/html"]


@pytest.mark.parametrize("package, path, cls", [("rxnmapper", ("models", "transformers", "albert_heads_8_uspto_all_1310k"), "AlbertForMaskedLM")])
def test_fill_real_masks_as_transformers(package, path, cls):
    from llmnb.model.weights import load_model
    from test_real_models import inside, theirs
    folder = inside(package, *path)
    ours, other = load_model(folder, architecture=cls), theirs(cls, folder)
    number = {w: i for i, w in enumerate((folder/"vocab.txt").read_text().splitlines())}
    ids = [number["[CLS]"], *(number[c] for c in "CC(=O)OCC"), number["[SEP]"]]
    mask, right = number["[MASK]"], 0
    for i in range(1, len(ids) - 1):
        shown = ids[:i] + [mask] + ids[i + 1:]
        f, g = fill(ours, None, shown, mask_id=mask), fill(adapt(other), None, shown, mask_id=mask)
        with torch.no_grad(): p = other(input_ids=torch.tensor([shown])).logits[0, i].index_fill(0, torch.tensor(mask), -math.inf).softmax(-1)
        best = p.topk(5)
        assert [int(w) for w, _ in f.choices[0]] == best.indices.tolist() and f.ids == g.ids
        assert [q for _, q in f.choices[0]] == pytest.approx(best.values.tolist(), abs=1e-4)
        right += f.ids == ids
    assert right >= 5


# Pictures

def test_pictures(model, tok):
    beam = generate(model, tok, "To <b>be", strategy=Beam(3), stop=[5, 9], max_new_tokens=8)
    assert beam_tree(beam).svg.count("<rect") == sum(s is not None for level in beam.steps[:10] for *_, s in level) and 'stroke-width="2"' in beam_tree(beam).svg
    out = generate(model, None, MANY[3], strategy=PromptLookup(), max_new_tokens=30)
    assert speculation_strip(out).html.count("<span") == 30
    tree = Tree(model, tok, "To be", width=2, depth=3, least=0.0)
    assert len(tree.leaves) == 8 and sum(p for _, p in tree.leaves) <= 1 and len(tree.follow(0, max_new_tokens=3).ids) == 3
    assert "<b>" not in beam_tree(beam)._repr_mimebundle_()["text/html"]


# The strength of the tests of speculation

@pytest.mark.parametrize("wrong", [pytest.param(lambda p, q: (torch.ones_like(p), p), marks=pytest.mark.slow), lambda p, q: ((p / q).clamp(max=1).nan_to_num(1.0), p), lambda p, q: ((p / q).clamp(max=0.6).nan_to_num(0.6), (p - q).clamp(min=0) + 1e-9)])
def test_a_wrong_rule_of_acceptance_is_noticed(wrong, monkeypatch):
    from llmnb.decode import speculative
    from test_decode_speculative import STRATEGIES, test_sampled_distribution
    monkeypatch.setattr(speculative, "verdict", wrong)
    with pytest.raises(AssertionError): test_sampled_distribution("draft")


# Encoder-decoders everywhere

@pytest.mark.parametrize("family", ["t5", pytest.param("bart", marks=pytest.mark.slow)])
def test_speculation_and_contrast_with_an_encoder(family):
    m, o = make(family), make(family, seed=4)
    for p in MANY[:3]:
        some = dict(stop=STOP, max_new_tokens=14)
        greedy = generate(m, None, p, **some)
        for how in (Speculative(o, ahead=3), Speculative(m), PromptLookup(), PromptLookup(1)):
            out = generate(m, None, p, strategy=how, **some)
            assert out.ids == greedy.ids and out.finish_reason == greedy.finish_reason
        ids = first_ids(m, Row(p))                              # contrastive search in plain code
        memory = m.read(torch.tensor([p]))
        with torch.no_grad():
            for _ in range(8):
                h = m.hidden(torch.tensor([ids]), memory=memory)[0]
                probs, best = m.unembed(h[-1]).softmax(-1).topk(4), []
                for q, v in zip(probs.values, probs.indices.tolist()):
                    new = m.hidden(torch.tensor([[*ids, v]]), memory=memory)[0]
                    best.append((0.4 * q - 0.6 * torch.cosine_similarity(new[-1:], new[:-1]).max(), v))
                ids = [*ids, max(best)[1]]
        assert generate(m, None, p, strategy=Contrastive(4, 0.6), max_new_tokens=8).ids == ids[1:]
    assert [g.ids for g in generate(m, None, MANY[:6], strategy=PromptLookup(), **some)] == [generate(m, None, p, **some).ids for p in MANY[:6]]
    for wrong, says in ((Speculative(1), "cannot be left early"), (Speculative(make()), "of the same kind")):
        with pytest.raises(ValueError, match=says): generate(m, None, MANY[0], strategy=wrong, max_new_tokens=3)

def test_a_source_given_as_text_ends_as_in_training():
    from llmnb.model.config import TransformerConfig
    from llmnb.model.transformer import Transformer
    from llmnb.text.records import Pair
    from llmnb.text.targets import Seq2Seq
    tok = Tokenizer.train(["to be or not to be"] * 3, vocab_size=280, special_tokens=("<s>", "</s>", "<pad>"), progress=False)
    m = Transformer(TransformerConfig.vaswani("tiny", vocab_size=tok.vocab_size, ctx=32, layers=1, width=32, heads=2), seed=0)
    trained = Seq2Seq(32).encode([Pair("to be", "x")], tok)[0][0][0]
    out = generate(m, tok, "to be", max_new_tokens=4)
    assert out.prompt_ids == trained == [*tok.encode("to be"), tok.eos_id]
    assert out.ids == generate(m, tok, trained, max_new_tokens=4).ids == generate(m, tok, "to be</s>", max_new_tokens=4).ids
    assert [g.ids for g in generate(m, tok, ["to be", "or not to be"], max_new_tokens=4)][0] == out.ids
    decoder = Transformer(TransformerConfig.llama("tiny", vocab_size=tok.vocab_size, ctx=32, layers=1, width=32, heads=2, kv_heads=1), seed=0)
    assert generate(decoder, tok, "to be", max_new_tokens=2).prompt_ids == tok.encode("to be")       # a text that goes on does not end

def test_models_of_another_kind_are_refused():
    import transformers as hf
    raw = hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=9))
    with pytest.raises(TypeError, match=r"adapt\(model\)"): generate(raw, None, [1], max_new_tokens=2)
    with pytest.raises(TypeError, match="fill"): generate(make("bert"), None, [1], max_new_tokens=2)
    for how in (fill, refine):
        with pytest.raises(TypeError, match=r"fill asks an encoder.*Use generate"): how(make(), None, [1, 2])
