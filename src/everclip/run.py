"""The run loop: config -> scenario + backbone + method -> for each task learn, evaluate, checkpoint -> report.

A run is a folder. It can be stopped anywhere; the same command continues it and ends bit-identical.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from os import PathLike
from typing import Any

import torch

from everclip.config import RunConfig, resolve_config
from everclip.contracts import Task
from everclip.distributed import any_process, stopping_together
from everclip.errors import ConfigError, DataError, DivergedError, Interrupted, RunFolderError
from everclip.evaluation.assemble import flat_metrics
from everclip.evaluation.record import RowRecorder
from everclip.evaluation.results import FILE as RESULTS
from everclip.evaluation.results import Event, Example, Results
from everclip.files import crash_point, require_writable
from everclip.learner.row_models import LEARN, RowModels
from everclip.report.diagnosis_link import PAGE
from everclip.running import extending, pages
from everclip.running.checkpoint_times import CheckpointTimes
from everclip.running.checkpoint_writing import write_checkpoint
from everclip.running.clock import Clock
from everclip.running.collapse import collapse
from everclip.running.live_view import StreamView
from everclip.running.outcome import Status, build_results, measurements_of
from everclip.running.prepare import Prepared, prepare
from everclip.running.remarks import is_printed, learned_remarks, start_notes, write_quarantine
from everclip.running.run_state import EVALUATE, RunState
from everclip.running.stream_rows import moment, pause_step, planned_row
from everclip.running.task_progress import TaskProgress
from everclip.running.time_left import TimeLeft, sizes_of
from everclip.scenarios.online import StreamRow
from everclip.training import environment
from everclip.training.checkpoint import Checkpoints
from everclip.training.progress import Progress
from everclip.training.remote_run import RunCopy
from everclip.training.run_folder import RunFolder, remembering
from everclip.training.run_place import working_copy
from everclip.training.signals import StopRequest
from everclip.training.trackers import Trackers
from everclip.training.watching import Cursor, OptimiserState, StepLog, Watcher
from everclip.urls import is_remote


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
        progress: shows the progress.
        extend: learn the tasks that were added to a run (new periods in the data, sources appended to the list).
        settings: overrides as keywords, `method="replay"`, `seed=1`; they take precedence over `overrides`.

    Returns:
        The result, also written to `results.json` in the run folder.

    Raises:
        EverclipError: says the cause and what to do; `exit_code` identifies the kind.
    """
    if isinstance(target, RunConfig):
        for extra in (*overrides, *settings):
            raise ConfigError(f"execute: a resolved configuration takes no further settings (found {extra}).")
        config = target
    else:
        config = resolve_config(target, overrides, settings)
    require_writable(
        config.folder, "EVERCLIP_CACHE" if is_remote(config.output) else "output", RunFolderError
    )
    say = (progress or Progress()).say
    with stopping_together(), working_copy(config, say) as copy:
        return Run.of(remembering(config), progress, extend, copy).execute()


class Run(Watcher):
    """One method x scenario x backbone x seed, in one folder.

    Args:
        prepared: the data, learner and tasks.
        clock: the clock of the run folder.
        progress: shows the progress.
        extend: whether to learn tasks that were added to the run.
        copy: publishes the folder of a run far away.
    """

    def __init__(
        self,
        prepared: Prepared,
        clock: Clock,
        progress: Progress | None = None,
        extend: bool = False,
        copy: RunCopy | None = None,
    ) -> None:
        config, learner = prepared.config, prepared.learner
        accelerator = learner.accelerator
        self.config, self.extend, self.path, self._clock = config, extend, config.folder, clock
        self.scenario, self.learner = prepared.scenario, learner
        self.tasks, self.remarks, self.stream = prepared.tasks, prepared.remarks, prepared.stream
        self._copy = copy
        self._pause_at: int | None = None
        self._main = accelerator.is_main_process
        self.progress = progress or Progress(quiet=not self._main)
        self.checkpoints = Checkpoints(self.path, config.checkpoint)
        self._models = RowModels(self.path, self.checkpoints)
        self.state = prepared.start()
        self._headline = self.scenario.spec.headline.model_dump()
        self._times = CheckpointTimes(config.checkpoint, accelerator.num_processes, accelerator.device)
        self._recorder = RowRecorder(self.path, self.scenario, config, learner.features, self._main)
        self._view = StreamView(self.stream, self.progress, self._headline)
        rows = None if self.stream is None else len(self.stream.rows)
        self.time_left = TimeLeft(sizes_of(self.tasks, config.training, learner.method.settings), rows=rows)
        if learner.guard is not None:
            learner.guard.tell = self._event
        learner.engine.report_to(self.progress.say)
        learner.engine.columns.tick = partial(self.progress.aside, "encode ahead")
        damaged = partial(self._event, "damaged cache")
        learner.features.folders.keep_in(self.path / "features", config.evaluation, damaged)

    @classmethod
    def of(
        cls,
        config: RunConfig,
        progress: Progress | None = None,
        extend: bool = False,
        copy: RunCopy | None = None,
    ) -> Run:
        """Load what a configuration names, and return its run.

        Raises:
            RunFolderError: if there is nothing to extend.
            EverclipError: if the parts do not fit.
        """
        clock = Clock(config.folder)
        if extend:
            extending.require_run(config)
        return cls(prepare(config), clock, progress, extend, copy)

    def execute(self) -> Results:
        """Do what is left of the run; see `everclip.execute`."""
        with RunFolder(self.path, self.config, self._main, self.extend) as folder, StopRequest() as stop:
            self._folder, self._stop = folder, stop
            cursor = self._resume()
            if self._finished() and (self.path / RESULTS).is_file():
                stored = self._stored_results()
                if stored is not None:
                    self._diagnose(only_if_missing=True)
                    self._report(only_if_missing=True)
                    return stored  # unchanged: asking for a result must not change its provenance
            self._record_remarks()
            self._clock.idle()
            self._report_lost_time(self._clock.write())
            self._trackers = Trackers(self.config if self._main else None)
            self._times.written()
            try:
                while not self._finished():
                    cursor = self._advance(cursor)
                    self._stop_if_asked()
                if (message := collapse(self.scenario, self.state, self.learner)) is not None:
                    self._event("collapsed", message)
                if self._main:
                    pages.remove_outdated(self.path, self.config.report)
                results = self._write_results("finished")
                self._diagnose()
            except (Interrupted, DivergedError):
                if not self._finished():
                    self._write_results("stopped")
                raise
            finally:
                self.progress.close()
                self._trackers.finish()
                self.learner.features.close()
                self._clock.write()
        self._report()
        return results

    def _stored_results(self) -> Results | None:
        """Return the finished result in the folder; `None` if it is outdated or damaged."""
        try:
            results = Results.read(self.path)
        except DataError as error:
            self._event("damaged result", f"{error.args[0].splitlines()[0]}; built again from the checkpoint")
            return None
        # After a kill at the end of an extension, the folder still holds the result from before the extension.
        current = results.status == "finished" and len(results.rows) == len(self.state.rows)
        return results if current else None

    def _diagnose(self, only_if_missing: bool = False) -> None:
        """Compare the model before the run with the model now, for the report; one process does it alone."""
        if not self.config.report or not self._main or (only_if_missing and (self.path / PAGE).is_file()):
            return

        def stop() -> None:
            if self.learner.accelerator.num_processes == 1:
                self._stop.check()

        pages.write_before_and_after(self.scenario, self.learner, self.config, self.progress, stop)

    def _report(self, only_if_missing: bool = False) -> None:
        page = self.path / pages.REPORT
        if self.config.report and self._main and not (only_if_missing and page.is_file()):
            pages.write_report_page(self.config)

    def _finished(self) -> bool:
        return self.state.task >= len(self.tasks)

    def _advance(self, cursor: Cursor) -> Cursor:
        """Do the next stage, then write a checkpoint after it."""
        planned = self._planned()
        inside = planned is not None and not planned.last
        if self.state.stage == LEARN:
            with self._clock.stage("training"):
                self._learn(self.tasks[self.state.task], cursor)
            self.state.stage = EVALUATE
        else:
            with self._clock.stage("evaluation"):
                self._evaluate()
            self.state.task += 0 if inside else 1
            self.state.stage = LEARN
        cursor = cursor if inside else Cursor()
        self._save(cursor, cursor.optimiser)
        if self.state.stage == LEARN:
            self._write_results("running")
        self._publish()
        return cursor

    # -- learning ---------------------------------------------------------------------------------------------

    def _planned(self) -> StreamRow | None:
        """Return the next row of a stream that is seen once; `None` for other streams and before row 0."""
        return planned_row(self.stream, len(self.state.rows))

    def pauses(self, step: int) -> bool:
        """Return whether training pauses after a step, for a row inside a stream that is seen once."""
        return step == self._pause_at

    def _learn(self, task: Task, cursor: Cursor) -> None:
        resumed = cursor.begun
        if self.learner.counts_macs:
            self.learner.begin(task, cursor)  # a budget in computation needs the grown model
        phases = self.learner.plan(task, cursor)
        self._pause_at = pause = pause_step(self._planned(), phases)
        if pause is not None and cursor.step >= pause:
            return  # nothing trains, or resumed between the last step before the row and the row
        self._task_progress = progress = TaskProgress(cursor, phases, self.config.training)
        self.learner.pictures.add(phases, self.path if self._main else None)
        label = f"task {task.index + 1}/{len(self.tasks)} {task.name}"
        self.progress.start(label, progress.total, progress.before + progress.inside(cursor.step))
        self.time_left.begin_task(self.state.task, progress.steps, resumed)
        self.learner.learn(task, cursor, self)
        self.time_left.end_task()
        self.progress.finish()
        for kind, message in learned_remarks(self.learner.method.notes, self.state.events):
            self._event(kind, message)
        if self.learner.guard is not None:
            self._clock.move(self.learner.guard.take_seconds(), "guard")  # separately, not as training

    def after_step(self, log: StepLog) -> bool:
        """Count one step; return whether a checkpoint is due after it."""
        self.state.step += 1
        self.state.samples += log.samples
        self._report_lost_time(self._clock.tick())
        return self._save_due()

    def report(self, logs: Sequence[StepLog]) -> None:
        """Write steps to the log and to the trackers, and show them."""
        first = self.state.step - len(logs)
        names = {"task": self.tasks[self.state.task].index, "phase": self._task_progress.cursor.phase}
        for offset, log in enumerate(logs, start=1):
            values = log.values()
            self._folder.log({**names, "step": first + offset, **values})
            self._trackers.log(values, first + offset)
            crash_point("after step")
        self._task_progress.show(logs[-1], self.progress, self.time_left)
        self._view.step(logs[-1], self.state.task, self._task_progress.main, self.time_left)

    def save(self, cursor: Cursor, optimiser: OptimiserState) -> None:
        """Write a checkpoint in the middle of a phase, then stop if a signal asked for it."""
        self._save(cursor, optimiser())
        self._publish()
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        """Raise `Interrupted` on all processes if a signal reached any. Call it only after the state is saved."""
        if any_process(self._stop.name is not None, self.learner.accelerator.device):
            self._stop.check(anyway=True)

    # -- evaluation -------------------------------------------------------------------------------------------

    def _evaluate(self) -> None:
        index, planned = len(self.state.rows), self._planned()
        now = moment(planned, self.state, self.tasks, self.learner)
        self.progress.start(f"evaluate ({now.label})", 0)
        self.time_left.begin_row(self.state.task)

        def tick(done: int, total: int) -> None:
            self._encoded(done, total)
            crash_point("in evaluation")
            if self.learner.accelerator.num_processes == 1:
                self._stop.check()  # several processes stop together, between stages

        for problem in self._recorder.missing_features(index):
            self._event("lost features", problem)
        row, examples = self._recorder.measure(
            self.learner.method,
            now.label,
            index,
            now.task,
            now.learned,
            (self.state.step, now.samples),
            tick,
            [Example(**e) for e in self.state.examples],
        )
        self.state.rows.append({**row.model_dump(mode="json"), "at": list(now.at)})
        if self.config.checkpoint.keep_rows and self._main:
            self._models.keep(index, self.learner)
        self.state.examples = [e.model_dump(mode="json") for e in examples]
        self.time_left.end_row()
        self.progress.finish()
        measured = measurements_of(self.scenario, self.state, self._headline)
        self._view.row(measured.rows, measured.columns)
        metrics = flat_metrics(measured)
        self._trackers.log({f"row/{k}": v for k, v in metrics.items() if v is not None}, self.state.step)

    def _encoded(self, done: int, total: int) -> None:
        self.progress.update(done, "images", total, *self.time_left.encoded(done, total))
        self._report_lost_time(self._clock.tick())

    # -- state ------------------------------------------------------------------------------------------------

    def _resume(self) -> Cursor:
        """Continue from the newest undamaged checkpoint, or begin."""
        found = self.checkpoints.latest()
        if found is None:
            self._report_lost_time(self._clock.begin({}, self._main))
            self._folder.rewind_log(0)
            return Cursor()
        now_parts, names = self.state.parts, self.state.tasks
        self.state = RunState(**found.state["place"])
        added = extending.added_tasks(self.state, names, now_parts, self.config.output, self.extend)
        cursor = self.learner.restore(found.tensors, found.state["learner"])
        inside = (planned := self._planned()) is not None and not planned.last
        done = max(0, self.state.task + (self.state.stage == EVALUATE and not inside))
        self.learner.tasks = list(self.tasks[:done])
        self._folder.rewind_log(self.state.log_size)
        self._report_lost_time(self._clock.begin(self.state.seconds, self._main))
        for problem in found.damaged:
            self._event("damaged checkpoint", f"{problem}; continued from {found.path.name}")
        changed = self.state.adopt(environment.fixed(str(self.learner.accelerator.device)))
        if changed is not None:
            self._event("changed environment", changed)
        self.time_left.use_earlier_rows(len(self.state.rows), self._clock.seconds().get("evaluation", 0.0))
        done = self._finished() and not added
        self.progress.say(
            f"{self.config.output} is finished"
            if done
            else f"continuing {self.config.output} at step {self.state.step}"
        )
        if added:
            self._extend(added, now_parts, cursor)
        return cursor

    def _extend(self, added: Sequence[str], parts: dict[str, str], cursor: Cursor) -> None:
        """Add new tasks: measure old rows on the new sets where their models are available."""
        extending.refuse_all_at_once(self.learner, self.config.output)
        before = len(self.state.tasks)
        self.state.tasks, self.state.parts = [*self.state.tasks, *added], parts
        self.progress.start("evaluate (old rows on new sets)", 0)
        with self._clock.stage("evaluation"):
            left = extending.remeasure(
                self.config, self.scenario, self.state, self._recorder, self._models, self._encoded
            )
        if self.config.checkpoint.keep_rows and self._main and self.state.stage == LEARN and not cursor.begun:
            # For a run that began without keep_rows.
            self._models.keep(len(self.state.rows) - 1, self.learner)
        self.progress.finish()
        self._event("extended", extending.extension_message(added, before, left))
        self._folder.adopt(self.config)
        self._save(cursor, cursor.optimiser)
        self._write_results("running")
        self._publish()

    def _record_remarks(self) -> None:
        """Record guesses, assumptions and quarantined rows as events, once."""
        known = {(event["kind"], event["message"]) for event in self.state.events}
        for kind, message in (remark for remark in self.remarks if tuple(remark) not in known):
            self._event(kind, message, printed=is_printed(kind, self.scenario))
        for line in start_notes(self.scenario, self.state):
            self.progress.say(line)
        if self._main:
            write_quarantine(self.scenario, self.path)

    def _event(self, kind: str, message: str, printed: bool = True) -> None:
        self.state.events.append(
            Event(kind=kind, message=message, row=len(self.state.rows) or None).model_dump()
        )
        if printed:
            self.progress.say(f"note: {kind}: {message}")

    def _save_due(self) -> bool:
        longest = self.state.checkpoints.get("longest", 0.0)
        return self._times.due(self.state.step, longest, self._stop.name is not None)

    def _save(self, cursor: Cursor, optimiser: dict[str, torch.Tensor]) -> None:
        with self._clock.stage("checkpoints"):
            self._save_now(cursor, optimiser)
        self._report_lost_time(self._clock.write())

    def _save_now(self, cursor: Cursor, optimiser: dict[str, torch.Tensor]) -> None:
        self.state.seconds = self._clock.seconds()
        if self._main:
            self.state.log_size = self._folder.log_size()
            write_checkpoint(self.checkpoints, self.state, self.learner, cursor, optimiser)
        self._times.written()
        self.learner.accelerator.wait_for_everyone()

    def _publish(self) -> None:
        """Write what is new to a run folder far away; its time counts as that of the checkpoint."""
        if self._copy is None:
            return
        with self._clock.stage("checkpoints"):
            started = time.monotonic()
            problem = self._copy.publish()
            costs = self.state.checkpoints
            costs["longest"] = max(time.monotonic() - started, costs.get("longest", 0.0))
            self._times.written()
        if problem is not None:
            self._event("not published", f"{problem} The run goes on in {self.path}, and tries again.")

    def _report_lost_time(self, problem: str | None) -> None:
        if problem is not None:
            self._event("lost time", problem)

    def _write_results(self, status: Status) -> Results:
        results = build_results(
            self.config,
            self.scenario,
            self.learner,
            self.tasks,
            self.state,
            self._headline,
            status,
            self._clock,
            self.stream,
        )
        if self._main and results.rows:
            results.write(self.path)
        return results
