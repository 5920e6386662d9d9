"""Which server does what: the tests marked `behaviour`, as a table and a record.

A test says `record_property("no", why)` where a server has said so itself and was held to it,
`record_property("note", text)` for a figure of this run, `record_property("version", text)`.
"""
from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest

from zztoolkit.display import Table

FAILED = "failed"


def pytest_addoption(parser):
    parser.addoption("--server", action="append", metavar="NAME", help="hold this server to the suite, instead of every one that is installed; repeatable")
    parser.addoption("--conformance", type=Path, metavar="JSON", help="print which server does what, compare it with this record, and write it there")
    parser.addoption("--keep", action="store_true", help="write the record although it differs")

def pytest_configure(config):
    config.addinivalue_line("markers", "behaviour(*ids, server): rows of the table of servers; without a server it is the parameter `name`")
    path = config.getoption("conformance")
    if path and not hasattr(config, "workerinput"): config.pluginmanager.register(Conformance(path, config.getoption("keep")))

def pytest_collection_modifyitems(items):
    "Let the reports of marked tests say which cell they belong to"
    for item in items:
        mark = item.get_closest_marker("behaviour")
        if not mark: continue
        server = mark.kwargs.get("server") or item.callspec.params["name"]
        text = "" if "server" in mark.kwargs else item.function.__doc__
        item.user_properties.append(("cells", (mark.args, server, text)))


class Conformance:
    "The outcomes of a run, beside those of the record"
    def __init__(self, path: Path, keep: bool):
        self.path, self.keep, self.changes = path, keep, list[str]()
        self.known = json.loads(path.read_text()) if path.exists() else {"behaviours": {}, "servers": {}}
        self.behaviours, self.servers = dict[str, str](), dict[str, dict]()

    def pytest_runtest_logreport(self, report):
        said = dict(report.user_properties)
        if "cells" not in said or report.skipped or (report.passed and report.when != "call"): return
        ids, name, text = said["cells"]
        server = self.servers.setdefault(name, {"version": "", "date": str(date.today()), "cells": {}, "notes": {}})
        server["version"] = said.get("version") or server["version"]
        for id in ids:
            if text: self.behaviours[id] = text
            if "note" in said: server["notes"][id] = said["note"]
            server["cells"][id] = worst(server["cells"].get(id, "yes"), outcome_of(report, said))

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session, exitstatus):
        for name, server in self.servers.items(): self.changes += changes(name, self.cells(name), server["cells"])
        if self.changes and not session.exitstatus and not self.keep: session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if not session.exitstatus: self.write()

    def cells(self, name: str) -> dict[str, str]: return self.known["servers"].get(name, {}).get("cells", {})

    def record(self) -> dict:
        "Return this run, with the servers of the record that it left out"
        return {"behaviours": self.known["behaviours"] | self.behaviours, "servers": self.known["servers"] | self.servers}

    def write(self): self.path.write_text(json.dumps(self.record(), indent=1, ensure_ascii=False) + "\n")

    def pytest_terminal_summary(self, terminalreporter):
        terminalreporter.section("conformance")
        terminalreporter.write_line(str(table(self.record())))
        for line in self.changes: terminalreporter.write_line(f"differs from the record: {line}")
        if self.changes and not self.keep: terminalreporter.write_line(f"if that is meant: make conformance KEEP=1, and look at {self.path.name} and the page")


def outcome_of(report, said: dict[str, str]) -> str:
    if report.failed: return FAILED
    return f"no: {said['no']}" if "no" in said else "yes"

def worst(*outcomes: str) -> str: return max(outcomes, key=lambda o: (o == FAILED, o != "yes"))

def changes(server: str, known: dict[str, str], cells: dict[str, str]) -> list[str]:
    "Return the cells that contradict a record; a new server, or a new behaviour, contradicts nothing"
    return [f"{server}, {id}: {outcome!r}, now {cells.get(id, 'not tested')!r}" for id, outcome in known.items() if cells.get(id) != outcome]

def table(record: dict) -> Table:
    "Return the table of a record: a behaviour a line, a server a column, and below it what they say"
    servers = record["servers"]
    rows = [[text, *(cell(s["cells"].get(id, "")) for s in servers.values())] for id, text in record["behaviours"].items()]
    said = [f"{name}, {id}: {outcome}{note(s, id)}" for name, s in servers.items() for id, outcome in s["cells"].items() if outcome != "yes"]
    return Table(["", *(f"{name} {s['version']}" for name, s in servers.items())], rows, ["", *said])

def cell(outcome: str) -> str: return outcome.partition(":")[0] or "not tested"

def note(server: dict, id: str) -> str: return f" ({server['notes'][id]})" if id in server["notes"] else ""
