"""Keeps callers' mistakes out of the replicas' logs, where each would be a traceback at level ERROR."""

import logging

from deployments.errors import BadInput, EncoderMismatch, Overloaded
from index.errors import IndexUnavailable, VectorIndexError


class CallersMistakes(logging.Filter):
    """Drops records of errors that are the answer to a request and no fault of this server."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, BadInput | EncoderMismatch | Overloaded):
            return False
        return not isinstance(error, VectorIndexError) or isinstance(error, IndexUnavailable)


def hide_callers_mistakes() -> None:
    """Every deployment calls this when its replica starts; a second call changes nothing."""
    serve_logger = logging.getLogger("ray.serve")
    if not any(isinstance(known, CallersMistakes) for known in serve_logger.filters):
        serve_logger.addFilter(CallersMistakes())
