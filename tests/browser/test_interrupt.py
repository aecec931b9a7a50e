"The kernel's interrupt, the universal stop: a blocking `fit` saves and returns, and goes on from there."
import pytest

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]
SOURCES = [
    "import time\nfrom llmnb.all import *",
    "text = corpus('kjv').take(4); tok = Tokenizer.train(text, vocab_size=400); data = TextData.pack(text, tok, objective=CausalLM(ctx=32), valid=0.1)",
    "new = lambda run, **kw: Trainer(Transformer(TransformerConfig.llama('tiny', vocab_size=400, ctx=32, layers=2, width=32, heads=2, kv_heads=1), seed=1), data, steps=400, batch_size=4, lr=1e-3, seed=2, valid_every=1000, run=settings.runs_path/run, **kw)",
    """class Slow(Callback):                        # the interrupt comes from a browser, and has to come before the end
    def on_step(self, t, row): time.sleep(0.02)
trainer = new('cut', callbacks=[Slow()]); trainer.fit();""",
    "at, state, kept = trainer.step, trainer.state, [p.name for p in trainer.folder.checkpoints()]",
    "trainer.callbacks.clear(); trainer.fit(); whole = new('whole').fit()",
]


def test_interrupt_saves_returns_and_goes_on(lab):
    page = lab.open(SOURCES)
    for n in (0, 1, 2): page.run(n); page.wait_idle()
    page.run(3)
    page.until("() => +(document.querySelector('.llmnb-dash')?.dataset.step ?? 0) > 5", 120)
    page.page.evaluate("window.jupyterapp.commands.execute('notebook:interrupt-kernel'); 0")
    page.wait_idle(120)                                  # fails if the cell shows an error
    page.run(4); page.wait_idle(120)
    assert page.ask("state") == "stopped" and 5 < page.ask("at") < 400
    assert page.ask("kept")[-1].endswith(f"{page.ask('at'):08d}")
    page.run(5); page.wait_idle()
    assert page.ask("trainer.state") == "done"
    assert page.ask("trainer.history.loss.tolist()") == page.ask("whole.history.loss.tolist()")
