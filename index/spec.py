"""What a collection is: its settings, fixed when it is created, and the model that fills it."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from configs.settings import Frozen, Name
from index.errors import CollectionExists, ModelMismatch
from index.keys import MAX_KEY_CHARS, key_parts

Metric = Literal["cosine", "dot", "l2"]
Kind = Literal["auto", "flat", "flat-fp16", "sq8", "hnsw", "ivf", "ivf-pq"]
"""How large collections are searched; `auto` chooses by their size."""
MAX_INDEXED_KEYS = 16  # each adds to every write


def _checked_key(key: str) -> str:
    key_parts(key)
    return key


IndexedKeys = Annotated[
    tuple[Annotated[str, Field(max_length=MAX_KEY_CHARS), AfterValidator(_checked_key)], ...],
    Field(max_length=MAX_INDEXED_KEYS),
    AfterValidator(lambda keys: tuple(sorted(set(keys)))),
]
"""Metadata keys, as filters write them; in no order, so kept in one."""


class CollectionSpec(Frozen):
    """Settings of a collection.

    With a `model` the collection holds what that model makes, and `fingerprint` is the exact model
    (weights and preprocessing) once something was written. Without one it holds raw vectors.
    Filters look conditions on the `indexed_keys` up, and compute all others for every item.
    """

    name: Name
    dimensions: Annotated[int, Field(ge=1, le=65536)]
    metric: Metric = "cosine"
    kind: Kind = "auto"
    indexed_keys: IndexedKeys = ()
    model: str | None = None
    fingerprint: str | None = None
    thumbnails: bool = False

    @model_validator(mode="after")
    def _fingerprint_of_a_model(self) -> Self:
        if self.fingerprint is not None and self.model is None:
            raise ValueError("fingerprint needs a model: a collection without one holds raw vectors")
        return self

    def check_fingerprint(self, fingerprint: str | None) -> None:
        """Raise ModelMismatch unless vectors made by `fingerprint` (None: raw) belong here."""
        if fingerprint is None:
            return
        if self.model is None:
            raise ModelMismatch(
                f"collection {self.name!r} holds raw vectors, so no model can write to it or search it: "
                "send vectors, or create a collection with a model and add the items there"
            )
        if self.fingerprint is not None and fingerprint != self.fingerprint:
            raise ModelMismatch(
                f"collection {self.name!r} was filled by model {self.model!r} with fingerprint "
                f"{self.fingerprint}, but these vectors come from fingerprint {fingerprint}: serve the model "
                "that filled it, or create a new collection and add the items there to embed them again"
            )

    def differences(self, other: "CollectionSpec") -> list[str]:
        """In which settings two collections differ, in words; empty if one could hold what is in the other.

        Where nothing was written yet there is no fingerprint to differ.
        """
        fields = ["dimensions", "metric", "kind", "indexed_keys", "model", "thumbnails"]
        if self.model == other.model and self.fingerprint and other.fingerprint:
            fields.append("fingerprint")
        return [
            f"{field} is {getattr(self, field)!r}, not {getattr(other, field)!r}"
            for field in fields
            if getattr(self, field) != getattr(other, field)
        ]

    def check_same(self, wanted: "CollectionSpec") -> None:
        """Raise unless creating `wanted` over this existing collection changes nothing.

        Raises:
            ModelMismatch: only the exact model differs.
            CollectionExists: a setting differs; the message names each.
        """
        if wanted.model == self.model:
            self.check_fingerprint(wanted.fingerprint)
        if differences := self.differences(wanted):
            raise CollectionExists(
                f"collection {self.name!r} exists with other settings ({'; '.join(differences)}): "
                "use those, choose another name, or delete it first"
            )
