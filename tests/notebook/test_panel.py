"The panel without a browser: what it sees of a real server, and that it leaves nothing behind."
import threading, time

from zztoolkit.notebook.panel.panel import panel
from zztoolkit.notebook.panel.watch import Watch


def threads() -> list[threading.Thread]: return [t for t in threading.enumerate() if t.name.startswith("zz-panel")]

def test_a_watch_sees_what_was_asked(server, classifier, photo):
    watch = Watch(server)
    watch.look()
    for _ in range(5): classifier.predict(photo)
    time.sleep(0.2)
    seen = next(s for s in watch.look().services if s.service.name == "classifier")
    assert seen.state == "ready" and seen.service.ready == 1 and seen.memory > 50
    assert seen.pace.rate > 0 and 0 < seen.pace.latency < 5 and seen.pace.stages["inference"].half <= seen.pace.stages["inference"].most
    assert sum(t.mean for t in seen.pace.stages.values()) < seen.pace.latency

def test_its_thread_begins_when_it_is_shown_and_ends_with_it(server, classifier, capsys):
    p = panel(server)
    assert not threads()
    p._ipython_display_()
    end = time.monotonic() + 20
    while "classifier" not in p.still() and time.monotonic() < end: time.sleep(0.1)
    assert "classifier" in p.still() and len(threads()) == 1
    p.close()
    assert not threads()
