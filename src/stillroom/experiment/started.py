"""What a run was started with, as its folder keeps it: whoever goes on with it must have the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from stillroom.checkpoint import write_json
from stillroom.experiment.arm import arguments_of, check_rates, is_method, load_splits
from stillroom.experiment.described import data_checksum, text_of
from stillroom.experiment.record import versions
from stillroom.lock import NAME

if TYPE_CHECKING:
    from stillroom.blocks.frozen import Frozen
    from stillroom.experiment.run import Experiment

OF_ARMS = ("methods", "method_options")
"""Options that each arm is held to by itself, so that further arms may join a run."""


@dataclass(frozen=True)
class Started:
    """The `run.json` of a run's folder.

    Args:
        experiment: what is run.
        folder: where.
    """

    experiment: Experiment
    folder: Path

    def check_folder(self, *, resume: bool) -> None:
        """Refuse a folder that holds something else than this run, by its options alone.

        Raises:
            FileExistsError: the folder is a file, or holds something and is not to be resumed or cannot be.
            ValueError: it is to be resumed with other options, or an arm is to join a budget that it has no part in.
        """
        place, arms = self.folder, self.experiment.arms
        if place.exists() and not place.is_dir():
            raise FileExistsError(f"{place} is a file: name a new folder for the run")
        inside = {inner.name for inner in place.iterdir()} if place.exists() else set()
        inside = {name for name in inside if name != NAME and not (name.startswith(".") and name.endswith(".part"))}
        if not inside:
            return
        if not resume:
            raise FileExistsError(f"the folder {place} exists and is not empty: name a new one, or resume that run")
        kept = self._kept()
        if not kept:
            if inside <= {"teacher"}:  # which a run that was killed before it wrote its options has left
                return
            raise FileExistsError(f"the folder {place} holds no run that could be resumed: name that run's folder")
        before, config = kept["config"], self._config
        names = {*before, *config}.difference(OF_ARMS)
        changed = sorted(name for name in names if before.get(name) != config.get(name))
        own = {name: arguments_of(arm) for name, arm in arms.items()}
        changed += [f"those of {name}" for name in own if kept.get("arms", {}).get(name, own[name]) != own[name]]
        if changed:
            raise ValueError(
                f"the run in {place} was started with other options ({', '.join(changed)}): resume it with the "
                "same ones, or name a new folder"
            )
        budget = place / "budget.json"
        if self.experiment.equal_time and budget.exists():
            measured = json.loads(budget.read_text())
            if late := [name for name, arm in arms.items() if is_method(arm) and name not in measured]:
                raise ValueError(
                    f"the arms of the run in {place} have the wall-clock of the slowest of {_listed(list(measured))}, "
                    f"and {_listed(late)} {'was' if len(late) == 1 else 'were'} not measured among them: start a new "
                    "run of all of them in a new folder"
                )

    def refuse_others(self, found: Mapping[str, Any]) -> None:
        """Refuse to go on with a run that was begun with other content.

        Args:
            found: some of what `content` and `teacher_of` say.

        Raises:
            ValueError: with what differs: data, student, teacher, or how is trained.
        """
        kept = self._kept()
        now = {name: value for name, value in found.items() if name in kept and kept[name] != value}
        words = {
            "data": "other data (checksum {before[checksum]}, now {now[checksum]})",
            "student": "another student",
            "training": "another way of training",
            "teacher": "another teacher (weights {before}, now {now})",
        }
        said = [text.format(before=kept[name], now=now[name]) for name, text in words.items() if name in now]
        if said:
            raise ValueError(
                f"the run in {self.folder} was started with {_listed(said)}: resume it with the same, or name a new "
                "folder"
            )

    def content(self, seed: int) -> dict[str, Any]:
        """Tell student, training and data from others; without arms that are trained here, nothing is known of them.

        Args:
            seed: whose data are looked at, where no other seed's have been written down.

        Raises:
            ValueError: several learning rates, and nothing held out to choose one by.
        """
        own = self.experiment
        if not any(is_method(arm) for arm in own.arms.values()):
            return {}
        check_rates(own.lrs, load_splits(own.task, seed))
        seed = self._kept().get("data", {"seed": seed})["seed"]
        training = [own.training, own.lrs, own.equal_time, own.teacher_training, own.teacher_method]
        return {
            "data": {"seed": seed, "checksum": data_checksum(load_splits(own.task, seed))},
            "student": text_of(own.student),
            "training": text_of(training),
        }

    def teacher_of(self, teacher: Frozen | None) -> dict[str, str]:
        """Tell the teacher from others: the fingerprint of its weights, or a function's name and arguments."""
        if teacher is None:
            return {"teacher": "none"}
        network = teacher.network
        return {"teacher": teacher.fingerprint() if isinstance(network, nn.Module) else text_of(network)}

    @property
    def is_known(self) -> bool:
        """Whether it has been written down what the run was started with."""
        return bool(self._kept())

    def write(self, found: Mapping[str, Any]) -> None:
        """Write down what the run was started with, once; arms that are new to it are added.

        Args:
            found: what `content` and `teacher_of` say.
        """
        before = self._kept()
        kept = {"config": self._config, "versions": versions(), **found} | before
        kept["arms"] = before.get("arms", {}) | {name: arguments_of(arm) for name, arm in self.experiment.arms.items()}
        if kept != before:
            write_json(self.folder / "run.json", kept)

    def took(self, seconds: float) -> float:
        """Add the wall-clock of a process that ends to that of those before it, and return the sum.

        Args:
            seconds: of this process.
        """
        kept = self._kept()
        whole = round(kept.get("seconds", 0.0) + seconds, 2)
        if kept:
            with suppress(OSError):  # what ended the run is what is to be said
                write_json(self.folder / "run.json", kept | {"seconds": whole})
        return whole

    def _kept(self) -> dict[str, Any]:
        file = self.folder / "run.json"
        return dict(json.loads(file.read_text())) if file.exists() else {}

    @property
    def _config(self) -> dict[str, Any]:
        return dict(json.loads(json.dumps(dict(self.experiment.config), default=str)))


def _listed(names: list[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join([*([", ".join(names[:-1])] if names[1:] else []), names[-1]])
