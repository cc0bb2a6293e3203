"""Binds the deployments into one application: the only file that knows them all."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig

from configs.settings import (
    ClassifierSettings,
    IndexSettings,
    ModelScaleSettings,
    ScaleSettings,
    Settings,
    SettingsError,
)
from configs.threads import cores
from deployments.clip_encoder import ClipEncoder
from deployments.decoding import Decoder
from deployments.image_classifier import ImageClassifier
from deployments.image_preprocessor import ImagePreprocessor
from deployments.models import sources
from deployments.text_classifier import TextClassifier
from deployments.vector_index import VectorIndex
from index.errors import IndexUnavailable
from index.shards import check_shard_count
from serve_app.auth import key_digests
from serve_app.gateway import Gateway
from serve_app.inference import Unavailable

INDEX_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}
"""FAISS's threads otherwise spin for work between searches, on the cores that other replicas need: eight
queries in one call took six times the processor time on a busy machine."""
POOL_CORES = 4
"""From so many on a pool of its own decodes, while fewer are busy with the encoder anyway."""

MAX_ONGOING_REQUESTS = 10_000
"""Per replica, which is out of reach: the gateway's limits bound the load, and requests that Serve holds back
would be hidden from the batch queue and from health checks."""

DRAIN_CHECK_S = 0.1
"""After so long, and then as often, a stopping replica looks whether its requests have ended. Serve's own
two seconds pass for the gateway, and then again for those it calls, when all are idle."""

LOOK_BACK_S = 30.0
"""Of the average that replicas are added or taken away by."""


def build_app(args: dict[str, Any]) -> Application:
    """The Sightline application for `serve run`, `serve deploy` and `serve_config.yaml`.

    Args:
        args: settings as nested mappings or dotted keys, see `configs/settings.py`.

    Raises:
        SettingsError: an unknown key or a bad value, with what is accepted.
    """
    settings = Settings.from_args(args)
    data_dir = _absolute(settings.data_dir, "data_dir")
    cache_dir = _absolute(settings.cache_dir, "cache_dir")

    def deploy(
        body: type[Any],
        scale: ScaleSettings,
        name: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Any:
        return _deployment(body, scale, name or body.__name__, settings.log_level, environment)

    # Where weights come from is decided here, once, so that every replica serves the same model.
    clip_source = sources.resolve(settings.clip, cache_dir, starter=sources.ENCODER)
    decoder = partial(Decoder, settings.preprocessor, settings.limits.max_image_pixels)
    encoder = deploy(ClipEncoder, settings.clip.scale, environment=_visible_gpus(settings.clip.scale)).bind(
        clip_source, settings.clip, cache_dir, decoder
    )
    preprocessor: Application | None = None
    if not _decodes_inline(settings):
        preprocessor = deploy(ImagePreprocessor, settings.preprocessor.scale).bind(
            settings.preprocessor, settings.limits.max_image_pixels
        )
    classifiers: dict[str, Application | Unavailable] = {}
    heads: dict[str, Application] = {}
    aliases = {clip_source.location: settings.clip.name}
    for name, classifier in settings.classifiers.items():
        source = sources.resolve(classifier, cache_dir, starter=sources.classifier_starter(name))
        if source.kind == "unavailable":
            classifiers[name] = Unavailable(source)
            continue
        aliases[source.location] = name
        options = {"user_config": classifier.versions.model_dump()}
        if sources.is_image_head(source, classifier):
            _check_head(name, classifier)
            deployment = deploy(ImageClassifier, classifier.scale, name=f"ImageClassifier-{name}")
            heads[name] = deployment.options(**options).bind(name, source, cache_dir)
        else:
            deployment = deploy(
                TextClassifier,
                classifier.scale,
                name=f"TextClassifier-{name}",
                environment=_visible_gpus(classifier.scale),
            )
            classifiers[name] = deployment.options(**options).bind(name, source, classifier, cache_dir)
    # Each shard of the index is one writer: it never runs twice over the same files.
    index_scale = ScaleSettings(cpus=settings.index.cpus)
    index_settings = _index_settings(settings.index, data_dir)
    shards = range(index_settings.shards)
    indexes = [
        deploy(
            VectorIndex,
            index_scale,
            name=f"VectorIndex-{shard}" if len(shards) > 1 else None,
            environment=INDEX_ENVIRONMENT,
        ).bind(index_settings, settings.limits, data_dir / "index", shard)
        for shard in shards
    ]
    gateway: Application = deploy(serve.ingress()(Gateway), settings.gateway.scale).bind(
        settings, preprocessor, encoder, classifiers, heads, aliases, indexes, key_digests(settings.auth)
    )
    return gateway


def _deployment(
    body: type[Any], scale: ScaleSettings, name: str, log_level: str, environment: Mapping[str, str] | None
) -> Any:
    """A deployment of `body`, scaled as the settings say; its replicas start with `environment` added."""
    actor: dict[str, Any] = {"num_cpus": scale.cpus}
    if isinstance(scale, ModelScaleSettings) and scale.gpus:
        actor["num_gpus"] = scale.gpus
    if environment:
        actor["runtime_env"] = {"env_vars": dict(environment)}
    options: dict[str, Any] = {
        "name": name,
        "ray_actor_options": actor,
        "max_ongoing_requests": MAX_ONGOING_REQUESTS,
        "graceful_shutdown_wait_loop_s": DRAIN_CHECK_S,
        "logging_config": {"log_level": log_level},
    }
    if not scale.autoscales:
        options["num_replicas"] = scale.replicas
    else:
        options["autoscaling_config"] = AutoscalingConfig(
            min_replicas=scale.replicas,
            max_replicas=scale.max_replicas,
            target_ongoing_requests=scale.target_ongoing_requests,
            look_back_period_s=LOOK_BACK_S,
            upscale_delay_s=scale.upscale_delay_s,
            downscale_delay_s=scale.downscale_delay_s,
        )
    return serve.deployment(body, **options)


def _check_head(name: str, settings: ClassifierSettings) -> None:
    """Raises SettingsError for settings that a head on the image tower has no use for."""
    unused = ("engine", "precision", "int8", "threads", "batch")
    given = [key for key in unused if key in settings.model_fields_set]
    given += ["scale.gpus"] if settings.scale.gpus else []
    if given:
        raise SettingsError(
            f"classifiers.{name} classifies embeddings of the image tower, which runs by the settings under "
            f"clip; leave out {', '.join(given)}"
        )


def _visible_gpus(scale: ModelScaleSettings) -> Mapping[str, str]:
    """What tells a replica which GPUs are its own: Ray hides them only from who was given others."""
    return {} if scale.gpus else {"CUDA_VISIBLE_DEVICES": ""}


def _index_settings(settings: IndexSettings, data_dir: Path) -> IndexSettings:
    """With every place absolute; refused at once where the index's replicas would refuse to start."""

    def absolute(place: str, key: str) -> str:
        return place if "://" in place else str(_absolute(Path(place), key))

    try:
        check_shard_count(data_dir / "index", settings.shards)
    except IndexUnavailable as error:
        raise SettingsError(error.message) from None
    places = settings.snapshot_locations or (str(data_dir / "snapshots"),)
    source = settings.restore_from
    return settings.model_copy(
        update={
            "snapshot_locations": tuple(absolute(place, "index.snapshot_locations") for place in places),
            "restore_from": source and absolute(source, "index.restore_from"),
        }
    )


def _decodes_inline(settings: Settings) -> bool:
    """Whether the encoder's replicas decode images themselves; see `PreprocessorSettings.placement`."""
    placement, scale = settings.preprocessor.placement, settings.clip.scale
    if placement != "auto":
        return placement == "inline"
    return scale.alone and not scale.gpus and cores() < POOL_CORES


def _absolute(path: Path, key: str) -> Path:
    """`path` made absolute; refused when relative to a directory Ray will delete."""
    absolute = path.expanduser().absolute()
    if not path.is_absolute() and "runtime_resources" in Path.cwd().parts:
        raise SettingsError(
            f"{key}: {str(path)!r} is relative to a temporary directory of Ray; give an absolute path"
        )
    return absolute
