"The harness itself, on a small widget: what the tests of the real ones rest on."
import pytest

pytestmark = pytest.mark.browser

WIDGET = '''
import anywidget, traitlets
class Counter(anywidget.AnyWidget):
    _esm = """export default { render({ model, el }) {
        const b = document.createElement("button"); b.className = "counter"; b.textContent = "0";
        b.onclick = () => model.send({ add: 2 });
        model.on("msg:custom", m => { b.textContent = m.now; }); el.append(b); } }"""
    n = 0
    def heard(self, _, message, buffers): self.n += message["add"]; self.send({"now": self.n})
counter = Counter(); counter.on_msg(counter.heard)
counter'''


def test_a_click_reaches_the_kernel_and_the_answer_the_page(lab, tmp_path):
    page = lab.open([WIDGET, "1 + 1"])
    page.run_all()
    page.wait_idle()
    button = page.find("button.counter")
    button.click()
    page.until("() => document.querySelector('button.counter').textContent === '2'", 60)
    assert page.ask("counter.n") == 2 and page.cell(1).inner_text().strip().endswith("2")
    assert page.picture(tmp_path/"counter.png").stat().st_size > 1000 and not page.errors


def test_a_failing_cell_fails_the_test(lab):
    page = lab.open(["1 / 0"], name="fails.ipynb")
    page.run(0)
    with pytest.raises(pytest.fail.Exception, match="ZeroDivisionError"): page.wait_idle()
