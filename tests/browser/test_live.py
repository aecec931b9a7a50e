"A day in a notebook tab, made short: pause, change the rate, generate, resume, save, close the tab, stop, lose the kernel, reopen: one curve."
import os, signal

import pytest

from lab import Page

pytestmark = pytest.mark.browser
SOURCES = [
    "from llmnb.all import *",
    "text = corpus('kjv').take(4); tok = Tokenizer.train(text, vocab_size=400); data = TextData.pack(text, tok, objective=CausalLM(ctx=32), valid=0.1, path=settings.runs_path/'data')",
    "new = lambda run, **kw: Trainer(Transformer(TransformerConfig.llama('tiny', vocab_size=400, ctx=32, layers=2, width=32, heads=2, kv_heads=1), seed=1), data, steps=3000, batch_size=4, lr=1e-3, seed=2, valid_every=1000, run=settings.runs_path/run, **kw)",
    "trainer = new('day').fit(background=True)",
    "out = generate(trainer.model, tok, 'And God said', max_new_tokens=8, seed=1)",
    "trainer.fit(background=True)",
    "trainer = Trainer.reopen(settings.runs_path/'day'); kept = trainer.step; trainer.fit()",
    """def as_asked(t):
    if t.step == changed: t.lr = 0.002
class Rate(Callback):
    def on_update(self, t, loss, norm): as_asked(t)
data = TextData.open(settings.runs_path/'data')
whole = new('whole', callbacks=[Rate()]).fit()""",
]
DASH = ".llmnb-dash"
NOW = f"(() => {{ const d = document.querySelector('{DASH}'); return d && d.dataset.step && {{ step: +d.dataset.step, state: d.dataset.state }} }})()"


def moves_on(page, seconds=120):
    "Wait until the dashboard's step goes up."
    before = page.until(f"() => {NOW}", seconds)
    return page.until(f"before => {{ const now = {NOW}; return now && now.step > before.step && now }}", seconds, before)


def state_is(page, state, seconds=120): return page.until(f"() => {{ const now = {NOW}; return now && now.state === '{state}' && now }}", seconds)


def test_a_day_in_a_tab(lab, tmp_path):
    page = lab.open(SOURCES)
    for n in (0, 1, 2, 3): page.run(n); page.wait_idle()
    moves_on(page)

    page.find(f"{DASH} button.llmnb-toggle").click()                         # pause
    state_is(page, "paused")
    page.find(f"{DASH} .llmnb-rate").fill("0.002")                           # another rate
    page.find(f"{DASH} .llmnb-rate").press("Enter")
    page.until("() => document.activeElement !== document.querySelector('.llmnb-rate')", 60)
    page.run(4); page.wait_idle()                                          # generate from the paused model
    changed = page.ask("trainer.step")
    assert page.ask("[trainer.state, trainer.lr, len(out.ids)]") == ["paused", 0.002, 8]
    page.picture(tmp_path/"paused.png", DASH)
    page.find(f"{DASH} button.llmnb-toggle").click()                         # resume
    assert moves_on(page)["state"] == "running"
    page.find(f"{DASH} button.llmnb-save").click()                           # save now
    page.until(f"""async () => {{ const s = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
        const r = await s.requestExecute({{code: '', silent: true, user_expressions: {{n: 'len(trainer.folder.checkpoints()) > 1'}}}}).done;
        return r.content.user_expressions.n.data['text/plain'] === 'True' }}""", 120)

    page.save()                                                              # the tab is closed, and opened again
    page.page.reload()
    page = Page(page.page)
    assert moves_on(page)["state"] == "running"

    page.find(f"{DASH} button.llmnb-stop").click()
    state_is(page, "stopped")
    assert page.ask("trainer.wait().state") == "stopped" and page.ask("trainer.step") > changed
    page.run(5); page.wait_idle()                                          # and on
    page.until("() => document.querySelector('.llmnb-dash[data-state=running]') !== null", 120)
    at = page.ask("trainer.step")
    os.kill(page.ask("__import__('os').getpid()"), signal.SIGKILL)           # the kernel is gone
    page.until("() => { const k = window.jupyterapp.shell.currentWidget.sessionContext.session?.kernel; return k && ['restarting', 'autorestarting', 'starting', 'idle'].includes(k.status) }", 120)
    page.page.wait_for_timeout(1500)
    page.page.keyboard.press("Escape")                                       # the notice that it died
    page.until("() => window.jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status === 'idle'", 120)

    for n in (0, 6): page.run(n); page.wait_idle()
    assert changed < page.ask("kept") and page.ask("trainer.state") == "done" and at <= 3000
    assert page.ask("trainer.history.step.tolist()") == list(range(1, 3001))
    page.ask(f"globals().update(changed={changed})")
    page.run(2); page.wait_idle()
    page.run(7); page.wait_idle()
    assert page.ask("trainer.history.loss.dropna().tolist() == whole.history.loss.dropna().tolist()")   # as if nothing had been
    page.picture(tmp_path/"whole.png")
    assert not page.errors
