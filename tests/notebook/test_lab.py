"The tutorial and the panel as a person has them: JupyterLab in a browser, Run All Cells, buttons pressed, and a look at the result."
import base64, json, os, re, shutil, signal, subprocess, sys, time
from dataclasses import dataclass
from pathlib import Path

import httpx, nbformat, psutil, pytest

from conftest import ROOT, missing
from zztoolkit.serving.torchserve.config import free_ports
from zztoolkit.serving.torchserve.running import running_servers, RunningServer

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
PICTURES = ROOT / "test-artefacts"
SETTINGS = {"notebook-extension/tracker": {"windowingMode": "none"},       # every cell stays in the page
            "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True}}
PANEL = ["""%load_ext zztoolkit
from zztoolkit import compile_model, samples""", """#| handler classify
from zztoolkit.samples import sample_photo
from zztoolkit import Handler, vision as V
chain = V.Chain(V.Decode(), V.Resize(256), V.CenterCrop(224), V.Normalize(mean=(127 / 255,) * 3, std=(128 / 255,) * 3))""", """photo = sample_photo()
artifact = compile_model(samples.efficientnet_lite0(), chain.example(), batch=(1, 8, 32))""", """%%serve classify --model artifact --batch-size 8 --example photo --store .
class Classify(Handler):
    chain = chain
    def preprocess(self, requests):
        if b"boom" in map(bytes, requests): 1 / 0
        return super().preprocess(requests)
    def postprocess(self, outputs): return [{"version": 1, "class": int(y.argmax())} for y in outputs]""", "%serve_panel"]

LLM = ["""%load_ext zztoolkit
from zztoolkit.samples import smollm2
weights = smollm2()""", "%%serve assistant --llm weights\npass", "%serve_panel", """import threading
def ask(): assistant.chat("Tell me a long story about a wolf.", max_tokens=400, show=False)
for _ in range(12): threading.Thread(target=ask).start()"""]

REPOSITORY = ["""%load_ext zztoolkit
from pathlib import Path
from zztoolkit.archive import pack
from zztoolkit.gateway import ModelRepository
from zztoolkit.serving.server import make_server
Path("prices.py").write_text('''
import numpy as np
from zztoolkit import Handler
class Prices(Handler):
    def initialize(self, context):
        super().initialize(context)
        self.prices = np.ones(8 << 20)      # 64 MiB
    def preprocess(self, requests): return list(requests)
    def inference(self, articles): return articles
    def postprocess(self, articles): return [1] * len(articles)
''')
for name in ("books", "shoes", "toys"): pack(name, "prices.py", store="shop", example="1")
Path("shop/torn.mar").write_bytes(b"not an archive")
server = make_server("mosec").start()
repository = ModelRepository(server, "shop", "200MB").start()
%serve_status""", "%serve_panel", """import time
def wait_for(name):
    while not Path(name).exists(): time.sleep(0.05)
wait_for("begin")
for name in ("shoes", "toys", "books"): repository.predict(name, "1")
with repository.use("books"): wait_for("end")
repository.stop()
server.stop()"""]

FLAGS_OF = ["%load_ext zztoolkit\nfrom pathlib import Path\nartifact = Path('model.pt')", "%%serve goods --ba\nclass Goods: pass"]


def without_outputs(notebook: Path, target: Path):
    "A copy whose cells were never run, so that what the browser shows was made now"
    nb = json.loads(notebook.read_text())
    for c in nb["cells"]:
        if c["cell_type"] == "code": c.update(outputs=[], execution_count=None)
    target.write_text(json.dumps(nb))

@dataclass
class Lab:
    address: str
    token: str
    process: psutil.Process
    home: Path

    def servers(self) -> list[RunningServer]:
        "The servers that its kernels have started; the tests that run beside this one have theirs"
        family = {p.pid for p in self.process.children(recursive=True)}
        return [s for s in running_servers() if s.java.pid in family]

@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "A JupyterLab over a folder with the notebooks of these tests; its address and token"
    home = tmp_path_factory.mktemp("lab")
    without_outputs(ROOT / "nbs" / "tutorials" / "quality_inspection.ipynb", home / "quality_inspection.ipynb")
    kernel = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    for name, cells in (("panel", PANEL), ("flags", FLAGS_OF), ("llm", LLM), ("repository", REPOSITORY)):
        (home / f"{name}.ipynb").write_text(nbformat.writes(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells], metadata=kernel)))
    settings = home / "settings" / "@jupyterlab"
    for plugin, value in SETTINGS.items():
        (settings / plugin).parent.mkdir(parents=True, exist_ok=True)
        (settings / plugin).with_suffix(".jupyterlab-settings").write_text(json.dumps(value))
    [port], token = free_ports(1), os.urandom(16).hex()
    env = os.environ | {"JUPYTERLAB_SETTINGS_DIR": str(home / "settings"), "JUPYTER_TOKEN": token, "JUPYTER_CONFIG_DIR": str(home / "config")}
    log = open(home / "lab.log", "w")
    lab = subprocess.Popen([sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}",
                            f"--ServerApp.root_dir={home}"], env=env, cwd=home, stdout=log, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + 60
        while "is running at" not in (home / "lab.log").read_text() and time.monotonic() < end: time.sleep(0.2)
        assert lab.poll() is None, (home / "lab.log").read_text()
        yield Lab(f"http://127.0.0.1:{port}", token, psutil.Process(lab.pid), home)
    finally:
        family = psutil.Process(lab.pid).children(recursive=True)
        lab.terminate()
        lab.wait(30)
        psutil.wait_procs(family, 20)
        assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium: missing("no chromium: apt install chromium")
    from playwright.sync_api import sync_playwright
    PICTURES.mkdir(exist_ok=True)
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()

def opened(browser, lab, notebook: str, width: int = 1200):
    "A page with the notebook alone, its kernel idle"
    address, token = lab.address, lab.token
    page = browser.new_page(viewport={"width": width, "height": 1000})
    page.goto(f"{address}/lab/workspaces/{Path(notebook).stem}/tree/{notebook}?token={token}")
    page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-CodeCell").first.wait_for(timeout=60_000)
    wait_for_kernel(address, token, notebook)
    page.locator(".jp-Notebook-ExecutionIndicator[data-status='idle']").first.wait_for(timeout=60_000)
    return page

def wait_for_kernel(address: str, token: str, notebook: str, timeout: float = 60):
    "Until the browser is connected to the notebook's idle kernel: a run that comes before is dropped, or answered with a dialog"
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        found = httpx.get(f"{address}/api/sessions", params={"token": token}).json()
        kernels = [s["kernel"] for s in found if s["path"] == notebook] if isinstance(found, list) else []
        if any(k["connections"] and k["execution_state"] == "idle" for k in kernels): return
        time.sleep(0.2)
    raise AssertionError(f"no kernel was ready after {timeout:.0f} s: {found}")

def run_all_cells(page):
    "By the menu, as a person does; tried again where the page was not listening yet"
    from playwright.sync_api import TimeoutError
    for _ in range(5):
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        try: return page.wait_for_function("[...document.querySelectorAll('.jp-InputPrompt')].some(e => /[*0-9]/.test(e.innerText))", timeout=10_000)
        except TimeoutError: continue
    raise AssertionError("no cell began to run")

def opened_and_run(browser, lab, notebook: str):
    "A page with the notebook, which has the width of the file browser too, its cells running"
    page = opened(browser, lab, notebook)
    page.get_by_title("File Browser").first.click()
    run_all_cells(page)
    return page

@pytest.mark.slow
@pytest.mark.browser
def test_tutorial_in_jupyterlab(lab, browser):
    page = opened(browser, lab, "quality_inspection.ipynb")
    run_all_cells(page)
    endpoint = page.locator(".zz-endpoint").first
    endpoint.wait_for(timeout=180_000)
    assert "quality_inspection" in endpoint.inner_text() and "ready" in endpoint.inner_text()
    page.get_by_text("'verdict':").first.wait_for(timeout=60_000)
    page.get_by_text("400 DecodeError").first.wait_for(timeout=60_000)     # the broken photograph, further down
    page.wait_for_function("![...document.querySelectorAll('.jp-InputPrompt')].some(e => e.innerText.includes('*'))", timeout=60_000)
    assert page.locator("[data-mime-type='application/vnd.jupyter.error']").count() == 0
    endpoint.scroll_into_view_if_needed()
    page.screenshot(path=PICTURES / "jupyterlab.png")
    assert (PICTURES / "jupyterlab.png").stat().st_size > 20_000
    page.close()

@pytest.mark.browser
def test_flags_complete_with_tab(lab, browser):
    page = opened(browser, lab, "flags.ipynb")
    page.locator(".jp-CodeCell .cm-content").first.click()
    page.keyboard.press("Shift+Enter")
    page.locator(".jp-InputPrompt", has_text="[1]").wait_for(timeout=60_000)
    page.locator(".cm-line", has_text="%%serve").click()
    page.keyboard.press("End")
    page.keyboard.press("Tab")
    page.locator(".jp-Completer-item", has_text="--batch-size").wait_for(timeout=20_000)
    page.keyboard.press("Enter")
    page.locator(".cm-line", has_text="--batch-size").wait_for(timeout=20_000)
    page.keyboard.type(" 4 --")
    page.keyboard.press("Tab")
    page.locator(".jp-Completer-item", has_text="--max-batch-delay").wait_for(timeout=20_000)
    page.screenshot(path=PICTURES / "flags.png")
    page.keyboard.press("Escape")
    page.keyboard.type("model ")
    page.keyboard.press("Tab")
    page.locator(".jp-Completer-item", has_text="artifact").wait_for(timeout=20_000)
    page.close()

def drop(page, name: str, data: bytes):
    "A file let fall on the panel"
    files = page.evaluate_handle("""([name, data]) => { const files = new DataTransfer();
        files.items.add(new File([Uint8Array.from(atob(data), c => c.charCodeAt(0))], name)); return files; }""", [name, base64.b64encode(data).decode()])
    page.locator(".zz-zone").dispatch_event("drop", {"dataTransfer": files})

@pytest.mark.slow
@pytest.mark.browser
def test_panel_in_jupyterlab(lab, browser, photo):
    "Every button pressed, under load where it counts; a worker that is killed, a server that is killed, a kernel that is restarted"
    from test_magics import Load
    others = {s.folder for s in lab.servers()}
    page = opened_and_run(browser, lab, "panel.ipynb")
    live, see = page.locator(".zz-panel"), lambda text, n=20: page.locator(".zz-panel").get_by_text(text).first.wait_for(timeout=n * 1000)
    press = lambda name: live.get_by_role("button", name=name, exact=True).click()
    live.locator(".zz-card").wait_for(timeout=120_000)
    [server] = [s for s in lab.servers() if s.folder not in others]
    endpoint = server.endpoint("classify")

    drop(page, "officer.jpg", photo.read_bytes())
    see('"version": 1')
    assert live.locator(".zz-thumb").evaluate("e => e.naturalWidth") > 100 and "answered in" in live.locator(".zz-answer").inner_text()
    drop(page, "broken.json", b'{"a": ')
    see("broken.json is not JSON")
    drop(page, "boom.bin", b"boom")
    see("ZeroDivisionError: division by zero")
    live.locator("summary").first.click()
    assert "if b\"boom\" in map(bytes, requests): 1 / 0" in live.locator("details pre").first.inner_text()

    press("+")
    see("2 of 2 workers", 30)
    assert [w["status"] for w in endpoint.info["workers"]] == ["READY"] * 2
    with Load(endpoint, photo.read_bytes(), clients=4) as load:
        press("Reload")
        see("version 2 serves", 60)
        see("version 2 · 2 of 2 workers")
        drop(page, "officer.jpg", photo.read_bytes())
        live.locator(".zz-stages").wait_for(timeout=10_000)
        live.screenshot(path=PICTURES / "panel.png")
    assert not load.failures and len(load.answers) > 20

    os.kill(endpoint.processes()["workers"][0], signal.SIGKILL)
    see("restarting")
    see("a worker died: exit code 137, killed: out of memory?")
    endpoint.wait_ready()
    psutil.Process(server.java.pid).kill()
    see("TorchServe has ended by itself.")
    see("its process was ended by SIGKILL")
    assert live.locator(".zz-card .zz-state").inner_text() == "down"
    live.screenshot(path=PICTURES / "panel-died.png")
    press("Start again")
    see("it serves again", 60)
    [again] = [s for s in lab.servers() if s.folder not in others]
    assert again.endpoint("classify").predict(photo) == {"version": 1, "class": 400} and len(again.endpoint("classify").info["workers"]) == 2

    page.get_by_role("menuitem", name="Settings", exact=True).click()
    page.locator(".lm-Menu-item", has_text=re.compile("^Theme$")).hover()
    page.locator(".lm-Menu-item", has_text="JupyterLab Dark").first.click()
    page.locator("body[data-jp-theme-light='false']").wait_for(state="attached", timeout=20_000)     # until then buttons move
    press("Stop server")
    see("Stop TorchServe and every model on it?")
    live.screenshot(path=PICTURES / "panel-dark.png")
    live.locator(".zz-yes:visible").click()
    see("Nothing is served.")
    assert not again.running
    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.locator(".lm-Menu-item[data-command='kernelmenu:restart']").click()
    with page.expect_response(re.compile("/api/kernels/.*/restart")): page.locator(".jp-Dialog .jp-mod-accept").click()     # a JupyterLab that is ended in between does not end
    page.locator(".zz-still").get_by_text("Not live").wait_for(timeout=20_000)
    assert not live.locator(".zz-zone").is_visible()
    page.close()

@pytest.mark.slow
@pytest.mark.browser
def test_a_language_model_in_the_panel(lab, browser):
    "Twelve ask and eight answers grow at a time; then it is stopped in the middle, and all end"
    page = opened_and_run(browser, lab, "llm.ipynb")
    card = page.locator(".zz-panel .zz-card", has_text="language model on")     # the tests beside this one serve, too
    card.wait_for(timeout=180_000)
    def figure(title: str) -> float:
        text = card.locator(".zz-figure", has=page.locator(f"small:text-is('{title}')")).locator("b").evaluate("e => e.firstChild.textContent")
        return float(text.replace(",", ""))
    end, seen = time.monotonic() + 120, []
    while time.monotonic() < end and not seen:
        now = [figure(title) for title in ("Active", "Waiting", "Tokens")] if card.get_by_text("First token, mean").is_visible() else [0] * 3
        if now[:2] == [8, 4] and now[2] > 0: seen = now
        page.wait_for_timeout(300)
    assert seen, now
    assert "assistant" in card.inner_text() and card.locator(".zz-spark polyline").count() >= 3
    page.locator(".zz-panel").screenshot(path=PICTURES / "panel-llm.png")
    card.get_by_role("button", name="Stop", exact=True).click()
    card.get_by_text("Stop assistant?").wait_for(timeout=20_000)
    card.locator(".zz-yes:visible").click()
    card.wait_for(state="hidden", timeout=120_000)
    page.close()

@pytest.mark.slow
@pytest.mark.browser
def test_a_repository_in_the_panel(lab, browser):
    "In memory for two of its three models the third takes the place of the first; the card goes when the repository stops"
    page = opened_and_run(browser, lab, "repository.ipynb")
    card = page.locator(".zz-panel .zz-card", has_text="repository on mosec")
    card.get_by_text("0 of 4 models loaded").wait_for(timeout=60_000)
    assert "0 MB of 200 MB in use" in page.locator(".jp-OutputArea", has_text="cold start").first.inner_text()        # %serve_status
    (lab.home / "begin").touch()
    card.locator("tr", has_text="books").get_by_text("1 in flight").wait_for(timeout=60_000)
    state = {name: text.strip() for name, text in (row.locator("td").all_inner_texts()[:2] for row in card.locator("tr:has(td)").all())}
    assert state == {"books": "loaded", "shoes": "on disk", "toys": "loaded", "torn": "failed"}
    assert card.locator(".zz-bar span").count() == 2 and re.search(r"1\d\d MB of 200 MB in use", card.inner_text())
    assert "torn.mar is not a model archive, or is damaged" in card.inner_text() and "2 of 4 models loaded · 1 in flight" in card.inner_text()
    card.screenshot(path=PICTURES / "panel-repository.png")
    (lab.home / "end").touch()
    card.wait_for(state="hidden", timeout=60_000)
    page.close()
