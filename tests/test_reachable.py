"""Whether the hub can be reached: asked once, quickly, and without leaving the library switched off."""

import socket
import threading
import time

import pytest
from huggingface_hub import constants

from glot import hub
from glot.given import split_paths


@pytest.fixture
def fresh(monkeypatch):
    """A process that has not asked yet, and has no proxy."""
    monkeypatch.setattr(hub, "_known", {})
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_a_closed_port_is_asked_once(fresh, monkeypatch):
    monkeypatch.setattr(hub, "endpoint", lambda: "http://127.0.0.1:9")
    assert not hub.is_reachable()
    monkeypatch.setattr(hub, "_takes_connections", lambda *_: pytest.fail("asked again"))
    assert not hub.is_reachable()
    monkeypatch.setattr(hub, "_known", {"answers": False, "until": time.monotonic() - 1})
    monkeypatch.setattr(hub, "_takes_connections", lambda *_: True)
    assert hub.is_reachable()  # the network has come back


def test_an_open_port_takes_connections_and_a_proxy_is_trusted(fresh, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(hub, "endpoint", lambda: f"http://127.0.0.1:{server.getsockname()[1]}")
        assert hub.is_reachable()
    monkeypatch.setattr(hub, "endpoint", lambda: "https://hub.invalid")
    monkeypatch.setattr(hub, "_known", {})
    monkeypatch.setenv("no_proxy", "localhost")
    assert not hub.is_reachable()  # a list of exceptions is no proxy
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert hub.is_reachable()


def test_threads_leave_the_switch_as_it_was(fresh, monkeypatch):
    monkeypatch.setattr(hub, "is_reachable", lambda: False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    seen, first_is_in, first_may_leave = [], threading.Event(), threading.Event()

    def first():
        with hub.cache_where_unreachable():
            first_is_in.set()
            first_may_leave.wait(5)

    def second():
        first_is_in.wait(5)
        with hub.cache_where_unreachable():
            seen.append(constants.HF_HUB_OFFLINE)

    threads = [threading.Thread(target=work) for work in (first, second)]
    for thread in threads:
        thread.start()
    first_is_in.wait(5)
    time.sleep(0.1)
    assert seen == []  # the second one waits at the door
    first_may_leave.set()
    for thread in threads:
        thread.join()
    assert seen == [True] and constants.HF_HUB_OFFLINE is False
    with hub.cache_where_unreachable(is_local=True):
        assert constants.HF_HUB_OFFLINE is False


def test_lists_of_paths(tmp_path):
    (tmp_path / "a,b").mkdir()
    assert split_paths(str(tmp_path / "a,b")) == [tmp_path / "a,b"]
    assert [path.name for path in split_paths("a, b,,")] == ["a", "b"]
    long = ",".join(f"run-{place}" for place in range(99))
    assert len(split_paths(long)) == 99  # longer than any file's name
