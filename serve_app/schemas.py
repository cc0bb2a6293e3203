"""The shapes of requests and answers, as the OpenAPI document shows them."""

from typing import Annotated, Any, Literal, TypeVar

from fastapi import Path
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from deployments.models.base import THUMBNAIL_BYTES, THUMBNAIL_PX
from index.spec import IndexedKeys
from serve_app.vectors import Vector

# A list that stops at its first bad element: a million of them must not become a million messages.
Element = TypeVar("Element")
ListOf = Annotated[list[Element], Field(fail_fast=True)]
MOST_INPUTS = 100_000
"""Far beyond what the limits allow: elements are looked at one by one before they are counted by kind."""
MOST_ITEMS = 20_000
"""In one body; streams take any number."""
Count = Annotated[int, Field(ge=1, strict=True)]

CollectionName = Annotated[
    str, Path(pattern=r"^[a-z0-9_-]{1,64}$", description="1 to 64 of a-z, 0-9, _ and -")
]
ItemId = Annotated[str, Field(min_length=1, max_length=512)]
Fingerprint = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
MADE_BY = "of the model that made the vectors, as GET /v1/models shows it; must be the collection's own"
Include = Literal["metadata", "vector"]
Filter = Annotated[
    dict[str, Any],
    Field(
        description='{"must": […], "should": […], "must_not": […]} of conditions and of filters again. A '
        'condition is {"key": "a.b", "match": {"value": x} or {"any": [x, …]}}, or has "range": {"gte": 1, '
        '"lt": 5} (also gt, lte) or "exists": true in place of match. A dot in a key leads into an object; '
        "`\\.` is a dot within a name. Integers must fit 64 bits with a sign."
    ),
]


class Lenient(BaseModel):
    """A request that clients of other servers send too: extra keys are let through, null means left out."""

    model_config = ConfigDict(extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {key: value for key, value in given.items() if value is not None}


class Strict(BaseModel):
    """A request of Sightline's own: an unknown key is a mistake worth reporting."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _few_mistakes(cls, given: Any) -> Any:
        """With one unknown key at most: each becomes a message, and a body may hold millions."""
        if not isinstance(given, dict) or len(given) <= len(cls.model_fields):
            return given
        known = {name: given[name] for name in cls.model_fields if name in given}
        unknown = next(key for key in given if key not in known)
        return known | {unknown: given[unknown]}


class TextInput(Strict):
    text: str


class ImageInput(Strict):
    image: str = Field(description="data URI, bare base64, or an https URL where fetching is switched on")


def _is_input(value: Any) -> Any:
    if isinstance(value, int | float | list):
        raise PydanticCustomError(
            "input", 'an input is a string, {"text": …} or {"image": …}; token ids are not taken'
        )
    return value


Input = Annotated[str | TextInput | ImageInput, BeforeValidator(_is_input)]


class EmbeddingRequest(Lenient):
    """`modality` may be left out: data URIs are images, other strings are text."""

    model: str | None = None
    input: Input | Annotated[ListOf[Input], Field(max_length=MOST_INPUTS)]
    modality: Literal["text", "image"] | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, description="the model's own; 0 means the same")


class Usage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class Embedding(BaseModel):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str = Field(description="L2-normalised; base64 is little-endian float32")


class EmbeddingResponse(BaseModel):
    object: Literal["list"] = "list"
    model: str
    data: list[Embedding]
    usage: Usage
    id: str
    created: int


class GroupedText(TextInput):
    group: str | None = Field(default=None, description="whose text this is, for `aggregate: group`")


class GroupedImage(ImageInput):
    group: str | None = Field(default=None, description="whose image this is, for `aggregate: group`")


ClassifyInput = Annotated[str | GroupedText | GroupedImage, BeforeValidator(_is_input)]


class ClassifyRequest(Lenient):
    """`labels` makes the image and text encoder a zero-shot classifier."""

    model: str
    input: ClassifyInput | Annotated[ListOf[ClassifyInput], Field(max_length=MOST_INPUTS)]
    modality: Literal["text", "image"] | None = None
    labels: ListOf[Annotated[str, Field(min_length=1)]] | None = None
    template: str | None = Field(default=None, description="zero-shot prompt containing {label}")
    top_k: Annotated[int, Field(ge=1)] | None = None
    raw_scores: bool = False
    aggregate: Literal["group"] | None = Field(
        default=None, description="adds totals per group; every input must then name its group"
    )

    @model_validator(mode="after")
    def _template_has_a_place(self) -> "ClassifyRequest":
        if self.template is not None and self.template.count("{label}") != 1:
            raise ValueError("template must contain {label} once")
        return self


class Label(BaseModel):
    label: str
    score: float


class Group(BaseModel):
    """What one group's inputs come to."""

    group: str
    count: int
    label: str = Field(description="the label most of them got; of equals the one with the higher mean score")
    scores: list[Label] = Field(description="mean score per label, highest first")


class ClassifyResponse(BaseModel):
    object: Literal["classify"] = "classify"
    model: str
    data: list[list[Label]]
    groups: list[Group] | None = None
    version: str | None = Field(default=None, description="of the model, where it has several")
    usage: Usage
    id: str
    created: int


class RerankRequest(Lenient):
    model: str | None = None
    query: Input
    documents: ListOf[Input] = Field(min_length=1, max_length=MOST_INPUTS)
    top_n: Count | None = None
    return_documents: bool = False


class Ranked(BaseModel):
    index: int
    relevance_score: float
    document: str | None = Field(default=None, description="as it was given")


class RerankResponse(BaseModel):
    object: Literal["rerank"] = "rerank"
    model: str
    results: list[Ranked]
    usage: Usage
    id: str
    created: int


class CreateCollection(Strict):
    """For a model (`model`, the encoder by default) or for the caller's own vectors (`dimensions`)."""

    model: str | None = None
    dimensions: Annotated[int, Field(ge=1, le=65_536, strict=True)] | None = None
    kind: Literal["auto", "flat", "flat-fp16", "sq8", "hnsw", "ivf", "ivf-pq"] = Field(
        default="auto", description="how it is searched once it is large; auto chooses by its size"
    )
    metric: Literal["cosine", "dot", "l2"] = "cosine"
    indexed_keys: IndexedKeys = Field(
        default=(),
        description="metadata keys as filters write them; a filter on these does not read every item",
    )
    thumbnails: bool = Field(default=False, strict=True, description="keep a small JPEG of every image")


class Query(Strict):
    """Exactly one of text, image, vector and id."""

    text: str | None = None
    image: str | None = None
    vector: Vector | None = None
    id: ItemId | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> "Query":
        given = [name for name in ("text", "image", "vector", "id") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of text, image, vector and id; got {given or 'none'}")
        return self


class UpsertItem(Strict):
    """Exactly one of text, image and vector; an id left out is made from the content."""

    id: ItemId | None = None
    text: str | None = None
    image: str | None = None
    vector: Vector | None = None
    thumbnail: str | None = Field(
        default=None,
        description="beside a vector, for a collection with thumbnails: base64 of a JPEG of at most "
        f"{THUMBNAIL_PX} by {THUMBNAIL_PX} pixels and {THUMBNAIL_BYTES} bytes",
    )
    metadata: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _exactly_one(self) -> "UpsertItem":
        given = [name for name in ("text", "image", "vector") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of text, image and vector; got {given or 'none'}")
        if self.thumbnail is not None and self.vector is None:
            raise ValueError("a thumbnail stands beside a vector; of an image it is made here")
        return self


class UpsertRequest(Strict):
    items: ListOf[UpsertItem] = Field(min_length=1, max_length=MOST_ITEMS)
    fingerprint: Fingerprint | None = Field(default=None, description=MADE_BY)


class UpsertResponse(BaseModel):
    upserted: int
    ids: list[str]


SHOWN_IDS = 1000


class StreamResponse(BaseModel):
    """The answer to a body that is read as it arrives; an id that comes twice in it may count twice."""

    upserted: int
    ids: list[str] | None = Field(description=f"as they were stored; null when more than {SHOWN_IDS}")


MISSING_IDS = 10_000
"""Asked for in one request."""


class MissingRequest(Strict):
    ids: ListOf[ItemId] = Field(max_length=MISSING_IDS)


class MissingResponse(BaseModel):
    missing: list[str] = Field(description="of the ids, those that no item has; in their order")


class DeleteRequest(Strict):
    """Exactly one of ids and filter."""

    ids: Annotated[ListOf[ItemId], Field(max_length=MOST_INPUTS)] | None = None
    filter: Filter | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> "DeleteRequest":
        if (self.ids is None) == (self.filter is None):
            raise ValueError("give exactly one of ids and filter")
        return self


class DeleteResponse(BaseModel):
    deleted: int


class SearchRequest(Strict):
    """One query (text, image, vector or id) or several in `queries`."""

    text: str | None = None
    image: str | None = None
    vector: Vector | None = None
    id: ItemId | None = None
    queries: ListOf[Query] | None = Field(default=None, min_length=1, max_length=MOST_INPUTS)
    limit: Count = 10
    filter: Filter | None = None
    include: ListOf[Include] = ["metadata"]
    exact: bool = Field(default=False, description="compare with every vector")
    effort: Count | None = Field(
        default=None, description="ef_search or nprobe, in place of what was chosen for the recall asked for"
    )
    partial: bool = Field(
        default=False, description="while shards of the index are down, answer with what the others find"
    )

    @model_validator(mode="after")
    def _one_or_several(self) -> "SearchRequest":
        single = any(v is not None for v in (self.text, self.image, self.vector, self.id))
        if self.queries is not None and single:
            raise ValueError("give either queries or one of text, image, vector and id, not both")
        if self.queries is None:
            Query(text=self.text, image=self.image, vector=self.vector, id=self.id)
        return self

    def all_queries(self) -> list[Query]:
        if self.queries is not None:
            return self.queries
        return [Query(text=self.text, image=self.image, vector=self.vector, id=self.id)]


class Item(BaseModel):
    id: str
    metadata: dict[str, Any] | None = None
    vector: list[float] | None = None


class StoredItem(Item):
    thumbnail: str | None = Field(default=None, description="base64 of a JPEG, where asked for and there")


class Hit(Item):
    score: float = Field(
        description="the higher the nearer: cosine, dot product, or under l2 the squared distance, negative"
    )


class SearchResponse(BaseModel):
    """A list of hits; with `queries`, a list of such lists in the same order."""

    results: list[Hit] | list[list[Hit]]
    partial: bool | None = Field(default=None, description="true when some items were not searched")
    missing_shards: list[str] | None = Field(default=None, description="the shards that hold those items")


class Page(BaseModel):
    items: list[Item]
    cursor: int | None = Field(description="give it back to get the next page; null at the end")


class Collection(BaseModel):
    name: str
    count: int
    dimensions: int
    metric: str
    kind: str = Field(description="as asked for")
    actual_kind: str = Field(description="what answers most searches now")
    state: Literal["ready", "building"] = Field(
        description="building: items are being moved to what their number asks for; searches find them all"
    )
    problem: str | None = Field(
        description="why building failed, which is tried again, or what an index does not find"
    )
    segments: int = Field(description="indexes on disk that a search looks through, beside the newest items")
    effort: int | None = Field(description="ef_search or nprobe, chosen for the recall asked for")
    recall: float | None = Field(description="recall@10 at that effort, measured on stored vectors")
    indexed_keys: list[str] = Field(description="metadata keys that filters look up")
    model: str | None
    fingerprint: str | None = Field(description="of the exact model that filled it")
    created: int = Field(description="Unix seconds")
    tombstones: int = Field(description="dead rows in memory, until compaction")
    bytes_on_disk: int
    bytes_in_memory: int
    thumbnails: bool = Field(description="whether a small JPEG of every image is kept")


class EvaluateRequest(Strict):
    """How many stored vectors queries are made from, and how many neighbours each asks for."""

    queries: Annotated[int, Field(ge=1, le=1000, strict=True)] = 200
    k: Annotated[int, Field(ge=1, le=100, strict=True)] = 10


class Latency(BaseModel):
    """Of single queries in the index itself."""

    p50_ms: float
    p99_ms: float


class EvaluatedSetting(BaseModel):
    effort: int | None = Field(description="ef_search or nprobe")
    recall: float = Field(description="share of the k nearest that are found")
    latency: Latency


class Evaluation(BaseModel):
    count: int
    queries: int = Field(description="as many as there was time for")
    k: int
    kind: str = Field(description="what answers most searches now")
    knob: str | None = Field(
        description="what an effort is called: ef_search, nprobe; null where there is none"
    )
    now: EvaluatedSetting = Field(description="searches as they are answered now")
    exact: Latency
    settings: list[EvaluatedSetting] = Field(description="efforts, upwards, in place of the present one")


class SnapshotRequest(Strict):
    to: Annotated[str, Field(min_length=1, max_length=1024)] = Field(
        description="a name or path below the first of the places that the server's settings allow, or an "
        "absolute path or URI at or below any of them"
    )


class Snapshot(BaseModel):
    collection: str
    to: str
    id: str
    created: int = Field(description="Unix seconds")
    shards: int
    files: int
    bytes: int


class UnavailableCollection(BaseModel):
    name: str
    reason: str


class CollectionList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Collection]
    unavailable: list[UnavailableCollection] = Field(description="their files cannot be used")


class Stats(BaseModel):
    """The load of the gateway that answered, in infinity's words."""

    queue_fraction: float = Field(description="share of what may be in flight")
    queue_absolute: int = Field(description="texts and images in flight")
    results_pending: int
    batch_size: int = Field(description="texts that one forward takes at most")


class Agreement(BaseModel):
    """How near int8 is to fp32, on the calibration set."""

    cosine: float = Field(description="mean between outputs; of an encoder's two towers, the smaller mean")
    top1: float = Field(description="share for which the same label comes first, zero-shot for an encoder")


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    task: str
    version: str | None
    source: str | None
    fingerprint: str | None
    engine: str | None
    precision: str | None
    agreement: Agreement | None = Field(description="of int8")
    dimensions: int | None
    labels: list[str]
    max_tokens: int | None
    notes: list[str]
    stats: Stats
    state: Literal["ready", "unavailable"]


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    status: Literal["alive", "ready", "not ready"]
    dependencies: dict[str, str] = Field(default_factory=dict)


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class Error(BaseModel):
    error: ErrorDetail
