"""TensorBoard and W&B beside metrics.jsonl, for those who read their runs there (extra [track]).

A tracker takes `write(step, values)` and `close()`. Resumed, it continues the same run, and steps that are done again
are in it once. It is an onlooker: where it fails, a line says so and the run goes on without it.
"""

import json
import netrc
import os
import secrets
import time
import urllib.parse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from tario_jax.config import Config, InputError
from tario_jax.config_files import to_dict
from tario_jax.whole_file import write_whole

_FLUSH_S = 5  # where TensorFlow is installed too, tensorboard writes through its buffers; else at once
_PROJECT = "tario-jax"  # in W&B, where WANDB_PROJECT names no other


class Tracker(Protocol):
    """Where numbers of a run go."""

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        """Numbers after `step` steps; None is not known and is left out. A step may be written in several parts."""

    def close(self) -> None: ...


def trackers(
    names: tuple[str, ...], workdir: Path, config: Config, first_step: int, say: Callable[[str], None] = print
) -> Tracker:
    """The trackers of `names` (train.track) as one. first_step: steps done before this start.

    To be called by the process that writes metrics.jsonl. Raises `InputError` where one is not installed or does not
    start.
    """
    makers = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}
    return _Together({name: makers[name](workdir, config, first_step, say) for name in names}, say)


class _Together:
    """Several trackers; one that fails is dropped, and said to be."""

    def __init__(self, parts: dict[str, Tracker], say: Callable[[str], None]):
        self._parts, self._say = parts, say

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        for name in list(self._parts):
            self._try(name, lambda part: part.write(step, values))

    def close(self) -> None:
        for name in list(self._parts):
            self._try(name, lambda part: part.close())
        self._parts.clear()

    def _try(self, name: str, action: Callable[[Tracker], None]) -> None:
        try:
            action(self._parts[name])
        except Exception as error:  # whatever a library for onlookers raises: a full disk, a broken connection
            del self._parts[name]
            text = " ".join(str(error).split())
            self._say(f"{name}: {type(error).__name__}: {text}; it gets nothing more of this start, metrics.jsonl does")


class TensorBoard:
    """Event files in WORKDIR/tensorboard, written without TensorFlow: `tensorboard --logdir=WORKDIR/tensorboard`."""

    def __init__(self, workdir: Path, config: Config, first_step: int, say: Callable[[str], None]):
        try:
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog
            from tensorboard.compat.proto.summary_pb2 import Summary
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError as error:
            raise _not_installed("tensorboard", error) from None
        self._event, self._session, self._summary = Event, SessionLog, Summary
        self._writer = EventFileWriter(str(workdir / "tensorboard"), flush_secs=_FLUSH_S)
        self._step = first_step
        self._forget_after(first_step)

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        if step < self._step:  # a rollback
            self._forget_after(step - 1)
        self._step = step
        known = [
            self._summary.Value(tag=name, simple_value=value) for name, value in values.items() if value is not None
        ]
        self._add(step, summary=self._summary(value=known))

    def close(self) -> None:
        self._writer.close()

    def _forget_after(self, step: int) -> None:
        """What earlier files hold of later steps is not shown: they are done again from here."""
        self._add(step + 1, session_log=self._session(status=self._session.START))

    def _add(self, step: int, **what) -> None:
        self._writer.add_event(self._event(wall_time=time.time(), step=step, **what))


class WeightsAndBiases:
    """One run of W&B for a workdir, however often it is resumed: its id is kept in WORKDIR/wandb_run.json.

    W&B takes a step once only, so of steps that are done again it keeps the first time (the same bits, but for a
    rollback). WANDB_MODE is honoured; where it is not set and no key is found, the run is kept offline, for
    `wandb sync`. WANDB_PROJECT and WANDB_ENTITY say where it goes.
    """

    def __init__(self, workdir: Path, config: Config, first_step: int, say: Callable[[str], None]):
        try:
            import wandb
        except ImportError as error:
            raise _not_installed("wandb", error) from None
        self._kept = workdir / "wandb_run.json"
        new = {"id": secrets.token_hex(4), "step": 0}
        known = json.loads(self._kept.read_text()) if self._kept.exists() else new
        self._id, self._step = known["id"], known["step"]
        self._before = self._step  # the last step that it had from earlier starts
        mode = os.environ.get("WANDB_MODE") or ("online" if _has_key(os.environ) else "offline")
        if "WANDB_MODE" not in os.environ and mode == "offline":
            say(f"wandb: finds no key, so the run is kept in {workdir}/wandb for 'wandb sync'")
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", _PROJECT), name=config.name, id=self._id, resume="allow",
                dir=str(workdir), config=to_dict(config), mode=mode,
                # a run of another mesh or process count is the same run; the console's lines are the log's business
                allow_val_change=True, settings=wandb.Settings(console="off", silent=True),
            )  # fmt: skip
        except Exception as error:  # no connection, a wrong key: whatever wandb raises
            text = " ".join(str(error).split())
            raise InputError(f"train.track: wandb does not start: {text}; WANDB_MODE=offline keeps the run here, or "
                             "leave 'wandb' out") from error  # fmt: skip
        self._keep()

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        if step <= self._before or step < self._step:
            return
        self._run.log({name: value for name, value in values.items() if value is not None}, step=step)
        if step > self._step:
            self._step = step
            self._keep()

    def close(self) -> None:
        self._run.finish()

    def _keep(self) -> None:
        write_whole(self._kept, json.dumps({"id": self._id, "step": self._step}))


def _has_key(environment: Mapping[str, str]) -> bool:
    """Whether wandb will find a key without asking a person: in the environment, or in .netrc from `wandb login`."""
    if environment.get("WANDB_API_KEY") or environment.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urllib.parse.urlsplit(environment.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(environment.get("NETRC")).authenticators(host) is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False


def _not_installed(name: str, error: ImportError) -> InputError:
    return InputError(f"train.track: {name} cannot be imported ({error}); pip install -e '.[track]', or leave it out")
