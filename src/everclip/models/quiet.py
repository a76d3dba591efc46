"""Silence the log lines of other libraries, and keep them from the network."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide log lines and warnings of other libraries; everclip makes the checks that matter itself."""
    before = logging.root.manager.disable
    handlers = list(logging.root.handlers)
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        # `logging.info`, called on the module, installs a handler that would print the program's lines twice.
        logging.root.handlers[:] = handlers


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Keep the hub's library from the network, whatever the environment said when it was imported."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
