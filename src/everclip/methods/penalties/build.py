"""Build penalties from the settings of the slot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from everclip.config import validated
from everclip.errors import ConfigError, did_you_mean
from everclip.methods.penalties.base import Penalty
from everclip.methods.penalties.feature_distill import FeatureDistill
from everclip.methods.penalties.lwf import Lwf
from everclip.methods.penalties.lwf_vr import LwfVr
from everclip.methods.penalties.mod_x import ModX
from everclip.methods.penalties.oewc import Oewc
from everclip.methods.penalties.table_distill import TableDistill
from everclip.methods.penalties.weight_constraint import WeightConstraint
from everclip.methods.penalties.zscl import Zscl

PENALTIES: dict[str, type[Penalty[Any]]] = {
    "weight-constraint": WeightConstraint,
    "oewc": Oewc,
    "lwf": Lwf,
    "lwf-vr": LwfVr,
    "zscl": Zscl,
    "mod-x": ModX,
    "feature-distill": FeatureDistill,
    "table-distill": TableDistill,
}


def build(settings: Mapping[str, Mapping[str, Any]]) -> tuple[Penalty[Any], ...]:
    """Build the penalties of a method, without those of weight 0.

    Raises:
        ConfigError: for an unknown name or setting.
    """
    built = []
    for name, options in settings.items():
        if name not in PENALTIES:
            raise ConfigError(f"method.penalties: {name!r} is not known.{did_you_mean(name, PENALTIES)}")
        kind = PENALTIES[name]
        built.append(kind(name, validated(kind.Settings, options, f"method.penalties.{name}")))
    return tuple(p for p in built if p.settings.weight)
