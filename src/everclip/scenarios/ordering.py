"""The order of classes, domains or sources: as listed, as in the data, sorted, or drawn from a seed."""

from __future__ import annotations

from collections.abc import Sequence

from everclip.data.catalog.cards import card_of
from everclip.data.sampling.order import generator
from everclip.errors import ConfigError, did_you_mean
from everclip.scenarios.spec import ScenarioSpec


def ordered(values: Sequence[str], spec: ScenarioSpec, what: str) -> list[str]:
    """Return `values` in the order of `spec.order`.

    Raises:
        ConfigError: if a listed order names an unknown value.
    """
    if isinstance(spec.order, tuple):
        for value in spec.order:
            if value not in values:
                raise ConfigError(f"order: {value!r} is none of the {what}.{did_you_mean(value, values)}")
        if len(set(spec.order)) < len(spec.order):
            twice = next(value for value in spec.order if spec.order.count(value) > 1)
            raise ConfigError(f"order: {twice!r} is listed more than once.")
        return list(spec.order)
    if spec.order in spec.orders:
        return ordered(values, spec.model_copy(update={"order": spec.orders[spec.order]}), what)
    if spec.order == "published":
        return _published(values, spec, what)
    if spec.order == "given":
        return list(values)
    by_name = sorted(values)
    if spec.order == "sorted":
        return by_name
    permutation = generator("order", spec.name, spec.order_seed).permutation(len(by_name))
    return [by_name[int(i)] for i in permutation]


def _published(values: Sequence[str], spec: ScenarioSpec, what: str) -> list[str]:
    """Return the values in the class order on the card of the data set; skip classes that the data lack."""
    if spec.data is None or not spec.data.is_catalog:
        raise ConfigError(
            f"order: `published` orders the classes of `data: {{source: catalog:NAME}}`, not {what}."
        )
    present = set(values)
    return [key for key in card_of(str(spec.data.source))[0].published_order() if key in present]
