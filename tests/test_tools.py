"The tools behind the Makefile: running a page, telling its progress, README.md from a notebook."
import io, json, sys

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError, DeadKernelError

import demo, execute, extra, lock, readme

CELLS = ["""
import json, os, pathlib, time
run = pathlib.Path(os.environ["LLMNB_RUNS_PATH"])/"hamlet"; run.mkdir(parents=True)
(run/"run.json").write_text('{"train": {"steps": 9}}')
with open(run/"log.jsonl", "w") as f:
    for i in range(9): f.write(json.dumps({"step": i + 1, "loss": 5 - i / 10, "tokens_per_second": 1234.5}) + "\\n"); f.flush(); time.sleep(0.2)
""", "from types import SimpleNamespace as N\ntrainer, out = N(valid_loss=4.25), N(prompt='To be', text=' or not\\nto be')\nout", "import ipywidgets; ipywidgets.IntSlider()"]


@pytest.fixture
def page(tmp_path):
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Page"), *map(nbformat.v4.new_code_cell, CELLS)], metadata=dict(kernelspec=dict(name="python3", display_name="python3", language="python")))
    nbformat.write(nb, tmp_path/"page.ipynb")
    return tmp_path/"page.ipynb"


def test_a_page_is_run_beside_itself_with_progress(page, tmp_path, monkeypatch):
    for name in ("LLMNB_RUNS_PATH", "LLMNB_CAPTURED", "JUPYTER_PREFER_ENV_PATH", "PYTHONUNBUFFERED", "PYDEVD_DISABLE_FILE_VALIDATION"): monkeypatch.setenv(name, "")   # put back at the end
    before, log = page.read_bytes(), io.StringIO()
    monkeypatch.setattr(execute.Progress.__init__, "__defaults__", (log, 0.3))
    copy, said = demo.demo(page, tmp_path/"demo", log)
    done = nbformat.read(copy, 4)
    assert page.read_bytes() == before and copy == tmp_path/"demo/page.ipynb"
    assert "[ 1/3] import json" in log.getvalue() and " of 9  loss 4." in log.getvalue()
    assert "widgets" not in done.metadata and not any(execute.clean(done) or "widget-view" in json.dumps(c.get("outputs", [])) for c in done.cells)
    told = demo.report(copy, said, 12)
    assert "4.2500" in told and "    To be or not\n    to be" in told and "page.ipynb" in told


def test_a_cell_that_fails_is_an_error_and_the_page_so_far_is_kept(page, tmp_path):
    nb = nbformat.read(page, 4)
    nb.cells = [nbformat.v4.new_code_cell("1 + 1"), nbformat.v4.new_code_cell("1 / 0"), nbformat.v4.new_code_cell("3")]
    nbformat.write(nb, page)
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"): execute.execute(page, tmp_path/"copy.ipynb", log=io.StringIO())
    cells = nbformat.read(tmp_path/"copy.ipynb", 4).cells
    assert cells[0].outputs and cells[1].outputs[0].output_type == "error" and not cells[2].outputs


def test_a_dead_kernel_is_told_as_such(page, tmp_path):
    nb = nbformat.read(page, 4)
    nb.cells = [nbformat.v4.new_code_cell("import os; os._exit(9)")]
    nbformat.write(nb, page)
    with pytest.raises(DeadKernelError): execute.execute(page, tmp_path/"copy.ipynb", log=io.StringIO())
    assert (tmp_path/"copy.ipynb").exists()


def test_readme_rewrites_links_and_keeps_text_outputs():
    cells = [nbformat.v4.new_markdown_cell("# T\n\n![d](images/d.png) [q](tutorials/01_q.ipynb#a) [x](https://a.b/c) [l](../LICENSE) [h](#here)\n```\n[no](change)\n```"),
        nbformat.v4.new_code_cell("#| eval: false\nx = 1\nx", outputs=[nbformat.v4.new_output("execute_result", data={"text/plain": "1", "text/html": "<b>1</b>"})]),
        nbformat.v4.new_code_cell("#| hide\nimport os")]
    text = readme.readme(nbformat.v4.new_notebook(cells=cells))
    assert "![d](nbs/images/d.png) [q](nbs/tutorials/01_q.ipynb#a) [x](https://a.b/c) [l](LICENSE) [h](#here)" in text
    assert "[no](change)" in text and "```python\nx = 1\nx\n```\n\n```\n1\n```" in text and "import os" not in text and "<b>" not in text


def test_readme_reads_front_matter():
    cell = nbformat.v4.new_raw_cell("---\ntitle: llmnb\ndescription: A workbench\noutput-file: index.html\n---")
    assert "# llmnb\n\n> A workbench" in readme.readme(nbformat.v4.new_notebook(cells=[cell]))


def test_lock_pins_everything_plainly():
    pins = lock.pins()
    assert "torch==2.13.0" in [p.partition("+")[0] for p in pins] and all(p.count("==") == 1 and "+" not in p and " " not in p for p in pins)
    assert extra.extra("samples") and not extra.extra("nothing")
