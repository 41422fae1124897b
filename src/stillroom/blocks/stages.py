"""Stages: which modules of a network to tap, chosen from one probe forward, and paired between two networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stillroom.blocks.frozen import Frozen
from stillroom.blocks.taps import first_tensor, modules_by_name, tap_root, unwrapped
from stillroom.data.batch import Batch


class MatchedTaps(NamedTuple):
    """Names of equal length, pair by pair, from the first stage to the last."""

    student_names: list[str]
    teacher_names: list[str]


def default_taps(module: nn.Module, probe_inputs: Any, *, most: int | None = None) -> list[str]:
    """Choose where a network's stages end, by one forward in eval mode without gradients.

    - Conv nets that change the size of their maps: the last module at each size. Where there are blocks (modules with
      two or more weight layers) it is the last block; sizes without a block, such as a stem's, are left out.
    - Transformers and conv nets of one size: every block, that is two or more of one class side by side.
    - Other networks: every hidden layer, taken behind its activation: the last module before the next weight layer.

    A network's own output is never chosen, nor is an output that is changed in place afterwards. Maps are understood
    as `(N, C, H, W)`: the stages of a channels-last network are found, but its maps must be turned before `Align`.

    Args:
        module: the network, wrapped or not (see `Taps`); its modes, weights and buffers stay as they are.
        probe_inputs: inputs (or a `Batch`) to call it with; two samples are enough.
        most: keep at most so many, evenly spread, the last one included; None keeps all.

    Returns:
        Names for `Taps`, in the order in which they run.

    Raises:
        ValueError: `most` is below 1, or nothing inside the network looks like a stage.
        TypeError: there is no module inside, such as a frozen function.
    """
    names = [stage.name for stage in _stages(module, probe_inputs)]
    return [names[row] for row in evenly(len(names), min(most if most is not None else len(names), len(names)))]


def matched_taps(student: nn.Module, teacher: nn.Module, probe_inputs: Any, *, stages: int = 4) -> MatchedTaps:
    """Pair the stages of any two networks, by the size of their maps or else by relative depth.

    Where both return maps and share two or more sizes, stages of one size are paired. Else the stages of the network
    that has fewer are paired with as many of the other's, evenly spread, the last with the last.

    Args:
        student: the network that is trained.
        teacher: the network that is learned from.
        probe_inputs: inputs (or a `Batch`) that both are called with.
        stages: how many pairs at most; the latest stay, evenly spread.

    Returns:
        `(student_names, teacher_names)`, names for `Taps`.

    Raises:
        ValueError: `stages` is below 1, or a network has nothing that looks like a stage.
    """
    if stages < 1:
        raise ValueError(f"stages must be 1 or more, given {stages}")
    students, teachers = _stages(student, probe_inputs), _stages(teacher, probe_inputs)
    pairs = _same_sizes(students, teachers)
    if len(pairs) < 2:
        number = min(len(students), len(teachers))
        rows = zip(evenly(len(students), number), evenly(len(teachers), number), strict=True)
        pairs = [(students[row].name, teachers[other].name) for row, other in rows]
    kept = [pairs[row] for row in evenly(len(pairs), min(stages, len(pairs)))]
    return MatchedTaps([name for name, _ in kept], [name for _, name in kept])


def evenly(available: int, wanted: int) -> list[int]:
    """Cut `available` things in a row into `wanted` parts as equal as can be, and number the last of each part.

    Args:
        available: how many there are.
        wanted: how many to take, in [1, available].

    Raises:
        ValueError: `wanted` is out of range.
    """
    if not 1 <= wanted <= available:
        raise ValueError(f"the number of stages must be in [1, {available}], given {wanted}")
    return [-(-part * available // wanted) - 1 for part in range(1, wanted + 1)]


def chained_after(module: nn.Module, probe_inputs: Any, names: Sequence[str]) -> list[list[nn.Module]]:
    """Find what runs between each named module and the last named one, where modules simply follow each other.

    Args:
        module: a network whose named modules give maps `(N, C, H, W)`.
        probe_inputs: inputs (or a `Batch`) to call it with.
        names: module names in running order.

    Returns:
        For every name but the last the network's own modules, in running order.

    Raises:
        ValueError: the modules do not follow each other: run on the one feature, they do not give the other.
    """
    probe = _Probe(module, probe_inputs, keep=names)
    chain = probe.chain()
    rows = {ran.name: row for row, ran in enumerate(chain)}
    found = []
    for name in names[:-1]:
        between = chain[rows[name] + 1 : rows[names[-1]] + 1] if name in rows and names[-1] in rows else []
        if not between or not _gives(between, probe.kept[name], probe.kept[names[-1]]):
            raise ValueError(
                f"the modules of {type(probe.root).__name__} between {name!r} and {names[-1]!r} do not simply follow "
                "each other, so that they cannot be copied: use light heads, or name other stages"
            )
        found.append([ran.module for ran in between])
    return found


def repeated_stage(module: nn.Module, probe_inputs: Any, name: str) -> list[nn.Module]:
    """Modules for one more stage like the named one, with stride 1 and its width.

    Args:
        module: a network whose named module gives a map `(N, C, H, W)`.
        probe_inputs: inputs (or a `Batch`) to call it with.
        name: of the stage.

    Returns:
        Those of its blocks (with two or more weight layers) that keep the shape, repeated to as many as it has blocks;
        where there are none, a 3x3 convolution, batch norm and ReLU, or two of these where the stage has two spatial
        convolutions or more.
    """
    probe = _Probe(module, probe_inputs)
    stage = probe.ran[name]
    blocks = [ran for ran in sorted(probe.children(name), key=lambda ran: ran.end) if ran.weights > 1]
    same = [ran.module for ran in blocks if ran.given is not None and ran.given.shape == ran.output.shape]
    if same:
        return [same[row % len(same)] for row in range(len(blocks))]
    width = stage.output.shape[1]
    convolutions = [one for one in stage.module.modules() if isinstance(one, nn.Conv2d) and max(one.kernel_size) > 1]
    layers: list[nn.Module] = []
    for _ in range(min(max(len(convolutions), 1), 2)):
        layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return layers


def _gives(between: Sequence[_Ran], feature: Tensor, expected: Tensor) -> bool:
    """Whether modules, run one after the other in eval mode, turn one feature into the other."""
    modes = [(inner, inner.training) for ran in between for inner in ran.module.modules()]
    try:
        with torch.no_grad():
            value = feature
            for ran in between:
                value = ran.module.eval()(value)
        same = isinstance(value, Tensor) and value.shape == expected.shape
        return same and torch.allclose(value, expected, rtol=1e-3, atol=1e-5)
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False
    finally:
        for inner, training in modes:
            inner.training = training


def last_hidden_layers(module: nn.Module, probe_inputs: Any, *, most: int = 2) -> list[str]:
    """Name the last weight layers before the one that gives the output: the layers themselves, before any activation.

    Args:
        module: the network, wrapped or not (see `Taps`); its modes, weights and buffers stay as they are.
        probe_inputs: inputs (or a `Batch`) to call it with; two samples are enough.
        most: how many at most, the last ones; 1 or more.

    Returns:
        Names for `Taps` and `Edits`, in the order in which they run. Layers whose output is neither a vector `(N, F)`
        nor a map `(N, C, H, W)` are passed over.

    Raises:
        ValueError: `most` is below 1, or the network has no hidden weight layer.
        TypeError: there is no module inside, such as a frozen function.
    """
    if most < 1:
        raise ValueError(f"most must be 1 or more, given {most}")
    probe = _Probe(module, probe_inputs)
    layers = [
        ran
        for ran in sorted(probe.ran.values(), key=lambda ran: ran.end)
        if any(p.ndim >= 2 for p in ran.module.parameters(recurse=False)) and not probe.children(ran.name)
    ]
    names = [ran.name for ran in layers[:-1] if ran.output.ndim in (2, 4)]
    if not names:
        raise ValueError(
            f"{type(probe.root).__name__} has no hidden layer before its output that gives vectors (N, F) or maps "
            "(N, C, H, W): name the modules yourself, stillroom.blocks.Taps.names(module) lists them"
        )
    return names[-most:]


@dataclass(frozen=True, eq=False)
class _Ran:
    """A module's last call in the probe."""

    name: str
    module: nn.Module
    end: int
    given: Tensor | None
    output: Tensor
    version: int

    @property
    def parent(self) -> str:
        return self.name.rpartition(".")[0]

    @property
    def size(self) -> tuple[int, ...]:
        """Height and width of a map; empty for anything else."""
        return tuple(self.output.shape[2:]) if self.output.ndim == 4 else ()

    @property
    def weights(self) -> int:
        """How many weight layers (convolutions, linear maps) are inside."""
        return sum(any(p.ndim >= 2 for p in inner.parameters(recurse=False)) for inner in self.module.modules())


class _Probe:
    """One forward, and what every module inside returned."""

    def __init__(self, module: nn.Module, probe_inputs: Any, *, keep: Sequence[str] = ()) -> None:
        self.kept: dict[str, Tensor] = {}  # copies of named outputs: the network may change its own in place
        self._keep = set(keep)
        self.root = tap_root(module)
        self.modules = modules_by_name(self.root)
        self.ran: dict[str, _Ran] = {}
        handles = [inner.register_forward_hook(partial(self._note, name)) for name, inner in self.modules.items()]
        try:
            self.output = first_tensor(_call(module, probe_inputs))
        finally:
            for handle in handles:
                handle.remove()

    def _note(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        tensor = first_tensor(output)
        self.ran.pop(name, None)
        if tensor is not None and name in self._keep:
            self.kept[name] = tensor.detach().clone()
        if tensor is not None and tensor.ndim >= 2:
            end = max((ran.end for ran in self.ran.values()), default=0) + 1
            self.ran[name] = _Ran(name, module, end, first_tensor(inputs), tensor, tensor._version)

    def may_be_tapped(self, ran: _Ran) -> bool:
        return ran.output is not self.output and ran.output._version == ran.version

    def children(self, name: str) -> list[_Ran]:
        """What ran directly inside a module; containers that are not called themselves are looked through."""
        found = []
        for inner in self.modules:
            if inner.rpartition(".")[0] == name and inner != name:
                found += [self.ran[inner]] if inner in self.ran else self.children(inner)
        return found

    def chain(self, name: str = "") -> list[_Ran]:
        """The modules that follow each other at the top of the network, with containers opened, in running order."""
        children = self.children(name)
        opened = [self.chain(child.name) if self._opens(child, children) else [child] for child in children]
        return sorted((ran for part in opened for ran in part), key=lambda ran: ran.end)

    def _opens(self, ran: _Ran, siblings: list[_Ran]) -> bool:
        """Whether a module is a container of stages, and not a stage itself."""
        inside = self.children(ran.name)
        sizes = {child.size for child in inside if math.prod(child.size) > 1}
        sequence = type(ran.module) is nn.Sequential
        if not inside:
            return False
        if ran.output is self.output:
            return True
        if len(sizes) > 1 and sequence:
            return True
        if ran.output.ndim == 2 and not sizes:
            return ran.weights > 1 and (sequence or all(other is ran or other.weights < 2 for other in siblings))
        given = tuple(ran.given.shape[2:]) if ran.given is not None else ()
        return len(sizes - {given}) > 1


def _stages(module: nn.Module, probe_inputs: Any) -> list[_Ran]:
    """The ends of the stages, in running order; a choice between four ways to see a network."""
    probe = _Probe(module, probe_inputs)
    chain = probe.chain()
    first = {id(ran.output): ran for ran in reversed(chain) if probe.may_be_tapped(ran)}  # not what passes it through
    tapped = [ran for ran in chain if ran in first.values()]
    maps = [ran for ran in tapped if ran.size]
    blocks = {ran.size: ran for ran in maps if ran.weights > 1}  # a later one of the same size takes the place
    plain = {ran.size: ran for ran in maps if math.prod(ran.size) > 1}
    weighted = {ran.size for ran in chain if ran.weights}
    if len(blocks) > 1:
        stages = list(blocks.values())
    elif side_by_side := _side_by_side([ran for ran in probe.ran.values() if probe.may_be_tapped(ran)]):
        stages = side_by_side
    elif len(plain) > 1:
        stages = [ran for size, ran in plain.items() if size in weighted]
    else:
        stages = _hidden_layers(chain, set(tapped))
    if not stages:
        raise ValueError(
            f"nothing inside {type(probe.root).__name__} looks like the end of a stage, expected maps (N, C, H, W), "
            "blocks or hidden layers: name the modules yourself, stillroom.blocks.Taps.names(module) lists them"
        )
    return sorted(stages, key=lambda ran: ran.end)


def _side_by_side(ran: list[_Ran]) -> list[_Ran]:
    """The outermost blocks of one class in one place (most of them, where there are several such places)."""
    families: dict[tuple[str, type], list[_Ran]] = {}
    for one in ran:
        if one.output.ndim > 2 and one.weights > 1:
            families.setdefault((one.parent, type(one.module)), []).append(one)
    found = [family for family in families.values() if len(family) > 1]
    return min(found, key=lambda family: (family[0].name.count("."), -len(family)), default=[])


def _hidden_layers(chain: list[_Ran], tapped: set[_Ran]) -> list[_Ran]:
    """The last module of each weight layer and what follows it, without the last layer, which gives the output."""
    layers: list[list[_Ran]] = []
    for ran in chain:
        if ran.weights:
            layers.append([])
        if layers:
            layers[-1].append(ran)
    ends = ([ran for ran in layer if ran in tapped] for layer in layers[:-1])
    return [end[-1] for end in ends if end]


def _same_sizes(students: list[_Ran], teachers: list[_Ran]) -> list[tuple[str, str]]:
    """Pairs of stages whose maps have the same size."""
    teacher_names = {ran.size: ran.name for ran in teachers if ran.size}
    return [(ran.name, teacher_names[ran.size]) for ran in students if ran.size in teacher_names]


def _call(module: Any, probe_inputs: Any) -> Any:
    """Run a network in eval mode without gradients, outside DDP and torch.compile; its modes come back afterwards."""
    module = unwrapped(module)
    while isinstance(module, Frozen):
        module = unwrapped(module.network)
    batch = probe_inputs if isinstance(probe_inputs, Batch) else Batch(probe_inputs)
    modes = [(inner, inner.training) for inner in module.modules()]
    try:
        with torch.no_grad():
            return module.eval()(batch if getattr(module, "takes_batch", False) else batch.inputs)
    finally:
        for inner, training in modes:
            inner.training = training
