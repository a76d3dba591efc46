"""Silence for libraries that log what concerns nobody, or that would reach for the network."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep log lines and warnings of other libraries from being shown; what matters is checked by us."""
    before = logging.root.manager.disable
    handlers = list(logging.root.handlers)
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        # `logging.info` called on the module installs a handler, which would double the lines of the program.
        logging.root.handlers[:] = handlers


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Keep the hub's library from the network, whatever its variables said when it was imported."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
