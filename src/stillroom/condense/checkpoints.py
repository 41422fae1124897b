"""Networks trained on the real data, kept as they began and as they ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from stillroom.checkpoint import write_bytes
from stillroom.condense.harness import CutMix, Network, Statistics, fresh_network, train_network
from stillroom.data.augment import Augmentation
from stillroom.data.samples import Samples
from stillroom.training import Training

State = dict[str, Tensor]


@dataclass
class CheckpointPairs:
    """State dicts of several networks: `(initial, final)` of each.

    Attributes:
        pairs: in the order of their seeds.

    Raises:
        ValueError: there are none.
    """

    pairs: list[tuple[State, State]]

    def __post_init__(self) -> None:
        if not self.pairs:
            raise ValueError("at least one pretrained network is needed, given none")

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, row: int) -> tuple[State, State]:
        return self.pairs[row]

    @classmethod
    def pretrain(
        cls,
        network: Network,
        samples: Samples,
        *,
        classes: int,
        count: int,
        training: Training,
        augment: Augmentation | None = None,
        statistics: Statistics | None = None,
        cutmix: CutMix | None = None,
        seed: int = 0,
        folder: str | Path | None = None,
        device: str | torch.device | None = None,
    ) -> CheckpointPairs:
        """Train networks on real images and keep how each began and ended.

        Args:
            network: a name, or a function that makes one.
            samples: real labelled images.
            classes: how many there are.
            count: how many networks, 1 or more.
            training: see `train_network`.
            augment: see `train_network`.
            statistics: see `train_network`.
            cutmix: see `train_network`.
            seed: the networks' seeds are seed * 1000, seed * 1000 + 1, ...
            folder: where each is kept as it is done; those that lie there are taken as they are.
            device: None for an accelerator where there is one.
        """
        import safetensors.torch

        if not 1 <= count <= 1000:
            raise ValueError(f"count, the number of pretrained networks, must lie in [1, 1000], given {count}")
        pairs = []
        for number in range(count):
            file = None if folder is None else Path(folder) / f"pair-{number:03}.safetensors"
            if file is not None and file.exists():
                pairs.append(_pair_of(safetensors.torch.load_file(file)))
                continue
            fresh = fresh_network(network, samples, classes, seed * 1000 + number)
            initial = _copy(fresh)
            train_network(
                fresh,
                samples,
                classes=classes,
                training=training,
                augment=augment,
                statistics=statistics,
                cutmix=cutmix,
                seed=seed * 1000 + number,
                device=device,
            )
            pairs.append((initial, _copy(fresh)))
            if file is not None:
                write_bytes(file, safetensors.torch.save(_flat(*pairs[-1])))
        return cls(pairs)

    def save(self, folder: str | Path) -> Path:
        """Write `pair-000.safetensors`, `pair-001.safetensors`, ..."""
        import safetensors.torch

        for number, pair in enumerate(self.pairs):
            write_bytes(Path(folder) / f"pair-{number:03}.safetensors", safetensors.torch.save(_flat(*pair)))
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> CheckpointPairs:
        """Read what `save` or `pretrain` wrote.

        Raises:
            FileNotFoundError: there is no pair.
        """
        import safetensors.torch

        files = sorted(Path(folder).glob("pair-*.safetensors"))
        if not files:
            raise FileNotFoundError(f"{folder} holds no pair-*.safetensors: pretrain networks with folder={folder}")
        return cls([_pair_of(safetensors.torch.load_file(file)) for file in files])


def blend(initial: Mapping[str, Tensor], final: Mapping[str, Tensor], initial_weight: float) -> State:
    """Mix two states of one network, tensor by tensor: w * initial + (1 - w) * final.

    What is no floating-point number (counters) is taken from the final state.

    Args:
        initial: as the network began.
        final: as it ended.
        initial_weight: w, in [0, 1]; 1 is the untrained network.

    Raises:
        ValueError: the states have different names, or w is out of range.
    """
    if initial.keys() != final.keys():
        raise ValueError(f"the states differ in {sorted(set(initial) ^ set(final))[:3]}: both must be of one network")
    if not 0 <= initial_weight <= 1:
        raise ValueError(f"initial_weight must lie in [0, 1], given {initial_weight}")
    return {
        name: initial_weight * initial[name] + (1 - initial_weight) * value if value.is_floating_point() else value
        for name, value in final.items()
    }


def _copy(network: nn.Module) -> State:
    return {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}


def _flat(initial: State, final: State) -> State:
    named = (("initial", initial), ("final", final))
    return {f"{when}/{name}": value.contiguous() for when, state in named for name, value in state.items()}


def _pair_of(flat: Mapping[str, Tensor]) -> tuple[State, State]:
    parts: dict[str, State] = {"initial": {}, "final": {}}
    for key, value in flat.items():
        when, name = key.split("/", 1)
        parts[when][name] = value
    return parts["initial"], parts["final"]
