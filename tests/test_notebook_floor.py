"""The notebook floor without a browser: frames, buttons, playground, magics."""
import itertools, json, re, time
from types import SimpleNamespace

import nbformat, pytest
from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from llmnb.decode.chat import Chat
from llmnb.decode.generate import generate
from llmnb.decode.strategies import Sample
from llmnb.model.config import TransformerConfig
from llmnb.model.transformer import Transformer
from llmnb.notebook import dashboard as dash, frames, playground as play, talk
from llmnb.plugins import registry
from llmnb.settings import settings
from llmnb.text.batches import CausalLM, TextData
from llmnb.text.tokenizer import Tokenizer
from llmnb.train.trainer import Trainer

EVIL = "</div><script>alert('x')</script><img src=x onerror=alert(1)>"
TEXTS = [" ".join(f"The {a} {b} {c} by the {d}." for a in ("old", "young", "sad") for b in ("king", "queen", "fool")
                  for c in ("sings", "sleeps", "weeps") for d in ("sea", "fire", "gate")) + f" End of tale {i}." for i in range(8)]


@pytest.fixture(scope="module")
def plays(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plays")
    for i, t in enumerate(TEXTS): (folder/f"{i}.txt").write_text(t)
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    "A tokenizer, data and a model that take no time."
    tok = Tokenizer.train(TEXTS, vocab_size=300)
    data = TextData.pack(TEXTS, tok, objective=CausalLM(ctx=32), path=tmp_path_factory.mktemp("data")/"d")
    return SimpleNamespace(tok=tok, data=data, model=Transformer(TransformerConfig.gpt2("tiny", vocab_size=tok.vocab_size, ctx=32, layers=1, width=32, heads=2), seed=1))


@pytest.fixture(autouse=True)
def quiet(tmp_path):
    with settings.override(ui="none", dtype="float32", runs_path=tmp_path/"runs", cache_path=tmp_path/"cache"): yield


@pytest.fixture
def ip():
    "A real shell with the extension loaded and nothing in it."
    ip = InteractiveShell.instance()
    ip.reset(new_session=False)
    ip.run_line_magic("load_ext", "llmnb")
    yield ip
    ip.run_line_magic("unload_ext", "llmnb")


def rows(n, **more):
    return [dict(step=i + 1, loss=9 / (i + 1) ** .2, lr=1e-3, tokens_per_second=1000.0, time=i * .1, **more) for i in range(n)]


# ---- the dashboard

def test_frame_is_a_pure_function_of_the_rows():
    r = rows(300) + [dict(step=300, valid_loss=3.2, time=30.0)]
    a, b = (frames.dashboard_frame(list(r), dict(name="run", steps=300, state="done")) for _ in range(2))
    assert a.html == b.html and a.text == b.text
    assert "3.200" in a.html and "data:image/svg+xml;base64," in a.html and "<style" not in a.html and "<svg" not in a.html


def test_frame_stays_small_and_keeps_spikes():
    r = rows(50_000)
    r[30_000]["loss"] = 50.0
    picture = frames.RunPicture(dict(steps=50_000))
    for row in r: picture.add(row)
    assert 50.0 in picture.frame()["curves"]["raw"][1]
    assert len(json.dumps(picture.frame())) < 20_000 and len(frames.dashboard_frame(r).html) < 40_000


@pytest.mark.parametrize("r", [[], [dict(step=1, loss=float("nan"), time=.1)], [dict(step=1, loss=3.0, time=.1)], [dict(step=5, valid_loss=2.0)],
                               [dict(step=1, loss=None, lr=None, tokens_per_second=None, time=None)], [dict(step=i, loss=3.0, lr=0.0, time=0.0) for i in range(3)]])
def test_frame_of_nearly_nothing(r):
    assert frames.dashboard_frame(r).html and json.dumps(frames.RunPicture().frame())


def test_frame_escapes_everything():
    frame = frames.dashboard_frame(rows(3) + [dict(step=3, sample=EVIL, prompt=EVIL)], dict(name=EVIL, about=EVIL, state=EVIL, note=EVIL))
    assert "<script" not in frame.html and "<img src=x" not in frame.html and "<script" not in frame.svg


def test_widgets_fetch_nothing_and_set_no_html():
    for w in (dash.DashboardWidget, play.PlaygroundWidget, talk.ChatWidget):
        code = (w._esm + w._css).replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//cdn|@import|url\(|innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", code)


def test_buttons_set_the_trainers_flags_and_nothing_else():
    said = []
    t = SimpleNamespace(**{w: (lambda w=w: said.append(w)) for w in ("pause", "resume", "stop", "delete")}, state="running")
    with capture_output(): feed = dash.Feed(t, frames.RunPicture(dict(state="running")).frame)
    try:
        for word in ("pause", "delete", "resume", "__init__", "stop"): feed.widget._handle_custom_msg({"do": word}, [])
        assert said == ["pause", "resume", "stop"]
    finally: feed.close(frames.dashboard_frame([]))
    assert not feed.thread.is_alive()


def test_feed_sends_at_most_four_frames_a_second():
    picture, sent = frames.RunPicture(), []
    with capture_output(): feed = dash.Feed(SimpleNamespace(state="running"), picture.frame)
    feed.widget.observe(lambda change: sent.append(time.monotonic()), "frame")
    for row in itertools.cycle(rows(100)):
        picture.add(row); time.sleep(.011)
        if len(sent) == 3: break
    feed.over.set(); feed.thread.join(); feed.close(frames.dashboard_frame([]))
    assert min(b - a for a, b in itertools.pairwise(sent[:3])) >= 0.25      # the thread waits that long after each; closing sends what is left


def test_live_buttons_reach_a_trainer_in_the_background(small):
    watch = dash.Dashboard(ui="live", sample_tokens=0)
    with capture_output():
        t = Trainer(small.model, small.data, steps=100_000, batch_size=2, callbacks=[watch]).fit(background=True)
        press = lambda word: watch.feed.widget._handle_custom_msg({"do": word}, [])
        press("pause"); assert t.state == "paused" and watch.feed.widget.frame["state"] == "paused"
        step = t.step; time.sleep(.1); assert t.step == step
        press("resume"); assert t.state == "running"
        while t.step == step: time.sleep(.005)
        press("stop"); t.wait()
    assert t.state == "stopped" and watch.result.text.startswith(t.run.name + " stopped")


def test_watching_changes_no_loss_and_logs_samples(small):
    def losses(**kw):
        model = Transformer(small.model.config.replace(dropout=0.1), seed=3)
        t = Trainer(model, small.data, steps=12, batch_size=4, seed=5, **kw).fit()
        return list(t.history.loss), t
    plain, _ = losses()
    watched, t = losses(callbacks=[dash.Dashboard(ui="none", sample_share=1.0, sample_tokens=5)])
    assert plain == watched
    said = [r for r in t.rows if r.get("sample") is not None]
    assert said and said[-1]["prompt"] and frames.show_run(t.run).text.startswith(t.run.name + " done")


def test_a_model_that_cannot_write_does_not_end_the_run(small, monkeypatch):
    monkeypatch.setattr(dash.Sampler, "_text", lambda *a: 1 / 0)
    watch = dash.Dashboard(ui="none", sample_share=1.0)
    t = Trainer(small.model, small.data, steps=3, batch_size=2, callbacks=[watch]).fit()
    assert t.state == "done" and "ZeroDivisionError" in watch.note()


def test_the_dashboard_costs_under_a_hundredth(small):
    picture = frames.RunPicture()
    for row in rows(1000): picture.add(row)
    start = time.process_time()
    for row in rows(1000): picture.add(row)
    assert time.process_time() - start < 0.1                       # 100 microseconds a step at the very most
    watch = dash.Dashboard(ui="none", sample_tokens=0)
    Trainer(small.model, small.data, steps=50, batch_size=8, callbacks=[watch]).fit()
    assert watch.cost["drawing"] < 0.01 * watch.seconds()


def test_show_run_of_no_run(tmp_path):
    with pytest.raises(ValueError, match="not a run"): frames.show_run(tmp_path/"none")


# ---- a captured run

def run_notebook(folder, *cells):
    "Execute cells in a real kernel; their outputs."
    import nbclient
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    nbclient.NotebookClient(nb, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}, allow_errors=True).execute()
    return [c.outputs for c in nb.cells]


def test_a_captured_run_stores_one_still_frame(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMNB_CAPTURED", "1")
    for i, t in enumerate(TEXTS): (tmp_path/f"{i}.txt").write_text(t)
    (tmp_path/"settings.ini").write_text("[llmnb]\nruns_path = runs\ncache_path = cache\ndtype = float32\n")
    _, _, _, trained, replied, played, failed = run_notebook(tmp_path,
        "%load_ext llmnb\nimport torch; torch.set_num_threads(1)", "%llm tokenizer train . --vocab-size 300", "%llm model gpt2 tiny --ctx 32 --layers 1 --width 32",
        "%%llm train\nsteps = 20\nbatch_size = 4", "%%llm generate --max-new-tokens 5\nThe old", "%llm playground The king", "%llm modl gpt2")
    for outputs in (trained, replied, played):
        assert len(outputs) == 1 and "text/html" in outputs[0]["data"], outputs
        assert "widget-view" not in str(outputs[0]["data"].keys()) and "<script" not in outputs[0]["data"]["text/html"]
    assert "data:image/svg+xml;base64," in trained[0]["data"]["text/html"] and "done, step 20" in trained[0]["data"]["text/html"]
    assert "The old" in replied[0]["data"]["text/plain"]
    said = json.dumps(failed)
    assert "Did you mean 'model'?" in said and "Traceback" not in said


# ---- the chat panel

def test_chat_panel_is_chat(small):
    how = dict(max_new_tokens=5, seed=2)
    panel, same = talk.chat_panel(Chat(small.model, small.tok, **how)), Chat(small.model, small.tok, **how)
    with settings.override(ui="live"), capture_output(): panel._ipython_display_()
    press = lambda **m: (panel.widget._handle_custom_msg(m, []), panel.wait(300))
    press(do="say", text=EVIL[:9]); same(EVIL[:9])
    press(do="again"); same.regenerate()
    press(do="edit", at=0, text="Who?"); same.edit(0, "Who?")
    press(do="say", text="   "); press(do="edit", at="0", text="x"); press(do="delete")
    assert panel.chat.messages == same.messages == [dict(role=t["role"], content=t["content"]) for t in panel.widget.turns]
    assert panel.widget.state["state"] == "idle" and "tokens/s" in panel.widget.state["words"]
    press(do="undo")
    assert not panel.chat.turns and not panel.widget.turns


def test_chat_panel_tells_errors_and_keeps_what_was_said(small):
    panel = talk.chat_panel(Chat(small.model, small.tok, max_new_tokens=3), strategy="greedy")
    with settings.override(ui="live"), capture_output(): panel._ipython_display_()
    panel.say("Hello").wait(300)
    before = panel.chat.messages
    panel.say("Hello " * small.model.config.ctx).wait(300)
    assert "context" in panel.widget.state["words"] and panel.chat.messages == before
    panel.widget._handle_custom_msg(dict(do="edit", at=99, text="x"), []); panel.wait(300)
    assert "no message 99" in panel.widget.state["words"] and panel.chat.messages == before


# ---- the playground

def test_dials_are_kept_within_bounds():
    strategy, how = play.choose(dict(strategy="sample", temperature=-3, top_k=10**9, top_p=5, max_new_tokens=10**9, seed=-1))
    assert strategy == Sample(temperature=0.1, top_k=200, top_p=None) and how == dict(max_new_tokens=4096, seed=0)
    with pytest.raises(ValueError, match="greedy"): play.choose(dict(strategy="gredy"))


def test_playground_is_generate(small):
    p = play.playground(small.model, small.tok, "The old", max_new_tokens=12, seed=4).generate().wait()
    assert p.out.ids == generate(small.model, small.tok, "The old", strategy=Sample(temperature=0.8, top_p=0.95), max_new_tokens=12, seed=4, sliding=True).ids


def test_playground_buttons(small):
    p = play.playground(small.model, small.tok, "The old", max_new_tokens=5)
    with capture_output(): p.view = play.View(p)
    press = lambda **m: p.view.widget._handle_custom_msg(m, [])
    press(do="generate", places=dict(prompt=EVIL[:9], strategy="greedy", model="stolen")); p.wait()
    assert p.view.widget.state["state"] == "idle" and len(p.view.widget.reply["tokens"]) == 5 and p.model is small.model
    assert "<script" not in p.reply.static().html
    press(do="generate", places=dict(prompt="The", strategy="gredy"))
    assert "greedy" in p.view.widget.state["words"]
    press(do="generate", places=dict(strategy="greedy", max_new_tokens=4096)); press(do="stop"); p.wait(300)
    assert p.out.finish_reason == "cancelled" and len(p.out.ids) < 4096


def test_every_strategy_in_the_box_writes(small):
    p = play.playground(small.model, small.tok, "The old", max_new_tokens=3)
    with capture_output(): p.view = play.View(p)
    names = set(p.view.widget.strategies)
    assert {"greedy", "sample", "beam", "contrastive", "guided", "prompt-lookup"} <= names and "contrast-with" not in names
    for name in names:
        p.view.widget._handle_custom_msg(dict(do="generate", places=dict(strategy=name)), []); p.wait()
        assert p.reply.end in ("full length", "ended by itself") and p.out.ids, (name, p.reply.end)


def test_playground_branches_and_compares(small):
    p = play.playground(small.model, small.tok, "The old", max_new_tokens=6, strategy="greedy")
    with capture_output(): p.view = play.View(p)
    press = lambda **m: p.view.widget._handle_custom_msg(m, [])
    press(do="branch", at=0, id=1)
    assert "no reply yet" in p.view.widget.state["words"]
    press(do="generate", places=dict(prompt="The old")); p.wait()
    root = p.out
    press(do="branch", at=2, id=int(root.pieces[2].top[0][1])); p.wait()
    ids = [*root.prompt_ids, *root.ids[:2], root.pieces[2].top[0][1]]
    assert p.out.ids == generate(small.model, small.tok, ids, max_new_tokens=6, sliding=True).ids
    assert p.view.widget.reply["tokens"][0][0] == str(p.branches[1].pieces[0]) and "instead of" in p.tree.text
    press(do="branch", at=99, id=1); press(do="branch", at=0, id=10**9)
    assert "expected a token" in p.view.widget.state["words"] and len(p.branches) == 2
    press(do="compare", places=dict(prompt=EVIL[:9])); p.view.comparing.join()
    assert p.view.widget.state == dict(state="idle", words="") and "<script" not in p.compare().html


def test_playground_tells_errors_in_words(small):
    p = play.playground(small.model, small.tok, "")
    with capture_output(): p.view = play.View(p)
    broken = SimpleNamespace(**{k: getattr(small.tok, k) for k in ("vocab_size", "bos_id", "eos_id")}, encode=lambda t: 1 / 0, stream=small.tok.stream)
    p.tok = broken
    p.view.widget._handle_custom_msg(dict(do="generate", places=dict(prompt="x")), []); p.wait()
    assert "ZeroDivisionError" in p.view.widget.state["words"] and p.view.widget.state["state"] == "idle"


def test_playground_refuses_unknown_dials(small):
    with pytest.raises(TypeError, match="temperatur"): play.playground(small.model, small.tok, temperatur=1)


# ---- magics

def test_magics_are_the_api(ip, plays):
    ip.run_line_magic("llm", f"tokenizer train {plays} --vocab-size 300")
    ip.run_line_magic("llm", "model llama tiny --ctx 32 --layers 1 --width 32 --heads 2 --kv-heads 1 --seed 3")
    ip.run_cell_magic("llm", "train", "steps = 15   # few\nlr = 3e-3\nbatch_size = 4\nseed = 5\n")
    ip.run_cell_magic("llm", "generate --strategy sample --temperature 0.8 --top-k 20 --max-new-tokens 10 --seed 2", "The old king\n")
    ns = ip.user_ns
    from llmnb.text.corpus import corpus
    tok = Tokenizer.train(corpus(str(plays)), vocab_size=300)
    data = TextData.pack(corpus(str(plays)), tok, objective=CausalLM(ctx=32), valid=0.1)
    model = Transformer(TransformerConfig.llama("tiny", vocab_size=tok.vocab_size, ctx=32, layers=1, width=32, heads=2, kv_heads=1), seed=3)
    trainer = Trainer(model, data, steps=15, lr=3e-3, batch_size=4, seed=5).fit()
    out = generate(model, tok, "The old king", strategy=Sample(temperature=0.8, top_k=20), max_new_tokens=10, seed=2)
    assert ns["tok"] == tok and ns["data"].fingerprint == data.fingerprint and ns["model"] is ns["trainer"].model
    assert list(ns["trainer"].history.loss) == list(trainer.history.loss) and ns["trainer"].valid_loss == trainer.valid_loss
    assert ns["out"].ids == out.ids and ns["out"].text == out.text


def test_save_load_and_reopen(ip, plays, tmp_path):
    run = ip.run_line_magic
    run("llm", f"tokenizer train {plays} --vocab-size 300"); run("llm", "model gpt2 tiny --ctx 32 --layers 1 --width 32")
    ip.run_cell_magic("llm", "train", f"steps = 4\nbatch_size = 2\nrun = {str(tmp_path/'r')!r}")
    before = ip.user_ns["model"].state_dict()
    run("llm", f"save {tmp_path/'m'}"); run("llm", f"tokenizer save {tmp_path/'t'}")
    tok = ip.user_ns["tok"]
    ip.reset(new_session=False)
    run("llm", f"load {tmp_path/'m'}")
    assert all((v == ip.user_ns["model"].state_dict()[k]).all() for k, v in before.items()) and ip.user_ns["tok"] == tok
    run("llm", f"tokenizer load {tmp_path/'t'}"); assert ip.user_ns["tok"] == tok
    run("llm", f"load {tmp_path/'r'}"); assert ip.user_ns["trainer"].step == 4 and ip.user_ns["data"].tok == tok


def test_train_in_the_background(ip, plays):
    ip.run_line_magic("llm", f"tokenizer train {plays} --vocab-size 300"); ip.run_line_magic("llm", "model gpt2 tiny --ctx 32 --layers 1 --width 32")
    ip.run_cell_magic("llm", "train", "steps = 5\nbatch_size = 2\nbackground = True")
    assert ip.user_ns["trainer"].wait().state == "done"


@pytest.mark.parametrize("line, cell, words", [
    ("modl gpt2", None, ["'modl'", "Did you mean 'model'?"]),
    ("tokenizer train x --vocab-siz 10", None, ["--vocab-siz", "Did you mean '--vocab-size'?"]),
    ("tokenizer train x --vocab-size ten", None, ["--vocab-size = 'ten'", "whole number"]),
    ("tokenizer trian x", None, ["action = 'trian'", "Did you mean 'train'?"]),
    ("tokenizer train", None, ["SOURCE is missing"]),
    ("tokenizer train no-such-corpus", None, ["no-such-corpus"]),
    ("model gpt2 tiny", None, ["There is no `tok`", "%llm tokenizer train"]),
    ("generate", "hello", ["There is no `model`", "%llm model"]),
    ("generate --strategy sample --temprature 1", "hello", ["--temprature", "Did you mean '--temperature'?"]),
    ("generate --temperature 1", "hello", ["--temperature belongs to --strategy sample"]),
    ("train", "steps = 3\nlr = 1e-3\nbatchsize = 4", ["line 3", "batchsize", "Did you mean 'batch_size'?"]),
    ("train", "steps = len([])", ["line 1", "must be a number"]),
    ("train", "import os", ["line 1", "is not `name = value`"]),
    ("load no-such-folder", None, ["no-such-folder"]),
    ("settings sed=7", None, ["'sed'", "Did you mean 'seed'?"]),
    ("settings seed", None, ["seed=7"]),
    ("help tokeniser", None, ["Did you mean 'tokenizer'?"]),
    ("plugins strategy", None, ["Did you mean 'strategies'?"]),
    ("plugins x y", None, ["'y' is one word too many"]),
    ("tokenizer show 'unclosed", None, ["quotation"]),
    ("plugins", "a body", ["no use for a cell's body"]),
])
def test_slips_are_told_in_one_line(ip, line, cell, words):
    with capture_output() as said: result = ip.run_cell(f"%llm {line}" if cell is None else f"%%llm {line}\n{cell}")
    assert result.error_in_exec is not None
    text = re.sub(r"\x1b\[[0-9;]*m", "", said.stdout + said.stderr).strip()
    assert all(w in text for w in words), text
    assert "Traceback" not in text and len(text.splitlines()) == 1, text


def test_errors_of_the_library_are_one_line(ip, plays):
    ip.run_line_magic("llm", f"tokenizer train {plays} --vocab-size 300")
    for line, cell, word in (("%llm model gpt2 huge", "", "huge"), ("%llm model gpt2 tiny --width 30 --heads 4", "", "not divisible"), ("%llm tokenizer train . --vocab-size 3", "", "3")):
        with capture_output() as said: ip.run_cell(line)
        text = (said.stdout + said.stderr).strip()
        assert word in text and "Traceback" not in text and len(text.splitlines()) == 1, text


def complete(ip, text):
    with provisionalcompleter(): return [c.text for c in ip.Completer.completions(text, len(text))]


@pytest.mark.parametrize("text, expected", [
    ("%llm tok", ["tokenizer"]),
    ("%llm tokenizer tr", ["train"]),
    ("%llm tokenizer train shakes", ["shakespeare"]),
    ("%llm tokenizer train shakespeare --voc", ["--vocab-size"]),
    ("%llm model l", ["llama"]),
    ("%llm model llama ti", ["tiny", "tinyllama-1.1b"]),
    ("%%llm generate --strategy ", ["beam", "contrast-with", "contrastive", "greedy", "guided", "prompt-lookup", "sample", "speculative"]),
    ("%%llm generate --strategy sample --temp", ["--temperature"]),
    ("%%llm train\nsteps = 3\nbatch", ["batch_size = "]),
    ("%llm help play", ["playground"]),
    ("%llm settings se", ["seed="]),
])
def test_tab(ip, text, expected):
    found = complete(ip, text)
    assert set(expected) <= set(found) and len(found) <= len(expected) + 1, found


def test_tab_elsewhere_is_left_alone(ip):
    ip.run_cell("some_long_name = 1")
    assert "some_long_name" in complete(ip, "some_lo")


def test_help_lists_every_verb_and_option(ip):
    text = str(ip.run_line_magic("llm", "help"))
    assert all(v in text for v in ("tokenizer", "model", "train", "generate", "playground", "plugins", "settings", "help", "load", "save"))
    assert "--vocab-size" in str(ip.run_line_magic("llm", "help tokenizer"))
    assert "--batch-size" in str(ip.run_line_magic("llm", "help train")) and "--data" not in str(ip.run_line_magic("llm", "help train"))
    assert "with --strategy sample" in str(ip.run_line_magic("llm", "help generate")) and "--layers" in str(ip.run_line_magic("llm", "help model"))


def test_settings_and_status(ip):
    with settings.override(seed=1):
        assert "7" in str(ip.run_line_magic("llm", "settings seed=7")) and settings.seed == 7
    text = str(ip.run_line_magic("llm", ""))
    assert "tok" in text and "%llm tokenizer train" in text and "device" in text and "memory" in text


def test_a_plugins_verb_has_options_help_and_tab(ip):
    def shout(desk, what:str, *, times:int=1):  # its comments are its help
        "Say it loudly."
        return what.upper() * times
    registry("verbs").register("shout", shout)
    try:
        assert ip.run_line_magic("llm", "shout ho --times 2") == "HOHO"
        assert complete(ip, "%llm shout x --t") == ["--times"] and "loudly" in str(ip.run_line_magic("llm", "help"))
    finally: registry("verbs").session.pop("shout")


def test_bugs_keep_their_traceback(ip):
    registry("verbs").register("bug", lambda desk: {}["missing"])
    try:
        with capture_output() as said: ip.run_cell("%llm bug")
        assert "Traceback" in said.stdout + said.stderr or "KeyError" in said.stdout + said.stderr
        assert len((said.stdout + said.stderr).splitlines()) > 2
    finally: registry("verbs").session.pop("bug")


def test_unload(ip):
    ip.run_line_magic("unload_ext", "llmnb")
    assert "llm" not in ip.magics_manager.magics["line"] and not any(getattr(m, "matcher_identifier", "") == "llmnb" for m in ip.Completer.custom_matchers)
    ip.run_line_magic("load_ext", "llmnb")


# ---- everything

def test_all_has_the_names_of_the_design():
    import llmnb.all as everything
    for name in everything.__all__: assert getattr(everything, name) is not None
    assert {"Tokenizer", "corpus", "TextData", "CausalLM", "TransformerConfig", "Transformer", "load_model", "save_model", "Trainer", "Callback",
            "generate", "stream", "Greedy", "Sample", "perplexity", "playground", "settings", "registry", "seed_everything", "free_memory"} <= set(everything.__all__)
    assert everything.Chat.__module__ == "llmnb.decode.chat" and everything.ChatObjective.__module__ == "llmnb.text.targets"


@pytest.mark.parametrize("kind", ["objectives", "optimizers", "schedules", "strategies", "callbacks", "tasks"])
def test_all_has_what_the_registries_have(kind):
    import llmnb.all as everything
    rare = {"AdamW8bit", "Linear", "Progress"}                          # torch.nn has a Linear, too
    mine = {c if isinstance(c, type) else type(c) for c in map(registry(kind).get, registry(kind)) if getattr(c, "__module__", "").startswith("llmnb.")}
    missing = mine - {getattr(everything, n) for n in everything.__all__ if isinstance(getattr(everything, n), type)}
    assert {c.__name__ for c in missing} <= rare
