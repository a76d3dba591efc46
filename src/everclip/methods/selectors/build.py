"""Build a selector from its settings."""

from __future__ import annotations

from typing import Any

from everclip.methods.selectors.autoencoder import Autoencoder
from everclip.methods.selectors.base import Selector
from everclip.methods.selectors.energy import Energy
from everclip.methods.selectors.features import build_extractor
from everclip.methods.selectors.gaussian import Gaussian, check_width
from everclip.methods.selectors.settings import GaussianSettings, SelectorSettings, selector_settings
from everclip.models.backbone import Backbone

KINDS: dict[str, type[Selector[Any]]] = {
    "autoencoder": Autoencoder,
    "ddas": Autoencoder,
    "gaussian": Gaussian,
    "energy": Energy,
}
"""kind -> its class; `settings.SELECTORS` holds the settings of each."""


def build(
    settings: SelectorSettings | Any, backbone: Backbone, block: int = 0, prefix: str = "selector"
) -> Selector[Any] | None:
    """Build a selector; `None` for the name `none`.

    Args:
        settings: complete settings, a name, or a mapping with the key `kind`.
        backbone: the CLIP; only inspected, not stored.
        block: the first block of its image tower that the method adapts.
        prefix: the name of the selector in the method.

    Raises:
        ConfigError: if they do not fit each other or the backbone.
    """
    chosen = selector_settings(settings)
    if chosen is None:
        return None
    extractor = build_extractor(chosen, backbone, block)
    if isinstance(chosen, GaussianSettings) and chosen.covariance == "shared":
        check_width(extractor.width(backbone))
    return KINDS[chosen.kind](chosen, extractor, prefix)
