"""Parameters by name, all at once, are those that `get_parameter` finds one by one."""

import pytest
import torch
from torch import nn

from everclip.models.parameters import parameters_of


def test_the_same_parameters_in_the_given_order_also_where_one_has_two_names() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.ModuleDict({"a": nn.Linear(3, 2), "b": nn.Linear(3, 2)}))
    module[1]["b"].weight = module[1]["a"].weight
    names = ["1.b.weight", "0.bias", "1.a.weight"]
    found = parameters_of(module, names)
    assert list(found) == names
    assert all(found[name] is module.get_parameter(name) for name in names)


def test_a_name_that_no_parameter_has_is_named() -> None:
    module = nn.BatchNorm1d(2)
    for name in ("running_mean", "missing"):  # a buffer is no parameter
        with pytest.raises(AttributeError, match=name):
            parameters_of(module, ["weight", name])
    assert isinstance(parameters_of(module, iter(["weight"]))["weight"], torch.nn.Parameter)
