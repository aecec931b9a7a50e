"gigabpe behind the same face: the whole tokenizer.json equals the reference trainer's."
import random, subprocess, sys

import pytest
from hypothesis import HealthCheck, given, settings as hyp, strategies as st

from llmnb import LLMNBError
from llmnb.text.kinds import BPE
from llmnb.text.learner import Spool, fast_there

pytestmark = pytest.mark.skipif(not fast_there(), reason="gigabpe is not installed")
words = st.sampled_from(["<|endoftext|>", "the", " the", " cat", "\n", "\n\n", "\r\n", "  ", "\t", "'s", "é", "数据", "🙂", "0123", "--", "\x00", "\x0c", "\u2028", "\x85", " a"])
document = st.lists(words | st.text(max_size=6), max_size=40).map("".join).filter(lambda t: not any(0xD800 <= ord(c) < 0xE000 for c in t))


@hyp(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(document, max_size=8), st.sampled_from([1, 2, 5]), st.sampled_from([260, 300, 400]))
def test_engines_learn_the_same(texts, min_frequency, size):
    both = [BPE(size, min_frequency=min_frequency, engine=e).train(iter(texts)).to_str() for e in ("tokenizers", "gigabpe")]
    assert both[0] == both[1]


@pytest.mark.parametrize("seed", range(3))
def test_engines_break_thousands_of_ties_alike(seed):
    "Made words that are about equally frequent: nearly every merge is one of many with the same count."
    rng = random.Random(seed)
    syllables = ["".join(rng.choices("abcdeé数ж", k=rng.randint(1, 3))) for _ in range(60)]
    texts = [" ".join("".join(rng.choices(syllables, k=3)) for _ in range(200)) + rng.choice(["", "\n", "\n\nx"]) for _ in range(20)]
    assert len({BPE(3000, engine=e).train(iter(texts)).to_str() for e in ("tokenizers", "gigabpe")}) == 1


@hyp(max_examples=60, deadline=None)
@given(st.lists(document, max_size=8))
def test_a_spool_gives_its_texts_back(texts):
    with Spool(iter(texts)) as spool: assert sorted(spool) == sorted(texts)


def test_an_error_in_the_texts_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    import tempfile; monkeypatch.setattr(tempfile, "tempdir", None)
    def broken():
        yield "one"
        raise OSError("the disk is gone")
    with pytest.raises(OSError, match="gone"): BPE(300).train(broken())
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_says_what_to_do(tmp_path, monkeypatch):
    resource = pytest.importorskip("resource")
    import tempfile; monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(LLMNBError, match="Cannot write in .*: .*free some room, set TMPDIR"): BPE(300).train(f"line {i} " * 9 for i in range(9000))
        assert BPE(300, engine="tokenizers").train(f"line {i} " * 9 for i in range(9000)).get_vocab_size() <= 300      # as it advises
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_fast_says_so():
    assert not BPE(300, pattern="cl100k").fast and BPE(300).fast
    with pytest.raises(ValueError, match="pattern='gpt2'"): BPE(300, pattern="cl100k", engine="gigabpe")
    with pytest.raises(ValueError, match="engine='giga'"): BPE(300, engine="giga")
