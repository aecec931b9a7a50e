"A stranger's pip package is found through its entry points; a broken one costs one clear warning and nothing else."
import json, os, subprocess, sys, textwrap

import pytest

from conftest import ROOT

PLUGINS = ROOT/"tests/plugins"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "A folder into which pip installed both packages, without network."
    target, copies = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("packages")
    for name in ("sample", "broken"):
        subprocess.run(["cp", "-r", PLUGINS/name, copies], check=True)       # setuptools builds beside the source
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-build-isolation", "--no-deps", "--target", target, copies/name]
        run = subprocess.run(pip, capture_output=True, text=True, env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"})
        assert run.returncode == 0, run.stderr
    return target


def ask(site, code):
    "What a Python that sees both packages prints, as JSON: (value, warnings)."
    prelude = "import json, warnings\nfrom llmnb.plugins import *\nwith warnings.catch_warnings(record=True) as caught:\n    warnings.simplefilter('always')\n"
    end = "\nprint(json.dumps([value, [str(w.message) for w in caught if issubclass(w.category, PluginWarning)]]))"
    run = subprocess.run([sys.executable, "-c", prelude + textwrap.indent(textwrap.dedent(code), "    ") + end], capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(site)})
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_a_package_adds_names(site):
    value, warned = ask(site, """
        First = registry("strategies").get("first")
        value = [First.__module__, registry("strategies").resolve("first", offset=3).offset, registry("corpora").get("haiku")()[0][:6], "first" in registry("strategies")]""")
    assert value == ["llmnb_sample_plugin", 3, "An old", True]
    assert not [w for w in warned if "llmnb-sample-plugin" in w]


def test_listing_imports_nothing(site):
    value, warned = ask(site, """
        import sys
        rows = plugin_rows("corpora")
        value = [[r["from"] for r in rows if r["name"] == "haiku"], [m for m in sys.modules if m.startswith(("llmnb_sample", "llmnb_broken"))]]""")
    assert value == [["llmnb-sample-plugin"], []] and not warned


def test_a_broken_package_costs_one_warning_that_names_it(site):
    value, warned = ask(site, """
        value = []
        for _ in range(3):
            try: registry("corpora").get("lost")
            except BrokenPlugin as e: value.append(str(e))
        value.append(sorted(registry("corpora").loaded()))""")
    assert "haiku" in value[-1] and "lost" not in value[-1], "the others still load"
    assert all("llmnb-broken-plugin" in v and "needs a library" in v for v in value[:-1])
    assert len(warned) == 1 and "'llmnb-broken-plugin'" in warned[0] and "'lost'" in warned[0] and "ImportError" in warned[0]


def test_a_package_cannot_take_the_name_of_a_built_in(site):
    value, warned = ask(site, """
        value = {r["name"]: r["from"] for r in plugin_rows("strategies")}""")
    assert value["greedy"] == "llmnb" and value["cracked"] == "llmnb-broken-plugin"
    assert len(warned) == 1 and "'llmnb-broken-plugin'" in warned[0] and "already has 'greedy'" in warned[0]


def test_an_unknown_name_tells_the_nearest(site):
    value, _ = ask(site, """
        try: registry("corpora").get("haikus")
        except UnknownName as e: value = str(e)""")
    assert "'haikus'" in value and "Did you mean 'haiku'?" in value
