"""The run loop: config -> scenario + backbone + method -> for each task learn, evaluate, checkpoint -> report.

A run is a folder. It can be stopped anywhere; the same command continues it and ends bit-identical.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from everclip.config import RunConfig, resolve_config
from everclip.contracts import Task
from everclip.distributed import any_up
from everclip.errors import ConfigError, DataError, DivergedError, Interrupted, RunFolderError
from everclip.evaluation.assemble import column_info, flat_metrics
from everclip.evaluation.measurements import Measurements
from everclip.evaluation.record import RowRecorder
from everclip.evaluation.results import FILE as RESULTS
from everclip.evaluation.results import Event, Example, Results, Row
from everclip.files import crash_point, optional_write, require_writable
from everclip.running import extending, inputs
from everclip.running.checkpoint_times import CheckpointTimes
from everclip.running.clock import Clock
from everclip.running.collapse import collapse
from everclip.running.outcome import Status, build_results
from everclip.running.outlook import Outlook, sizes_of
from everclip.running.place import EVALUATE, LEARN, Place
from everclip.running.prepare import Prepared, prepare
from everclip.running.row_models import RowModels
from everclip.running.task_progress import TaskProgress
from everclip.training import environment
from everclip.training.checkpoint import Checkpoints
from everclip.training.progress import Progress
from everclip.training.run_folder import RunFolder
from everclip.training.signals import StopRequest
from everclip.training.trackers import Trackers
from everclip.training.watching import Cursor, OptimiserState, StepLog, Watcher


def execute(
    target: str | PathLike[str] | RunConfig,
    *overrides: str,
    progress: Progress | None = None,
    extend: bool = False,
    **settings: Any,
) -> Results:
    """Run a benchmark or YAML file to its end, or continue it where it stopped.

    Args:
        target: `emoji-time`, a YAML file, or a resolved configuration.
        overrides: `key=value` texts.
        progress: where progress is shown.
        extend: learn the tasks that were added since (new periods in the data, sources appended to the list).
        settings: overrides as keywords, `method="replay"`, `seed=1`; they win over `overrides`.

    Returns:
        The result, also written to `results.json` in the run folder.

    Raises:
        EverclipError: with the cause and what to do; `exit_code` says which kind.
    """
    if isinstance(target, RunConfig):
        for given in (*overrides, *settings):
            raise ConfigError(f"execute: a resolved configuration takes no further settings (found {given}).")
        config = target
    else:
        config = resolve_config(target, overrides, settings)
    require_writable(Path(config.output), "output", RunFolderError)
    return Run.of(config, progress, extend).execute()


class Run(Watcher):
    """One method x scenario x backbone x seed, in one folder.

    Args:
        given: data, learner and tasks.
        clock: of the run folder.
        progress: where progress is shown.
        extend: whether tasks that were added since are learned, too.
    """

    def __init__(
        self, given: Prepared, clock: Clock, progress: Progress | None = None, extend: bool = False
    ) -> None:
        config, learner = given.config, given.learner
        accelerator = learner.accelerator
        self.config, self.extend, self.path, self._clock = config, extend, Path(config.output), clock
        self.scenario, self.learner = given.scenario, learner
        self.tasks, self.remarks = given.tasks, given.remarks
        self._main = accelerator.is_main_process
        self.progress = progress or Progress(quiet=not self._main)
        self.checkpoints = Checkpoints(self.path, config.checkpoint)
        self._models = RowModels(self.path, self.checkpoints)
        self.place = given.start()
        self._headline = self.scenario.spec.headline.model_dump()
        self._times = CheckpointTimes(config.checkpoint, accelerator.num_processes, accelerator.device)
        self._recorder = RowRecorder(self.path, self.scenario, config, learner.features, self._main)
        self.outlook = Outlook(sizes_of(self.tasks, config.training))
        if learner.guard is not None:
            learner.guard.tell = self._event
        learner.engine.report_to(self.progress.say)
        learner.engine.columns.tick = partial(self.progress.aside, "encode ahead")
        learner.features.folders.keep_in(self.path / "features", config.evaluation, self._damaged_cache)

    @classmethod
    def of(cls, config: RunConfig, progress: Progress | None = None, extend: bool = False) -> Run:
        """Load what a configuration names, and return the run of it.

        Raises:
            RunFolderError: if there is nothing to extend.
            EverclipError: if the parts do not fit.
        """
        clock = Clock(Path(config.output))
        if extend:
            extending.require_run(Path(config.output))
        return cls(prepare(config), clock, progress, extend)

    def execute(self) -> Results:
        """Do what is left of the run; see `everclip.execute`."""
        with RunFolder(self.path, self.config, self._main, self.extend) as folder, StopRequest() as stop:
            self._folder, self._stop = folder, stop
            cursor = self._resume()
            if self._finished() and (self.path / RESULTS).is_file():
                held = self._held()
                # A run killed at the end of an extension still holds the result from before it.
                if held is not None and held.status == "finished" and len(held.rows) == len(self.place.rows):
                    self._report(only_if_missing=True)
                    return held  # as it was: looking at a result must not change where it says it comes from
            self._remark_inputs()
            self._clock.idle()
            self._note_time(self._clock.write())
            self._trackers = Trackers(self.config if self._main else None)
            self._times.written()
            try:
                while not self._finished():
                    cursor = self._advance(cursor)
                    self._stop_if_asked()
            except (Interrupted, DivergedError):
                self._write_results("stopped")
                raise
            finally:
                self._trackers.finish()
                self.learner.features.close()
                self._clock.write()
            if (fallen := collapse(self.scenario, self.place, self.learner)) is not None:
                self._event("collapsed", fallen)
            results = self._write_results("finished")
        self._report()
        return results

    def _held(self) -> Results | None:
        """Return the result as it lies in the folder; a damaged one is built again from the checkpoint."""
        try:
            return Results.read(self.path)
        except DataError as error:
            self._event("damaged result", f"{error.args[0].splitlines()[0]}; built again from the checkpoint")
            return None

    def _report(self, only_if_missing: bool = False) -> None:
        from everclip.report import write_report

        there = (self.path / "report.html").is_file()
        if self.config.report and self._main and not (only_if_missing and there):
            with optional_write(
                self.path / "report.html", f"`everclip report {self.path}` writes the report later"
            ):
                write_report(self.path)

    def _finished(self) -> bool:
        return self.place.task >= len(self.tasks)

    def _advance(self, cursor: Cursor) -> Cursor:
        """Do the next stage, then write a checkpoint that knows it is done."""
        if self.place.stage == LEARN:
            with self._clock.stage("training"):
                self._learn(self.tasks[self.place.task], cursor)
            self.place.stage = EVALUATE
        else:
            with self._clock.stage("evaluation"):
                self._evaluate()
            self.place.task += 1
            self.place.stage = LEARN
        cursor = Cursor()
        self._save(cursor, {})
        if self.place.stage == LEARN:
            self._write_results("running")
        return cursor

    # -- learning ---------------------------------------------------------------------------------------------

    def _learn(self, task: Task, cursor: Cursor) -> None:
        phases = self.learner.plan(task)
        self._inside = inside = TaskProgress(cursor, phases, self.config.training)
        self.learner.pictures.add(phases, self.path if self._main else None)
        label = f"task {task.index + 1}/{len(self.tasks)} {task.name}"
        self.progress.start(label, inside.total, inside.before + inside.inside(cursor.step))
        self.outlook.begin_task(self.place.task, inside.steps, resumed=cursor.begun)
        self.learner.learn(task, cursor, self)
        self.outlook.end_task()
        self.progress.finish()
        self._move_guard()

    def _move_guard(self) -> None:
        """Count the seconds of the guard by themselves: it looks while a task trains."""
        guard = self.learner.guard
        if guard is not None:
            self._clock.move(guard.seconds, "guard")
            guard.seconds = 0.0

    def after_step(self, log: StepLog) -> bool:
        """Count one step; return whether a checkpoint is due after it."""
        self.place.step += 1
        self.place.samples += log.samples
        self._note_time(self._clock.tick())
        return self._save_due()

    def report(self, logs: Sequence[StepLog]) -> None:
        """Write steps to the log and to the trackers, and show them."""
        first = self.place.step - len(logs)
        names = {"task": self.tasks[self.place.task].index, "phase": self._inside.cursor.phase}
        for offset, log in enumerate(logs, start=1):
            values = {name: float(value) for name, value in log.losses.items()} | {"lr": log.lr}
            if log.grad_norm is not None:
                values["grad_norm"] = float(log.grad_norm)
            self._folder.log({**names, "step": first + offset, **values})
            self._trackers.log(values, first + offset)
            crash_point("after step")
        self._inside.show(logs[-1], self.progress, self.outlook)

    def save(self, cursor: Cursor, optimiser: OptimiserState) -> None:
        """Write a checkpoint in the middle of a phase, then stop if a signal asked for it."""
        self._save(cursor, optimiser())
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        """Raise `Interrupted` on all processes if a signal reached any; only where the state is saved."""
        if any_up(self._stop.name is not None, self.learner.accelerator.device):
            self._stop.check(anyway=True)

    # -- evaluation -------------------------------------------------------------------------------------------

    def _evaluate(self) -> None:
        index = len(self.place.rows)
        at_once = self.learner.method.needs.all_tasks_at_once
        label = "before" if index == 0 else self.tasks[index - 1].name
        task = None if index == 0 or at_once else index - 1
        self.progress.start(f"evaluate ({label})", 0)
        self.outlook.begin_row(self.place.task)

        def tick(done: int, total: int) -> None:
            self._encoded(done, total)
            crash_point("in evaluation")
            if self.learner.accelerator.num_processes == 1:
                self._stop.check()  # several processes stop together, between the stages

        for problem in self._recorder.problems(index):
            self._event("lost features", problem)
        row, examples = self._recorder.measure(
            self.learner.method,
            label,
            index,
            task,
            self.learner.learned,
            (self.place.step, self.place.samples),
            tick,
            [Example(**e) for e in self.place.examples],
        )
        self.place.rows.append(row.model_dump(mode="json"))
        if self.config.checkpoint.keep_rows and self._main:
            self._models.keep(index, self.learner)
        self.place.examples = [e.model_dump(mode="json") for e in examples]
        self.outlook.end_row()
        self.progress.finish()
        columns = [column_info(s) for s in self.scenario.eval_sets]
        metrics = flat_metrics(Measurements([Row(**row) for row in self.place.rows], columns, self._headline))
        self._trackers.log({f"row/{k}": v for k, v in metrics.items() if v is not None}, self.place.step)

    def _encoded(self, done: int, total: int) -> None:
        self.progress.update(done, "pictures", total, *self.outlook.encoded(done, total))
        self._note_time(self._clock.tick())

    # -- state ------------------------------------------------------------------------------------------------

    def _resume(self) -> Cursor:
        """Continue from the newest good checkpoint, or begin."""
        found = self.checkpoints.latest()
        if found is None:
            self._note_time(self._clock.begin({}, self._main))
            self._folder.rewind_log(0)
            return Cursor()
        now_parts, names = self.place.parts, self.place.tasks
        self.place = Place(**found.state["place"])
        added = extending.added_tasks(self.place, names, now_parts, self.path, self.extend)
        cursor = self.learner.restore(found.tensors, found.state["learner"])
        done = max(0, self.place.task + (self.place.stage == EVALUATE))
        self.learner.tasks = list(self.tasks[:done])
        self._folder.rewind_log(self.place.log_size)
        self._note_time(self._clock.begin(self.place.seconds, self._main))
        for problem in found.damaged:
            self._event("damaged checkpoint", f"{problem}; continued from {found.path.name}")
        now = environment.fixed(str(self.learner.accelerator.device))
        if now != self.place.environment:
            self._event(
                "changed environment", f"{self.place.environment} -> {now}: bit-identity is not promised"
            )
            self.place.environment = now
        self.outlook.know_rows(len(self.place.rows), self._clock.seconds().get("evaluation", 0.0))
        self.progress.say(f"continuing {self.path} at step {self.place.step}")
        if added:
            self._extend(added, now_parts, cursor)
        return cursor

    def _extend(self, added: Sequence[str], parts: dict[str, str], cursor: Cursor) -> None:
        """Take up new tasks: old rows are measured on the new sets where their models are at hand."""
        extending.refuse_at_once(self.learner, self.path)
        before = len(self.place.tasks)
        self.place.tasks, self.place.parts = [*self.place.tasks, *added], parts
        self.progress.start("evaluate (old rows on new sets)", 0)
        with self._clock.stage("evaluation"):
            left = extending.remeasure(
                self.config, self.scenario, self.place, self._recorder, self._models, self._encoded
            )
        if self.config.checkpoint.keep_rows and self._main and self.place.stage == LEARN and not cursor.begun:
            self._models.keep(
                len(self.place.rows) - 1, self.learner
            )  # of a run that began without keeping them
        self.progress.finish()
        self._event("extended", extending.extension_message(added, before, left))
        self._folder.adopt(self.config)
        self._save(cursor, cursor.optimiser)
        self._write_results("running")

    def _remark_inputs(self) -> None:
        """Record once what was guessed, assumed or set aside."""
        known = {(event["kind"], event["message"]) for event in self.place.events}
        for kind, message in (remark for remark in self.remarks if tuple(remark) not in known):
            self._event(kind, message)
        for line in inputs.said_at_start(self.scenario, self.place):
            self.progress.say(line)
        if self._main:
            inputs.write_quarantine(self.scenario, self.path)

    def _event(self, kind: str, message: str) -> None:
        self.place.events.append(
            Event(kind=kind, message=message, row=len(self.place.rows) or None).model_dump()
        )
        self.progress.say(f"note: {kind}: {message}")

    def _save_due(self) -> bool:
        longest = self.place.checkpoints.get("longest", 0.0)
        return self._times.due(self.place.step, longest, self._stop.name is not None)

    def _save(self, cursor: Cursor, optimiser: dict[str, torch.Tensor]) -> None:
        with self._clock.stage("checkpoints"):
            self._save_now(cursor, optimiser)
        self._note_time(self._clock.write())

    def _save_now(self, cursor: Cursor, optimiser: dict[str, torch.Tensor]) -> None:
        started = time.monotonic()
        self.place.seconds = self._clock.seconds()
        if self._main:
            self.place.log_size = self._folder.log_size()
            state = {"place": vars(self.place), "learner": self.learner.state(cursor)}
            path = self.checkpoints.save(self.learner.tensors(optimiser), state)
            spent = time.monotonic() - started
            costs = self.place.checkpoints
            costs["longest"] = max(spent, costs.get("longest", 0.0))
            costs["written"] = costs.get("written", 0) + 1
            costs["bytes"] = sum(f.stat().st_size for f in path.iterdir())
        self._times.written()
        self.learner.accelerator.wait_for_everyone()

    def _damaged_cache(self, problem: str) -> None:
        self._event("damaged cache", problem)

    def _note_time(self, problem: str | None) -> None:
        if problem is not None:
            self._event("lost time", problem)

    def _write_results(self, status: Status) -> Results:
        results = build_results(
            self.config,
            self.scenario,
            self.learner,
            self.tasks,
            self.place,
            self._headline,
            status,
            self._clock,
        )
        if self._main and results.rows:
            results.write(self.path)
        return results
