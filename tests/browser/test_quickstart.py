"The main job as a person sees it: JupyterLab runs the quickstart, the curve moves while it trains, the playground answers."
import pytest

from conftest import ROOT

pytestmark = pytest.mark.browser
QUICKSTART = ROOT/"nbs/tutorials/01_quickstart.ipynb"
DASH, PLAY = ".llmnb-dash", ".llmnb-play"


@pytest.mark.skipif(not QUICKSTART.exists(), reason="no quickstart yet")
def test_quickstart(lab, tmp_path):
    page = lab.open(QUICKSTART)
    page.run_all()

    # While it trains: steps go up, and so does what the curve is drawn of.
    page.until(f"() => +(document.querySelector('{DASH}')?.dataset.step ?? 0) > 0 || document.querySelector('.jp-Notebook [data-mime-type=\"application/vnd.jupyter.error\"]')", 240)
    assert not page.failure(), page.failure()
    first = page.page.evaluate(CURVE)
    seen = page.until(f"before => {{ const now = ({CURVE})(); return now && now.step > before.step && now.path !== before.path && now }}", 120, first)
    assert seen["state"] == "running", "the curve moved only when training was over"
    page.picture(tmp_path/"training.png", DASH)

    # A click stops the clock at once, although the cell is busy; another sets it going.
    page.find(f"{DASH} button.llmnb-toggle").click()
    page.until(f"() => ({CURVE})().state === 'paused'", 60)
    paused = page.page.evaluate(CURVE)
    page.page.wait_for_timeout(700)
    assert page.page.evaluate(CURVE)["step"] == paused["step"]
    page.find(f"{DASH} button.llmnb-toggle").click()
    page.until(f"before => {{ const now = ({CURVE})(); return !now || now.step > before.step }}", 120, paused)

    # At the end a picture stays that needs no kernel, and the model beats the bigram.
    page.wait_idle(300)
    page.until("() => document.querySelector('.jp-Notebook .jp-OutputArea img[src^=\"data:image/svg+xml;base64\"]') !== null", 60)
    assert page.ask("trainer.state") == "done" and page.ask("trainer.valid_loss") < page.ask("bigram")

    # The playground: a prompt, a click, a reply that streams in; pointing at a token tells what else it could have been.
    play = page.find(PLAY)
    play.locator("[data-key=prompt]").fill("KING HENRY")
    play.locator("button.llmnb-primary").click()
    page.until(f"() => document.querySelectorAll('{PLAY} .llmnb-token').length >= 5 && document.querySelector('{PLAY}').dataset.state !== 'writing'", 120)
    assert "KING HENRY" in play.locator(".llmnb-reply").inner_text()
    play.locator(".llmnb-token").first.hover()
    page.until(f"() => document.querySelectorAll('{PLAY} .llmnb-alt').length > 1", 60)
    page.picture(tmp_path/"playground.png", PLAY)
    assert not page.errors


CURVE = """() => { const d = document.querySelector('.llmnb-dash'); return d && { step: +d.dataset.step, state: d.dataset.state,
    path: [...d.querySelectorAll('svg.llmnb-left path[stroke]')].map(p => p.getAttribute('d')).join('') } }"""
