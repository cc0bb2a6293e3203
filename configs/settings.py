"""Every tunable of Sightline: typed, frozen, unknown keys refused, units in the names."""

import difflib
import ssl
import threading
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

EngineName = Literal["auto", "openvino", "torch"]
Precision = Literal["auto", "fp32", "bf16", "int8"]
NAME_PATTERN = r"^[a-z0-9_-]{1,64}$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, le=threading.TIMEOUT_MAX, allow_inf_nan=False)]


def _without_credentials(place: str) -> str:
    if "@" in urlsplit(place).netloc:
        raise ValueError("a URI must hold no keys; they come from the environment (AWS_ACCESS_KEY_ID, …)")
    return place


Place = Annotated[
    str,
    AfterValidator(_without_credentials),
    Field(
        min_length=1,
        description="a directory, or a URI such as s3://bucket/path?region=… or file:///path, as pyarrow.fs "
        "takes them; keys for S3 come from the environment (AWS_ACCESS_KEY_ID and the rest)",
    ),
]
MiB = 1024 * 1024


def _absolute(path: Path) -> Path:
    """Replicas may run in another directory than the settings were read in."""
    return path.expanduser().absolute()


class SettingsError(ValueError):
    """The settings are wrong; the message names each key and what is accepted."""


def problem(error: ErrorDetails) -> str:
    """What pydantic says is wrong, without what kind of Python error told it."""
    return error["msg"].removeprefix("Value error, ")


class Frozen(BaseModel):
    """A settings group: immutable, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ScaleSettings(Frozen):
    """How many replicas of a deployment run, and what each asks Ray for.

    `replicas` is the fixed count; setting `max_replicas` above it turns on
    autoscaling between the two. On one small machine `cpus` is a scheduling
    fraction and the replica's threads share the machine; from 1 upwards the
    replica uses that many threads.
    """

    replicas: Positive = 1
    max_replicas: Positive | None = None
    target_ongoing_requests: float = Field(
        default=16,
        gt=0,
        allow_inf_nan=False,
        description="ongoing calls per replica that Serve aims at, on average over 30 s. A request makes one "
        "for each eighth of images_per_call or texts_per_call; as many are let in as max_replicas would "
        "need, up to the max_inflight limits",
    )
    upscale_delay_s: float = Field(
        default=30, ge=0, allow_inf_nan=False, description="of more calls than the target"
    )
    downscale_delay_s: float = Field(default=600, ge=0, allow_inf_nan=False, description="of fewer")
    cpus: float = Field(default=0.1, ge=0, allow_inf_nan=False)

    @property
    def autoscales(self) -> bool:
        return self.max_replicas is not None and self.max_replicas > self.replicas

    @property
    def alone(self) -> bool:
        """Whether there is one replica, always."""
        return self.replicas == 1 and not self.autoscales

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(
                f"max_replicas ({self.max_replicas}) must be at least replicas ({self.replicas})"
            )
        return self


class ModelScaleSettings(ScaleSettings):
    """Of a model, which can run on a GPU."""

    gpus: float = Field(
        default=0, ge=0, le=1, description="share of one that each replica is given; with 0 it sees none"
    )


class BatchSettings(Frozen):
    """The shape of a batch. `max_cost` bounds rows times the longest row (tokens, or images)."""

    max_items: Positive = 32
    max_cost: Positive = 8192
    max_queued_items: Positive = Field(
        default=16_384, description="waiting in one replica; several gateways together could bring more"
    )
    stall_timeout_s: Seconds = Field(
        default=120, description="a forward pass that runs longer makes the replica unhealthy"
    )


class Int8Settings(Frozen):
    """What `precision: int8` is made with, and what it must keep of fp32's answers."""

    calibration: Annotated[Path, AfterValidator(_absolute)] | None = Field(
        default=None,
        description="a directory with images and *.txt files, a text a line, such as those to be served; "
        "photographs and texts at hand when left out",
    )
    min_cosine: float = Field(
        default=0.98, ge=0, le=1, description="between outputs, on average over the calibration set"
    )
    min_agreement: float = Field(
        default=0.85,  # below what bf16 keeps of the starter (0.94), above what all of it in int8 does (0.8)
        ge=0,
        le=1,
        description="share of the calibration set for which the same label comes first; an image's labels "
        "are the set's texts",
    )


class ModelSettings(Frozen):
    """Where a model comes from and how it runs."""

    source: str = Field(
        default="auto",
        description="`auto`, `starter`, a hub id such as openai/clip-vit-base-patch32, or a local directory",
    )
    revision: str | None = Field(default=None, description="hub revision; the default branch when left out")
    engine: EngineName = "auto"
    precision: Precision = Field(
        default="auto",
        description="int8 is for CPUs; quantised once, which takes a minute or more. On a CPU that does not "
        "compute bf16, openvino runs fp32 in its place",
    )
    int8: Int8Settings = Int8Settings()
    threads: Positive | None = Field(
        default=None, description="engine threads; from `scale.cpus` when left out"
    )
    hub_timeout_s: Seconds = Field(
        default=3,
        description="a machine without a network must start at once, one with a slow one find the hub",
    )
    batch: BatchSettings = BatchSettings()
    scale: ModelScaleSettings = ModelScaleSettings()

    @model_validator(mode="after")
    def _int8_on_openvino(self) -> Self:
        if self.precision == "int8" and self.engine == "torch":
            raise ValueError("precision int8 runs on openvino; leave engine at auto or choose openvino")
        return self


class ClipSettings(ModelSettings):
    """The image and text encoder. `hub_id` is what `source: auto` looks for."""

    name: Name = "clip"
    hub_id: str = "openai/clip-vit-base-patch32"
    image_batch: BatchSettings = BatchSettings()


class VersionSettings(Frozen):
    """Which version of a model directory `<name>/<version>/` answers.

    These alone can be changed while requests run: as the deployment's `user_config`.
    """

    version: str = Field(default="latest", pattern=r"^(latest|\d+)$")
    candidate: str | None = Field(
        default=None, pattern=r"^(latest|\d+)$", description="a version that answers a share of the requests"
    )
    candidate_percent: float = Field(default=0, ge=0, le=100)


class ClassifierSettings(ModelSettings):
    """One classifier. `hub_id` is what `source: auto` looks for."""

    hub_id: str | None = None
    versions: VersionSettings = VersionSettings()


class PreprocessorSettings(Frozen):
    """What turns image bytes into pixels: a pool of its own, or the encoder's replicas themselves."""

    placement: Literal["auto", "pool", "inline"] = Field(
        default="auto",
        description="auto is inline on a machine of fewer than four cores with one encoder replica and no "
        "GPU: there a process of its own and two more hops cost more than they give",
    )
    threads: Positive | None = Field(
        default=None, description="decoding threads; from `scale.cpus` when left out"
    )
    images_per_call: Positive = Field(default=8, description="images of one request that travel together")
    stall_timeout_s: Seconds = Field(
        default=120, description="a decode that runs longer makes the replica unhealthy"
    )
    scale: ScaleSettings = ScaleSettings()


class IndexSettings(Frozen):
    """The vector index: one writer for each shard, its files under `data_dir/index`.

    Everything but `shards` is for each of them.
    """

    shards: Positive = Field(
        default=1,
        description="parts that each collection is split into, with a replica each; fixed once `data_dir` "
        "holds items",
    )
    shard_timeout_s: Seconds = Field(
        default=5,
        description="one of several shards that takes longer to say that it is well counts as down",
    )
    snapshot_locations: tuple[Place, ...] = Field(
        default=(),
        description="requests may have snapshots written at or below these; relative paths count from the "
        "first; `data_dir/snapshots` alone when left out",
    )
    snapshot_timeout_s: Seconds = 3600
    restore_from: Place | None = Field(
        default=None, description="a place with snapshots that fill a `data_dir` whose index was never used"
    )
    cpus: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    threads: Positive | None = Field(default=None, description="search threads; from `cpus` when left out")
    max_search_limit: Positive = 10_000
    compact_ratio: float = Field(
        default=0.2, gt=0, le=1, description="share of dead rows at which rows are rewritten without them"
    )
    segment_rows: Positive = Field(
        default=10_000, description="rows in memory at which they move to a segment on disk"
    )
    merge_idle_s: Seconds = Field(
        default=5,
        description="without a write, after which rows in memory that an index would search faster are "
        "moved to one, and smaller segments join the largest",
    )
    build_threads: Positive | None = Field(
        default=None, description="of background building; as many as a search when left out"
    )
    target_recall: float = Field(
        default=0.95, gt=0, le=1, description="recall@10 for which ef_search or nprobe is chosen"
    )
    ef_search: Positive | None = Field(default=None, description="of hnsw, in place of what was measured")
    nprobe: Positive | None = Field(default=None, description="of ivf, in place of what was measured")
    filter_timeout_s: Seconds = Field(
        default=2,
        description="a filter that takes longer gets 422; one condition takes 1 s for a million items",
    )
    concurrent_calls: Positive = Field(
        default=8,
        description="reads, writes and searches at once; more than cores, for they wait for the disk too; "
        "a search that is expected to take less than a millisecond takes none of these threads",
    )
    concurrent_filters: Positive = Field(
        default=4,
        description="searches and deletes by filter at once; they have threads of their own, so that slow "
        "filters hold up nothing but filters",
    )
    lock_timeout_s: Seconds = Field(
        default=60,
        description="wait at the start for the data directory, which a replaced replica holds until it stops",
    )


class LimitSettings(Frozen):
    """What one request, and all requests together, may ask for.

    Beyond `max_wait_s` or a `max_inflight` limit the answer is 429, at once. The first adapts to the
    hardware; the others, per gateway replica, bound memory. One request is always let in, however large.
    """

    max_body_bytes: Positive = 32 * MiB
    max_images: Positive = 64
    max_texts: Positive = 2048
    max_text_chars: Positive = 100_000
    max_image_pixels: Positive = 64_000_000
    max_labels: Positive = 256
    max_metadata_bytes: Positive = 64 * 1024
    max_wait_s: Seconds = Field(
        default=0.75,
        description="a request gets 429 where what is already at its model would take longer, at the rate it "
        "has been answering",
    )
    max_inflight_requests: Positive = 1024
    max_inflight_images: Positive = 256
    max_inflight_texts: Positive = 4096
    max_inflight_bytes: Positive = Field(
        default=256 * MiB, description="of bodies, and of images fetched for them"
    )
    max_search_results: Positive = Field(default=100_000, description="queries times limit of one search")
    max_answer_bytes: Positive = Field(
        default=64 * MiB, description="about, of a search's results, or labels with scores"
    )
    max_page: Positive = Field(default=1000, description="items on one page")
    request_timeout_s: Seconds = 60
    retry_after_s: Positive = 1

    @model_validator(mode="after")
    def _a_body_fits(self) -> Self:
        if self.max_inflight_bytes < self.max_body_bytes:
            raise ValueError(
                f"max_inflight_bytes ({self.max_inflight_bytes}) must be at least max_body_bytes "
                f"({self.max_body_bytes})"
            )
        return self


class FetchSettings(Frozen):
    """Fetching `https://` images on a caller's behalf; off unless switched on."""

    enabled: bool = False
    timeout_s: Seconds = 10
    max_bytes: Positive = 32 * MiB
    max_redirects: Annotated[int, Field(ge=0)] = 3
    allowed_networks: tuple[IPv4Network | IPv6Network, ...] = Field(
        default=(), description="private networks that may be fetched from as well"
    )
    ca_file: Annotated[Path, AfterValidator(_absolute)] | None = Field(
        default=None, description="extra certificate authority, PEM"
    )

    def tls(self) -> ssl.SSLContext:
        """The system's certificate authorities, and the one given. Raises OSError, ssl.SSLError."""
        context = ssl.create_default_context()
        if self.ca_file is not None:
            context.load_verify_locations(self.ca_file)
        return context

    @model_validator(mode="after")
    def _ca_file_can_be_read(self) -> Self:
        try:
            if self.ca_file is not None:
                self.tls()
        except OSError as error:  # ssl.SSLError is one
            raise ValueError(f"ca_file: {self.ca_file} holds no certificates in PEM: {error}") from None
        return self


class AuthSettings(Frozen):
    """API keys. With neither configured, every route is open."""

    keys_env: str = Field(
        default="SIGHTLINE_API_KEYS", description="environment variable: keys split by commas"
    )
    keys_file: Path | None = Field(default=None, description="file with one key a line")
    open_docs: bool = True


class GatewaySettings(Frozen):
    """The HTTP ingress."""

    texts_per_call: Positive = Field(default=64, description="texts of one request that travel together")
    health_timeout_s: Seconds = Field(
        default=5, description="a part that takes longer to say that it is well is not ready"
    )
    scale: ScaleSettings = ScaleSettings()


class EmbeddingCacheSettings(Frozen):
    """Embeddings that each gateway replica keeps, so that what comes again is not embedded again."""

    max_bytes: Annotated[int, Field(ge=0)] = Field(
        default=64 * MiB, description="of memory, the least recently used go first; 0 turns it off"
    )


class SearchSettings(Frozen):
    """What a search with Ray Tune takes of its cluster."""

    trials_at_once: Positive | None = Field(
        default=None, description="as many as the cluster has CPUs for when left out"
    )
    cpus_per_trial: float = Field(default=1, gt=0, allow_inf_nan=False)
    local_cpus: Positive | None = Field(
        default=None, description="of a cluster that is started for the search; the machine's when left out"
    )

    @model_validator(mode="after")
    def _a_trial_fits(self) -> Self:
        if self.local_cpus is not None and self.local_cpus < self.cpus_per_trial:
            raise ValueError(
                f"local_cpus ({self.local_cpus}) must be at least cpus_per_trial ({self.cpus_per_trial:g})"
            )
        return self


class TrainingSettings(Frozen):
    """What training takes of a Ray cluster; what a run learns, and from what, is on its command line."""

    workers: Positive = 1
    cpus_per_worker: float = Field(default=1, gt=0, allow_inf_nan=False)
    gpus_per_worker: Annotated[int, Field(ge=0, le=1)] = Field(
        default=0, description="a worker trains on one; more GPUs take more workers"
    )
    restarts: Annotated[int, Field(ge=0)] = Field(
        default=1, description="of all workers after one is lost; they go on from the last epoch"
    )
    storage_dir: Path | None = Field(
        default=None,
        description="Ray's records of runs, on storage that every node sees; beside the output, and gone "
        "at the end, when left out",
    )
    search: SearchSettings = SearchSettings()


class Settings(Frozen):
    """The whole application. `serve_config.yaml` gives the values under `args`."""

    data_dir: Path = Path("data")
    cache_dir: Path = Field(
        default=Path(".cache"), description="fetched weights, converted networks and the like; safe to delete"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="WARNING", description="of the replicas; INFO adds a line for every request and hop"
    )
    clip: ClipSettings = ClipSettings()
    classifiers: Mapping[Name, ClassifierSettings] = Field(default_factory=dict)
    preprocessor: PreprocessorSettings = PreprocessorSettings()
    index: IndexSettings = IndexSettings()
    gateway: GatewaySettings = GatewaySettings()
    embedding_cache: EmbeddingCacheSettings = EmbeddingCacheSettings()
    limits: LimitSettings = LimitSettings()
    fetch_urls: FetchSettings = FetchSettings()
    auth: AuthSettings = AuthSettings()
    training: TrainingSettings = TrainingSettings()

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        if self.clip.name in self.classifiers:
            raise ValueError(f"clip.name and a classifier are both called {self.clip.name!r}; rename one")
        return self

    @classmethod
    def from_args(cls, args: Mapping[str, Any]) -> Self:
        """Build settings from nested mappings or dotted keys (`clip.source=starter`), or both.

        So that `key=value` arguments on a command line work for every type, strings that begin like
        a YAML list or mapping are read as such, and `none` means None.

        Raises:
            SettingsError: an unknown key (the nearest known one is named) or a bad value.
        """
        nested = _nest(args)
        unknown = list(_unknown_keys(cls, nested, ""))
        if unknown:
            raise SettingsError("; ".join(unknown))
        try:
            return cls.model_validate(nested)
        except ValidationError as error:
            problems = (f"{'.'.join(map(str, e['loc'])) or 'settings'}: {problem(e)}" for e in error.errors())
            raise SettingsError("; ".join(problems)) from None


def _nest(args: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys become nested mappings; strings that look like YAML collections are read as such."""
    nested: dict[str, Any] = {}
    for key, value in args.items():
        if not isinstance(key, str):
            raise SettingsError(f"setting {key!r} must be a name")
        if isinstance(value, str) and value[:1] and value[:1] in "[{":
            try:
                value = yaml.safe_load(value)
            except yaml.YAMLError as error:
                raise SettingsError(f"{key}: {value!r} is not valid YAML: {error}") from None
        if isinstance(value, Mapping):
            value = _nest(value)
        elif isinstance(value, str) and value.lower() in ("null", "none"):
            value = None
        *groups, last = key.split(".")
        target = nested
        for group in groups:
            target = target.setdefault(group, {})
            if not isinstance(target, dict):
                raise SettingsError(f"{key}: {group!r} already has a value and cannot hold keys")
        _merge(target, last, value)
    return nested


def _merge(target: dict[str, Any], key: str, value: Any) -> None:
    """Set `key`; of a group only what `value` names, at every depth."""
    if isinstance(value, dict) and isinstance(target.get(key), dict):
        for name, inner in value.items():
            _merge(target[key], name, inner)
    else:
        target[key] = value


def _unknown_keys(model: type[BaseModel], values: Mapping[str, Any], path: str) -> Iterator[str]:
    for key, value in values.items():
        field = model.model_fields.get(key)
        if field is None:
            yield f"unknown setting {path + key!r}{_hint(key, model)}"
        elif isinstance(value, Mapping):
            group, is_mapping = _group_of(field.annotation)
            if group and is_mapping:
                for name, inner in value.items():
                    if isinstance(inner, Mapping):
                        yield from _unknown_keys(group, inner, f"{path}{key}.{name}.")
            elif group:
                yield from _unknown_keys(group, value, f"{path}{key}.")


def _group_of(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The settings group a field holds, and whether it holds a mapping of them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    arguments = get_args(annotation)
    if get_origin(annotation) in (Union, UnionType):
        return next((g for g in map(_group_of, arguments) if g[0]), (None, False))
    if arguments and (group := _group_of(arguments[-1])[0]):
        return group, True
    return None, False


def _hint(key: str, model: type[BaseModel]) -> str:
    near = difflib.get_close_matches(key, model.model_fields, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(model.model_fields)}"
