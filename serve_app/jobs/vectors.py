"""Parquet files with a column of vectors, as items."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from index.errors import BadItem
from index.items import check_id, content_id
from serve_app.jobs.server import Item

SHOWN_CHARS: Final = 80  # of the name of a row whose id is too long
NUMBERS: Final = "a vector is a list of one number or more, none of them null"


class BadTable(Exception):  # noqa: N818 — named like the errors of the deployments
    """The table has no such columns (the message names those it has)."""


@dataclass(frozen=True)
class Layout:
    """Which columns hold what. Without `id` ids come from the vectors; `metadata` None is the rest."""

    vector: str
    id: str | None = None
    metadata: tuple[str, ...] | None = None

    def columns(self, schema: pa.Schema) -> list[str]:
        """The columns to read. Raises BadTable."""
        named = [self.vector, *([self.id] if self.id else [])]
        rest = [name for name in schema.names if name not in named]
        wanted = list(dict.fromkeys([*named, *(rest if self.metadata is None else self.metadata)]))
        if unknown := [name for name in wanted if name not in schema.names]:
            raise BadTable(f"no column {unknown[0]!r}; the columns are {', '.join(schema.names)}")
        kind = schema.field(self.vector).type
        is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        if not is_list or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
            raise BadTable(f"column {self.vector!r} is {kind}; a column of lists of numbers is accepted")
        return wanted

    def items(self, table: pa.RecordBatch, first_row: int) -> Iterator[Item | tuple[str, str]]:
        """An item for each row, or the row's name and why it is none."""
        metadata = [name for name in table.schema.names if name not in (self.vector, self.id)]
        rows: Sequence[dict[str, Any]] = (
            table.select(metadata).to_pylist() if metadata else [{}] * table.num_rows
        )
        ids = table[self.id].to_pylist() if self.id else [None] * table.num_rows
        for number, (id, vector, row) in enumerate(
            zip(ids, table[self.vector], rows, strict=True), first_row
        ):
            name = f"row {number}" if id is None else f"row {number} (id {id})"
            values = vector.values if vector.is_valid else None
            if values is None or values.null_count or not len(values):
                yield name, NUMBERS
            elif self.id and id is None:
                yield name, f"column {self.id!r} is null"
            else:
                numbers = values.to_numpy(zero_copy_only=False).astype(np.float32)
                try:
                    made = content_id(numbers) if id is None else check_id(str(id))
                except BadItem as error:
                    yield name[:SHOWN_CHARS], error.message
                else:
                    yield Item(made, name, numbers, row)
