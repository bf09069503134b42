"""Several trainings take turns: one runs a block of steps, then hands over to the next.

A machine that others use changes its speed from second to second. Trainings compared one after the
other see different machines; trainings that take turns every few steps see the same one.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import pytorch_lightning as pl

Result = TypeVar("Result")
Reading = tuple[float, float]
"""Seconds by the clock on the wall and by the thread's own processor clock."""


def now() -> Reading:
    """Read both clocks."""
    return time.perf_counter(), time.thread_time()


class Relay:
    """Whose turn it is: cycles in random order, each followed by its mirror image (A B B A).

    The mirror image cancels a drift; the random order gives each runner the same chance to follow
    itself, when its data still is in the processor's cache.

    Args:
        runners: their names.
        seed: of the order.
    """

    def __init__(self, runners: Sequence[str], seed: int = 0) -> None:
        self._runners = list(runners)
        self._generator = np.random.default_rng(seed)
        self._turns: list[str] = []
        self._condition = threading.Condition()
        self._fill()

    def run(self, task: Callable[[str], Result]) -> dict[str, Result]:
        """Run ``task(runner)`` for all, in a thread each, one at a time.

        Raises:
            Exception: the first a runner raised, when all have ended.
        """
        names = list(self._runners)

        def runner(name: str) -> Result:
            try:
                self.wait(name)
                return task(name)
            finally:
                self._leave(name)

        with ThreadPoolExecutor(len(names)) as pool:
            futures = {name: pool.submit(runner, name) for name in names}
        return {name: future.result() for name, future in futures.items()}

    def hand_over(self, name: str) -> None:
        """Let the next one run and come back when it is this one's turn again."""
        with self._condition:
            self._advance()
            self._condition.notify_all()
        self.wait(name)

    def wait(self, name: str) -> None:
        """Come back when it is this one's turn."""
        with self._condition:
            self._condition.wait_for(lambda: self._turns[0] == name)

    def _leave(self, name: str) -> None:
        with self._condition:
            # Whoever leaves has the turn: nobody runs, or fails, without it.
            self._runners.remove(name)
            self._turns = [turn for turn in self._turns if turn != name]
            if self._runners and not self._turns:
                self._fill()
            self._condition.notify_all()

    def _advance(self) -> None:
        del self._turns[:1]
        if not self._turns:
            self._fill()

    def _fill(self) -> None:
        cycle = [self._runners[i] for i in self._generator.permutation(len(self._runners))]
        self._turns = cycle + cycle[::-1]


class Stopwatch(pl.Callback):
    """Times a training in blocks of steps, and hands over after each.

    Stands first among the callbacks and ``last`` last, so that it encloses all that the others do
    from the start of the training to its end.

    Attributes:
        blocks: seconds of each block of ``steps`` steps by both clocks, the first left out.
        total: seconds from the start of the training to its end.
        last: the callback that stops it.
    """

    def __init__(self, relay: Relay, name: str, steps: int) -> None:
        super().__init__()
        self.blocks: list[Reading] = []
        self.total: Reading = (0.0, 0.0)
        self.last = pl.Callback()
        self.last.on_train_end = self._stop  # type: ignore[method-assign]
        self._relay, self._name, self._steps = relay, name, steps
        self._since: Reading = (math.nan, math.nan)
        self._next = steps

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start."""
        self._since = now()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Hand over where a block ends."""
        if trainer.global_step == self._next:
            spent = self._lap()
            if self._next > self._steps:
                self.blocks.append(spent)
            self._next += self._steps
            self._relay.hand_over(self._name)
            self._since = now()

    def _stop(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._lap()

    def _lap(self) -> Reading:
        wall, processor = now()
        spent = (wall - self._since[0], processor - self._since[1])
        self.total = (self.total[0] + spent[0], self.total[1] + spent[1])
        return spent
