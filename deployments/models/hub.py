"""Models of the Hugging Face hub: what is cached, what the hub answers, and the download of one commit."""

import logging
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.utils.tqdm import disable_progress_bars

from configs.settings import SettingsError
from deployments.errors import NotReady
from deployments.models.directories import weight_files

logger = logging.getLogger("ray.serve")

# Everything a model directory needs and nothing that can hold code.
_PATTERNS: Final = ["*.json", "*.txt", "*.safetensors", "tokenizer*"]

# The hub's own bot offers safetensors for older models as a pull request; transformers takes it by
# the same author and title. openai/clip-vit-base-patch32 was long such a model.
_CONVERSION_AUTHOR: Final = "SFconvertbot"
_CONVERSION_TITLE: Final = "Adding `safetensors` variant of this model"


def find(hub_id: str, revision: str | None, cache_dir: Path, timeout_s: float) -> tuple[str | None, str]:
    """The commit to load, from the cache or else from the hub; (None, reason) when there is neither."""
    if (path := cached(hub_id, revision, cache_dir)) is not None:
        return path.name, ""
    answer: list[str | Exception] = []

    def ask() -> None:
        try:
            answer.append(_ask(hub_id, revision, timeout_s))
        except Exception as error:
            answer.append(error)

    # A thread, because name resolution knows no timeout.
    prober = threading.Thread(target=ask, name="hub-probe", daemon=True)
    prober.start()
    prober.join(timeout_s)
    if not answer:
        return None, f"no answer within {timeout_s:g} s"
    commit = answer[0]
    if isinstance(commit, Exception):
        return None, str(commit).strip().split("\n")[0] or type(commit).__name__
    _remember(hub_id, revision, commit, cache_dir)
    return commit, ""


def cached(hub_id: str, revision: str | None, cache_dir: Path) -> Path | None:
    """The complete snapshot of a model in our cache, or in the machine's own hub cache, if there is one."""
    for cache in (cache_dir / "hub", Path(constants.HF_HUB_CACHE)):
        try:
            path = Path(
                snapshot_download(
                    hub_id,
                    revision=revision,
                    cache_dir=cache,
                    local_files_only=True,
                    allow_patterns=_PATTERNS,  # it knows of all files there are, and looks whether these came
                )
            )
            weight_files(path)
        except (OSError, ValueError, SettingsError):  # absent, or a download that did not finish
            continue
        tokenizers = ("tokenizer.json", "vocab.json", "vocab.txt")
        if (path / "config.json").is_file() and any((path / name).is_file() for name in tokenizers):
            return path
    return None


def download(hub_id: str, commit: str | None, cache_dir: Path) -> Path:
    """The snapshot of one commit, fetched if it is not cached. Raises NotReady."""
    if (path := cached(hub_id, commit, cache_dir)) is not None:
        return path
    disable_progress_bars()
    logger.warning("downloading %s at %s", hub_id, commit)
    try:
        path = Path(
            snapshot_download(
                hub_id,
                revision=commit,
                cache_dir=cache_dir / "hub",
                allow_patterns=_PATTERNS,
                endpoint=_endpoint(),
            )
        )
        weight_files(path)
    except Exception as error:
        raise NotReady(f"{hub_id} at {commit} could not be downloaded: {error}") from error
    return path


def _ask(hub_id: str, revision: str | None, timeout_s: float) -> str:
    """The commit of `revision` that has safetensors."""
    api = HfApi(endpoint=_endpoint())
    info = api.model_info(hub_id, revision=revision, timeout=timeout_s)
    if any(file.rfilename.endswith(".safetensors") for file in info.siblings or ()):
        return str(info.sha)
    if revision is None:
        for offer in api.get_repo_discussions(hub_id, author=_CONVERSION_AUTHOR, discussion_status="open"):
            # Checked here again: whoever else opens a pull request must not choose the weights.
            by_the_bot = offer.author == _CONVERSION_AUTHOR and offer.is_pull_request
            if by_the_bot and offer.title == _CONVERSION_TITLE:
                commit = api.model_info(hub_id, revision=offer.git_reference, timeout=timeout_s).sha
                return str(commit)
    raise ValueError(f"{hub_id} has no safetensors, and no other format is loaded")


def _remember(hub_id: str, revision: str | None, commit: str, cache_dir: Path) -> None:
    """Note the commit under its branch's name, as the hub's cache does, to find it offline next time.

    Downloads name the commit alone, and leave no such note themselves.
    """
    folder = cache_dir / "hub" / f"models--{hub_id.replace('/', '--')}" / "refs"
    ref = folder / (revision or constants.DEFAULT_REVISION)
    with suppress(OSError):  # where nothing can be written the download will say so
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit)


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT")
