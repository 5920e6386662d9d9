"""Batches that overlap in one worker of mosec: each verb has one batch at a time, and each batch its own answer"""
from __future__ import annotations

import threading, time
from concurrent.futures import ThreadPoolExecutor

import pytest

from zztoolkit.archive.packing import pack
from zztoolkit.serving.mosec.server import MosecServer
from zztoolkit.serving.rollout import deploy
from zztoolkit.serving.torchserve.config import Settings
from zztoolkit.system import wait_until

MEETING = '''
from zztoolkit import Handler
import os, threading, time

second_is_ready = threading.Event()
inside = {"preprocess": 0, "inference": 0, "postprocess": 0}

class Meeting(Handler):
    "Counts who is in each verb; the model waits for the next batch if it is asked to"
    def enter(self, verb):
        inside[verb] += 1
        assert inside[verb] == 1, f"two batches are in {verb}"
        time.sleep(0.01)
        inside[verb] -= 1
    def preprocess(self, requests):
        self.word = requests[0]
        self.enter("preprocess")
        if self.word == "second": second_is_ready.set()
        return requests
    def inference(self, inputs):
        self.enter("inference")
        if self.word == "first": assert second_is_ready.wait(10), "nobody came"
        if self.word == "die": os._exit(3)
        if self.word == "hang": time.sleep(60)
        return inputs
    def postprocess(self, outputs):
        self.enter("postprocess")
        return [f"{self.word}: {x}" for x in outputs]
'''


@pytest.fixture(scope="module")
def server():
    with MosecServer(Settings(response_timeout=3)) as running: yield running

@pytest.fixture
def meeting(server, tmp_path):
    "A worker with two lanes"
    def serve(**config):
        (tmp_path / "meeting.py").write_text(MEETING)
        version = f"{time.time_ns()}"
        return deploy(server, pack("meeting", tmp_path / "meeting.py", store=tmp_path, version=version, example="hello", **config))
    return serve

def send(server, word: str): return server.post("meeting", word.encode(), "text/plain")


@pytest.mark.slow
def test_batches_meet(server, meeting):
    "The model has one batch while the next is preprocessed: the first cannot end before"
    meeting(overlap=True)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(send, server, "first")
        time.sleep(0.3)
        second = pool.submit(send, server, "second")
        assert [first.result().text, second.result().text] == ["first: first", "second: second"]

@pytest.mark.slow
def test_one_after_the_other(server, meeting):
    "Without overlap, which is the default on a CPU, the first waits in vain"
    meeting(responseTimeout=1)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(send, server, "first")
        time.sleep(0.3)
        second = pool.submit(send, server, "second")
        assert first.result().status_code == 500 and second.result().text == "second: second"

@pytest.mark.slow
def test_one_batch_in_each_verb(server, meeting):
    "Many clients: no verb has two batches, and no batch gets another's attributes"
    meeting(overlap=True)
    words = [f"word {i}" for i in range(60)]
    with ThreadPoolExecutor(8) as pool: answers = list(pool.map(lambda w: send(server, w), words))
    assert [a.text for a in answers] == [f"{w}: {w}" for w in words]

@pytest.mark.slow
@pytest.mark.parametrize("word", ["die", "hang"])
def test_both_lanes_are_answered(server, meeting, word):
    "The worker ends with two batches: both clients hear of it at once, and a new worker takes the next"
    endpoint = meeting(overlap=True, responseTimeout=2)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(send, server, word)
        time.sleep(0.1 if word == "hang" else 0)
        second = pool.submit(send, server, word)
        bodies = [first.result(), second.result()]
    assert {(r.status_code, r.json()["message"]) for r in bodies} == {(500, "Worker died.")}
    assert wait_until(lambda: endpoint.status.ready == 1, 30) and send(server, "again").text == "again: again"

@pytest.mark.slow
def test_batches_end_before_the_worker(server, meeting):
    "Scaled down, and replaced, under load: nothing is lost"
    endpoint, stop, failed, done = meeting(overlap=True, workers=2, max_workers=2), threading.Event(), [], []

    def client():
        while not stop.is_set():
            r = send(server, "x")
            done.append(r) if r.text == "x: x" else failed.append(r)

    clients = [threading.Thread(target=client) for _ in range(6)]
    for c in clients: c.start()
    try:
        endpoint.scale(1)
        endpoint.scale(2)
        meeting(overlap=True)
    finally:
        stop.set()
        for c in clients: c.join()
    assert not failed and len(done) > 20
