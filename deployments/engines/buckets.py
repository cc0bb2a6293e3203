"""The shapes that CUDA graphs are captured for, and how inputs are padded to them."""

from collections.abc import Sequence
from typing import Any, Final

from numpy.typing import NDArray

Shape = tuple[int, ...]

LENGTH_UNIT: Final = 8  # attention kernels want the rows of a mask aligned to 16 bytes
# Beyond these a forward takes milliseconds: its launches hide behind its kernels, and padding would cost
# more than a graph saves.
MAX_ROWS: Final = 256
MAX_BATCH_TOKENS: Final = 16_384  # rows x length


def bucket(n: int, unit: int = 1) -> int:
    """The smallest `unit` x (1, 2, 3, 4, 6, 8, 12, 16, …) that holds n.

    So less than a third of it is padding, or less than one unit.
    """
    units = -(-n // unit)
    power = 1 << (units - 1).bit_length()
    return unit * (power * 3 // 4 if power >= 4 and units <= power * 3 // 4 else power)


def row_buckets(max_rows: int) -> list[int]:
    """A number of rows for each bucket that batches of 1 to `max_rows` fall into."""
    return list({bucket(rows): rows for rows in range(1, min(max_rows, MAX_ROWS) + 1)}.values())


def token_buckets(max_rows: int, max_cost: int, max_tokens: int) -> list[tuple[int, int]]:
    """(rows, length) for each bucket that batches of tokens fall into.

    A batch has up to `max_rows` rows and `max_tokens` tokens a row; their product is up to `max_cost`, if
    there is more than one row.
    """
    lengths = {min(bucket(length, LENGTH_UNIT), max_tokens): length for length in range(max_tokens, 0, -1)}
    shapes = []
    for padded, shortest in lengths.items():
        most = max(1, min(max_rows, max_cost // shortest))
        shapes += [
            (rows, shortest) for rows in row_buckets(most) if bucket(rows) * padded <= MAX_BATCH_TOKENS
        ]
    return shapes


def bucket_shapes(inputs: Sequence[NDArray[Any]], max_tokens: int | None) -> tuple[Shape, ...] | None:
    """The shapes that `inputs` are padded to, or None where they should run as they are.

    2-D inputs are tokens [n, length], all of one length, padded to no more than `max_tokens` (None: not
    at all); any other input is padded in its first axis alone.
    """
    rows = bucket(len(inputs[0]))
    if rows > MAX_ROWS:
        return None
    shapes = []
    for array in inputs:
        rest = array.shape[1:]
        if array.ndim == 2 and max_tokens is not None:
            rest = (min(bucket(rest[0], LENGTH_UNIT), max(max_tokens, rest[0])),)
        if array.ndim == 2 and rows * rest[0] > MAX_BATCH_TOKENS:
            return None
        shapes.append((rows, *rest))
    return tuple(shapes)


def fill(buffer: NDArray[Any], rows: NDArray[Any]) -> None:
    """Write `rows` into the first rows of `buffer`; tokens are followed by zeros up to its length.

    Zeros are padding to every network here: a mask of 0 hides the token, and under a causal mask nothing
    looks behind the end token. The rows after them keep what they hold, as rows do not see each other.
    """
    target = buffer[: len(rows)]
    if rows.ndim == 2:
        target[:, rows.shape[1] :] = 0
        target = target[:, : rows.shape[1]]
    target[...] = rows
