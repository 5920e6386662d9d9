"""The search of films in `handlers/`: an encoder, an index and a ranker in one service"""
from __future__ import annotations

import json

import numpy as np, pytest

from zztoolkit import offline, samples
from zztoolkit.archive.packing import pack
from zztoolkit.benchmarks.demo import handler_module, HANDLERS
from zztoolkit.benchmarks.pipeline_search import compile_search_models
from zztoolkit.errors import InputError
from zztoolkit.serving.rollout import deploy
from zztoolkit.serving.server import make_server
from zztoolkit.text import Retriever, TextEmbedder

pytestmark = pytest.mark.slow

QUESTIONS = [{"query": q, "user": u, "top": 3} for q in ("a journey through space", "love", "dinosaurs " * 30) for u in (7, 196)]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    "What is packed: models by stage, the folder with the files, and the embedder"
    folder = tmp_path_factory.mktemp("search")
    models = compile_search_models(folder)
    return models, folder, TextEmbedder.local(models["vector"], folder)

@pytest.fixture(scope="module")
def module(): return handler_module("search")

@pytest.fixture(scope="module")
def local(module, parts): return module.Search.local(parts[0], parts[1])

@pytest.fixture(scope="module")
def mar(parts, tmp_path_factory):
    models, folder, _ = parts
    files = [folder / "tokenizer.json", folder / "films", HANDLERS / "recommendation.py"]
    return pack("search", HANDLERS / "search.py", models, store=tmp_path_factory.mktemp("store"), features=folder / "features",
                extra_files=files, example=QUESTIONS[0], batch_size=8, max_batch_delay=20)


def test_stages_one_by_one(module, parts, local):
    "An embedder, a retriever and the ranker, called as what they are, find the same"
    models, folder, embedder = parts
    films = Retriever.load(folder / "films")
    ranker = module.Recommendation.local(models["rated"], folder)
    for q in QUESTIONS:
        near, nearness = films.search(embedder.predict(q["query"]), 30)
        rated = ranker.predict({"user": q["user"], "candidates": near.tolist(), "top": 3})
        answer = local.predict(q)
        assert [(f["film"], f["score"]) for f in answer] == [(r["film"], r["score"]) for r in rated]
        assert [f["nearness"] for f in answer] == [round(dict(zip(near.tolist(), nearness.tolist()))[f["film"]], 3) for f in answer]

def test_what_is_found_is_about_the_query(parts):
    "Words that no title has: genres and meaning are found"
    _, folder, embedder = parts
    films, (_, _, table) = Retriever.load(folder / "films"), samples.movielens()
    genres = table.set_index("film").genres
    for query, genre in (("a western", "Western"), ("an animated cartoon for kids", "Animation"), ("a scary movie", "Horror")):
        near, _ = films.search(embedder.handler.embed([query])[0], 20)
        assert np.mean([genre in genres[f] for f in near]) > 0.5, query

def test_alone_and_together(local):
    assert local.predict(QUESTIONS) == [local.predict(q) for q in QUESTIONS]

@pytest.mark.parametrize("wrong", [
    {"query": "", "user": 7}, {"query": 7, "user": 7}, {"query": "love"}, {"query": "love", "user": "Ann"},
    {"query": "love", "user": 7, "top": 31}, {"query": "love", "user": 7, "top": True}, ["love"], None])
def test_a_wrong_request_fails_alone(local, wrong):
    "Beside good ones, with an error that is the client's"
    good = QUESTIONS[0]
    first, error, last = local.predict([good, wrong, good], return_exceptions=True)
    assert first == last == local.predict(good)
    assert isinstance(error, InputError) and len(str(error)) > 10

@pytest.mark.parametrize("name", ["torchserve", "mosec"])
def test_on_a_server(mar, local, name):
    "The same films and scores as here, to the last digit, and metrics of the pipeline's own stages"
    with make_server(name) as server:
        search = deploy(server, mar)
        assert search.predict(QUESTIONS * 3) == local.predict(QUESTIONS) * 3
        results = search.predict([QUESTIONS[0], {**QUESTIONS[0], "query": " "}], return_exceptions=True)
        assert results[0] == local.predict(QUESTIONS[0]) and str(results[1]).startswith("422 InputError: the text is empty")
        stages = search.read_metrics().stages
        assert {"question", "vector", "near", "rated", "answer"} <= {*stages}

def test_offline(mar, local, tmp_path):
    "A table of queries: the same answers, in other batches"
    import pandas as pd
    pd.DataFrame(QUESTIONS * 4).to_parquet(tmp_path / "queries.parquet")
    offline.run(mar.path, tmp_path / "queries.parquet", tmp_path / "answers", answers="json", processes=1, batch=5)
    answers = [json.loads(a) for a in offline.read(tmp_path / "answers").answer]
    assert answers == local.predict(QUESTIONS) * 4
