"""The reader of text in `handlers/`, against the pipeline that its models come with: rapidocr"""
from __future__ import annotations

import importlib.util, logging, time
from pathlib import Path

import onnx, pytest

from zztoolkit import samples

HANDLER = Path(__file__).parent.parent.parent / "handlers" / "read_text.py"


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    "The handler with the files of its models, as they are"
    folder, models = tmp_path_factory.mktemp("reader"), samples.text_models()
    about = {p.key: p.value for p in onnx.load(models["recognize"], load_external_data=False).metadata_props}
    (folder / "letters.txt").write_text(about["character"], encoding="utf-8")
    spec = importlib.util.spec_from_file_location("read_text", HANDLER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ReadText.local(models, folder=folder)

@pytest.fixture(scope="module")
def photos():
    found = samples.text_photographs()
    if found[0].stem.startswith("drawn"): pytest.skip("no opencv-doc here")
    return found

def texts(lines): return [line["text"] for line in lines]


@pytest.mark.slow
def test_as_rapidocr(reader, photos):
    "The same lines, but for two in ornamental letters: rapidocr fills a line up to the widest of its batch, and reads it otherwise"
    logging.disable(logging.WARNING)
    from rapidocr import RapidOCR
    reference = RapidOCR()
    for photo in (photos[i] for i in (0, 1, 3, 5)):
        ours, theirs = texts(reader.predict(photo)), list(reference(str(photo)).txts)
        assert len(ours) == len(theirs)
        other = [(a, b) for a, b in zip(ours, theirs) if a != b]
        assert len(other) == (2 if photo.stem == "scenetext06" else 0), other
        assert all(a.lower().replace("í", "i") == b.lower().replace("í", "i") for a, b in other)

@pytest.mark.slow
def test_alone_and_together(reader, photos):
    "A photograph's lines do not depend on the photographs beside it, and the stages' times are the batch's"
    few = [photos[0], photos[3], photos[5]]
    start = time.perf_counter()
    together = reader.predict(few)
    elapsed = time.perf_counter() - start
    assert sum(reader.handler.clock.seconds().values()) == pytest.approx(elapsed, rel=0.05)
    assert together == [reader.predict(p) for p in few]
