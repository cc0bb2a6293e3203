"""Which strings are texts."""

import re
from typing import Final

from deployments.errors import BadInput

_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def check_characters(text: str) -> None:
    """Raises BadInput for characters that are no text: NUL, or half a surrogate pair."""
    if "\0" in text:
        raise BadInput(f"the text has a NUL character at position {text.index(chr(0))}")
    if (lone := _SURROGATE.search(text)) is not None:
        raise BadInput(f"the text has half a surrogate pair at position {lone.start()}: not valid Unicode")
