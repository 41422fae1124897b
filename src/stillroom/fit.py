"""`fit`: one small training loop over Hugging Face Accelerate, for every method."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stillroom import checkpoint, resuming
from stillroom.blocks.ema import EMA
from stillroom.blocks.frozen import Frozen
from stillroom.data.batch import Batch
from stillroom.data.samples import Samples, Splits
from stillroom.data.stream import sequential
from stillroom.feed import stream_for
from stillroom.lock import locked
from stillroom.log import Display, JSONLines, interruptions
from stillroom.method import Losses, Method
from stillroom.processes import accelerator_for, any_of, average_gradients, of_first, share_weights
from stillroom.replay import Replay
from stillroom.sharding import Shards
from stillroom.staging import Fitted, StageRun, copied
from stillroom.task import Classification, Task
from stillroom.teacher_cache import cache_of
from stillroom.training import Training
from stillroom.tripwires import TrainingError, Tripwires, gradient_shares, require_teacher


def fit(
    method: Method,
    data: Splits | Samples,
    training: Training | None = None,
    *,
    task: Task | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    resume: bool = False,
    device: str | torch.device | None = None,
    workers: int = 0,
    trackers: Sequence[str] = ("tensorboard",),
    progress: bool = True,
    title: str = "",
    check_teacher: bool = True,
    log_every: int = 50,
) -> Fitted:
    """Train a method.

    The loop knows players and their turns, stages, schedules, clipping, accumulation, averages, evaluation,
    checkpoints and resuming; of any method it knows nothing. Under `accelerate launch` or `torchrun` every process
    takes its share of each batch, and gradients are averaged over processes before each step.

    Args:
        method: what is trained.
        data: training samples, or splits with a held-out part to choose the weights by.
        training: epochs, sizes, optimizers; ten epochs of AdamW when not given.
        task: what the outputs mean; the method's own task, or classification.
        seed: of the batch order, the augmentation and everything random in the networks.
        folder: where `metrics.jsonl`, trackers' files and checkpoints go; None keeps nothing on disk.
        resume: go on from the folder's last checkpoint where there is one, to the same numbers bit for bit.
        device: None for Accelerate's choice.
        workers: threads that read ahead, for samples that are not in memory.
        trackers: further trackers of Accelerate by name ("tensorboard", "wandb", "mlflow", ...); they need a folder.
        progress: show a bar, or plain lines where the output is no terminal.
        title: shown beside the bar.
        check_teacher: stop when the teacher does not beat chance on this data.
        log_every: steps between two logged values of the loss terms and their shares of the gradient.

    Returns:
        The product and how it came about.

    Raises:
        TrainingError: a tripwire: the teacher does not beat chance; a term is impossibly negative or constantly 0.
        NotFiniteError: a term, a gradient or a weight is NaN; the sentence names step, samples and module.
        BlockingIOError: another run is working in the folder.
        OSError: something could not be written; the checkpoint that was there is kept.
        ValueError: the first batch cannot be right (labels out of range, NaN inputs, ...).
        KeyboardInterrupt: after the running step; with a folder the run can be resumed.
    """
    loop = Loop(method, data, training or Training(), task, seed, folder, device, workers, trackers, log_every)
    try:
        with locked(loop.folder if loop.accelerator.is_main_process else None):
            return loop.run(resume=resume, progress=progress, title=title, check_teacher=check_teacher)
    finally:
        loop.close()


class Loop:
    """The state of one training, and the steps it is made of."""

    def __init__(
        self,
        method: Method,
        data: Splits | Samples,
        training: Training,
        task: Task | None,
        seed: int,
        folder: str | Path | None,
        device: str | torch.device | None,
        workers: int,
        trackers: Sequence[str],
        log_every: int,
    ) -> None:
        training = training.change(players={**method.optimizers, **training.players})
        self.method, self.training, self.seed = method, training, seed
        self.task: Task = task or getattr(method, "task", None) or Classification()
        self.folder = Path(folder) if folder else None
        self.checkpoint = (self.folder or Path()) / "checkpoints" / "last.pt"
        self.log_every = log_every
        self.trackers = list(trackers) if folder is not None else []
        self.accelerator = accelerator_for(training.precision, device, self.trackers, self.folder)
        splits = data if isinstance(data, Splits) else None
        self.train: Samples = data.train if isinstance(data, Splits) else data
        self.validation = splits.validation if splits else None
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        if training.batch_size // world < training.accumulate:
            raise ValueError(
                f"accumulate={training.accumulate} cuts a batch of {training.batch_size} over {world} processes into "
                "parts without a sample: make the batch larger"
            )
        self.streams = {
            part: stream_for(
                method, self.task, training, data, part, seed=seed, workers=workers, rank=rank, world=world
            )
            for part in {"train", *(stage.data for stage in method.stages())}
        }
        self.stream = self.streams["train"]
        apart = method.kept_apart is not None  # those samples count as if they were trained on
        self.steps = training.total_steps(len(self.train) // self.stream.batch_size if apart else len(self.stream))
        self.stages = StageRun(method, training, self.steps)
        self.evaluate_every = training.evaluate_every or max(math.ceil(self.steps / 10), 1)
        method.to(self.accelerator.device)
        share_weights(self.accelerator, method)
        shard = world > 1 and (training.shard or os.environ.get("ACCELERATE_USE_FSDP") == "true")
        self.shards = Shards(method, training) if shard else None
        self.parameters = method.players()
        self.trained = self.parameters  # what of it the running stage does not hold still
        self.optimizers = {name: self.optimizer(name) for name in self.parameters}
        self.scaler = torch.amp.GradScaler(self.accelerator.device.type, enabled=training.precision == "fp16")
        decay = training.ema_decay
        self.average = None if decay is None else EMA(method.product, decay=decay)
        self.step = 0
        self.identity: dict[str, Any] = {}
        self.fitted = Fitted(method.product)
        self.best: dict[str, Tensor] | None = None
        self.tripwires, self.replay = Tripwires(method), Replay(method)

    # ---- the loop ------------------------------------------------------------------------------------------------

    def run(self, *, resume: bool, progress: bool, title: str, check_teacher: bool) -> Fitted:
        """Train from the first step, or from the last checkpoint, to the end."""
        teacher = getattr(self.method, "teacher", None)
        if teacher is not None:
            self.fitted.teacher = teacher.fingerprint()
        if self.folder is not None:
            self.identity = resuming.identity_of(self)
        checkpoint.seed_everything(self.seed + self.accelerator.process_index)
        if resume:
            resuming.restore(self)
        self.method.begin_training(self.stream)
        if teacher is not None and check_teacher and self.step == 0:
            held = self.validation if self.validation is not None and len(self.validation) >= 100 else self.train
            require_teacher(teacher, self.task, held, self.accelerator.device)
        main = self.accelerator.is_main_process
        log = JSONLines(self.folder / "metrics.jsonl" if self.folder and main else None, from_step=self.step)
        if self.trackers:
            self.accelerator.init_trackers("stillroom")
        self.method.train()
        with Display(title or "training", self.steps, enabled=progress and main) as display, interruptions() as stop:
            while self.stages.number < len(self.stages.plan):
                self._enter_stage(log)
                stage, end = self.stages.stage, self.stages.end
                began = time.perf_counter()
                for batch in self.streams[stage.data].batches(self.step, end):
                    self._one_step(batch.to(self.accelerator.device), log)
                    self.step += 1
                    self.fitted.seconds += time.perf_counter() - began  # with what it took to read the batch
                    last = self.step == self.steps or (self.step == end and bool(stage.best_by))
                    if self.step % self.evaluate_every == 0 or last:
                        self._evaluate(log, display)
                        resuming.save(self)
                    display.step(self.step)
                    if self._is_to_end(stop):
                        resuming.save(self)
                        where = f"; resume it with resume=True (--resume) in {self.folder}" if self.folder else ""
                        raise KeyboardInterrupt(f"stopped after step {self.step} of {self.steps}{where}")
                    began = time.perf_counter()
                self.fitted.stages.append(self.stages.finish(self.average))
                if len(self.stages.plan) > 1:
                    log.write({"step": self.step, **self.fitted.stages[-1]})
        return self._finish()

    def _is_to_end(self, stop: threading.Event) -> bool:
        """Whether any process was asked to; asking the others waits for a GPU, so there it is done now and then."""
        seldom = self.accelerator.num_processes > 1 and self.accelerator.device.type != "cpu"
        return (not seldom or self.step % self.log_every == 0) and any_of(self.accelerator, stop.is_set())

    def _enter_stage(self, log: JSONLines) -> None:
        stage = self.stages.stage
        self.method.enter_stage(stage)
        if (cache := cache_of(self.method)) is not None:
            cache.open(self.streams[stage.data])
            before = self.fitted.cached  # of stages before, also of those before a resume
            worst = {name: max(value, before.get(name, 0.0)) for name, value in cache.error.items()}
            self.fitted.cached = {"keep": cache.keep, **worst}
        if not self.stages.begun:
            for player in self.stages.begin():
                self.optimizers[player] = self.optimizer(player)
            if stage.best_by:  # the stage chooses anew
                self.best, self.fitted.validation = None, {}
            if len(self.stages.plan) > 1:
                log.write({"step": self.step, "stage": stage.name, "begins": True})
        self.trained = {name: [p for p in group if p.requires_grad] for name, group in self.parameters.items()}

    def optimizer(self, player: str) -> torch.optim.Optimizer:
        """The optimizer that a player has from here on."""
        made = self.stages.optimizer(player, self.parameters[player])
        return made if self.shards is None else self.shards.prepare(made)

    def _one_step(self, batch: Batch, log: JSONLines) -> None:
        epoch = len(self.stream)
        clock = self.stages.clock(self.step, epoch)
        self.method.tell_time(self.step, self.step / epoch, self.step / self.steps, stage=clock)
        self.method.rates = {player: self.stages.rate(player, self.step)[0] for player in self.parameters}
        logged: dict[str, float] = {}
        shares: dict[str, float] = {}
        look = self.step % self.log_every == 0 or self.step == self.steps - 1
        if self.step == 0:
            self.tripwires.check_first(self.task, batch)
        watched = self.accelerator.device.type == "cpu" or look or self.step < 10  # a look waits for a GPU
        parts = self.training.accumulate
        for part in range(parts):
            piece = batch if parts == 1 else batch[part::parts]
            if watched and self.shards is None:  # the search runs on one process alone
                self.replay.remember()
            kept = None if self.folder is None else self.checkpoint
            with self.replay.explaining(self.step, piece, self._turns, self.trained, kept):
                for player, losses in self._turns(piece):
                    if self.step == 0 and part == 0 and self.shards is None:  # whose parameters are whole just now
                        self.tripwires.first_batch(self.parameters)
                    if watched:
                        self.tripwires.watch(self.step, player, losses)
                    if look and part == 0:
                        logged |= {name: float(term.detach()) for name, term in losses.items()}
                        if self.shards is None:  # a cut student goes back once only
                            shares |= gradient_shares(losses, self.trained[player])
                    self._backward(player, losses.total / parts)
                    if watched and not self.scaler.is_enabled():  # which skips such steps itself
                        self.tripwires.gradients(player, self.trained[player])
                    if part == parts - 1:
                        self._update(player)
        if self.average is not None:
            self.average.update()
        if look:
            rate = {name: optimizer.param_groups[0]["lr"] for name, optimizer in self.optimizers.items()}
            self.fitted.terms.append((self.step, logged, shares))
            log.write({"step": self.step, "terms": logged, "shares": shares, "lr": rate})
            if self.trackers:
                self.accelerator.log({f"loss/{k}": v for k, v in logged.items()}, step=self.step)
                self.accelerator.log({f"gradient_share/{k}": v for k, v in shares.items()}, step=self.step)

    def _turns(self, batch: Batch) -> Iterator[tuple[str, Losses]]:
        with self.accelerator.autocast() if self.training.precision != "no" else nullcontext():
            yield from self.stages.stage.counts(self.method.turns(batch))

    def _backward(self, player: str, total: Tensor) -> None:
        if not total.requires_grad:
            raise TrainingError(f"the losses of player {player!r} are cut off from its parameters: nothing would train")
        alone = len(self.parameters) == 1
        inputs = None if alone else self.trained[player]  # what leaks into other players is not theirs
        self.scaler.scale(total).backward(inputs=inputs)

    def _update(self, player: str) -> None:
        optimizer, (rate, clip) = self.optimizers[player], self.stages.rate(player, self.step)
        average_gradients(self.accelerator, self.trained[player])
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("lr_factor", 1.0)
        self.scaler.unscale_(optimizer)
        self.method.adjust_gradients(player)
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(self.trained[player], clip)
        self.scaler.step(optimizer)
        self.scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if torch.is_autocast_enabled(self.accelerator.device.type):  # a later turn sees the new weights
            torch.clear_autocast_cache()
        self.method.after_step(player)

    # ---- evaluation and what is kept -----------------------------------------------------------------------------

    def _shipped(self) -> nn.Module:
        return self.method.product if self.average is None else self.average.module

    def _evaluate(self, log: JSONLines, display: Display) -> None:
        if self.validation is None or not len(self.validation):
            return
        measured: dict[str, float] = {}
        if not (self.task.needs_labels and not self.validation.has_labels):
            teacher = getattr(self.method, "teacher", None) if not self.task.needs_labels else None
            teacher = teacher.settled if isinstance(teacher, Frozen) else teacher
            measured = self.task.evaluate(
                self._shipped(), sequential(self.validation, 256), teacher=teacher, device=self.accelerator.device
            )
        stage = self.stages.stage
        if stage.best_by and stage.best_by not in measured:
            held = (batch.to(self.accelerator.device) for batch in sequential(self.validation, 256))
            measured |= self.method.measure_stage(held)
        if not measured:
            return
        measured = of_first({name: float(value) for name, value in measured.items()})
        self.method.train()
        self.fitted.curve.append((self.step, measured))
        self.method.after_evaluation(measured, self.step / len(self.stream))
        self.stages.consider(measured, self.step, self.average)
        key = stage.best_by or self.task.metric
        higher = stage.higher_is_better if stage.best_by else self.task.higher_is_better
        value = measured[key]
        log.write({"step": self.step - 1, "validation": measured})
        if self.trackers:
            self.accelerator.log({f"validation/{k}": v for k, v in measured.items()}, step=self.step)
        display.step(self.step, f"{key} {value:.4f}")
        before = self.fitted.validation.get(key)
        better = before is None or (value > before if higher else value < before)
        if better or self.training.keep == "last":
            self.fitted.validation, self.fitted.best_step = measured, self.step
            if self.training.keep == "best":
                self.best = copied(self._shipped())

    def _finish(self) -> Fitted:
        shipped = self._shipped()
        if self.training.keep == "best" and self.best is not None:
            best = self.best if self.shards is None else self.shards.cut_like(self.best, shipped.state_dict())
            shipped.load_state_dict(best)
        else:
            self.fitted.best_step = self.fitted.stages[-1].get("best_step", self.step)
        shipped = shipped.eval() if self.shards is None else self.shards.put_together().eval()
        self.fitted.product, self.fitted.steps = shipped, self.step
        return self.fitted

    # ---- what it is built from -----------------------------------------------------------------------------------

    def close(self) -> None:
        """Let trackers write what they hold; the processes stay together, for there may be another training."""
        for tracker in self.accelerator.trackers if self.trackers else ():
            tracker.finish()
