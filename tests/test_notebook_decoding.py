"Decoding in the words of a notebook: every strategy, constraints, and chat."
import pytest

from llmnb.decode.beam import Beam
from llmnb.decode.chat import Chat
from llmnb.decode.constrain import Regex
from llmnb.decode.contrast import ContrastWith, Guided
from llmnb.decode.generate import generate
from llmnb.decode.speculative import Speculative
from llmnb.decode.strategies import Sample
from llmnb.notebook.magics import Desk, VerbError, do
from llmnb.settings import settings
from test_decode import make, tok  # noqa: F401


@pytest.fixture
def desk(tok):  # noqa: F811
    with settings.override(ui="none"): yield Desk(dict(model=make(ctx=200), tok=tok, small=make("gpt2", ctx=200), text='start: "a" | "b"'))


@pytest.mark.parametrize("line, how", [
    ("--strategy beam --width 3 --sample sample", lambda d: dict(strategy=Beam(3, sample=Sample()))), ("--strategy speculative --draft small --ahead 2", lambda d: dict(strategy=Speculative(d["small"], 2))),
    ("--strategy speculative --draft 1", lambda d: dict(strategy=Speculative(1))), ("--strategy contrast-with --model small", lambda d: dict(strategy=ContrastWith(d["small"]))),
    ("--strategy guided --negative or", lambda d: dict(strategy=Guided(negative=tuple(d["tok"].encode("or"))))), ("--strategy sample --processors dry,xtc", lambda d: dict(strategy=Sample(processors=("dry", "xtc")))),
    (r"--regex '[ab]{3}'", lambda d: dict(constraint=Regex("[ab]{3}")))])
def test_generate_says_what_python_says(desk, line, how):
    do(desk, f"generate {line} --max-new-tokens 9 --seed 3", "To be\n")
    assert desk["out"] == generate(desk["model"], desk["tok"], "To be", max_new_tokens=9, seed=3, **how(desk))


def test_constraints_from_names_and_files(desk, tmp_path):
    do(desk, "generate --grammar text", "x")
    assert desk["out"].text in "ab"
    (tmp_path/"s.json").write_text('{"enum": ["yes", "no"]}')
    do(desk, f"generate --json-schema {tmp_path/'s.json'}", "x")
    assert desk["out"].text in ('"yes"', '"no"')
    do(desk, "generate --choice one --choice two --sentences 2 --seconds 60", "x")
    assert desk["out"].text in ("one", "two")


@pytest.mark.parametrize("line, says", [("generate --regex a --choice b", "a reply has one constraint"), ("generate --strategy speculative --draft big", "no `big` in this notebook"),
                                        ("chat --again", "no reply to make again"), ("chat --again Hello", "say nothing new"), ("chat --undo", "nothing to take back")])
def test_mistakes(desk, line, says):
    with pytest.raises((VerbError, ValueError), match=says): do(desk, line, "x" if line.startswith("generate") else None)


def test_chat(desk):
    do(desk, "chat --system 'Be brief.' --max-new-tokens 5", "Hello\n")
    do(desk, "chat Who are you? --max-new-tokens 5")
    chat = desk["chat"]
    assert isinstance(chat, Chat) and [m["role"] for m in chat.messages] == ["system", "user", "assistant", "user", "assistant"] and chat.messages[1]["content"] == "Hello"
    before = chat.turns[-1].reply
    do(desk, "chat --again --strategy sample --max-new-tokens 5 --seed 1")
    assert len(chat) == 5 and chat.turns[-1].reply is desk["out"] is not before and do(desk, "chat") is chat
    do(desk, "chat --undo")
    assert len(chat) == 3
    do(desk, "chat --new --max-new-tokens 5 Hello")
    assert desk["chat"] is not chat and len(desk["chat"]) == 2
