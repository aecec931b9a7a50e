"Ground: settings, device, plugins, display. The lessons assert the rules; here are the corners."
import os, subprocess, sys, textwrap

import pytest
from hypothesis import given, strategies as st

from llmnb import LLMNBError
from llmnb.display import Static, bar_chart, escape, heat_map, line_chart, svg_image, table, thin, ticks, token_strip
from llmnb.plugins import REGISTRIES, UnknownName, registry
from llmnb.settings import Settings, SettingsError, settings, settings_file


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("DEVICE", "DTYPE", "SEED", "RUNS_PATH", "CACHE_PATH", "UI", "OFFLINE", "SCALE"): monkeypatch.delenv(f"LLMNB_{name}", raising=False)
    return tmp_path


def test_order_argument_environment_file_default(folder, monkeypatch):
    s = Settings()
    assert s.seed == 42 and s.source("seed") == "default"
    (folder/"settings.ini").write_text("[llmnb]\nseed = 1\n")
    assert s.seed == 1 and s.source("seed") == str(folder/"settings.ini")
    monkeypatch.setenv("LLMNB_SEED", "2")
    assert s.seed == 2
    with s.override(seed=3): assert s.seed == 3
    assert s.seed == 2


def test_a_changed_file_is_seen_at_the_next_read(folder):
    s = Settings()
    (folder/"settings.ini").write_text("[llmnb]\nscale = quick\n")
    assert s.scale == "quick"
    (folder/"settings.ini").write_text("[llmnb]\nscale = full\n")
    assert s.scale == "full"


@pytest.mark.parametrize("line, words", [
    ("sed = 7", ["'sed'", "seed", "settings.ini"]), ("seed = -1", ["seed", "'-1'", "whole number"]), ("device = gpu", ["'gpu'", "cuda"]),
    ("offline = maybe", ["'maybe'", "true or false"]), ("scale = huge", ["'huge'", "quick"]), ("ui = gui", ["'gui'", "static"]), ("cache_path =", ["cache_path", "folder"])])
def test_a_wrong_line_names_the_value_the_file_and_the_fix(folder, line, words):
    (folder/"settings.ini").write_text(f"[llmnb]\n{line}\n")
    name = line.split()[0] if line.split()[0] != "sed" else "seed"
    with pytest.raises(SettingsError) as e: getattr(Settings(), name)
    for w in words: assert w in str(e.value)
    assert isinstance(e.value, LLMNBError) and isinstance(e.value, ValueError)


def test_broken_ini_of_ours_is_an_error_of_others_is_passed_over(folder):
    (folder/"settings.ini").write_text("[llmnb]\nseed = 1\nseed = 2\n")
    with pytest.raises(SettingsError, match="cannot be read"): Settings().seed
    (folder/"settings.ini").write_text("lib_name = x\n")
    assert settings_file() != folder/"settings.ini" and Settings().seed == 42


def test_assignment_tells_how(folder):
    with pytest.raises(SettingsError, match="override"): settings.seed = 3


def test_relative_paths_start_at_the_file(folder):
    (folder/"settings.ini").write_text("[llmnb]\nruns_path = r\n")
    (folder/"a").mkdir(); os.chdir(folder/"a")
    assert Settings().runs_path == folder/"r"


# ------------------------------------------------------------------ plugins
def test_unknown_names_tell_the_nearest():
    with pytest.raises(UnknownName, match="strategies"): registry("strategy")
    with pytest.raises(UnknownName, match="Did you mean 'greedy'"): registry("strategies").get("greeedy")


def test_every_builtin_entry_can_be_imported():
    for name in REGISTRIES:
        for entry in registry(name).names(): assert registry(name).get(entry) is not None


def test_no_registry_is_an_empty_room():
    assert {n for n in REGISTRIES if not registry(n).names()} == set()


# ------------------------------------------------------------------ display
hostile = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


@pytest.mark.parametrize("made", [
    lambda: token_strip([hostile, "b"], [0.1, 0.9], [hostile, hostile], title=hostile), lambda: table([{hostile: hostile}], title=hostile),
    lambda: line_chart({hostile: ([1, 2], [3, 4]), "b": ([1, 2], [1, 2])}, title=hostile, x_label=hostile, y_label=hostile),
    lambda: bar_chart([hostile], [1], title=hostile), lambda: heat_map([[1, 2]], [hostile], [hostile, "b"], title=hostile)])
def test_hostile_text_never_becomes_markup(made):
    shown = made()
    for code in (shown.html, shown.svg or ""):
        assert "<script" not in code and "onerror=alert" not in code.replace("&lt;img src=x onerror=alert", "")
    if shown.svg:
        import xml.etree.ElementTree as ET
        ET.fromstring(shown.svg)


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.integers(2, 10))
def test_ticks_lie_inside_and_are_evenly_spread(low, span, n):
    high = low + span
    if not high > low: return
    found = ticks(low, high, n)
    assert all(low - 1e-6 * max(1, abs(low), span) <= t <= high + 1e-6 * max(1, abs(high), span) for t in found)
    assert len(found) <= 2 * n + 2


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=3000))
def test_thinning_keeps_the_ends_and_the_extremes(ys):
    xs, out = thin(list(range(len(ys))), ys, 100)
    assert xs[0] == 0 and xs[-1] == len(ys) - 1 and max(out) == max(ys) and min(out) == min(ys) and xs == sorted(set(xs)) and len(out) <= 110


def test_charts_survive_what_training_brings():
    shown = line_chart({"loss": ([1, 2, 3, 4], [5.0, float("nan"), float("inf"), 4.0])})
    assert "nan" not in shown.svg and "inf" not in shown.svg
    with pytest.raises(ValueError, match="no finite point"): line_chart({"loss": ([1], [float("nan")])})
    line_chart({"one": ([3], [2.0])}); line_chart({"flat": ([1, 2], [0.0, 0.0])}); line_chart({"log": ([1, 2], [1e-3, 10])}, log_y=True)


def test_static_concatenates_and_prints():
    both = Static("<b>a</b>", "a") + Static("<b>b</b>", "b")
    assert str(both) == "a\nb" and both._repr_mimebundle_() == {"text/html": "<b>a</b><b>b</b>", "text/plain": "a\nb"}


# ------------------------------------------------------------------ device
def test_the_probe_is_cached_and_a_damaged_cache_is_measured_again(tmp_path):
    from llmnb.device import probe
    with settings.override(cache_path=tmp_path, device="cpu"):
        first = probe()
        assert probe() == first
        file, = tmp_path.glob("probe-*.json")
        file.write_text("{ torn")
        assert probe().dtype in ("float32", "bfloat16")


def test_wrong_device_and_dtype_are_told():
    from llmnb.device import pick_device, pick_dtype
    with pytest.raises(ValueError, match="'tpu'.*expected auto"): pick_device("tpu")
    with pytest.raises(ValueError, match="'int3'.*expected auto"): pick_dtype("int3")


def test_a_failed_cell_lets_go_of_its_memory():
    "What IPython keeps of a failed cell is let go by `free_memory`, in a real shell."
    code = textwrap.dedent('''
        from IPython.core.interactiveshell import InteractiveShell
        import weakref, sys, io, contextlib
        ip = InteractiveShell.instance()
        with contextlib.redirect_stdout(io.StringIO()):
            ip.run_cell("import weakref\\nclass Big: pass\\ndef f():\\n  global w\\n  b = Big(); w = weakref.ref(b)\\n  raise ValueError('x')\\nf()")
        alive = ip.user_ns["w"]() is not None
        from llmnb.device import free_memory
        free_memory()
        print(alive, ip.user_ns["w"]() is None)
    ''')
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout.split()[-2:] == ["True", "True"], out.stdout + out.stderr


def test_captured_is_told_by_the_environment(monkeypatch):
    from llmnb.device import is_captured, pick_ui
    monkeypatch.setenv("LLMNB_CAPTURED", "1")
    assert is_captured() and pick_ui("live") == "static"
    monkeypatch.setenv("LLMNB_CAPTURED", "0")
    assert not is_captured() and pick_ui("live") == "live"


def test_a_folder_called_after_pytest_does_not_make_a_capture(monkeypatch):
    from llmnb import device
    monkeypatch.delenv("LLMNB_CAPTURED", raising=False)
    monkeypatch.setattr(device, "in_notebook", lambda: True)
    import IPython
    monkeypatch.setattr(IPython, "get_ipython", lambda: object())
    for words, captured in ((["/usr/bin/python", "/home/x/pytest-course/bin/jupyter-lab"], False), (["python", "-m", "papermill", "a.ipynb"], True),
                            (["/v/bin/jupyter-nbconvert", "--execute"], True), (["jupyter", "nbconvert"], True), (["/v/bin/pytest"], True)):
        monkeypatch.setattr(device, "_parent_command", lambda: words)
        assert device.is_captured() is captured, words


def test_cores_are_shared_unless_somebody_says_how_to_wait():
    "`import llmnb` shortens the spin of OpenMP, and leaves what a person has set."
    show = "import llmnb, os; print(os.environ.get('GOMP_SPINCOUNT'))"
    clean = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    said = lambda **env: subprocess.run([sys.executable, "-c", show], env={**clean, **env}, capture_output=True, text=True).stdout.strip()
    assert said() == "10000" and said(GOMP_SPINCOUNT="7") == "7" and said(OMP_WAIT_POLICY="ACTIVE") == "None"
