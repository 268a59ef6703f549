"""What searches decide on: a layer, or the layers that share a weight."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

LayerKey = tuple[str, str]
"""Component and target name."""

_NUMBER = re.compile(r"(?<=[./_])\d+(?=[./_]|$)|^\d+(?=[./_])")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """A target, as far as searches need to know it.

    Attributes:
        component, name: its graph and its name in plans.
        op_type: its operator.
        weight: name of the float initializer; layers of one weight are decided on together.
        parameters: elements of the weight.
        depth: weights of an output channel.
    """

    component: str
    name: str
    op_type: str
    weight: str
    parameters: int
    depth: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unit:
    """Layers that get one format: one layer, or those that share a weight (a head tied to its embedding)."""

    layers: tuple[Layer, ...]

    @property
    def keys(self) -> tuple[LayerKey, ...]:
        """Where plans know it."""
        return tuple((layer.component, layer.name) for layer in self.layers)

    @property
    def name(self) -> str:
        """For tables."""
        return " + ".join(layer.name for layer in self.layers)

    @property
    def parameters(self) -> int:
        """Elements of the weight, which is stored once."""
        return self.layers[0].parameters

    @property
    def depth(self) -> int:
        """Weights of an output channel."""
        return self.layers[0].depth

    @property
    def block(self) -> str:
        """The repeated module that it is part of: `model.layers.3`; empty where there is none."""
        name, numbers = self.layers[0].name, list(_NUMBER.finditer(self.layers[0].name))
        if not numbers or len(self.layers) > 1:
            return ""
        return f"{self.layers[0].component}:{name[: numbers[-1].end()]}"

    @property
    def kind(self) -> str:
        """What it has in common with its like in other blocks: `model.layers.*.mlp.down_proj`."""
        return f"{self.layers[0].component}:{_NUMBER.sub('*', self.layers[0].name)}"


def units_of(layers: Iterable[Layer]) -> tuple[Unit, ...]:
    """Join layers that share a weight, also across graphs; in the order of the first of each."""
    groups: dict[tuple[str, int, int], list[Layer]] = {}
    for layer in layers:
        groups.setdefault((layer.weight, layer.parameters, layer.depth), []).append(layer)
    return tuple(Unit(layers=tuple(group)) for group in groups.values())


__all__ = ["Layer", "LayerKey", "Unit", "units_of"]
