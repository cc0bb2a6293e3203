"""Parquet files with a column of vectors, as items."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from index.errors import BadItem
from index.items import check_id, content_id
from serve_app.jobs.images import Folder
from serve_app.jobs.server import Item

SUFFIX: Final = ".parquet"
SHOWN_CHARS: Final = 80  # of a row's id
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

    def items(self, table: pa.RecordBatch, first_row: int, file: str) -> Iterator[Item | tuple[str, str]]:
        """An item for each row, or the row's name, which begins with `file`, and why it is none."""
        metadata = [name for name in table.schema.names if name not in (self.vector, self.id)]
        rows: Sequence[dict[str, Any]] = (
            table.select(metadata).to_pylist() if metadata else [{}] * table.num_rows
        )
        ids = table[self.id].to_pylist() if self.id else [None] * table.num_rows
        for number, (id, vector, row) in enumerate(
            zip(ids, table[self.vector], rows, strict=True), first_row
        ):
            name = f"{file}row {number}"
            if id is not None:
                name += f" (id {str(id)[:SHOWN_CHARS]})"
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
                    yield name, error.message
                else:
                    yield Item(made, name, numbers, row)


def parquet_files(source: str, problems: dict[str, str]) -> tuple[Folder, list[tuple[str, int]]]:
    """The `.parquet` files under a folder or bucket, or the one file that `source` is: paths and bytes.

    What cannot be listed is added to `problems`, by its name. Raises ValueError, OSError if nothing can.
    """
    folder = Folder.at(source)
    alone = folder.filesystem.get_file_info(folder.root)
    if alone.is_file:
        above, _, name = folder.root.rpartition("/")
        return Folder(folder.filesystem, above), [(name, alone.size)]
    # Spark and Hive begin the names of what is no data, or not yet, with _.
    every = [file for file in folder.files(problems) if "/_" not in f"/{file[0]}"]
    if not (files := [file for file in every if file[0].endswith(SUFFIX)]):
        raise ValueError(f"{source} holds no {SUFFIX} files")
    return folder, files


@dataclass(frozen=True)
class Table:
    """The Parquet file at a path of a folder; the names of its rows begin with `prefix`."""

    folder: Folder
    path: str
    prefix: str = ""

    def items(
        self, layout: Layout, batch: int, problems: dict[str, str]
    ) -> Iterator[tuple[list[Item], float]]:
        """The items of `batch` rows after the other, and which share of the file's rows these are.

        What is no item is added to `problems`, and so is the file itself where it cannot be read on.
        """
        row = 0
        try:
            whole = f"{self.folder.root}/{self.path}"
            with (
                self.folder.filesystem.open_input_file(whole) as opened,
                parquet.ParquetFile(opened) as file,
            ):
                columns = layout.columns(file.schema_arrow)
                for part in file.iter_batches(batch, columns=columns):
                    items = []
                    for item in layout.items(part, row, self.prefix):
                        if isinstance(item, Item):
                            items.append(item)
                        else:
                            problems[item[0]] = item[1]
                    row += len(part)
                    yield items, len(part) / file.metadata.num_rows
        except BadTable as error:
            problems[self.path] = str(error)
        except (pa.ArrowException, OSError, KeyError, ValueError, OverflowError) as error:
            place = f" from row {row} on" if row else ""
            problems[self.path] = f"cannot be read{place}: {' '.join(str(error).split())}"
