"""What a network costs (parameters, multiply-adds, time, bytes), and how far it agrees with its teacher."""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from stillroom.blocks.frozen import Frozen
from stillroom.data.batch import Batch, map_tensors
from stillroom.losses._shared import at_least_float32, check_logits, flatten_positions

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_SAFETENSORS_NAMES = {torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8"} | {
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Cost:
    """What a network needs.

    Attributes:
        parameters: numbers in its parameters, shared ones once.
        trainable_parameters: those that require a gradient.
        macs: multiply-adds of one sample in matrix products, convolutions and attention (half the FLOPs that
            `torch.utils.flop_counter` counts); everything else is not counted.
        latency_ms: median time of one forward pass of one sample, in milliseconds; None where not measured.
        batch_latency_ms: the same for a whole batch of `batch_size` samples.
        batch_size: samples in that batch.
        threads: threads PyTorch used on the CPU.
        device: where it ran: "cpu", "cuda", ...
        file_bytes: size of its weights as a safetensors file, floating-point numbers in float32.
    """

    parameters: int
    trainable_parameters: int
    macs: int
    latency_ms: float | None
    batch_latency_ms: float | None
    batch_size: int
    threads: int
    device: str
    file_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def cost(module: nn.Module, probe: Any, *, latency: bool = True) -> Cost:
    """Measure one network; see `costs`."""
    return costs({"network": module}, probe, latency=latency)["network"]


def costs(
    modules: Mapping[str, nn.Module],
    probe: Any,
    *,
    latency: bool = True,
    batch_size: int = 32,
    rounds: int = 20,
    seconds: float = 10.0,
) -> dict[str, Cost]:
    """Measure several networks side by side.

    Forward passes are timed in rounds, each network once per round in alternating order, so that a busy machine slows
    all of them; the median over rounds is kept. Nothing is left behind: every network keeps its modes, gradients,
    buffers and device, and the global random state is restored.

    Args:
        modules: the networks by name; a `Frozen` one stands for the network it holds.
        probe: inputs of at least one sample, `(N, ...)` or a list, tuple or dict of such, or a `Batch`; its rows are
            repeated or cut to the batch sizes that are timed.
        latency: whether to measure times at all.
        batch_size: samples in the larger batch that is timed.
        rounds: most rounds of timing, for one sample and for the larger batch each.
        seconds: time after which no further round begins; three are always done.

    Raises:
        TypeError: something other than a module (a teacher given as a function has no countable cost).
        ValueError: the probe has no sample, or `rounds` or `batch_size` is below 1.
    """
    inputs = probe.inputs if isinstance(probe, Batch) else probe
    samples = len(Batch(inputs))
    if samples < 1:
        raise ValueError("probe must hold at least one sample, given none")
    if rounds < 1 or batch_size < 1:
        raise ValueError(f"rounds and batch_size must be at least 1, given {rounds} and {batch_size}")
    networks: dict[str, nn.Module] = {}
    for name, module in modules.items():
        network = module.network if isinstance(module, Frozen) else module
        if not isinstance(network, nn.Module):
            raise TypeError(f"{name!r} must be a torch.nn.Module to be measured, given {type(network).__name__}")
        networks[name] = network
    one, many = _rows(inputs, 1), _rows(inputs, batch_size)
    with contextlib.ExitStack() as stack:
        for network in networks.values():
            stack.enter_context(_undisturbed(network))
        stack.enter_context(torch.no_grad())
        macs = {name: count_macs(network, one) for name, network in networks.items()}
        times = _latencies(networks, one, rounds, seconds) if latency else {}
        batch_times = _latencies(networks, many, rounds, seconds) if latency else {}
    return {
        name: Cost(
            parameters=sum(parameter.numel() for parameter in network.parameters()),
            trainable_parameters=sum(p.numel() for p in network.parameters() if p.requires_grad),
            macs=macs[name],
            latency_ms=times.get(name),
            batch_latency_ms=batch_times.get(name),
            batch_size=batch_size,
            threads=torch.get_num_threads(),
            device=_device(network).type,
            file_bytes=file_bytes(network),
        )
        for name, network in networks.items()
    }


def count_macs(network: nn.Module, inputs: Any) -> int:
    """Count the multiply-adds of one forward pass, in eval mode.

    Fused kernels that the counter does not know (attention, encoder layers, recurrent layers) are switched off while
    it counts.
    """
    counter = FlopCounterMode(display=False)
    with _undisturbed(network), torch.no_grad(), _without_fused_kernels(), counter:
        _call(network, inputs)
    return counter.get_total_flops() // 2


def file_bytes(network: nn.Module) -> int:
    """Compute the size of a network's state as a safetensors file, without writing it.

    Floating-point numbers count as float32, others keep their width; a tensor under two names counts once. The file is
    8 bytes, a JSON header padded to a multiple of 8, and the numbers.
    """
    tensors: dict[tuple[Any, ...], tuple[str, Tensor]] = {}
    for name, value in network.state_dict().items():
        if isinstance(value, Tensor):
            key = (value.data_ptr(), value.shape, value.dtype) if value.numel() else (name,)
            tensors.setdefault(key, (name, value))
    widths = {name: 4 if tensor.dtype in _FLOATS else tensor.dtype.itemsize for name, tensor in tensors.values()}
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in sorted(tensors.values(), key=lambda item: (-widths[item[0]], item[0])):
        start, end = end, end + tensor.numel() * widths[name]
        dtype = "F32" if tensor.dtype in _FLOATS else _SAFETENSORS_NAMES.get(tensor.dtype, str(tensor.dtype))
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    length = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + (length + 7) // 8 * 8 + end


@dataclass(frozen=True)
class Agreement:
    """How far a student says what its teacher says.

    Attributes:
        top1: share of samples on which both put the same class first.
        kl: mean of KL(teacher || student) of the softmax outputs at temperature 1, in nats.
        repeated_errors: share of the teacher's errors on which the student gives the same wrong class; None without
            labels and for a teacher without errors.
    """

    top1: float
    kl: float
    repeated_errors: float | None

    def as_dict(self) -> dict[str, float | None]:
        """Plain values, for JSON."""
        return asdict(self)


@torch.no_grad()
def agreement(student_outputs: Tensor, teacher_outputs: Tensor, labels: Tensor | None = None) -> Agreement:
    """Compare the classes two networks predict.

    Args:
        student_outputs: logits `(N, C)`, or `(N, C, ...)` of dense predictions.
        teacher_outputs: logits of the same shape.
        labels: `(N,)` or `(N, ...)`, int64; rows of -100 have no label and count as no error.

    Raises:
        ValueError: shapes or dtypes disagree, there is no sample, or an output is NaN.
    """
    student, teacher = flatten_positions(student_outputs), flatten_positions(teacher_outputs)
    flat_labels = None if labels is None else labels.flatten()
    check_logits(student, teacher, flat_labels)
    for name, logits in (("student_outputs", student), ("teacher_outputs", teacher)):
        if logits.isnan().any():
            raise ValueError(f"{name} hold NaN in {int(logits.isnan().any(1).sum())} rows: find out why first")
    teacher_log, student_log = (F.log_softmax(at_least_float32(logits), -1) for logits in (teacher, student))
    probabilities = teacher_log.exp()
    terms = torch.where(probabilities > 0, probabilities * (teacher_log - student_log), 0.0)
    says, taught = student.argmax(1), teacher.argmax(1)
    repeated = None
    if flat_labels is not None:
        errors = (taught != flat_labels) & (flat_labels >= 0)
        if errors.any():
            repeated = float((says == taught)[errors].double().mean())
    return Agreement(float((says == taught).double().mean()), float(terms.sum(-1).mean()), repeated)


@contextlib.contextmanager
def _without_fused_kernels() -> Iterator[None]:
    """Let attention, encoder layers and recurrent layers run as the plain products they consist of."""
    backends: tuple[Any, ...] = (
        torch.backends.mkldnn,
        torch.backends.cudnn,
    )  # flags() would change precisions too
    enabled = [backend.enabled for backend in backends]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    try:
        for backend in backends:
            backend.enabled = False
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            yield
    finally:
        for backend, value in zip(backends, enabled, strict=True):
            backend.enabled = value
        torch.backends.mha.set_fastpath_enabled(fast_path)


@contextlib.contextmanager
def _undisturbed(network: nn.Module) -> Iterator[None]:
    """Evaluate inside; afterwards modes, buffers and random state are as they were."""
    modes = [(module, module.training) for module in network.modules()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in network.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    device = _device(network)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        network.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
            for module, name, buffer, value in buffers:
                with torch.no_grad():
                    module._buffers[name] = buffer.copy_(value)


def _latencies(networks: Mapping[str, nn.Module], inputs: Any, rounds: int, seconds: float) -> dict[str, float]:
    order = list(networks)
    for name in order:  # warm up: first calls choose kernels and allocate
        _call(networks[name], inputs)
    times: dict[str, list[float]] = {name: [] for name in order}
    begin = time.perf_counter()
    for done in range(rounds):
        if done >= 3 and time.perf_counter() - begin > seconds:
            break
        for name in order:
            network = networks[name]
            moved = _moved(network, inputs)
            _synchronise(network)
            start = time.perf_counter()
            _call(network, moved)
            _synchronise(network)
            times[name].append(time.perf_counter() - start)
        order.reverse()
    return {name: 1000 * statistics.median(values) for name, values in times.items()}


def _call(network: nn.Module, inputs: Any) -> Any:
    moved = _moved(network, inputs)
    return network(Batch(moved)) if getattr(network, "takes_batch", False) else network(moved)


def _moved(network: nn.Module, inputs: Any) -> Any:
    device = _device(network)
    return map_tensors(inputs, lambda tensor: tensor.to(device))


def _rows(inputs: Any, count: int) -> Any:
    """Cut or repeat the samples so that there are `count` of them."""
    samples = len(Batch(inputs))
    return Batch(inputs)[torch.arange(count) % samples].inputs


def _device(network: nn.Module) -> torch.device:
    return next((tensor.device for tensor in [*network.parameters(), *network.buffers()]), torch.device("cpu"))


def _synchronise(network: nn.Module) -> None:
    device = _device(network)
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
