"""A real JupyterLab and a real Chromium, for tests that a kernel alone cannot make.

    def test_x(lab):                              # fixture: a server with its own configuration, runs and caches
        page = lab.open(notebook)                 # a copy of a notebook, in the browser, its kernel ready
        page.run_all(); page.wait_idle()
        page.cell(3).locator("button").click()
        assert page.ask("out.text")               # the kernel's own word
"""
import json, os, secrets, shutil, signal, socket, subprocess, sys, time, urllib.error, urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync".split()
SETTINGS = {"apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False}, "notebook-extension/tracker": {"windowingMode": "none"}}   # every cell is drawn, seen or not
PANEL = "window.jupyterapp.shell.currentWidget"


def chromium():
    "The path of a Chromium; without one the test is skipped, or fails where LLMNB_REQUIRE_BROWSER=1 (.ci/run)."
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not found: (pytest.fail if os.environ.get("LLMNB_REQUIRE_BROWSER") == "1" else pytest.skip)("no Chromium: apt-get install chromium")
    return found


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def fresh(home):
    "The folders that tests write to, as for a new server: no notebooks, no runs, no caches, the settings as given."
    for name in ("work", "runs", "cache", "settings", "workspaces", "ipython"):
        (home/name).mkdir(exist_ok=True)
        for p in (home/name).iterdir(): shutil.rmtree(p) if p.is_dir() else p.unlink()     # the folders stay: the server is in one
    for name, values in SETTINGS.items():
        path = home/"settings/@jupyterlab"/f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))


@contextmanager
def server(home, **env):
    "JupyterLab on 127.0.0.1 over `home`/work: (address, token)."
    work, token, port = home/"work", secrets.token_hex(8), free_port()
    (home/"config/labconfig").mkdir(parents=True)
    (home/"config/labconfig/page_config.json").write_text(json.dumps({"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}))
    fresh(home)
    places = {f"JUPYTER_{k}": str(home/v) for k, v in dict(CONFIG_DIR="config", DATA_DIR="data", RUNTIME_DIR="rt").items()}
    places |= dict(JUPYTERLAB_SETTINGS_DIR=str(home/"settings"), JUPYTERLAB_WORKSPACES_DIR=str(home/"workspaces"), IPYTHONDIR=str(home/"ipython"),
        LLMNB_RUNS_PATH=str(home/"runs"), LLMNB_CACHE_PATH=str(home/"cache"), JUPYTER_PREFER_ENV_PATH="1", LLMNB_CAPTURED="0")
    options = [f"--port={port}", "--port-retries=0", "--ip=127.0.0.1", "--no-browser", "--allow-root", f"--ServerApp.root_dir={work}", f"--IdentityProvider.token={token}", "--LabApp.expose_app_in_browser=True"]
    log = open(home/"server.log", "w")
    process = subprocess.Popen([Path(sys.executable).with_name("jupyter-lab"), *options], env={**os.environ, **places, **env}, cwd=work, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        _wait(f"http://127.0.0.1:{port}/api/status?token={token}", process, home/"server.log")
        yield f"http://127.0.0.1:{port}", token
    finally:
        process.terminate()                                   # Jupyter ends its kernels before it goes
        try: process.wait(15)
        except subprocess.TimeoutExpired: pass
        try: os.killpg(process.pid, signal.SIGKILL)           # and if anything of it is left
        except ProcessLookupError: pass
        process.wait()
        log.close()


def _wait(url, process, log, seconds=180):
    for _ in range(seconds * 5):
        if process.poll() is not None: break
        try: return urllib.request.urlopen(url, timeout=5).read()
        except (urllib.error.URLError, OSError): time.sleep(0.2)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")


class Lab:
    "A running JupyterLab and a browser on it."
    def __init__(self, home, url, token, browser): self.home, self.url, self.token, self.browser = home, url, token, browser

    def open(self, notebook, name=None, width=1200, height=1400, dark=False):
        "Copy a notebook (a path, or a list of sources of code cells) into the server's folder and open it."
        name = name or (Path(notebook).name if isinstance(notebook, (str, Path)) else "test.ipynb")
        if isinstance(notebook, (str, Path)): shutil.copy(notebook, self.home/"work"/name)
        else: (self.home/"work"/name).write_text(json.dumps(_notebook(notebook)))
        page = self.browser.new_page(viewport=dict(width=width, height=height), color_scheme="dark" if dark else "light")
        page.set_default_timeout(180_000)
        page.goto(f"{self.url}/lab/workspaces/w{secrets.token_hex(3)}/tree/{name}?reset&token={self.token}")
        return Page(page, dark)

    def end_kernels(self):
        "End all that runs, and wait until it is gone."
        for session in self.api("sessions"): self.api(f"sessions/{session['id']}", "DELETE")
        for kernel in self.api("kernels"): self.api(f"kernels/{kernel['id']}", "DELETE")
        assert not self.api("kernels")

    def api(self, path, method="GET"):
        "What the server's REST interface says."
        asked = urllib.request.Request(f"{self.url}/api/{path}", method=method, headers={"Authorization": f"token {self.token}"})
        return json.loads(urllib.request.urlopen(asked, timeout=180).read() or "null")


def _notebook(sources):
    spec = dict(name="python3", display_name="python3", language="python")
    return dict(nbformat=4, nbformat_minor=5, metadata=dict(kernelspec=spec), cells=[dict(cell_type="code", id=f"c{i}", metadata={}, source=s, outputs=[], execution_count=None) for i, s in enumerate(sources)])


class Page:
    "A notebook open in JupyterLab."
    def __init__(self, page, dark=False):
        self.page, self.errors = page, []
        page.on("pageerror", lambda e: self.errors.append(str(e)))
        page.wait_for_function("window.jupyterapp !== undefined")
        page.wait_for_selector(".jp-Notebook .jp-Cell")
        page.evaluate("""async dark => { const app = window.jupyterapp; await app.restored; app.shell.collapseLeft(); app.shell.collapseRight();
            await app.commands.execute('apputils:change-theme', {theme: dark ? 'JupyterLab Dark' : 'JupyterLab Light'}) }""", dark)
        page.wait_for_function(f"() => {{ const s = {PANEL}?.sessionContext; return s && s.isReady && s.session?.kernel?.status === 'idle' }}")

    def run_all(self):
        "Run all cells; returns at once. By command: a key press can be lost."
        self.page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells'); 0")

    def run(self, n):
        "Run one cell; returns at once."
        self.page.evaluate(f"n => {{ {PANEL}.content.activeCellIndex = n; window.jupyterapp.commands.execute('notebook:run-cell'); }}", n)

    def wait_idle(self, seconds=300):
        "Wait until no cell waits or runs and the kernel is idle; fails with the first error that a cell shows."
        self.page.wait_for_timeout(300)
        self.page.wait_for_function(f"""() => ![...document.querySelectorAll('.jp-Notebook .jp-InputPrompt')].some(e => e.textContent.includes('*'))
            && {PANEL}.sessionContext.session.kernel.status === 'idle'""", timeout=seconds * 1000)
        if said := self.failure(): pytest.fail(f"a cell failed:\n{said}")

    def failure(self):
        "The error that a cell shows, or an empty string."
        found = self.page.locator('.jp-Notebook [data-mime-type="application/vnd.jupyter.error"], .jp-Notebook [data-mime-type="application/vnd.jupyter.stderr"]:has-text("Traceback")')
        return found.first.inner_text() if found.count() else ""

    def cell(self, n): return self.page.locator(".jp-Notebook .jp-Cell").nth(n)
    def find(self, selector): return self.page.locator(f".jp-Notebook {selector}")

    def until(self, script, seconds=120, arg=None):
        "Wait until a JavaScript function gives something true; gives that value."
        return self.page.wait_for_function(script, arg=arg, timeout=seconds * 1000).json_value()

    def ask(self, expression):
        "The value of a Python expression in the kernel, through JSON."
        said = self.page.evaluate(f"""async e => {{
            const reply = await {PANEL}.sessionContext.session.kernel.requestExecute({{code: '', silent: true, user_expressions: {{e}}}}).done;
            return reply.content.user_expressions.e }}""", f"__import__('json').dumps({expression}, default=str)")
        if said["status"] != "ok": raise RuntimeError(f"{expression}: {said.get('ename')}: {said.get('evalue')}")
        return json.loads(__import__("ast").literal_eval(said["data"]["text/plain"]))

    def save(self): self.page.evaluate("async () => { await window.jupyterapp.commands.execute('docmanager:save') }")

    def picture(self, path, selector=None):
        "A screenshot of the page, or of one element."
        (self.page.locator(selector).first if selector else self.page).screenshot(path=str(path))
        return path


@pytest.fixture(scope="session")
def house(tmp_path_factory):
    "One server for all tests of a worker."
    path, home = chromium(), tmp_path_factory.mktemp("lab")
    with server(home) as (url, token): yield path, home, url, token


@pytest.fixture
def lab(house):
    "The same with nothing in it: no kernel, file or run of another test; and a browser of its own, whose event loop ends with the test."
    from playwright.sync_api import sync_playwright
    path, home, *place = house
    fresh(home)
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=FLAGS)
        made = Lab(home, *place, browser)
        yield made
        browser.close()
        made.end_kernels()
