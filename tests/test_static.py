"What the notebooks store stays readable with no kernel, no script and no network."
import json

import pytest

from conftest import ROOT, pages
from static import LIMIT, WIDGET, broken


@pytest.mark.parametrize("path", pages(), ids=lambda p: str(p.relative_to(ROOT/"nbs")))
def test_stored_output(path):
    assert not list(broken(json.loads(path.read_text(encoding="utf-8"))))


def notebook(**output):
    return dict(metadata={}, cells=[dict(cell_type="code", source="x", outputs=[output])])


def display(**data):
    return notebook(output_type="display_data", metadata={}, data={"text/plain": "x", **data})


@pytest.mark.parametrize("nb, words", [
    (display(**{"text/html": "<b>x</b>" * LIMIT}), "bytes of stored output"),
    (display(**{"text/html": ["<script>", "x</script>"]}), "script"),
    (display(**{"text/html": "<p onclick='x()'>"}), "script"),
    (display(**{"text/html": '<img src="https://a.example/b.png">'}), "network"),
    (display(**{"text/html": '<link rel="stylesheet" href="//a.example/b.css">'}), "network"),
    (display(**{"text/html": '<p style="background: url(http://a.example/b.png)">'}), "network"),
    (display(**{"text/html": "<svg></svg>"}), "untrusted"),
    (display(**{"application/javascript": "x"}), "few can show"),
    (display(**{WIDGET: {"model_id": "1"}}), "without a static form"),
    (notebook(output_type="display_data", data={"text/html": "<b>x</b>"}), "no text form"),
    (notebook(output_type="error", ename="ValueError", evalue="x", traceback=[]), "saved error"),
    (notebook(output_type="stream", name="stderr", text="Warning: x"), "stderr"),
    (notebook(output_type="stream", name="stdout", text="saved in /home/someone/runs"), "somebody's machine"),
    (dict(metadata={}, cells=[dict(cell_type="markdown", source=["`<<<<<<< HEAD`"])]), "merge"),
    (dict(metadata={"widgets": {}}, cells=[]), "widget state")])
def test_each_rule_is_checked(nb, words):
    assert any(words in problem for problem in broken(nb))


def test_what_is_allowed_passes():
    html = '<a href="https://arxiv.org/abs/1706.03762">paper</a> <img src="data:image/svg+xml;base64,PHN2Zz4="><b title="a = b">x</b>'
    assert not list(broken(display(**{"text/html": html, WIDGET: {"model_id": "1"}})))
