"""Health, models, keys, overload, time limits and the OpenAPI document."""

import asyncio
import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from configs.settings import Settings
from serve_app import rehearsal
from serve_app.app import build_app
from tests.assets import calibration_directory
from tests.local.client import LocalClient
from tests.photos import data_uri, jpeg
from tests.waiting import PATIENCE_S, wait_until


def start(app_args: dict[str, Any], data: Path, name: str, **settings: Any) -> LocalClient:
    app = build_app({**app_args, "data_dir": str(data), "classifiers": {}, **settings})
    return LocalClient.serving(app, name)


def test_health(client: LocalClient) -> None:
    assert client.get("/health/live").json()["status"] == "alive"
    ready = client.get("/health/ready")
    assert ready.status == 200
    assert ready.json() == {
        "status": "ready",
        "dependencies": {
            "preprocessor": "ready",
            "index": "ready",
            "clip": "ready",
            "news": "ready",
            "absent": "unavailable",
        },
    }


def test_ready_waits_for_the_rehearsal_but_not_for_ever(
    app_args: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, entered = threading.Event(), threading.Event()

    async def held(*_: object) -> None:
        entered.set()
        await asyncio.to_thread(go.wait, PATIENCE_S)

    monkeypatch.setattr("serve_app.gateway.rehearse", held)
    patient = start(app_args, tmp_path / "patient", "patient", gateway={"health_timeout_s": PATIENCE_S})
    assert entered.is_set()
    asked = threading.Thread(target=lambda: answers.append(patient.get("/health/ready")))
    answers: list[Any] = []
    asked.start()
    try:
        assert patient.get("/health/live").status == 200  # in whose time the other would have been answered
        assert patient.get("/v1/models").status == 200
        assert not answers
        hasty = start(app_args, tmp_path / "hasty", "hasty", gateway={"health_timeout_s": 0.1})
        wait_until(lambda: hasty.get("/health/ready").json()["status"] == "ready", what="the hasty, ready")
        assert not answers
    finally:
        go.set()
    asked.join(timeout=PATIENCE_S)
    assert answers[0].json()["status"] == "ready"


def test_models(client: LocalClient, model_directories: dict[str, Path]) -> None:
    assert client.get("/health/ready").status == 200  # so the gateway's own requests are over
    models = {m["id"]: m for m in client.get("/v1/models").json()["data"]}
    assert set(models) == {"clip", "news", "absent"}
    clip = models["clip"]
    assert (clip["object"], clip["task"], clip["state"], clip["dimensions"]) == (
        "model",
        "embedding",
        "ready",
        16,
    )
    assert str(model_directories["clip"]) in clip["source"]
    assert (clip["engine"], clip["precision"], len(clip["fingerprint"])) == ("openvino", "fp32", 64)
    assert clip["agreement"] is None
    assert models["news"]["labels"] == ["world", "sport", "science"]
    assert models["absent"]["state"] == "unavailable"
    assert models["absent"]["notes"]
    assert client.get("/v1/models/clip").json() == clip


def test_an_int8_model_says_how_near_it_is_to_fp32(
    app_args: dict[str, Any], model_directories: dict[str, Path], tmp_path: Path
) -> None:
    int8 = {
        "calibration": str(calibration_directory(tmp_path / "set")),
        "min_cosine": 0.9,
        "min_agreement": 0,
    }
    clip = {"source": str(model_directories["clip"]), "precision": "int8", "int8": int8}
    client = start(app_args, tmp_path, "int8", clip=clip)
    model = client.get("/v1/models/clip").json()
    assert (model["engine"], model["precision"]) == ("openvino", "int8")
    assert 0.9 < model["agreement"]["cosine"] < 1
    assert 0 <= model["agreement"]["top1"] <= 1
    assert client.post("/v1/embeddings", json_body={"input": ["a cat"]}).status == 200


def test_home_and_documents(client: LocalClient) -> None:
    home = client.get("/")
    assert (home.status, home.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert b"/docs" in home.content
    docs = client.get("/docs")
    assert docs.status == 200
    sources = re.findall(rb'(?:src|href)="([^"]+)"', docs.content)
    assert len(sources) >= 3
    for source in sources:
        assert source.startswith(b"/"), "the page must need no other host"
        assert client.get(source.decode()).status == 200


BASIC = {"authorization": "Basic right"}


def test_keys(app_args: dict[str, Any], tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("right\nother\n")
    client = start(app_args, tmp_path / "data", "keys", auth={"keys_file": str(keys)})
    body = {"input": "a"}
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "right"}, BASIC):
        answer = client.post("/v1/embeddings", json_body=body, headers=headers)
        assert answer.status == 401
        assert answer.json()["error"]["type"] == "authentication_error"
        assert answer.headers["www-authenticate"] == "Bearer"
    for key in ("right", "other"):
        headers = {"authorization": f"Bearer {key}"}
        assert client.post("/v1/embeddings", json_body=body, headers=headers).status == 200
    open_paths = ("/health/live", "/health/ready", "/docs", "/openapi.json", "/")
    for path in (*open_paths, "/static-offline-docs/swagger-ui.css"):
        assert client.get(path).status == 200
    assert client.get("/v1/models").status == 401
    assert client.get("/health/live/../v1/models").status == 401


def test_the_rehearsal_takes_the_way_of_callers_and_past_a_wanted_key(
    app_args: dict[str, Any], tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("right\n")
    settings = {
        "auth": {"keys_file": str(keys)},
        "embedding_cache": Settings().embedding_cache.model_dump(),
        "gateway": {"health_timeout_s": 60},
    }
    client = start(app_args, tmp_path / "data", "rehearsed", **settings)
    assert client.get("/health/ready").status == 200
    headers = {"authorization": "Bearer right"}
    for content in (rehearsal.text(0), data_uri(rehearsal.image(0), "image/gif")):
        answer = client.post("/v1/embeddings", json_body={"input": [content]}, headers=headers)
        assert 'cache;desc="hit=1"' in answer.headers["server-timing"]


def test_docs_can_be_closed(app_args: dict[str, Any], tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("right\n")
    auth = {"keys_file": str(keys), "open_docs": False}
    client = start(app_args, tmp_path / "data", "closed", auth=auth)
    assert client.get("/docs").status == 401
    assert client.get("/health/live").status == 200


def test_429_tells_when_to_come_back_the_same_for_single_and_batch(
    app_args: dict[str, Any], tmp_path: Path
) -> None:
    limits = {**app_args["limits"], "max_inflight_images": 4, "retry_after_s": 7}
    client = start(app_args, tmp_path, "overload", limits=limits)
    gate = threading.Barrier(12)

    def post(size: int) -> tuple[int, str | None]:
        gate.wait()
        images = [data_uri(jpeg("motorcycle"))] * size
        answer = client.post("/v1/embeddings", json_body={"input": images})
        if answer.status == 429:
            error = answer.json()["error"]
            assert (error["type"], error["code"]) == ("rate_limit_error", "overloaded")
            assert "4 may be at once" in error["message"]
        return answer.status, answer.headers.get("retry-after")

    with ThreadPoolExecutor(12) as pool:
        statuses = list(pool.map(post, [1, 4] * 6))
    assert {status for status, _ in statuses} == {200, 429}
    assert {after for status, after in statuses if status == 429} == {"7"}
    # Once the load is gone, everything is taken again.
    assert client.post("/v1/embeddings", json_body={"input": ["a"] * 4}).status == 200


def test_408_past_the_time_limit(app_args: dict[str, Any], tmp_path: Path) -> None:
    limits = {**app_args["limits"], "request_timeout_s": 0.001}
    client = start(app_args, tmp_path, "hurry", limits=limits)
    answer = client.post("/v1/embeddings", json_body={"input": [data_uri(jpeg("motorcycle"))] * 4})
    assert answer.status == 408
    assert answer.json()["error"]["type"] == "timeout_error"
    assert "0.001 s" in answer.json()["error"]["message"]


def test_the_openapi_document_describes_requests_answers_and_errors(client: LocalClient) -> None:
    document = client.get("/openapi.json").json()
    embeddings = document["paths"]["/v1/embeddings"]["post"]
    assert set(embeddings["requestBody"]["content"]) >= {"application/json", "image/*", "multipart/form-data"}
    assert {"200", "400", "401", "413", "422", "429"} <= set(embeddings["responses"])
    schemas = document["components"]["schemas"]
    assert {"EmbeddingRequest", "SearchRequest", "UpsertRequest", "Error"} <= set(schemas)
    references = set(_references(document))
    assert references <= {f"#/components/schemas/{name}" for name in schemas}
    assert json.dumps(document)


def _references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [r for value in node.values() for r in _references(value)]
    if isinstance(node, list):
        return [r for value in node for r in _references(value)]
    return []


def test_a_caller_who_hangs_up_leaves_the_others_alone(client: LocalClient) -> None:
    body = {"input": [data_uri(jpeg("motorcycle"))] * 4}
    pending = [client.submit("POST", "/v1/embeddings", body) for _ in range(8)]
    for request in pending[::2]:
        request.cancel()
    assert [request.result().status for request in pending[1::2]] == [200] * 4
    assert client.get("/health/ready").status == 200
    assert_nothing_in_flight(client)


def test_499_a_caller_who_goes_in_the_middle_of_the_body(
    client: LocalClient, caplog: pytest.LogCaptureFixture
) -> None:
    headers = {"content-type": "image/jpeg", "content-length": "1000"}
    gone = client.submit("POST", "/v1/embeddings", headers=headers, hangs_up=True)
    assert gone.end() == []
    assert_nothing_in_flight(client)
    assert not [record for record in caplog.records if record.exc_info]


def assert_nothing_in_flight(client: LocalClient) -> None:
    """At once, or as soon as the cancelled requests have ended."""

    def queued() -> int:
        return int(client.get("/v1/models/clip").json()["stats"]["queue_absolute"])

    wait_until(lambda: not queued(), what="an empty queue", shown=queued)


def test_a_model_answers_to_what_it_was_loaded_from_and_to_nothing_it_is_not(
    client: LocalClient, model_directories: dict[str, Path]
) -> None:
    name = str(model_directories["clip"])
    answer = client.post("/v1/embeddings", json_body={"model": name, "input": "a"})
    assert (answer.status, answer.json()["model"]) == (200, name)
    for other in ("openai/clip-vit-base-patch32", "auto", "starter", ""):
        assert client.post("/v1/embeddings", json_body={"model": other, "input": "a"}).status == 404
