"""The way from each layer back to the one before: the stations that a gradient passes.

A value dominates another if every path from the inputs to that one leads through it. Between a
value and its immediate dominator lies a region: an activation, a norm, pooling, dropout; or a
residual block, whose branch is followed to its last layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jaxdnn.diagnosis.layers import LayerSite, find_consumers, find_layers
from jaxdnn.diagnosis.program import Dependence, Program, Step
from jaxdnn.diagnosis.stations import Station, classify, join, tidy

_ROOT = -1


@dataclasses.dataclass(frozen=True)
class Link:
    """The way from a layer (or the inputs) up to the next layer's operand, or to the logits.

    Attributes:
      below: index of the layer below; None for the inputs.
      stations: from below to above.
    """

    below: int | None
    stations: tuple[Station, ...]


@dataclasses.dataclass(frozen=True)
class Graph:
    """A network as layers and the ways between them.

    Attributes:
      program: its steps.
      layers: in the order in which they run.
      links: to each layer; to the logits last.
    """

    program: Program
    layers: tuple[LayerSite, ...]
    links: tuple[Link, ...]

    def above(self, index: int) -> int | None:
        """Return the layer that a layer's gradient comes from; None for the logits."""
        uppers = [
            upper for upper, link in enumerate(self.links[:-1]) if link.below == index
        ] or self._reached(index)
        return uppers[-1] if uppers and self.links[-1].below != index else None

    def _reached(self, index: int) -> list[int]:
        """The first later layer that sees anything of this one's output."""
        seen = {self.layers[index].z}
        sites = {site.step: upper for upper, site in enumerate(self.layers)}
        for number, step in enumerate(self.program.steps):
            if seen.intersection(step.inputs):
                if number in sites and number > self.layers[index].step:
                    return [sites[number]]
                seen.update(step.outputs)
        return []


def make_graph(program: Program, names: Sequence[str]) -> Graph:
    """Find the layers of a program and what lies between them.

    Args:
      program: of the network.
      names: path of every parameter leaf.
    """
    layers = find_layers(program, names)
    walker = _Walker(program, layers)
    tops = [site.x for site in layers] + [program.output]
    return Graph(program, layers, tuple(walker.walk(top) for top in tops))


class _Walker:
    """Finds the way down from a value."""

    def __init__(self, program: Program, layers: Sequence[LayerSite]) -> None:
        self._program = program
        self._producers = {number: step for step in program.steps for number in step.outputs}
        self._by_z = {site.z: index for index, site in enumerate(layers)}
        self._layer_steps = {id(program.steps[site.step]) for site in layers}
        self._consumers = find_consumers(program)
        self._dominator: dict[int, int] = {}
        self._level: dict[int, int] = {_ROOT: 0}
        self._num_layers: dict[int, int] = {_ROOT: 0}
        for number in program.arguments:
            self._place(number, [], False)
        for step in program.steps:
            for number in step.outputs:
                self._place(number, self._sources(step), id(step) in self._layer_steps)

    def _sources(self, step: Step) -> list[int]:
        values = self._program.values
        return [n for n in step.inputs if values[n].depends & Dependence.INPUTS]

    def _place(self, number: int, sources: list[int], is_layer: bool) -> None:
        """Enter a value below which everything has been entered."""
        dominator = sources[0] if sources else _ROOT
        for source in sources[1:]:
            dominator = self._common(dominator, source)
        self._dominator[number] = dominator
        self._level[number] = self._level[dominator] + 1
        above = max((self._num_layers[source] for source in sources), default=0)
        self._num_layers[number] = above + is_layer

    def _common(self, a: int, b: int) -> int:
        while a != b:
            if self._level[a] < self._level[b]:
                a, b = b, a
            a = self._dominator[a]
        return a

    def walk(self, top: int | None) -> Link:
        stations: list[Station] = []
        value = top
        while value is not None and value not in self._by_z and value in self._producers:
            start = self._dominator[value]
            region = self._region(value, start)
            if not any(id(step) in self._layer_steps for step in region):
                if start == _ROOT:
                    break
                stations.append(classify(self._program, region, start, value))
                value = start
                continue
            step = self._producers[value]
            branch = self._branch(step)
            stations.append(join(step, branch, value))
            value = branch
        below = None if value is None else self._by_z.get(value)
        return Link(below, tidy(stations[::-1]))

    def _region(self, end: int, start: int) -> list[Step]:
        """All steps between two values, in the order in which they run."""
        found: dict[int, Step] = {}
        waiting = [end]
        while waiting:
            number = waiting.pop()
            if number == start or number not in self._producers:
                continue
            step = self._producers[number]
            if id(step) not in found:
                found[id(step)] = step
                waiting.extend(self._sources(step))
        return sorted(found.values(), key=lambda step: step.outputs[0])

    def _branch(self, step: Step) -> int:
        """The operand with the most layers below it; of equals the one that is nearer to them."""
        return max(
            self._sources(step),
            key=lambda source: (self._num_layers[source], -self._level[source]),
        )
