"""Networks that see some of the modalities of a paired batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from stillroom.data.batch import tensors_in


class Sees(nn.Module):
    """Gives a network its own modalities of inputs that hold several.

    Called with paired inputs (a dict by name, or a list or tuple by place) it passes on the modalities named, as
    positional arguments in the order named. Called with anything else (a tensor: the one modality, alone) it passes
    that on, so that a network which sees one modality is used after training without the others.

    Args:
        network: is called with one argument per modality.
        *modalities: names of a dict, or places of a list or tuple.

    Attributes:
        network: the network itself; its module names are those that `Taps` and `Edits` use.

    Raises:
        ValueError: no modality is named; in the forward pass: inputs lack one, or are one tensor where several
            modalities are seen.

    Example:
        >>> student = Sees(nn.Linear(4, 3), "image")
        >>> student({"image": torch.ones(2, 4), "sound": torch.ones(2, 9)}).shape
        torch.Size([2, 3])
        >>> student(torch.ones(2, 4)).shape
        torch.Size([2, 3])
    """

    def __init__(self, network: nn.Module, *modalities: str | int) -> None:
        super().__init__()
        if not modalities:
            raise ValueError("Sees needs at least one modality, given none: name a key of the inputs")
        self.network = network
        self.modalities = modalities

    @property
    def tap_root(self) -> nn.Module:
        """The network, whose module names are used."""
        return self.network

    def forward(self, inputs: Any) -> Any:
        """Call the network with its modalities of the inputs."""
        if not isinstance(inputs, (Mapping, list, tuple)):
            if len(self.modalities) > 1:
                raise ValueError(
                    f"this network sees {', '.join(map(str, self.modalities))}, but the inputs are one "
                    f"{type(inputs).__name__}: give a dict of them"
                )
            return self.network(inputs)
        return self.network(*(pick_modality(inputs, modality) for modality in self.modalities))

    def extra_repr(self) -> str:
        """Show what is seen."""
        return ", ".join(map(repr, self.modalities))


def pick_modality(inputs: Mapping[str, Any] | Sequence[Any], modality: str | int) -> Any:
    """Take one modality out of paired inputs.

    Raises:
        ValueError: there is no such modality.
    """
    known = list(inputs) if isinstance(inputs, Mapping) else list(range(len(inputs)))
    if modality not in known:
        raise ValueError(f"the inputs have no modality {modality!r}, they have {', '.join(map(repr, known))}")
    return inputs[modality]  # type: ignore[index]


def check_paired(inputs: Any) -> None:
    """Refuse paired inputs whose modalities have different numbers of samples.

    Raises:
        ValueError: with both numbers.
    """
    lengths = [len(tensor) for tensor in tensors_in(inputs) if isinstance(tensor, Tensor) and tensor.ndim]
    if len(set(lengths)) > 1:
        names = list(inputs) if isinstance(inputs, Mapping) else list(range(len(lengths)))
        shown = ", ".join(f"{name}: {length}" for name, length in zip(names, lengths, strict=False))
        raise ValueError(f"the modalities of a batch must hold the same samples, given {shown} rows: pair them first")
