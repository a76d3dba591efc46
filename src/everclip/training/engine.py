"""The phase engine: it owns every loop, stream, optimiser and position, so that every method resumes exactly."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from everclip.config import TrainingConfig
from everclip.contracts import Phase, Progress, Stream
from everclip.data.sampling.batches import BatchMaker, stream_size
from everclip.data.sampling.order import key_of
from everclip.distributed import mean
from everclip.errors import ConfigError, DivergedError
from everclip.features.service import FeatureService
from everclip.interfaces import Learnable
from everclip.models.blocks import CompiledBlocks
from everclip.models.parameters import parameters_of
from everclip.training.budget import phase_steps, scheduled_steps
from everclip.training.columns import EmbeddingColumns
from everclip.training.guard import Guard
from everclip.training.modes import module_of, require_gradients, set_modes
from everclip.training.optim import build_optimiser, load_optimiser, optimiser_tensors, set_rate
from everclip.training.precision import SCALER, Precision
from everclip.training.schedules import learning_rate, stepped
from everclip.training.sharding import Sharded, Whole, own_part, whole_tensors
from everclip.training.watching import Cursor, StepLog, Watcher

TOKEN_ROWS = ".rows"
"""How the names of parameters end that hold the token rows of one language."""

IDLE_STEPS = 4
"""Number of first steps without any gradient after which a phase is stopped: it would never have one."""


class Engine:
    """Train one phase at a time.

    Args:
        accelerator: device, precision, processes.
        maker: streams to batches.
        features: encodes data for frozen towers and teachers.
        config: optimiser, schedule, budget, clipping.
        seed: decides every random draw.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        maker: BatchMaker,
        features: FeatureService,
        config: TrainingConfig,
        seed: int,
    ) -> None:
        self.accelerator, self.maker, self.config, self.seed = accelerator, maker, config, seed
        self.columns = EmbeddingColumns(maker, features)
        self.say: Callable[[str], None] = lambda message: None
        """Shows a note for people, once."""
        self._shown_notes: set[str] = set()
        self.carried: dict[str, dict[str, torch.Tensor]] = {}
        """Name of a phase -> the optimiser's tensors at its last end, with `training.carry_optimiser`."""
        self.may_idle = False
        """Whether a phase may continue without any gradient, because its task only serves later ones."""
        self.new_start = True
        """Whether the task begins with weights that no earlier task trained, so that it always has a warm-up."""
        self._idle = 0
        self._compiled: Callable[[], AbstractContextManager[None]] = nullcontext
        self._sharding = Whole()

    def run(
        self,
        method: Learnable,
        phase: Phase,
        task: int,
        cursor: Cursor | None = None,
        watcher: Watcher | None = None,
        guard: Guard | None = None,
    ) -> None:
        """Train one repeat of `phase` to its end.

        Args:
            method: the module; its `forward` is the training step.
            phase: what to train on.
            task: number of the task; part of the scope of all random draws.
            cursor: the number of the repeat, the first step, and the optimiser's tensors there; updated when the
                watcher saves.
            watcher: called after every step.
            guard: may measure the model, step back, and end the phase early.

        Raises:
            DivergedError: if a loss or gradient is NaN, infinite or above `training.loss_limit`.
        """
        cursor, steps = cursor or Cursor(), phase_steps(phase, self.config)
        cursor.paused = False
        if cursor.step >= steps:
            return
        method_module = module_of(method)
        trainable = [p for p in method_module.parameters() if p.requires_grad]
        try:
            self._run(method, phase, task, cursor, steps, watcher or Watcher(), guard)
        finally:
            require_gradients(method_module, trainable)

    def _run(
        self,
        method: Learnable,
        phase: Phase,
        task: int,
        cursor: Cursor,
        steps: int,
        watcher: Watcher,
        guard: Guard | None,
    ) -> None:
        method_module, state, cursor.optimiser = module_of(method), cursor.optimiser, {}
        if self.config.compile:
            self._compiled = CompiledBlocks(method.backbone.clip).active
        shards = self.config.shard and self.accelerator.num_processes > 1 and phase.optimiser is not None
        self._sharding = Sharded(method, phase, self.accelerator.device) if shards else Whole()
        module, optimiser = self._prepare(method_module, phase, state)
        streams = self.streams(phase, method)
        with self._sharding.whole():
            has_embeddings = self.columns.prepare(method, streams, self._precision.autocast)
        set_modes(method_module, training=phase.optimiser is not None)
        for note in phase.notes:
            self.say(note)
        scope = f"{task}/{phase.name}/{cursor.repeat}"
        # To read a loss, the host must wait for the GPU; on a CPU it costs nothing.
        together = 1 if self.accelerator.device.type == "cpu" else 10
        self._idle, start = 0, cursor.step
        waiting: list[StepLog] = []
        batches = self.maker.batches(streams, scope, start, steps, self.config.workers)
        for step, batch in zip(range(start, steps), batches, strict=True):
            progress = Progress(task, phase.name, cursor.repeat, step, steps, self.seed)
            if has_embeddings:
                self.columns.add(batch, streams, scope, step)
            waiting.append(self._step(module, optimiser, phase, self.to_device(batch), progress))
            (method.take_gradients if phase.gradients else method.after_step)(progress)
            due = watcher.after_step(waiting[-1])
            guard_due = guard is not None and guard.due(step + 1, steps)
            pausing = step + 1 < steps and watcher.pauses(step + 1)
            if due or guard_due or pausing or len(waiting) >= together or step + 1 == steps:
                # Before saving: a diverged model must not overwrite a good checkpoint.
                with self._sharding.stopping():
                    self._inspect(waiting, progress)
                    self._require_gradient(waiting, phase, progress)
                    self._inspect_weights(optimiser, waiting[-1], progress)
                watcher.report(waiting)
                waiting = []
            over = False
            if guard_due and guard is not None:
                with self._sharding.whole():
                    over = guard.look(method, step + 1, steps)
                set_modes(method_module, training=phase.optimiser is not None)
            if due:
                cursor.step = step + 1
                with self._sharding.whole():
                    watcher.save(cursor, lambda: self._optimiser_tensors(optimiser))
            if self.config.carry_optimiser and (over or step + 1 == steps):
                self.carried[phase.name] = self._optimiser_tensors(optimiser)
            if over:
                break
            if pausing:
                cursor.step, cursor.paused = step + 1, True
                cursor.optimiser = self._optimiser_tensors(optimiser)
                break
        self._sharding.end()

    def report_to(self, say: Callable[[str], None]) -> None:
        """Let `say` show the notes of the engine, each once."""

        def once(note: str) -> None:
            if note not in self._shown_notes:
                self._shown_notes.add(note)
                say(f"note: {note}")

        self.say = once

    def streams(self, phase: Phase, method: Learnable) -> dict[str, Stream]:
        """Return the streams of a phase as they are read.

        Raises:
            ConfigError: if the processes cannot share them.
        """
        if phase.optimiser is not None or phase.gradients:
            self._require_equal_shares(phase)
            return dict(phase.streams)
        if self.accelerator.num_processes > 1 and not method.gathers:
            raise ConfigError(
                f"phase {phase.name!r} is solved in closed form, and {method.preset} does not gather the samples of "
                "all processes; start only one process."
            )
        # Sums and closed-form solutions need every sample exactly once.
        return {name: replace(stream, order="once") for name, stream in phase.streams.items()}

    def _require_equal_shares(self, phase: Phase) -> None:
        """Refuse a last batch that processes cannot share equally if its loss compares captions over processes."""
        main, world = phase.streams.get("main"), self.accelerator.num_processes
        if main is None or main.order != "once" or main.classes is not None:
            return
        rest = stream_size(main) % main.batch_size
        if rest % world:
            raise ConfigError(
                f"training: the last batch of this stream has {rest} captions, which {world} processes cannot share "
                "equally. Take another training.batch_size or number of processes, or one process."
            )

    def precision_of(self, phase: Phase) -> Precision:
        """Return the precision that a phase computes in."""
        # Phases without gradient compute sums and thresholds for evaluation, which never uses autocast.
        name = "fp32" if phase.optimiser is None else self.config.precision
        return Precision(name, self.accelerator.device)

    def _prepare(
        self, method: nn.Module, phase: Phase, state: Mapping[str, torch.Tensor] | None
    ) -> tuple[nn.Module, torch.optim.Optimizer | None]:
        self._precision = self.precision_of(phase)
        if phase.optimiser is None and not phase.gradients:
            return method, None
        if not any(group.names for group in phase.param_groups):
            raise ConfigError(f"method: phase {phase.name!r} trains nothing; check method.trainable.")
        # Phases may train different parameters. The others must not require gradients, because several processes
        # would wait for them.
        names = [name for group in phase.param_groups for name in group.names]
        require_gradients(method, parameters_of(method, names).values())
        optimiser = None if phase.gradients else build_optimiser(method, phase, self.config)
        state = state or (self._carried(phase, optimiser) if optimiser is not None else {})
        if optimiser is not None and state:
            load_optimiser(optimiser, {k: v for k, v in state.items() if not k.startswith(SCALER)})
            self._precision.load(state)
        if self.accelerator.num_processes == 1 or isinstance(self._sharding, Sharded):
            return method, optimiser
        # Wrap the method again in every phase, so that DDP includes grown modules. Do not use
        # `accelerator.prepare_model`, which would wrap `forward` once more in every phase.
        ids = [self.accelerator.device.index] if self.accelerator.device.type == "cuda" else None
        # All buffers are equal on all processes, except the running statistics of batch norms.
        differ = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in method.modules())
        known = inspect.signature(nn.parallel.DistributedDataParallel).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options: dict[str, Any] = {"device_ids": ids, name: differ}
        return nn.parallel.DistributedDataParallel(method, **options), optimiser

    def _carried(self, phase: Phase, optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
        """Return the tensors of the phase's last end, of parameters that still exist in the same shape.

        All tensors of a parameter are kept or none. Token rows are left out: another language's rows have their name.
        """
        shapes = {
            name: parameter.shape
            for group in optimiser.param_groups
            for name, parameter in zip(group["names"], group["params"], strict=True)
        }
        carried = self.carried.pop(phase.name, {})
        changed = {name for name in (key.partition("|")[0] for key in carried) if name.endswith(TOKEN_ROWS)}
        for key, tensor in carried.items():
            name, _, slot = key.partition("|")
            if name not in shapes or (slot != "step" and tensor.shape != shapes[name]):
                changed.add(name)
        return {
            key: tensor
            for key, tensor in carried.items()
            if key.startswith(SCALER) or key.partition("|")[0] not in changed
        }

    def _optimiser_tensors(self, optimiser: torch.optim.Optimizer | None) -> dict[str, torch.Tensor]:
        if optimiser is None:
            return {}
        return whole_tensors(optimiser_tensors(optimiser)) | self._precision.tensors()

    def _step(
        self,
        module: nn.Module,
        optimiser: torch.optim.Optimizer | None,
        phase: Phase,
        batch: dict[str, dict[str, Any]],
        progress: Progress,
    ) -> StepLog:
        rate = self.rate(phase, progress)
        self._seed_dropout(progress)
        with (
            self._compiled(),
            self._precision.autocast(),
            torch.set_grad_enabled(optimiser is not None or phase.gradients),
        ):
            losses = module(batch, progress)
        if not isinstance(losses, dict) or not losses:
            raise ConfigError(
                f"method: forward returned {type(losses).__name__}; expected a dict of named losses, "
                "such as {'contrastive': tensor}."
            )
        samples = sum(stream.batch_size for stream in phase.streams.values())
        if optimiser is None:
            if phase.gradients:
                module.zero_grad(set_to_none=True)
                torch.autograd.backward(torch.stack(list(losses.values())).sum())
            return StepLog(progress.step, {k: v.detach() for k, v in losses.items()}, 0.0, None, samples)
        set_rate(optimiser, rate)
        optimiser.zero_grad(set_to_none=True)
        with self._compiled():  # a block that is computed again must be the same one
            self._precision.backward(torch.stack([loss.float() for loss in losses.values()]).sum())
        moved = self._sharding.agreed(_any_gradient(optimiser)) if progress.step < IDLE_STEPS else None
        norm = self._sharding.step(self._precision, optimiser, self.config.clip_norm)
        return StepLog(progress.step, {k: v.detach() for k, v in losses.items()}, rate, norm, samples, moved)

    def rate(self, phase: Phase, progress: Progress) -> float:
        """Return the learning rate of a step, before the factors of the parameter groups."""
        settings = self.config
        base = settings.lr if phase.lr is None else phase.lr
        if phase.schedule is not None:
            return stepped(progress.step, base, phase.schedule.every, phase.schedule.factor)
        steps = scheduled_steps(phase, settings, progress.steps)
        warmup = settings.warmup if settings.rewarm or self.new_start else 0
        return learning_rate(
            min(progress.step, steps), steps, base, settings.schedule, warmup, settings.cooldown
        )

    def _seed_dropout(self, at: Progress) -> None:
        """Seed randomness inside open_clip by step and rank, so that no generator state needs to be stored."""
        rank = self.accelerator.process_index
        torch.manual_seed(key_of(self.seed, at.task, at.phase, at.repeat, at.step, rank) % 2**63)

    def to_device(self, batch: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Move the tensors of a batch to the device."""
        device = self.accelerator.device
        if device.type == "cpu":
            return batch
        return {
            name: {
                k: v.to(device, non_blocking=True) if torch.is_tensor(v) else v for k, v in columns.items()
            }
            for name, columns in batch.items()
        }

    def _inspect(self, logs: list[StepLog], progress: Progress) -> None:
        """Stop a diverged run before it can overwrite a good checkpoint.

        Replaces losses by those of the global batch, so that all processes stop together.
        """
        names = list(logs[0].losses)
        shared = mean(torch.stack([torch.stack([log.losses[n].float() for n in names]) for log in logs]))
        for log, row in zip(logs, shared, strict=True):
            log.losses = dict(zip(names, row, strict=True))
            values = {name: float(value) for name, value in log.losses.items()}
            if log.grad_norm is not None:
                values["gradient norm"] = float(log.grad_norm)
            for name, value in values.items():
                exploded = name != "gradient norm" and value > self.config.loss_limit
                if not math.isfinite(value) or exploded:
                    raise self._diverged(f"{name} is {value}", log, progress)

    def _require_gradient(self, logs: Sequence[StepLog], phase: Phase, progress: Progress) -> None:
        """Stop a phase whose first steps had no gradient at all: it would never train anything."""
        if self.may_idle or not phase.guarded:
            return
        moves = [bool(log.moved) for log in logs if log.moved is not None]
        self._idle += 0 if any(moves) else len(moves)
        if moves and self._idle >= min(IDLE_STEPS, progress.steps):
            raise ConfigError(
                f"task {progress.task + 1}, phase {progress.phase!r}: no trained weight had a gradient in the first "
                f"{self._idle} steps, so nothing is learned. Does the loss depend on the parameters that train "
                "(method.trainable, method.loss), and do the samples differ (everclip check)?"
            )

    def _inspect_weights(
        self, optimiser: torch.optim.Optimizer | None, log: StepLog, progress: Progress
    ) -> None:
        """Check the weights themselves: finite losses and gradients can still lead to an infinite update."""
        trained = [p for group in optimiser.param_groups for p in group["params"]] if optimiser else []
        # The norm is infinite or NaN if any element is; one fused pass and one synchronisation.
        norms = list(torch._foreach_norm([own_part(p.detach()) for p in trained])) if trained else []
        if norms and bool(self._sharding.agreed(~torch.stack(norms).isfinite().all())):
            raise self._diverged("a weight is NaN or infinite", log, progress)

    def _diverged(self, what: str, log: StepLog, progress: Progress) -> DivergedError:
        trained = log.grad_norm is not None or log.lr > 0
        rate = f", learning rate {log.lr:g}" if trained else ""
        advice = (
            "lower training.lr, lengthen training.warmup or set training.clip_norm"
            if trained
            else "nothing trains by gradient here: check the features (everclip doctor) and the method's settings"
        )
        return DivergedError(
            f"task {progress.task + 1}, phase {progress.phase!r}, step {log.step + 1} of {progress.steps}: "
            f"{what} (limit {self.config.loss_limit:g}{rate}). What was saved before is kept; {advice}, then start "
            "anew (a run: with another output)."
        )


def _any_gradient(optimiser: torch.optim.Optimizer) -> torch.Tensor:
    """Return whether any gradient is not 0, as a tensor on the device; NaN counts as not 0."""
    trained = [p for group in optimiser.param_groups for p in group["params"]]
    grads = [own_part(p.grad) for p in trained if p.grad is not None and own_part(p.grad).numel()]
    if not grads:
        return torch.zeros((), dtype=torch.bool)
    return (torch.stack(list(torch._foreach_norm(grads, float("inf")))) != 0).any()
