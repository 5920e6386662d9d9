"The tutorial as a person runs it: JupyterLab in a browser, Run All Cells, and a look at the result."
import json, os, shutil, subprocess, sys, time
from pathlib import Path

import httpx, psutil, pytest

from conftest import ROOT, missing
from zztoolkit.serve import free_ports

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]


def without_outputs(notebook: Path, target: Path):
    "A copy whose cells were never run, so that what the browser shows was made now"
    nb = json.loads(notebook.read_text())
    for c in nb["cells"]:
        if c["cell_type"] == "code": c.update(outputs=[], execution_count=None)
    target.write_text(json.dumps(nb))

@pytest.fixture
def lab(tmp_path):
    "A JupyterLab over a folder with the tutorial; its address and token"
    without_outputs(ROOT / "nbs" / "tutorials" / "quality_inspection.ipynb", tmp_path / "quality_inspection.ipynb")
    settings = tmp_path / "settings" / "@jupyterlab" / "notebook-extension"
    settings.mkdir(parents=True)
    (settings / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')      # every cell stays in the page
    [port], token = free_ports(1), os.urandom(16).hex()
    env = os.environ | {"JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings"), "JUPYTER_TOKEN": token, "JUPYTER_CONFIG_DIR": str(tmp_path / "config")}
    log = open(tmp_path / "lab.log", "w")
    lab = subprocess.Popen([sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}",
                            f"--ServerApp.root_dir={tmp_path}"], env=env, cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + 60
        while "is running at" not in (tmp_path / "lab.log").read_text() and time.monotonic() < end: time.sleep(0.2)
        assert lab.poll() is None, (tmp_path / "lab.log").read_text()
        yield f"http://127.0.0.1:{port}", token
    finally:
        family = psutil.Process(lab.pid).children(recursive=True)
        lab.terminate()
        lab.wait(30)
        psutil.wait_procs(family, 20)
        assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

def wait_for_kernel(address: str, token: str, timeout: float = 60):
    "Until the browser is connected to an idle kernel: a run that comes before is dropped, or answered with a dialog"
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        kernels = httpx.get(f"{address}/api/kernels", params={"token": token}).json()
        if isinstance(kernels, list) and any(k["connections"] and k["execution_state"] == "idle" for k in kernels): return
        time.sleep(0.2)
    raise AssertionError(f"no kernel was ready after {timeout:.0f} s: {kernels}")

def run_all_cells(page):
    "By the menu, as a person does; tried again where the page was not listening yet"
    from playwright.sync_api import TimeoutError
    for _ in range(5):
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        try: return page.wait_for_function("[...document.querySelectorAll('.jp-InputPrompt')].some(e => /[*0-9]/.test(e.innerText))", timeout=10_000)
        except TimeoutError: continue
    raise AssertionError("no cell began to run")

@pytest.mark.browser
def test_tutorial_in_jupyterlab(lab):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium: missing("no chromium: apt install chromium")
    from playwright.sync_api import sync_playwright
    pictures = ROOT / "test-artefacts"
    pictures.mkdir(exist_ok=True)
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 1200, "height": 1000})
        address, token = lab
        page.goto(f"{address}/lab/tree/quality_inspection.ipynb?token={token}")
        page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-CodeCell").first.wait_for(timeout=60_000)
        wait_for_kernel(address, token)
        page.locator(".jp-Notebook-ExecutionIndicator[data-status='idle']").first.wait_for(timeout=60_000)
        run_all_cells(page)
        panel = page.locator(".zz-endpoint").first
        panel.wait_for(timeout=180_000)
        assert "quality_inspection" in panel.inner_text() and "ready" in panel.inner_text()
        page.get_by_text("'verdict':").first.wait_for(timeout=60_000)
        page.get_by_text("400 DecodeError").first.wait_for(timeout=60_000)     # the broken photograph, further down
        page.wait_for_function("![...document.querySelectorAll('.jp-InputPrompt')].some(e => e.innerText.includes('*'))", timeout=60_000)
        assert page.locator("[data-mime-type='application/vnd.jupyter.error']").count() == 0
        panel.scroll_into_view_if_needed()
        page.screenshot(path=pictures / "jupyterlab.png")
        assert (pictures / "jupyterlab.png").stat().st_size > 20_000
        browser.close()
