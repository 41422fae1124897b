"""A student cut over the processes that train it (FSDP): weights, gradients and optimizer state, a piece each."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.blocks.taps import unwrapped
from stillroom.data.batch import map_tensors
from stillroom.method import Method
from stillroom.training import Training


class Shards:
    """Cuts a method's student over all processes by torch's `fully_shard`, and puts it together again.

    Every process keeps a piece of each parameter, of its gradient and of what the optimizer remembers of it; the whole
    is there only while the student runs. The teacher and whatever else the method holds stay whole.

    Args:
        method: whose student is cut, in place; it is on its device already.
        training: refused where it asks for what a cut student cannot do.

    Raises:
        ValueError: several players, a product that is not the student, a stage that keeps its best weights, an average
            of weights, or fp16.
    """

    def __init__(self, method: Method, training: Training) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        name = type(method).__name__
        student = unwrapped(method.student)
        if len(method.players()) > 1:
            players = ", ".join(method.players())
            raise ValueError(f"shard cuts one network, but {name} trains {players}: leave shard out")
        if kept := [stage.name for stage in method.stages() if stage.best_by]:
            raise ValueError(f"shard keeps no best weights of a stage, but {name} does in {kept[0]!r}: leave shard out")
        if method.product is not student:
            raise ValueError(f"shard cuts the student, but {name} ships another module: leave shard out")
        if training.ema_decay is not None or training.precision == "fp16":
            raise ValueError(
                f"a student that is cut has no ema_decay and no fp16, given ema_decay={training.ema_decay} and "
                f"precision={training.precision!r}: leave them out (bf16 works), or leave shard out"
            )
        self.whole = copy.deepcopy(student)
        """The student as it was given: what ships has its form."""
        self.student = student
        device = next(student.parameters()).device
        self.mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
        fully_shard(student, mesh=self.mesh)

    def gathered(self, state: Any) -> Any:
        """Nested values with every cut tensor whole; all processes must call it together."""
        return map_tensors(state, lambda tensor: getattr(tensor, "full_tensor", lambda: tensor)())

    def cut_like(self, state: Mapping[str, Any], present: Mapping[str, Any]) -> dict[str, Any]:
        """A state of whole tensors, cut where the present one is; all processes must call it together."""
        from torch.distributed.tensor import distribute_tensor

        def cut(value: Any, now: Any) -> Any:
            if isinstance(value, Tensor) and is_cut(now) and not is_cut(value):
                return distribute_tensor(value.to(now.device), now.device_mesh, now.placements)
            return value

        return {name: cut(value, present.get(name)) for name, value in state.items()}

    def cut_optimizer(self, state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """An optimizer's state of whole tensors, cut as its parameters are."""
        parameters = [one for group in optimizer.param_groups for one in group["params"]]
        cut = {
            number: self.cut_like(
                of, {key: parameters[number] for key, value in of.items() if getattr(value, "ndim", 0)}
            )
            for number, of in state["state"].items()
        }
        return {"state": cut, "param_groups": state["param_groups"]}

    @staticmethod
    def prepare(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Let an optimizer step cut and whole parameters one by one."""
        for group in optimizer.param_groups:
            group["foreach"] = group["fused"] = False
        return optimizer

    def put_together(self) -> nn.Module:
        """The student as a plain module with the weights it has now; all processes must call it together."""
        self.whole.load_state_dict(self.gathered(dict(self.student.state_dict())))
        return self.whole


def is_cut(tensor: Any) -> bool:
    """Whether a tensor is a piece of a larger one."""
    return hasattr(tensor, "full_tensor")
