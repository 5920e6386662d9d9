"The panel without a browser: what it sees of a real server, and that it leaves nothing behind."
import threading, time

from zztoolkit.notebook.panel.panel import show_panel
from zztoolkit.notebook.panel.watch import Watcher


def threads() -> list[threading.Thread]: return [t for t in threading.enumerate() if t.name.startswith("zz-panel")]

def test_a_watcher_sees_requests(server, classifier, photo):
    watcher = Watcher(server)
    watcher.poll()
    for _ in range(5): classifier.predict(photo)
    time.sleep(0.2)
    model = next(s for s in watcher.poll().models if s.status.name == "classifier")
    assert model.state == "ready" and model.status.ready == 1 and model.memory > 50
    assert model.rates.rate > 0 and 0 < model.rates.latency < 5 and model.rates.stages["inference"].p50 <= model.rates.stages["inference"].p99
    assert sum(t.mean for t in model.rates.stages.values()) < model.rates.latency

def test_its_thread_begins_when_it_is_shown_and_ends_with_it(server, classifier, capsys):
    p = show_panel(server)
    assert not threads()
    p._ipython_display_()
    end = time.monotonic() + 20
    while "classifier" not in p.still() and time.monotonic() < end: time.sleep(0.1)
    assert "classifier" in p.still() and len(threads()) == 1
    p.close()
    assert not threads()
