"""Vectors of sentences against sentence-transformers' own, and what clients send, on a real server"""
from __future__ import annotations

import json, subprocess, sys
from zipfile import ZipFile

import numpy as np, pytest
from hypothesis import given, settings, strategies as st

from zztoolkit import samples
from zztoolkit.archive.packing import pack
from zztoolkit.errors import InputError, ToolkitError
from zztoolkit.gateway import Gateway
from zztoolkit.serving.rollout import deploy
from zztoolkit.serving.server import make_server
from zztoolkit.text import compile_encoder, Retriever, TextEmbedder, Tokenizer
from zztoolkit.text.reading import read_texts

SHORT = Tokenizer.from_folder(samples.minilm_folder(), 32)
HANDLER = "from zztoolkit.text import TextEmbedder\n\nclass Sentences(TextEmbedder): pass\n"

@pytest.fixture(scope="module")
def tokenizer(): return Tokenizer.from_folder(samples.minilm_folder())

@pytest.fixture(scope="module")
def artifact(tokenizer): return compile_encoder(samples.minilm(), tokenizer, measure=False)

@pytest.fixture(scope="module")
def local(artifact, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("embedder")
    tokenizer.save(folder / "tokenizer.json")
    return TextEmbedder.local(artifact, folder)

@pytest.fixture(scope="module")
def reference():
    from sentence_transformers import SentenceTransformer
    return SentenceTransformer(str(samples.minilm_folder()), device="cpu")

@pytest.fixture(scope="module")
def sentences():
    "Titles of films joined to texts of 1 to 600 words, and what else people write"
    _, _, films = samples.movielens()
    titles, rng = films.title.tolist(), np.random.default_rng(0)
    joined = [" ".join(rng.choice(titles, n)) for n in [1] * 20 + [2, 3, 5, 8, 13] * 6 + [40, 80, 160]]
    return [*joined, "a", "😀 👍🏽 great", "手机充电器坏了", "Ärger mit dem Paket", "tab\tand\x00bell\x07", "SHOUTING!!!", "a" * 300]


@pytest.mark.slow
def test_vectors_are_those_of_sentence_transformers(local, reference, sentences):
    lengths = {len(local.handler.tokenizer.encode(s)) for s in sentences}
    assert len(sentences) >= 50 and len(lengths) > 25 and max(lengths) == 256
    ours, theirs = local.handler.embed(sentences), reference.encode(sentences)
    assert ours.dtype == np.float32 and ours.shape == theirs.shape == (len(sentences), 384)
    assert np.abs(ours - theirs).max() < 1e-5

def test_ids_are_those_of_transformers(tokenizer, sentences):
    from transformers import AutoTokenizer
    theirs = AutoTokenizer.from_pretrained(samples.minilm_folder())
    for s in sentences:
        assert tokenizer.encode(s) == theirs(s, truncation=True, max_length=256)["input_ids"], s

def test_a_vector_does_not_depend_on_its_neighbours(local, sentences):
    "To the last bit: alone, in any order, in one request or in many"
    embed, order = local.handler.embed, np.random.default_rng(1).permutation(len(sentences))
    together = embed(sentences)
    assert np.array_equal(embed([sentences[i] for i in order]), together[order])
    few = [0, 21, 50, 52, -1]
    assert all(np.array_equal(embed([sentences[i]])[0], together[i]) for i in few)
    one_by_one = local.predict(sentences[:8])
    assert one_by_one == local.predict({"texts": sentences[:8]}) == together[:8].tolist()

def test_padding_does_not_count(local, tokenizer, sentences):
    "A text filled up to the longest length has the vector of its own length"
    session, ids = local.handler.session, tokenizer.encode("Where is my parcel?")
    short, long = (np.asarray(session(tokenizer.pad([ids], n)))[0, :len(ids)] for n in (16, 256))
    assert np.abs(short - long).max() < 1e-5

@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_pooling(artifact, tokenizer, tmp_path, pooling):
    "Against transformers, with torch's own operations"
    import torch
    tokenizer.save(tmp_path / "tokenizer.json")
    handler = type("Own", (TextEmbedder,), {"pooling": pooling, "normalize": False}).local(artifact, tmp_path).handler
    texts = ["a parcel", "my jacket " * 30]
    tokens = {k: torch.from_numpy(x) for k, x in tokenizer(texts).items()}
    with torch.no_grad(): hidden = samples.minilm()(**tokens).last_hidden_state
    mask = tokens["attention_mask"][:, :, None]
    wanted = hidden[:, 0] if pooling == "cls" else (hidden * mask).sum(1) / mask.sum(1)
    assert np.abs(handler.embed(texts) - wanted.numpy()).max() < 1e-5

@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(max_size=300), st.binary(max_size=300)))
def test_any_text_has_ids_or_an_error_in_words(x):
    try: ids = SHORT.encode(x)
    except InputError as e: assert str(e).startswith("the text ")
    else: assert 2 <= len(ids) <= 32 and ids[0] == 101 and ids[-1] == 102

@settings(max_examples=100, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=5), lambda x: st.lists(x, max_size=3) | st.dictionaries(st.sampled_from(["text", "texts", "x"]), x, max_size=2), max_leaves=6))
def test_any_json_is_read_or_rejected(x):
    try: found = read_texts(x)
    except InputError: return
    assert found.texts and all(isinstance(t, str) and t.strip() for t in found.texts)

def test_a_tokenizer_is_the_same_in_a_fresh_process(tokenizer, tmp_path):
    file = tokenizer.save(tmp_path / "tokenizer.json")
    code = "import sys; from zztoolkit.text import Tokenizer; t = Tokenizer.from_file(sys.argv[1]); print(t.digest, t('a parcel')['input_ids'].tolist())"
    said = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True, check=True).stdout.strip()
    assert said == f"{tokenizer.digest} {tokenizer('a parcel')['input_ids'].tolist()}"

def test_without_tokenizers_the_error_says_what_to_install(tmp_path):
    code = "import sys; sys.modules['tokenizers'] = None\nfrom zztoolkit.text import Tokenizer\nTokenizer('{}', 8)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'zztoolkit[text]'" in done.stderr


@pytest.fixture(scope="module")
def sentences_mar(artifact, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sentences")
    (folder / "sentences.py").write_text(HANDLER)
    file = tokenizer.save(folder / "tokenizer.json")
    return pack("sentences", folder / "sentences.py", artifact, store=folder, extra_files=[file],
                example="Where is my parcel?", batch_size=8, max_batch_delay=20)

@pytest.fixture(scope="module", params=["torchserve", "mosec"])
def endpoint(request, sentences_mar):
    with make_server(request.param) as server: yield deploy(server, sentences_mar)

@pytest.mark.slow
def test_a_request_fails_alone(endpoint, local):
    "Bad requests between good ones, on a server"
    first, second = local.handler.embed(["a parcel", "a jacket"]).tolist()
    mixed = ["a parcel", "", {"texts": ["a parcel", 7]}, b"\xff\xfe", {"text": "a" * 200_000}, {"x": 1}, {"texts": ["a parcel", "a jacket"]}]
    results = endpoint.predict(mixed, return_exceptions=True)
    assert results[0] == first and results[-1] == [first, second]
    assert all(isinstance(r, Exception) and str(r).startswith("422 InputError: ") for r in results[1:-1]), results[1:-1]

def test_openai_client_gets_the_same_vectors(endpoint, local):
    "The gateway's /v1/embeddings, by OpenAI's own client: vectors to the last digit, tokens as the tokenizer counts them"
    openai = pytest.importorskip("openai")
    texts = ["a parcel", "手机充电器坏了", "my jacket " * 300]
    counts = [len(local.handler.tokenizer.encode(t)) for t in texts]
    assert counts[0] == 4 and counts[2] == 256      # [CLS] and [SEP] among them; cut
    with Gateway(endpoint.server) as gateway:
        client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.token, max_retries=0)
        found = client.embeddings.create(model=endpoint.name, input=texts)
        plain = [client.embeddings.create(model=endpoint.name, input=t, encoding_format="float") for t in texts]
        with pytest.raises(openai.APIStatusError, match="input 1: InputError: the text is empty"):
            client.embeddings.create(model=endpoint.name, input=["a parcel", " "])
        with pytest.raises(openai.NotFoundError): client.embeddings.create(model="nothing", input="x")
    assert [x.embedding for x in found.data] == local.handler.embed(texts).tolist()
    assert found.usage.model_dump() == {"prompt_tokens": sum(counts), "total_tokens": sum(counts)}
    assert [one.usage.total_tokens for one in plain] == counts

def test_tokens_are_counted_for_whoever_asks(endpoint, local):
    "By a header of the request, for all its texts; a response to any other request has no header more"
    post, body = endpoint.server.post, b'{"texts": ["a parcel", "a jacket"]}'
    asked = post(endpoint.name, body, "application/json", {"x-count-tokens": "true"})
    plain = post(endpoint.name, body, "application/json")
    wrong = post(endpoint.name, b'{"texts": [7]}', "application/json", {"x-count-tokens": "true"})
    assert asked.headers["x-token-count"] == "8" and asked.content == plain.content
    assert "x-token-count" not in {*plain.headers, *wrong.headers} and wrong.status_code == 422

FORMS = [
    (b"a parcel", "text/plain; charset=utf-8"), (b'"a parcel"', "application/json"), (b"a parcel", "application/octet-stream"),
    (b'{"text": "a parcel"}', "application/json"), (b'{"text": "a parcel"}', "application/octet-stream")]

@pytest.mark.parametrize("body, kind", FORMS)
def test_forms_of_a_request(endpoint, local, body, kind):
    assert endpoint.post(body, kind).json() == local.handler.embed(["a parcel"])[0].tolist()

@pytest.mark.parametrize("body, status", [(b'{"text": "a par', 400), (b'["a", 1]', 422), (b"", 422), (b'"\\ud83d"', 422)])
def test_a_broken_body_is_an_error_in_words(endpoint, body, status):
    response = endpoint.post(body, "application/json")
    assert response.status_code == status and len(response.json()["error"]["message"]) > 10, response.text


def test_retriever_travels(tmp_path, local):
    "Packed, unpacked and loaded in a worker: the same ids and scores"
    titles = ["a red jacket", "a mobile phone with its charger", "a mountain bicycle"]
    items = Retriever(local.handler.embed(titles), ids=["j", "p", "b"], payloads=[{"title": t} for t in titles])
    (tmp_path / "search.py").write_text("""
from pathlib import Path
from zztoolkit import Handler
from zztoolkit.text import Retriever
class Search(Handler):
    def initialize(self, context):
        super().initialize(context)
        self.items = Retriever.load(Path(context.system_properties["model_dir"], "items"))
    def preprocess(self, requests): return requests
    def inference(self, queries): return [self.items.search(q, 2) for q in queries]
    def postprocess(self, found): return [dict(zip(ids.tolist(), scores.tolist())) for ids, scores in found]
""")
    query = local.handler.embed(["something to ride"])[0]
    folder = items.save(tmp_path / "items")
    mar = pack("search", tmp_path / "search.py", store=tmp_path / "store", extra_files=[folder], example=query.tolist(), batch_size=4)
    names = ZipFile(mar.path).namelist()
    assert {"items/vectors.npy", "items/items.json", "items/retriever.json"} <= {*names}
    ZipFile(mar.path).extractall(tmp_path / "unpacked")
    again = Retriever.load(tmp_path / "unpacked" / "items")
    assert again.search(query, 3)[0].tolist() == items.search(query, 3)[0].tolist() and again.search(query, 1)[0] == ["b"]
    assert np.array_equal(again.search(query, 3)[1], items.search(query, 3)[1])

def test_engines_agree():
    "numpy and faiss, one query or many, equal ids and scores to six digits"
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((12_000, 96), dtype=np.float32)
    queries = rng.standard_normal((20, 96), dtype=np.float32)
    exact, fast = Retriever(vectors, engine="numpy"), Retriever(vectors)
    assert fast.engine == "faiss" and "10,000 items or more" in repr(fast)
    (a, x), (b, y) = exact.search(queries, 50), fast.search(queries, 50)
    assert np.array_equal(a, b) and np.allclose(x, y, rtol=1e-5)
    for r in (exact, fast):
        ids, scores = r.search(queries, 50)
        assert all(np.array_equal(r.search(q, 50)[1], s) for q, s in zip(queries, scores))
        assert (np.diff(scores) <= 0).all()

def test_without_faiss_it_is_reported(monkeypatch):
    import zztoolkit.text.search as index
    monkeypatch.setattr(index, "installed", lambda dist: "")
    monkeypatch.setitem(sys.modules, "faiss", None)
    vectors = np.ones((10_000, 2))
    assert "is not installed" in repr(Retriever(vectors))
    with pytest.raises(ToolkitError, match="pip install 'zztoolkit\\[faiss\\]'"): Retriever(vectors, engine="faiss")

def test_saved_files_hold_no_pickle(tmp_path):
    Retriever([[1, 2]], ids=["a"]).save(tmp_path / "items")
    assert np.load(tmp_path / "items" / "vectors.npy", allow_pickle=False).tolist() == [[1, 2]]
    assert json.loads((tmp_path / "items" / "items.json").read_text()) == {"ids": ["a"], "payloads": []}

def test_a_killed_save_leaves_the_old_one(tmp_path, monkeypatch):
    folder = Retriever([[1, 2]]).save(tmp_path / "items")
    def full(*args, **kwargs): raise OSError("no space left on device")
    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError): Retriever([[3, 4]]).save(folder)
    assert Retriever.load(folder).vectors.tolist() == [[1, 2]]
    assert [p.name for p in tmp_path.iterdir()] == ["items"]
