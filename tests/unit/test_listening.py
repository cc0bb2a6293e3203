"""Where a server listens: one gateway itself, several behind Serve's proxy, a taken port nowhere."""

import pydoc
import socket
from typing import Any

import pytest
from ray.serve._private import proxy
from ray.serve._private.http_util import MessageQueue

from configs.settings import ScaleSettings, SettingsError
from serve_app import ingress
from serve_app.listening import listening
from tests.server import free_port


def test_a_single_gateway_listens_itself_and_the_proxy_elsewhere() -> None:
    port = free_port()
    place = listening({"host": "127.0.0.1", "port": port, "request_timeout_s": 5}, ScaleSettings())
    assert place.url == f"http://127.0.0.1:{port}"
    assert place.environment["RAY_SERVE_ENABLE_DIRECT_INGRESS"] == "1"
    assert place.environment["RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT"] == str(port)
    assert "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH" not in place.environment  # Serve limits the time
    assert place.proxy["port"] not in (0, port)
    assert (place.proxy["host"], place.proxy["request_timeout_s"]) == ("127.0.0.1", 5)


def test_a_single_gateway_answers_itself_on_its_own_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    place = listening({"host": "127.0.0.1", "port": free_port()}, ScaleSettings())
    monkeypatch.setattr(proxy, "MessageQueue", MessageQueue)  # which the callback replaces
    callback: Any = pydoc.locate(place.environment["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"])
    monkeypatch.setattr(ingress, "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD", False)
    assert [middleware.cls for middleware in callback()] == [ingress.Ingress]
    monkeypatch.setattr(ingress, "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD", True)
    assert callback() == []


@pytest.mark.parametrize("scale", [ScaleSettings(replicas=2), ScaleSettings(max_replicas=3)])
def test_several_gateways_are_behind_the_proxy(scale: ScaleSettings) -> None:
    port = free_port()
    place = listening({"host": "127.0.0.1", "port": port}, scale)
    assert place.proxy["port"] == port
    assert place.environment == {"RAY_SERVE_ENABLE_DIRECT_INGRESS": "0"}


def test_any_free_port_and_a_taken_one() -> None:
    place = listening({"host": "127.0.0.1", "port": 0}, ScaleSettings())
    assert not place.url.endswith(":0")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"port {port} of 127.0.0.1 cannot be listened on: Address"):
            listening({"host": "127.0.0.1", "port": port}, ScaleSettings())
