"The documentation site builds from the notebooks, whole, linked and self-contained."
import json, re
from pathlib import Path

import pytest

import docs
import showdoc
from conftest import ROOT, pages


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The whole site; building it already fails on a broken link or anything loaded from outside."
    top = tmp_path_factory.mktemp("docs")
    return docs.build(out=top/"site", work=top/"work")


def test_every_page_is_there_and_in_the_sidebar(site):
    links = {re.sub(r"^\./", "", h) for h in re.findall(r'href="([^"#]+)"', (site/"index.html").read_text(encoding="utf-8"))}
    made = [docs.plain(p).replace(".ipynb", ".html") for p in docs.pages(ROOT/"nbs")]
    assert not [m for m in made if not (site/m).exists() or m not in links]


def test_nothing_is_loaded_from_outside(site):
    assert not list(docs.loads(site)) and not list(docs.broken_links(site))


def public(page):
    "The public functions and classes that a notebook exports."
    cells = ["".join(c["source"]) for c in json.loads(page.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    return [n for c in cells if re.match(r"#\|\s*exports?\b", c) for n in re.findall(r"^(?:async def|def|class) ([A-Za-z]\w*)", c, re.M)]


@pytest.mark.parametrize("nb", [p for p in pages() if public(p)], ids=lambda p: str(p.relative_to(ROOT/"nbs")))
def test_a_module_page_has_its_api(site, nb):
    text = (site/Path(docs.plain(nb.relative_to(ROOT/"nbs"))).with_suffix(".html")).read_text(encoding="utf-8")
    for name in public(nb): assert re.search(rf"<h[34][^>]*class=\"[^\"]*symbol[^>]*>(?:<[^>]*>)*{re.escape(name)}\b", text), f"{name} has no section"
    assert "sourceCode" in text, "signatures"
    if told(nb): assert "<table" in text, "parameter tables"


def told(page):
    "Whether a public function or dataclass of a page says something of a parameter."
    cells = ["".join(c["source"]) for c in json.loads(page.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    return any(re.match(r"#\|\s*exports?\b", c) and re.search(r"^(?:async def|def|@dataclass[^\n]*\nclass) ?[A-Za-z].*?^    \w+:[^\n]* # ", c, re.M | re.S) for c in cells)


def test_search_and_dark_mode(site):
    index = json.loads((site/"search.json").read_text(encoding="utf-8"))
    assert len({e["href"].split("#")[0] for e in index}) >= len(docs.pages(ROOT/"nbs"))
    home = (site/"index.html").read_text(encoding="utf-8")
    assert 'data-mode="dark"' in home and "color-scheme-toggle" in home and 'id="quarto-search"' in home


# The parts, quickly

def test_numbers_are_dropped_from_names_and_links():
    assert docs.plain("text/00_bpe.ipynb") == "text/bpe.ipynb" and docs.plain("../model/03_transformer.ipynb") == "../model/transformer.ipynb"
    assert docs.retarget("[how](../text/00_bpe.ipynb#merge) [x](https://a.example/00_b.ipynb)") == "[how](../text/bpe.ipynb#merge) [x](https://a.example/00_b.ipynb)"


def test_what_follows_a_title_is_kept():
    cells = docs.split_title([dict(cell_type="markdown", source="# Title\n\n> One line\n\nWhat and why.\n\n![p](p.png)"), dict(cell_type="code", source="x")])
    assert [c["source"] for c in cells] == ["# Title\n\n> One line", "What and why.\n\n![p](p.png)", "x"]
    assert len(docs.split_title([dict(cell_type="markdown", source="# Title\n> One line")])) == 1


def test_broken_links_and_outside_loads_are_found(tmp_path):
    (tmp_path/"a.html").write_text('<h2 id="here"></h2><a href="#here">ok</a><a href="#gone">x</a><a href="b.html">x</a><a href="https://arxiv.org">ok</a><script src="https://cdn.example/x.js"></script>')
    (tmp_path/"s.css").write_text("@import url(https://fonts.example/css2?f=A:wght@400;700);\nbody { background: url(a.png) }")
    assert sorted(p.split(": ")[1] for p in docs.broken_links(tmp_path)) == ["#gone", "b.html"]
    assert len(list(docs.loads(tmp_path))) == 2
    docs.make_local(tmp_path)
    assert len(list(docs.loads(tmp_path))) == 1 and "background" in (tmp_path/"s.css").read_text()


def test_a_broken_link_fails_the_build(tmp_path):
    nb = dict(nbformat=4, nbformat_minor=5, metadata=dict(kernelspec=dict(name="python3", display_name="python3", language="python")),
        cells=[dict(cell_type="markdown", id=str(i), metadata={}, source=s) for i, s in enumerate(["# Home", "[nowhere](01_gone.ipynb)"])])
    (tmp_path/"nbs").mkdir()
    (tmp_path/"nbs/index.ipynb").write_text(json.dumps(nb))
    for name in ("nbs/_quarto.yml", "nbs/styles.css", "pyproject.toml"): (tmp_path/name).write_bytes((ROOT/name).read_bytes())
    with pytest.raises(docs.DocsError, match="gone.ipynb"): docs.build(nbs=tmp_path/"nbs", out=tmp_path/"out", work=tmp_path/"work")
    assert not (tmp_path/"out").exists()


def test_a_symbol_is_drawn_with_signature_and_table():
    def f(
        x:"torch.Tensor", # (B, T) | ids
        *, names=("a", "b"), # of columns
        device=None,
    ) -> int: # how many
        "Count."
    text = showdoc.ParameterTables(f)._repr_markdown_()
    assert "def f(x:torch.Tensor, *, names:tuple=('a', 'b'), device=None)->int" in text and "Count." in text
    assert r"| <code>x</code> | `torch.Tensor` |  | (B, T) \| ids |" in text and "| *returns* | `int` |  | how many |" in text
