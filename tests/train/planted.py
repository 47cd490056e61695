"""Faults that a config file plants into a real run, in the process that reads it and in its workers."""

import functools
import os
import signal
import time

import numpy as np

from tario_jax.tokens.batch import Batch
from tario_jax.tokens.pipeline import BatchSource
from tario_jax.train import checkpoint, run, validation


class Faulty(BatchSource):
    """Makes batch `AT` with the fault; where workers make it, they do."""

    AT = 7

    def __reduce__(self):
        make, arguments = super().__reduce__()
        return functools.partial(type(self), **make.keywords), arguments

    def batch(self, t: int, into: Batch) -> Batch:
        made = super().batch(t, into)
        return self.spoil(made) if t == self.AT else made


class NotNumbers(Faulty):
    def spoil(self, batch: Batch) -> Batch:
        batch.stain_mix_BxTx3x3[...] = np.nan
        return batch


class AllNotNumbers(NotNumbers):
    """From batch AT on."""

    def batch(self, t: int, into: Batch) -> Batch:
        return self.spoil(BatchSource.batch(self, t, into)) if t >= self.AT else BatchSource.batch(self, t, into)


class Hangs(Faulty):
    def spoil(self, batch: Batch) -> Batch:
        time.sleep(600)


class DiesOnce(Faulty):
    """The worker that makes the batch is killed, as by a system without memory; the next one makes it."""

    def spoil(self, batch: Batch) -> Batch:
        marker = os.environ["PLANTED_MARKER"]
        if not os.path.exists(marker):
            open(marker, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return batch


class DiesAlways(Faulty):
    def spoil(self, batch: Batch) -> Batch:
        os.kill(os.getpid(), signal.SIGKILL)


class Spikes(Faulty):
    """Batches whose counts are other genes' than the H&E says, many times as many: the loss leaps for three steps."""

    def batch(self, t: int, into: Batch) -> Batch:
        made = BatchSource.batch(self, t, into)
        if 40 <= t < 43:
            made.count_BxC[...] = made.count_BxC * 40
        return made


def plant(fault: str) -> None:
    """`fault`: one of this module, by name; '' is none."""
    if fault == "SlowDisk":
        seal = checkpoint.seal
        checkpoint.seal = lambda folder: (time.sleep(60), seal(folder))
    elif fault == "SlowValidation":
        to_devices = validation.to_devices
        validation.to_devices = lambda batch, mesh: (time.sleep(1), to_devices(batch, mesh))[1]
    elif fault:
        run.BatchSource = globals()[fault]
