"""Errors of the store in tasks that try again.

Layer: hub.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from tenuto.core.errors import TenutoError

logger = logging.getLogger("tenuto.hub")


@contextmanager
def logs_errors(message: str) -> Iterator[None]:
    """Log an error of the block after `message`, and go on: also one of a third-party store must not end the hub."""
    try:
        yield
    except TenutoError as error:
        logger.warning("%s: %s", message, error)
    except Exception:
        logger.exception("%s", message)
