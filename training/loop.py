"""What every training here shares: seeded batches, checkpoints that can be gone on from, a bar and a loss curve."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Average:
    """A moving average of parameters, which draws better than the last step's."""

    def __init__(self, parameters: list[torch.nn.Parameter], decay: float) -> None:
        self.parameters, self.decay, self.steps = parameters, decay, 0
        self.values = [p.detach().float().clone() for p in parameters]

    def update(self) -> None:
        self.steps += 1
        # A short memory at first: the start's noise should not linger.
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.values, [p.detach() for p in self.parameters], 1 - decay)

    def copy_to_parameters(self) -> None:
        for p, v in zip(self.parameters, self.values, strict=True):
            p.data.copy_(v)


def rate(step: int, steps: int, peak: float, warmup: int = 100, decay_share: float = 0.3) -> float:
    """Return the learning rate of a step: a short rise, a plateau, a straight fall to nought over the last share."""
    return peak * min(1.0, (step + 1) / warmup, max(0.0, (steps - step) / (steps * decay_share)))


def run(
    *,
    folder: Path,
    steps: int,
    optimizer: torch.optim.Optimizer,
    average: Average,
    modules: dict[str, torch.nn.Module],
    loss_of: Callable[[int], torch.Tensor],
    peak: float,
    decay_share: float = 0.3,
    save_every: float = 120.0,
    after_save: Callable[[], None] | None = None,
) -> None:
    """Take `steps` steps, going on from `folder/checkpoint.pt` if it is there, and leave the loss in `folder/loss.jsonl`.

    `loss_of(step)` must depend on the step and the parameters alone, so that a stopped run goes on as if it had not
    been stopped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, curve = folder / "checkpoint.pt", folder / "loss.jsonl"
    step = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        step = state["step"]
        optimizer.load_state_dict(state["optimizer"])
        for name, module in modules.items():
            module.load_state_dict(state["modules"][name])
        average.values, average.steps = state["average"], state["average_steps"]

    def save() -> None:
        state: dict[str, Any] = {
            "step": step,
            "optimizer": optimizer.state_dict(),
            "modules": {n: m.state_dict() for n, m in modules.items()},
            "average": average.values,
            "average_steps": average.steps,
        }
        torch.save(state, checkpoint.with_suffix(".tmp"))
        os.replace(checkpoint.with_suffix(".tmp"), checkpoint)
        if after_save:
            after_save()

    parameters = average.parameters
    saved, total, count, began = time.monotonic(), 0.0, 0, time.monotonic()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress, curve.open("a") as log:
        task = progress.add_task(folder.name, total=steps, completed=step)
        while step < steps:
            for group in optimizer.param_groups:
                group["lr"] = rate(step, steps, peak, decay_share=decay_share) * group.get("scale", 1.0)
            loss = loss_of(step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            average.update()
            step, total, count = step + 1, total + loss.item(), count + 1
            if step % 20 == 0 or step == steps:
                entry = {"step": step, "loss": round(total / count, 5), "seconds": round(time.monotonic() - began, 1)}
                log.write(json.dumps(entry) + "\n")
                log.flush()
                progress.update(task, completed=step, description=f"{folder.name} {entry['loss']:.4f}")
                total, count = 0.0, 0
            if time.monotonic() - saved > save_every or step == steps:
                save()
                saved = time.monotonic()
