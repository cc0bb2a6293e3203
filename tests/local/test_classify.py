"""`/v1/classify` and `/v1/rerank` through the whole application, with tiny models."""

from typing import Any

import numpy as np
import pytest

from tests.local.client import LocalClient
from tests.photos import data_uri, jpeg

NEWS = {"world", "sport", "science"}


def classify(client: LocalClient, **body: Any) -> Any:
    answer = client.post("/v1/classify", json_body=body)
    assert answer.status == 200, answer.content
    return answer.json()


def test_a_text_classifier_gives_all_its_labels_sorted(client: LocalClient) -> None:
    body = classify(client, model="news", input=["the match was won", "a new planet"])
    assert (body["object"], body["model"], len(body["data"])) == ("classify", "news", 2)
    for row in body["data"]:
        scores = [label["score"] for label in row]
        assert {label["label"] for label in row} == NEWS
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) == pytest.approx(1, abs=1e-5)
    assert body["usage"]["prompt_tokens"] > 6


def test_raw_scores_are_the_logits_behind_the_probabilities(client: LocalClient) -> None:
    body = {"model": "news", "input": "the match was won"}
    probabilities = {row["label"]: row["score"] for row in classify(client, **body)["data"][0]}
    logits = {row["label"]: row["score"] for row in classify(client, **body, raw_scores=True)["data"][0]}
    powers = {label: np.exp(logit) for label, logit in logits.items()}
    for label in NEWS:
        assert probabilities[label] == pytest.approx(powers[label] / sum(powers.values()), abs=1e-5)


def test_top_k(client: LocalClient) -> None:
    full = classify(client, model="news", input="a")["data"][0]
    assert classify(client, model="news", input="a", top_k=1)["data"][0] == full[:1]
    assert len(classify(client, model="news", input="a", top_k=99)["data"][0]) == 3


def test_a_batch_equals_its_items(client: LocalClient) -> None:
    texts = ["short", "a rather longer line of text about a match", "mid length text"]
    together = classify(client, model="news", input=texts, raw_scores=True)["data"]
    for text, row in zip(texts, together, strict=True):
        alone = classify(client, model="news", input=text, raw_scores=True)["data"][0]
        assert {r["label"]: r["score"] for r in row} == pytest.approx(
            {r["label"]: r["score"] for r in alone}, abs=1e-4
        )


def test_zero_shot_is_the_softmax_of_scaled_cosines(client: LocalClient) -> None:
    labels = ["cat", "dog", "rocket"]
    image = data_uri(jpeg("chelsea"))
    row = classify(client, model="clip", input=[image], labels=labels, raw_scores=True)["data"][0]
    prompts = [f"a photo of a {label}" for label in labels]
    answer = client.post("/v1/embeddings", json_body={"input": [image, *prompts]}).json()
    vectors = np.array([r["embedding"] for r in answer["data"]])
    cosines = dict(zip(labels, vectors[1:] @ vectors[0], strict=True))
    scale = row[0]["score"] / cosines[row[0]["label"]]
    for label in row:
        assert label["score"] == pytest.approx(scale * cosines[label["label"]], rel=1e-3)


def test_a_template_of_one_s_own(client: LocalClient) -> None:
    asked = {
        "model": "clip",
        "input": data_uri(jpeg("chelsea")),
        "labels": ["cat", "dog"],
        "raw_scores": True,
    }
    own = classify(client, **asked, template="{label}")["data"]
    assert own != classify(client, **asked)["data"]
    assert client.post("/v1/classify", json_body={**asked, "template": "no place"}).status == 422


def test_a_raw_image_body_with_labels_in_the_query(client: LocalClient) -> None:
    answer = client.post(
        "/v1/classify",
        content=jpeg("chelsea"),
        headers={"content-type": "image/jpeg"},
        params={"model": "clip", "labels": "cat, dog"},
    )
    asked = {"model": "clip", "input": data_uri(jpeg("chelsea")), "labels": ["cat", "dog"]}
    assert answer.json()["data"] == classify(client, **asked)["data"]


def test_texts_are_classified_zero_shot_too(client: LocalClient) -> None:
    row = classify(client, model="clip", input="a text", labels=["a", "b"])["data"][0]
    assert {label["label"] for label in row} == {"a", "b"}


def test_no_input_no_labels(client: LocalClient) -> None:
    assert classify(client, model="news", input=[])["data"] == []
    assert classify(client, model="clip", input=[], labels=["a"])["data"] == []


def test_totals_per_group(client: LocalClient) -> None:
    texts = ["the match was won", "a new planet", "the vote", "one more match"]
    names = ["alice", "bob", "alice", "alice"]
    inputs = [{"text": text, "group": name} for text, name in zip(texts, names, strict=True)]
    body = classify(client, model="news", input=inputs, aggregate="group")
    assert [(group["group"], group["count"]) for group in body["groups"]] == [("alice", 3), ("bob", 1)]
    for group in body["groups"]:
        rows = [row for row, name in zip(body["data"], names, strict=True) if name == group["group"]]
        for label in group["scores"]:
            own = [s["score"] for row in rows for s in row if s["label"] == label["label"]]
            assert label["score"] == pytest.approx(np.mean(own), abs=1e-5)
        tops = [row[0]["label"] for row in rows]
        assert tops.count(group["label"]) == max(map(tops.count, tops))


def test_totals_need_every_input_s_group(client: LocalClient) -> None:
    inputs = [{"text": "a", "group": "alice"}, "b"]
    answer = client.post("/v1/classify", json_body={"model": "news", "input": inputs, "aggregate": "group"})
    assert (answer.status, answer.json()["error"]["param"]) == (422, "input[1]")


def rerank(client: LocalClient, **body: Any) -> Any:
    answer = client.post("/v1/rerank", json_body=body)
    assert answer.status == 200, answer.content
    return answer.json()


def test_rerank_orders_texts_and_images_by_cosine(client: LocalClient) -> None:
    documents = ["a dog", data_uri(jpeg("coffee")), {"text": "a cat"}]
    body = rerank(client, query="a cat", documents=documents)
    assert body["object"] == "rerank"
    results = body["results"]
    assert sorted(r["index"] for r in results) == [0, 1, 2]
    assert (results[0]["index"], results[0]["relevance_score"]) == (2, pytest.approx(1, abs=1e-4))
    scores = [r["relevance_score"] for r in results]
    assert scores == sorted(scores, reverse=True)
    assert "document" not in results[0]


def test_rerank_by_an_image_top_n_and_documents(client: LocalClient) -> None:
    image = data_uri(jpeg("coffee"))
    documents = ["a dog", image, {"text": "a cat"}]
    results = rerank(client, query={"image": image}, documents=documents, top_n=1, return_documents=True)[
        "results"
    ]
    assert [r["index"] for r in results] == [1]
    shown = rerank(client, query="a dog", documents=documents, top_n=1, return_documents=True)["results"]
    assert shown[0]["document"] == "a dog"
