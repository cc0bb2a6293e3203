"""Classification: `/v1/classify`, by a text classifier or zero-shot by the encoder."""

import asyncio
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray
from starlette.responses import Response

from configs.settings import LimitSettings
from deployments.models.base import ModelInfo
from deployments.models.scores import scores_of
from serve_app import body, schemas
from serve_app.errors import ApiError
from serve_app.inputs import Content
from serve_app.limits import check_text
from serve_app.middleware import Timing, timing_of
from serve_app.openapi import accepts
from serve_app.responses import json_response
from serve_app.routes.context import envelope, gateway_of

router = APIRouter(tags=["classification"])

LABEL_BYTES: Final = 45  # of a label's score in an answer, and what is around both
RANKED_AT_ONCE: Final = 10_000  # scores; of more, which take some 10 ms, the answer is made in a thread


@dataclass(frozen=True)
class Asked:
    """A classification request, whatever content type it came as."""

    contents: list[Content]
    request: schemas.ClassifyRequest
    groups: list[str]  # of each content, if it is to be aggregated


@dataclass(frozen=True)
class Result:
    """Logits float32[n, labels] and what made them."""

    info: ModelInfo
    labels: list[str]
    logits: NDArray[np.float32]
    tokens: int


@router.post(
    "/v1/classify",
    response_model=schemas.ClassifyResponse,
    openapi_extra=accepts(schemas.ClassifyRequest, images=True),
)
@router.post("/classify", include_in_schema=False)
async def classify(request: Request) -> Response:
    """Labels with scores, highest first, one list per input.

    With `labels` the encoder scores each input against them (zero-shot, softmax). A raw image
    body works with `?model=clip&labels=cat,dog`. `raw_scores` gives logits.
    """
    gateway = gateway_of(request)
    asked = await _read(request)
    name = gateway.inference.name_of(asked.request.model)
    labels = asked.request.labels or []
    with gateway.admissions.admit([*asked.contents, *labels]):
        if name == gateway.inference.encoder_name:
            result = await _zero_shot(request, asked, timing_of(request))
        elif name in gateway.inference.heads:
            result = await _image(request, name, asked, timing_of(request))
        else:
            result = await _text(request, name, asked, timing_of(request))
    if result.logits.size <= RANKED_AT_ONCE:
        return _answer(request, asked, result)
    return await asyncio.to_thread(_answer, request, asked, result)


def _answer(request: Request, asked: Asked, result: Result) -> Response:
    scores = result.logits if asked.request.raw_scores else scores_of(result.logits, result.info.scores)
    answer: dict[str, Any] = {
        "object": "classify",
        "model": asked.request.model,
        "data": [_ranked(result.labels, row, asked.request.top_k) for row in scores],
    }
    if asked.request.aggregate:
        answer["groups"] = _groups(asked.groups, result.labels, scores)
    if result.info.version is not None:
        answer["version"] = result.info.version
    return json_response(answer | envelope(request, result.tokens))


async def _read(request: Request) -> Asked:
    gateway = gateway_of(request)
    limits = gateway.settings.limits
    if not body.is_json(body.media_type_of(request)):
        images, fields = await body.read_images(request, limits, body.JSON)
        given: dict[str, Any] = {"model": gateway.inference.encoder_name, **fields, "input": []}
        if "labels" in given:
            given["labels"] = [label.strip() for label in given["labels"].split(",", limits.max_labels)]
        asked = body.validate(given, schemas.ClassifyRequest)
        if asked.aggregate:
            raise ApiError(
                422, "group_missing", "aggregate needs JSON, whose inputs name groups", "aggregate"
            )
        return Asked(list(images), asked, [])
    asked = await body.read_json(request, schemas.ClassifyRequest, limits.max_body_bytes)
    values = asked.input if isinstance(asked.input, list) else [asked.input]
    groups = _group_names(values) if asked.aggregate else []
    return Asked(await gateway.inputs.read(values, asked.modality), asked, groups)


async def _zero_shot(request: Request, asked: Asked, timing: Timing) -> Result:
    """Cosine of each input with each label's prompt, times the model's logit scale."""
    gateway = gateway_of(request)
    labels = asked.request.labels
    if not labels:
        name = gateway.inference.encoder_name
        message = f"model {name!r} needs labels to choose from, for instance ['cat', 'dog']"
        raise ApiError(422, "labels_missing", message, "labels")
    if len(labels) > gateway.settings.limits.max_labels:
        message = f"{len(labels)} labels; at most {gateway.settings.limits.max_labels} are accepted"
        raise ApiError(413, "too_many_labels", message, "labels")
    info = await gateway.inference.info(gateway.inference.encoder_name)
    template = asked.request.template or info.label_template or "{label}"
    check_text(template, gateway.settings.limits, "template")
    for index, label in enumerate(labels):
        check_text(label, gateway.settings.limits, f"labels[{index}]")
    _check_answer(asked, labels, gateway.settings.limits)
    prompts = [template.replace("{label}", label) for label in labels]
    count = len(asked.contents)
    request.state.named = lambda i: f"input[{i}]" if i < count else f"labels[{i - count}]"
    embedded = await gateway.inference.embed([*asked.contents, *prompts], timing)
    inputs, prompt_vectors = np.split(embedded.vectors, [count])
    logits = (info.logit_scale or 1.0) * (inputs @ prompt_vectors.T)
    return Result(info, labels, logits.astype(np.float32), embedded.tokens)


def _check_answer(asked: Asked, labels: list[str], limits: LimitSettings) -> None:
    """Raises 413: each input comes back with each of the labels, or `top_k` of them, each group with all."""
    count = len(asked.contents)
    longest = sorted((len(label.encode()) + LABEL_BYTES for label in labels), reverse=True)
    size = count * sum(longest[: asked.request.top_k]) + len(set(asked.groups)) * sum(longest)
    if size > limits.max_answer_bytes:
        message = (
            f"{count} inputs with {len(labels)} labels make an answer of about {size} bytes, and it may have "
            f"{limits.max_answer_bytes}; give top_k, or send fewer inputs at once"
        )
        raise ApiError(413, "too_many_results", message, "labels")


async def _text(request: Request, name: str, asked: Asked, timing: Timing) -> Result:
    """By a text classifier."""
    gateway = gateway_of(request)
    _check_contents(name, asked, str)
    if not asked.contents:
        return await _nothing(request, name)
    texts = [content for content in asked.contents if isinstance(content, str)]
    logits, info, tokens = await gateway.inference.classify(name, texts, timing)
    return Result(info, list(info.labels), logits, tokens)


async def _image(request: Request, name: str, asked: Asked, timing: Timing) -> Result:
    """By a head on the image tower."""
    gateway = gateway_of(request)
    _check_contents(name, asked, bytes)
    if not asked.contents:
        return await _nothing(request, name)
    logits, info = await gateway.inference.classify_images(name, asked.contents, timing)
    return Result(info, list(info.labels), logits, 0)


async def _nothing(request: Request, name: str) -> Result:
    info = await gateway_of(request).inference.info(name)
    return Result(info, list(info.labels), np.empty((0, len(info.labels)), np.float32), 0)


def _check_contents(name: str, asked: Asked, kind: type) -> None:
    """Raises 422 unless every content is of `kind` (str a text, bytes an image) and no labels are given."""
    if asked.request.labels is not None:
        message = f"model {name!r} has labels of its own; leave labels out"
        raise ApiError(422, "labels_not_taken", message, "labels")
    takes, is_not = ("text", "an image") if kind is str else ("images", "text")
    for index, content in enumerate(asked.contents):
        if not isinstance(content, kind):
            message = f"model {name!r} classifies {takes}; this input is {is_not}"
            raise ApiError(422, "wrong_modality", message, f"input[{index}]")


def _group_names(values: list[schemas.ClassifyInput]) -> list[str]:
    names = []
    for index, value in enumerate(values):
        name = None if isinstance(value, str) else value.group
        if name is None:
            message = 'aggregate needs every input as {"text": …, "group": …}; this one names no group'
            raise ApiError(422, "group_missing", message, f"input[{index}]")
        names.append(name)
    return names


def _groups(names: list[str], labels: list[str], scores: NDArray[np.float32]) -> list[dict[str, Any]]:
    """Per group, in the order they first appear: count, majority label and mean scores."""
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, []).append(row)
    groups = []
    for name, members in rows.items():
        mean = scores[members].mean(axis=0)
        votes = np.bincount(scores[members].argmax(axis=1), minlength=len(labels))
        majority = max(range(len(labels)), key=lambda label: (votes[label], mean[label]))
        count, label = len(members), labels[majority]
        groups.append({"group": name, "count": count, "label": label, "scores": _ranked(labels, mean, None)})
    return groups


def _ranked(labels: list[str], scores: NDArray[np.float32], top_k: int | None) -> list[dict[str, Any]]:
    order = np.argsort(-scores, kind="stable")[:top_k]
    return [{"label": labels[i], "score": float(scores[i])} for i in order]
