"""Taps and edits: the activations inside any network, read or changed by module name; the network stays as it is."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from stillroom.blocks.frozen import Frozen
from stillroom.data.batch import tensors_in

_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Names under which torch.compile, FSDP and activation checkpointing put the module that they wrap."""


class Taps:
    """Keeps what named modules inside a network returned in its latest forward.

    Names are those of `named_modules()`, relative to the network inside what surrounds it: `DistributedDataParallel`,
    `torch.compile`, `Frozen` (so a teacher can be tapped), and any module with an attribute `tap_root`. A pattern may
    hold `*`, `?` and `[...]`, which stay within one part of a dotted name ("layer*", "blocks.*.mlp"), and the part
    `**`, which stands for any number of parts.

    `features` holds the first tensor of what each module returned, attached to the graph. A module that is called
    several times in one forward keeps its last call (tap the block around a shared activation to be sure which one
    that is). The next forward of the network forgets everything first.

    A Taps is no module: an `nn.Module` may hold it and it enters no state dict. It holds the tapped modules, not the
    name under which its owner keeps the network: exchange the network, and it must be tapped anew; wrapping it is fine.
    `copy.deepcopy` and `pickle` of an object that owns both the network and the Taps give a Taps on the copied network;
    a network that is copied alone leaves the Taps behind and its copied hooks record nothing.

    `torch.compile`: the hooks are part of what is compiled, whether they came before or after the call of
    `torch.compile`. Taps made or removed on a network that has already run compiled throw away what was compiled
    (`torch.compiler.reset()`), since compiled code does not look for new hooks.

    Args:
        module: the network, wrapped or not.
        names: module names or patterns, or a single one.

    Attributes:
        tapped: the names, patterns filled in, in the order asked for.

    Raises:
        TypeError: `module` is no module, such as a frozen function, or it is a cache.
        ValueError: no name is given, or one that no module has; the message shows the nearest names.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> with Taps(network, "1") as taps:
        ...     logits = network(torch.ones(5, 4))
        ...     taps.features["1"].shape
        torch.Size([5, 3])
    """

    def __init__(self, module: nn.Module, names: Sequence[str] | str) -> None:
        self._root = tap_root(module)
        self.tapped = _resolve(self._root, [names] if isinstance(names, str) else list(names))
        self._kept = {name: _Keep() for name in self.tapped}
        modules = dict(_walk(self._root))
        self._handles = [modules[name].register_forward_hook(keep) for name, keep in self._kept.items()]
        self._handles.append(self._root.register_forward_pre_hook(_Forget(list(self._kept.values()))))
        self._compiled = _is_compiled(module)
        if self._compiled:
            torch.compiler.reset()

    @property
    def features(self) -> dict[str, Tensor]:
        """What each tapped module returned in the latest forward, in the order of `tapped`.

        Raises:
            RuntimeError: a module has not run, or its output was changed in place after it was recorded.
        """
        features = {}
        for name, keep in self._kept.items():
            if not keep.ran:
                raise RuntimeError(
                    f"module {name!r} has no output recorded, expected one from the latest forward: call the network "
                    "first, or tap a module that it runs"
                )
            if keep.output is None:
                raise RuntimeError(f"module {name!r} returned no tensor, expected one: tap another module")
            if keep.version is not None and keep.output._version != keep.version:
                raise RuntimeError(
                    f"the output of {name!r} was changed in place after it was recorded (often by a ReLU with "
                    "inplace=True or by +=): tap the module that changed it, or build the network without in-place"
                )
            features[name] = keep.output
        return features

    def clear(self) -> None:
        """Forget the latest forward, so that its memory is free before the next one."""
        for keep in self._kept.values():
            keep.forget()

    def remove(self) -> None:
        """Take every hook off the network and forget what was recorded; a second call does nothing."""
        for handle in self._handles:
            handle.remove()
        if self._handles and self._compiled:
            torch.compiler.reset()
        self._handles = []
        for keep in self._kept.values():
            keep.awake = False
        self.clear()

    @staticmethod
    def names(module: nn.Module) -> list[str]:
        """All names that can be tapped in a network, in the order of `named_modules()`."""
        return list(modules_by_name(tap_root(module)))

    def __enter__(self) -> Taps:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for keep in self._kept.values():  # this Taps was copied with its network: its copied hooks work on
            keep.awake = bool(self._handles)

    def __repr__(self) -> str:
        return f"Taps({', '.join(self.tapped)})"


class BriefTaps:
    """Calls a network with taps on it for that call alone, so that it ships as it came.

    A compiled network keeps its taps, since compiled code does not look for new hooks.

    Args:
        names: module names or patterns, as `Taps` takes them; none calls the network and nothing else.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
        >>> outputs, (hidden,) = BriefTaps("0")(network, torch.ones(5, 4))
        >>> torch.equal(outputs, hidden.relu())
        True
    """

    def __init__(self, names: Sequence[str] | str) -> None:
        self.names = [names] if isinstance(names, str) else list(names)
        self._kept: Taps | None = None

    def __call__(self, network: nn.Module, inputs: Any) -> tuple[Any, list[Tensor]]:
        """Call a network (the same one every time): what it returns, and what the tapped modules returned."""
        if not self.names:
            return network(inputs), []
        taps = self._kept or Taps(network, self.names)
        try:
            outputs = network(inputs)
            return outputs, list(taps.features.values())
        finally:
            if _is_compiled(network):
                self._kept = taps
                taps.clear()
            else:
                taps.remove()


class Edits:
    """Changes what named modules inside a network return, for as long as the `with` block runs.

    Names are those of `Taps`. Each function gets the tensor that its module returned (a convolution's or a linear map's
    own output, before any activation that follows) and returns the one that the network goes on with; gradients flow
    through it. Every hook is gone when the block ends, also after an exception, and the network is what it was.

    Args:
        module: the network, wrapped or not (see `Taps`).
        edits: module name -> `function(output) -> output` of the same shape.

    Raises:
        TypeError: `module` is no module.
        ValueError: no name is given, one that no module has, or the network is compiled (compiled code does not look
            for new hooks); in the forward pass: a module returned no single tensor, or an edit changed its shape.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> with Edits(network, {"0": torch.zeros_like}):
        ...     silenced = network(torch.ones(5, 4))
        >>> torch.equal(silenced, network[2].bias.expand(5, 2))
        True
    """

    def __init__(self, module: nn.Module, edits: Mapping[str, Callable[[Tensor], Tensor]]) -> None:
        root = tap_root(module)
        if _is_compiled(module):
            raise ValueError(
                f"{type(root).__name__} is compiled, and compiled code does not look for new hooks: edit the network "
                "before torch.compile, or leave it uncompiled"
            )
        named: dict[str, Callable[[Tensor], Tensor]] = {}
        for pattern, edit in edits.items():
            named |= dict.fromkeys(_resolve(root, [pattern]), edit)
        self.edited = _resolve(root, list(named))
        modules = dict(_walk(root))
        self._hooks = [(modules[name], _Edit(name, named[name])) for name in self.edited]
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Edits:
        self._handles += [module.register_forward_hook(hook) for module, hook in self._hooks]
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


class _Edit:
    """The hook on an edited module."""

    def __init__(self, name: str, edit: Callable[[Tensor], Tensor]) -> None:
        self.name, self.edit = name, edit

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> Tensor:
        if not isinstance(output, Tensor):
            raise ValueError(
                f"module {self.name!r} returned a {type(output).__name__}, expected one tensor to edit: name a module "
                "inside it"
            )
        edited = self.edit(output)
        if edited.shape != output.shape:
            raise ValueError(
                f"the edit of {self.name!r} turned shape {tuple(output.shape)} into {tuple(edited.shape)}: keep it"
            )
        return edited


def unwrapped(module: Any) -> Any:
    """The network inside what DDP, FSDP, torch.compile or activation checkpointing put around it."""
    while isinstance(module, nn.Module):
        if isinstance(module, nn.parallel.DistributedDataParallel):
            module = module.module
        elif wrapper := next((name for name in _WRAPPERS if hasattr(module, name)), ""):
            module = getattr(module, wrapper)
        else:
            break
    return module


def tap_root(module: nn.Module) -> nn.Module:
    """The network whose module names are used: inside DDP, torch.compile, `Frozen` and `tap_root` wrappers.

    Args:
        module: any module.

    Raises:
        TypeError: what is found at the bottom is no module, or a cache, in which nothing runs.
    """
    inner: Any = unwrapped(module)
    while (deeper := _inside(inner)) is not inner:
        inner = deeper
    if not isinstance(inner, nn.Module):
        raise TypeError(
            f"only a torch.nn.Module has activations to tap, given {type(inner).__name__}: "
            "use a method that needs no features, or give the teacher as a module"
        )
    if getattr(inner, "answers_from_memory", False):
        raise TypeError(
            f"a {type(inner).__name__} teacher answers from memory and has no activations to tap: use a method that "
            "needs no features, or the teacher without its cache"
        )
    return inner


def _inside(module: Any) -> Any:
    """One step towards the network: what `Frozen` or a wrapper with a `tap_root` holds."""
    if isinstance(module, Frozen):
        return unwrapped(module.network)
    return unwrapped(getattr(module, "tap_root", module) if isinstance(module, nn.Module) else module)


class _Keep:
    """The hook on a tapped module, which keeps the latest output.

    A copy is empty and asleep until a Taps that was copied with it wakes it.
    """

    def __init__(self) -> None:
        self.ran = False
        self.output: Tensor | None = None
        self.version: int | None = None
        self.awake = True

    def __getstate__(self) -> dict[str, Any]:
        # what is kept belongs to a graph and cannot be copied
        return {"ran": False, "output": None, "version": None, "awake": False}

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self.awake:
            self.ran = True
            self.output = first_tensor(output)
            self.version = None if torch.compiler.is_compiling() else _version(self.output)

    def forget(self) -> None:
        self.ran = False
        self.output = self.version = None


class _Forget:
    """The hook before the whole network's forward."""

    def __init__(self, kept: list[_Keep]) -> None:
        self.kept = kept

    def __call__(self, module: nn.Module, inputs: Any) -> None:
        for keep in self.kept:
            if keep.awake:
                keep.forget()


def _version(tensor: Tensor | None) -> int | None:
    """How often a tensor has been changed in place; None where nobody counts."""
    return None if tensor is None or tensor.is_inference() else tensor._version


def first_tensor(output: Any) -> Tensor | None:
    """The first tensor in what a module returned: itself, or inside a tuple, list or dict; None where there is none."""
    return output if isinstance(output, Tensor) else next(iter(tensors_in(output)), None)


def _walk(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Names (without the wrappers' parts) and modules; of a wrapper and what it wraps, the outer one is named."""
    seen = {""}
    for name, module in root.named_modules(remove_duplicate=False):
        plain = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
        if plain not in seen:
            seen.add(plain)
            yield plain, module


def modules_by_name(root: nn.Module) -> dict[str, nn.Module]:
    """Every module inside a network by the name it is tapped under; of several names for one module, the first."""
    first: dict[int, tuple[str, nn.Module]] = {}
    for name, module in _walk(root):
        first.setdefault(id(module), (name, module))
    return dict(first.values())


def _resolve(root: nn.Module, names: list[str]) -> tuple[str, ...]:
    """Fill in the patterns and refuse what no module is called."""
    known, listed = dict(_walk(root)), list(modules_by_name(root))
    if not names:
        raise ValueError("Taps needs at least one module name, given none: Taps.names(module) lists them all")
    found: dict[str, None] = {}
    for name in names:
        matches = [name] if name in known else [other for other in listed if _fits(other.split("."), name.split("."))]
        if not matches:
            ends = {other.rsplit(".", 1)[-1]: other for other in reversed(listed)}
            near = difflib.get_close_matches(name, listed, n=5, cutoff=0.4)
            near += [ends[end] for end in difflib.get_close_matches(name, ends, n=3) if ends[end] not in near]
            nearest = ", ".join(map(repr, near or listed[:5])) or "none, it has no modules inside"
            raise ValueError(
                f"no module of {type(root).__name__} is called {name!r}, expected one of its {len(listed)} names; the "
                f"nearest are {nearest}: stillroom.blocks.Taps.names(module) lists all"
            )
        found.update(dict.fromkeys(matches))
    return tuple(found)


def _fits(parts: list[str], pattern: list[str]) -> bool:
    """Whether the parts of a dotted name fit a pattern's parts."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_fits(parts[skip:], pattern[1:]) for skip in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


def _is_compiled(module: Any) -> bool:
    """Whether torch.compile has been applied to a network or to a part of it."""
    if isinstance(module, Frozen):
        return _is_compiled(module.network)
    return any(hasattr(inner, "_orig_mod") or inner._compiled_call_impl is not None for inner in module.modules())
