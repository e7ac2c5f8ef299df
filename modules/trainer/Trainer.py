"""The run: from a config to a saved adapter or model. Prepares, loops, backs up, resumes, samples, saves."""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from modules.dataLoader.Batch import Batch
from modules.dataLoader.cache_space import CacheSpace
from modules.dataLoader.check_dataset import check_dataset
from modules.dataLoader.Feed import Feed
from modules.dataLoader.prepare_data import prepare_data
from modules.dataLoader.TrainingData import TrainingData
from modules.model.BaseModel import BaseModel, family_of
from modules.model.hub import Hub
from modules.model.KnownWeights import KnownWeights
from modules.trainer.backup import Backup, newest_backup, read_backup
from modules.trainer.BackupWriter import BackupWriter
from modules.trainer.checks import check_models, check_sample_pictures, open_model, run_problems
from modules.trainer.denoiser_speed import speed_up
from modules.trainer.device_settings import device_settings, prepare_process
from modules.trainer.devices import resolve_device
from modules.trainer.Ema import Ema, restored
from modules.trainer.encoded_size import encoded_bytes
from modules.trainer.events import TrainCommands, TrainEvents
from modules.trainer.GradientExchange import GradientExchange
from modules.trainer.GradientStep import GradientStep
from modules.trainer.Logger import LoggedRun, RunEnd
from modules.trainer.loggers import make_loggers
from modules.trainer.long_texts import tell_long_texts
from modules.trainer.lr_schedule import scaled_learning_rate, schedule_factor
from modules.trainer.objective import batch_losses
from modules.trainer.optimizers import (
    OPTIMIZERS,
    check_same_optimizer,
    create_optimizer,
    load_optimizer_state,
    optimizer_notes,
    read_statistics,
    watch_step,
    whole_state,
)
from modules.trainer.preflight import make_places, set_aside_older_run
from modules.trainer.RecordLogger import record_folder
from modules.trainer.report import run_report
from modules.trainer.RunPlan import RunPlan
from modules.trainer.sample_prompts import encode_prompts
from modules.trainer.SampleRounds import SampleRounds
from modules.trainer.StepTimes import StepTimes
from modules.trainer.trained import make_trained, methods_of, options_of, save_trained
from modules.trainer.TrainLog import TrainLog
from modules.trainer.TrainProgress import Interval, TrainProgress, limit_passed
from modules.trainer.validation import validation_loss
from modules.trainer.WeightShards import shard_weights, sharded_components, whole_on_host
from modules.util.atomic_file import write_json
from modules.util.config.errors import ConfigError
from modules.util.config.load import resolve_concepts, resolve_samples
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.dtypes import autocast
from modules.util.enum.EMAMode import EMAMode
from modules.util.found_problems import raise_problems
from modules.util.HeldFolder import HeldFolder
from modules.util.keyed_random import step_generator, step_seed
from modules.util.UserError import UserError
from modules.util.World import ALONE, World, exchange

import torch
from torch import Tensor


class _StoppedDownload(Exception):
    """The user does not want to wait for a download before the first step."""


class Trainer:
    """One run of one config.

    Args:
        config: validated.
        events: gets everything that is worth showing.
        commands: what the run is asked to do between two steps.
        resume: the backup to continue; None: the newest one if `continue_last_backup` says so.
        world: the processes that train together. The one that leads them logs, draws, backs up and saves.

    Raises (all methods): UserError for everything that a user can mend.
    """

    def __init__(
        self,
        config: TrainConfig,
        events: TrainEvents,
        commands: TrainCommands,
        resume: Path | None = None,
        world: World = ALONE,
    ) -> None:
        self.config, self.events, self.resume, self.world = config, events, resume, world
        # what has been asked of any process, which all fulfil after the same step
        self.asked, self.commands = commands, commands if world.alone else TrainCommands()
        self.workspace = Path(config.workspace_dir)
        prepare_process(config)
        self.device = resolve_device(config, world)
        if self.device.type == "cuda" and not world.alone:
            # where torch exchanges numbers without being told a device
            torch.cuda.set_device(self.device)
        self.progress = TrainProgress()
        self.run_name = world.from_leader(lambda: f"{datetime.now():%Y-%m-%d_%H-%M-%S}")
        self.times = StepTimes()
        self.feed: Feed | None = None
        self.output: Path | None = None
        self.prepared = self.backup_due = False
        self.held: HeldFolder | None = None
        keep = config.rolling_backup_count if config.rolling_backup else None
        self.kept_logs: Mapping[str, Any] = {}
        self.backups = BackupWriter(self.workspace / "backup", keep, events)

    def warn(self, text: str) -> None:
        self.events.emit("warning", text=text)

    def run(self) -> dict[str, Any]:
        """Trains to the end, or until asked to stop; returns what `run.json` holds."""
        try:
            # processes exchange more than gradients where weights or samples are shared out
            with device_settings(self.config, self.device), exchange():
                return self._run()
        finally:
            with contextlib.ExitStack() as stack:
                if self.held is not None:
                    stack.callback(self.held.release)
                stack.callback(self.backups.close)
                if self.feed is not None:
                    stack.callback(self.feed.close)

    def _run(self) -> dict[str, Any]:
        try:
            self._prepare()
        except _StoppedDownload:
            self.events.emit("status", text="Stopped before the first step; what was downloaded so far is kept.")
            return {}
        if self.config.only_cache:
            self.events.emit("status", text="The cache is complete.")
            return {}
        self._agree()
        if self.commands.stop and not self.progress.step:
            self.log.end(RunEnd.STOPPED)
            self.events.emit("status", text="Stopped before the first step; there is nothing to save.")
            return {}
        state = RunEnd.FAILED
        try:
            finished = self._loop()
            self._finish(finished)
            state = RunEnd.FINISHED if finished else RunEnd.STOPPED
        except KeyboardInterrupt:
            state = RunEnd.STOPPED
            raise
        finally:
            self.log.end(state)
        report = run_report(self.config, self.progress, self.device, self.times, self.output, finished)
        report["processes"] = self.world.size
        if self.world.leads:
            write_json(self.workspace / "run.json", report)
        self.events.emit("finished", report=report)
        return report

    def _agree(self) -> None:
        """What has been asked of one process since the last call is asked of all."""
        if not self.world.alone:
            self.commands.add(self.world.any_of(self.asked.take()))

    def backup_note(self) -> str:
        """Where a run that ended at once can go on, as the end of a sentence."""
        return self.backups.note()

    # -- before the first step ------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        config = self.config
        raise_problems(run_problems(config, self.warn))
        check_models(config)
        check_sample_pictures(config)
        family = family_of(config)
        concepts = resolve_concepts(config, warn=self.warn)
        samples = [s for s in resolve_samples(config, family.sample_defaults, warn=self.warn) if s.enabled]
        self.world.from_leader(self._take_places)
        self._read_backup()
        fresh = self.backup is None
        self.events.emit("status", text="Checking the images")
        checked = self.world.from_leader(
            lambda: check_dataset(
                config, concepts, conditioning=family.conditioning, warn=self.warn, progress=self._stage
            )
        )
        self.events.emit("status", text=f"Loading {config.base_model_name}")
        # what is downloaded is then there for all
        with self.world.leader_first():
            self.model: BaseModel = open_model(config, self.device, self.warn, self._hub())
        self.model.in_parts = sharded_components(self.model, config, self.world)
        if config.latent_caching:
            self.model.known_weights = KnownWeights(config.cache_dir)
        methods, captions = methods_of(config), [text for image in checked.images for text in image.captions]
        for method in methods:
            method.prepare(self.model, config, captions, self.warn)
        tell_long_texts(self.model, checked, samples, self.warn)
        self.text_trained = any(method.trains_text(config, family.trainable_components) for method in methods)
        self.data = self._make_data(concepts, checked, validation=False)
        if not config.only_cache:
            # begins while models are loaded, what the plan of the run waits for
            self.data.counter(config.epochs)
        self.validation_data = self._make_data(concepts, checked, validation=True) if config.validation else None
        if not self.text_trained:
            # all draw; what the first has encoded is then in the cache for the others
            with self.world.leader_first():
                encode_prompts(self.model, samples, config, self.warn, self.world.pids)
        if config.only_cache:
            return
        self.model.rest()
        self.trained = make_trained(self.model, config, self.warn)
        speed_up(self.model, config, self.warn)
        self.shards = shard_weights(self.model, self.trained, self.world)
        self.model.text_encoder_trained = self.text_trained
        self.parameters = [p for own in self.trained.values() for p in own.parameters()]
        self._make_optimizer()
        self.plan = RunPlan(config, self.data, self.world, self._in_step)
        self._restore()
        self.total_steps = self.plan.total_steps
        stride = min(self.world.size, config.gradient_accumulation_steps)
        self.feed = Feed(self.data, self.plan.share, self.plan.batches, config.dataloader_threads, self.device, stride)
        self.factor = schedule_factor(config, self.total_steps)
        if fresh and self.world.leads:
            set_aside_older_run(self.workspace, self.warn)
        self._begin_log()
        self.rounds = self._rounds(samples)
        self.prepared = True

    def _begin_log(self) -> None:
        run = LoggedRun(self.run_name, self.workspace, self.config, self.progress.step, self.total_steps)
        self.log = TrainLog(make_loggers(self.config) if self.world.leads else [], run, self.kept_logs, self.warn)
        if self.world.leads:
            self.events.emit("record", path=str(record_folder(self.workspace, self.run_name).absolute()))

    def _rounds(self, samples: Sequence[SampleConfig]) -> SampleRounds:
        return SampleRounds(
            self.model, samples, self.config, self.workspace, self.progress, self.events, self.world, self._in_step,
            lambda: self.commands.stop,
        )  # fmt: skip

    @property
    def _in_step(self) -> bool:
        """Whether every process has to call the model as often as the others."""
        return self.shards is not None

    def _take_places(self) -> None:
        make_places(self.config)
        self.held = HeldFolder(
            self.workspace,
            "workspace_dir",
            "Wait until it has ended, or give this run another workspace_dir.",
            self.warn,
        )

    def _status(self, text: str) -> None:
        self.events.emit("status", text=text)

    def _stage(self, stage: str, done: int, total: int) -> None:
        self.events.emit("progress", stage=stage, done=done, total=total)

    def _hub(self) -> Hub:
        """The hub at the commits with which the run began, if this goes on with one."""
        pins = self.backup.extra.get("hub") if self.backup else None
        return Hub(self.config, self._downloading, self.warn, pins)

    def _downloading(self, stage: str, done: int, total: int) -> None:
        self.events.emit("progress", stage=stage, done=done, total=total, unit="bytes")
        if self.asked.stop and not self.prepared:
            raise _StoppedDownload

    def _make_data(self, concepts: list, checked: Any, validation: bool) -> TrainingData:
        cache_text = not self.text_trained
        return prepare_data(
            self.config, concepts, self.model, cache_text=cache_text, validation=validation, report=checked,
            progress=self._stage, warn=self.warn, world=self.world,
            space=CacheSpace(partial(encoded_bytes, self.model, cache_text), self._status),
        )  # fmt: skip

    def _read_backup(self) -> None:
        self.backup: Backup | None = None
        if self.resume is not None:
            try:
                self.backup = read_backup(self.resume)
            except ValueError as error:
                raise UserError(f"The backup {self.resume} can't be continued: {error}. Choose another one.") from error
        elif self.config.continue_last_backup:
            self.backup = self._newest_backup()
            if self.backup is None:
                self.warn(f"There is no backup in {self.workspace / 'backup'} yet; the run starts from the beginning.")

    def _newest_backup(self) -> Backup | None:
        own = newest_backup(self.workspace / "backup", self.warn) if self.world.leads else None
        path = self.world.from_leader(lambda: own and own.path)
        return own or (path and read_backup(path))

    def _make_optimizer(self) -> None:
        config = self.config
        self.rates = self._rates(config)
        groups = [
            {"params": own.parameters(), "lr": self.rates[name], "name": name} for name, own in self.trained.items()
        ]
        self.optimizer = create_optimizer(config.optimizer, groups, config.seed, self.world)
        self._told: set[str] = set()
        self._tell_of_optimizer()
        self.schedule_free = OPTIMIZERS[config.optimizer.optimizer].schedule_free
        self.gradient_step = GradientStep(
            config, self.optimizer, self.parameters, self.device, self.workspace / "backup", self.world
        )
        where = torch.device("cpu") if config.ema == EMAMode.CPU else None
        self.losses = GradientExchange(self._batch_losses, self.parameters, self.world)
        self.ema = (
            None
            if config.ema == EMAMode.OFF
            else Ema(self.parameters, config.ema_decay, config.ema_update_step_interval, where)
        )

    def _rates(self, config: TrainConfig) -> dict[str, float]:
        """Learning rate of each trained set, before the schedule's factor."""
        return {name: scaled_learning_rate(config, options_of(config, name).learning_rate) for name in self.trained}

    def _restore(self) -> None:
        """Weights, optimizer and place of the backup. The learning rate is that of the config, not of the backup."""
        if self.backup is None:
            return
        backup, self.backup = self.backup, None
        check_same_optimizer(self.config.optimizer.optimizer, backup.config, backup.path)
        for name, own in self.trained.items():
            own.load_state_dict({key: value for key, value in backup.tensors.items() if key.startswith(f"{name}.")})
        # one file after the other, so that at most one of them takes memory beside what it is copied to
        backup.tensors = {}
        try:
            load_optimizer_state(self.optimizer, backup.optimizer)
        except (ValueError, KeyError) as error:
            raise UserError(
                f"The backup {backup.path} does not fit this config's optimizer or adapter: {error}. "
                "Restore the config that is stored in it, or set continue_last_backup to false."
            ) from error
        backup.optimizer = {}
        if self.schedule_free:
            self.optimizer.train()
        if backup.extra["scaler"]:
            # empty where the run was not in fp16 so far
            self.gradient_step.scaler.load_state_dict(backup.extra["scaler"])
        if self.ema is not None:
            self.ema.load_state_dict(backup.extra["ema"] if "ema" in backup.extra else self.ema.fresh_state())
        self.progress = TrainProgress.from_dict(backup.progress)
        self.kept_logs = backup.extra.get("logs", {})
        told = self.plan.resume(self.progress, backup.extra.get("plan"))
        self.run_name = backup.run
        self.backups.resumed(backup)
        self.events.emit("status", text=f"Continuing {backup.path} after step {self.progress.step}")
        self.events.emit("resumed", step=self.progress.step, path=str(backup.path))
        for text in told:
            self.warn(text)
        try:
            before = self._rates(TrainConfig.from_dict(backup.config))
        except ConfigError:
            # of a version that allowed more; it is asked for nothing else
            before = self.rates
        for name, rate in self.rates.items():
            old = before[name]
            if old != rate:
                self.warn(
                    f"The learning rate of {name} changed from {old:g} to {rate:g}; the new one holds from step "
                    f"{self.progress.step + 1} on, at the place of the schedule that the run has reached."
                )
        if self.progress.epoch >= self.config.epochs:
            self.warn(
                f"The backup is after {self.progress.epoch} epochs, and the config has {self.config.epochs}: nothing "
                "is left to train. Set epochs higher to go on."
            )

    def _tell_of_optimizer(self) -> None:
        """What its optimizer has noted, once each. Kernels are tried in the first step that needs them."""
        for note in optimizer_notes(self.optimizer):
            if note not in self._told:
                self._told.add(note)
                self.warn(note)

    # -- the loop -------------------------------------------------------------------------------------------------

    def _loop(self) -> bool:
        """Returns False if the run was stopped before its end."""
        config = self.config
        sample_at = Interval(config.sample_after, config.sample_after_unit, config.sample_skip_first)
        backup_at = Interval(config.backup_after, config.backup_after_unit)
        save_at = Interval(config.save_every, config.save_every_unit, config.save_skip_first)
        validate_at = Interval(config.validate_after, config.validate_after_unit)
        self._progress_bar_start()
        if self.progress.step == 0:
            if sample_at.active:
                self._sample()
            if self.validation_data is not None:
                self._validate()
        while self.progress.step < self.total_steps and not self.commands.stop and self._anything_left():
            # not after the last step: a backup that failed must not keep the output from being saved
            self.backups.poll()
            epoch_before = self.progress.epoch
            self._step()
            self._agree()
            place = (self.progress.step, self.progress.epoch, self.progress.epoch > epoch_before)
            last = self.progress.step == self.total_steps
            if self.validation_data is not None and (validate_at.due(*place) or last):
                self._validate()
            if sample_at.due(*place) or self.commands.sample or (last and sample_at.active):
                self.commands.sample = False
                self._sample()
            if save_at.due(*place) or self.commands.save:
                self.commands.save = False
                self._save_intermediate()
            self.backup_due = backup_at.due(*place) or self.commands.backup
            if self.backup_due and not last and not self.commands.stop:
                self.commands.backup = self.backup_due = False
                self._backup()
        return self.progress.step >= self.total_steps or not self.commands.stop

    def _progress_bar_start(self) -> None:
        self.events.emit("progress", stage="training", done=self.progress.step, total=self.total_steps)

    def _step(self) -> None:
        started, waited = time.perf_counter(), self.feed.waited
        step = self.progress.step
        indices = self.plan.batches_of(step)
        own = self.plan.own(step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rates[group["name"]] * self.factor(step)
        watch_step(self.optimizer, step + 1)
        total = torch.zeros((), device=self.device)
        batch, number = None, None
        for place, (index, counts) in enumerate(own, start=1):
            # the last one may come again
            batch, number = (batch if index == number else self.feed.batch(index)), index
            # where it only stands in for one that it has not, it adds nothing
            part = counts * len(batch.captions) / (batch.whole or len(batch.captions))
            with self.losses.step(last=place == len(own)):
                total += self._backward(batch, index, part, len(indices))
        names = self.plan.names(step)
        if not self.world.alone:
            # what a library's optimizer draws, as to round, has to be the same in all
            torch.manual_seed(step_seed(self.config.seed, "optimizer", step))
        numbers = self.gradient_step.apply(self.world.sum(total), step + 1, names)
        if self.ema is not None:
            self.ema.update(step + 1)
        # the one place where the host waits for the device
        loss, gradient_norm = self.gradient_step.read(numbers, step + 1, names)
        if getattr(self.optimizer, "watch", False):
            self._tell_of_optimizer()
        self.progress.step = step + 1
        self.plan.note(self.progress, indices[-1])
        seconds = self.times.add(time.perf_counter() - started, self.feed.waited - waited)
        self.progress.seconds += seconds
        self.progress.losses.append(loss)
        rates = {group["name"]: float(group["lr"]) for group in self.optimizer.param_groups}
        self.log.step(self.progress.step, loss, gradient_norm, rates, read_statistics(self.optimizer), self.times)
        self.events.emit(
            "step", step=self.progress.step, total=self.total_steps, epoch=self.progress.epoch, loss=loss,
            gradient_norm=gradient_norm, learning_rates=rates, epochs=self.plan.epochs,
            epoch_batches=self.plan.place_in_epoch(indices[-1]), seconds=seconds, data_wait=self.times.waited[-1],
        )  # fmt: skip

    def _backward(self, batch: Batch, index: int, part: float, micro_batches: int) -> Tensor:
        """Adds the gradients of a batch, or of a part of one; returns its share of the step's loss."""
        # dropout draws from the global generator; other images in other processes, so other numbers
        place = (batch.first,) if batch.first else ()
        torch.manual_seed(step_seed(self.config.seed, "dropout", index, *place))
        generator = step_generator(self.config.seed, "noise", index)
        loss = self.losses(batch, generator).mean() * part / micro_batches
        return self.gradient_step.backward(loss, self.progress.step + 1, batch.names, self.losses.scale)

    def _batch_losses(self, batch: Batch, generator: torch.Generator) -> Tensor:
        in_step = self.world if self._in_step else ALONE
        return batch_losses(self.config, self.model, batch, generator, self.trained, in_step)

    def _autocast(self) -> contextlib.AbstractContextManager:
        return autocast(self.config, self.device)

    def _anything_left(self) -> bool:
        """Freezes the sets whose training is over; False if that leaves nothing to train."""
        for name, own in self.trained.items():
            options = options_of(self.config, name)
            if limit_passed(options.stop_training_after, options.stop_training_after_unit, self.progress):
                own.requires_grad_(False)
        left = any(parameter.requires_grad for parameter in self.parameters)
        if not left:
            self.warn(
                f"Every trained set has reached its stop_training_after; the run ends after step {self.progress.step}."
            )
        return left

    # -- what happens between steps -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _evaluating(self, averaged: bool = True) -> Iterator[None]:
        """No dropout and, if wanted, averaged weights; everything as before afterwards."""
        for own in self.trained.values():
            own.eval()
        try:
            with contextlib.ExitStack() as stack:
                if self.schedule_free and averaged:
                    # swapping there and back would round; copies are exact
                    stack.enter_context(restored(self.parameters))
                    stack.callback(self.optimizer.train)
                    self.optimizer.eval()
                if self.ema is not None and averaged:
                    stack.enter_context(self.ema.swapped_in())
                with torch.no_grad(), self._autocast():
                    yield
        finally:
            for own in self.trained.values():
                own.train()

    def _sample(self) -> None:
        with self._evaluating():
            self.log.pictures(self.rounds.draw())
        if self.ema is not None and self.config.non_ema_sampling and self.progress.step:
            with self._evaluating(averaged=False):
                self.log.pictures(self.rounds.draw("no-ema"))

    def _validate(self) -> None:
        with self._evaluating():
            loss = validation_loss(
                self.model, self.validation_data, self.config.seed, world=self.world, in_step=self._in_step
            )
        self.progress.validation.append((self.progress.step, loss))
        self.log.scalars({"loss/validation": loss}, self.progress.step)
        self.events.emit("validation", step=self.progress.step, loss=loss)

    def _backup(self, at_once: bool = False) -> None:
        state = whole_state(self.optimizer, self.world)
        tensors: dict[str, Tensor] = {}
        for own in self.trained.values():
            tensors.update(whole_on_host(own.state_dict(), self.world))
        averages = whole_on_host(self.ema.state_dict(), self.world) if self.ema is not None else None
        if state is None:
            # what the leader writes is that of all
            return
        extra: dict[str, Any] = {
            "scaler": self.gradient_step.scaler.state_dict(), "hub": self.model.hub.pins,
            "plan": self.plan.describe(self.progress),
        }  # fmt: skip
        if averages is not None:
            extra["ema"] = averages
        if kept := self.log.kept():
            extra["logs"] = kept
        progress = self.progress.to_dict()
        self.backups.write(Backup(tensors, state, extra, progress, self.config.to_dict(), self.run_name), at_once)

    def _save_intermediate(self) -> None:
        config = self.config
        name = f"{config.save_filename_prefix}{self.run_name}-save-{self.progress.step}-{self.progress.epoch}"
        self._save(self.workspace / "save" / f"{name}{Path(config.output_model_destination).suffix}")

    def _save(self, path: Path) -> None:
        with self._evaluating(), self.shards.whole() if self.shards is not None else contextlib.nullcontext():
            if not self.world.leads:
                return
            saved = save_trained(path, self.trained, self.model, self.config, self.warn)
        self.events.emit("saved", path=str(saved))

    def _finish(self, finished: bool) -> None:
        """The backup comes first: if the output can't be written, nothing is lost. Nor if the backup can't be."""
        try:
            if not finished or self.backup_due or self.config.backup_before_save:
                self._backup(at_once=True)
            self.backups.wait()
        except Exception:
            self._save_output()
            raise
        self._save_output()

    def _save_output(self) -> None:
        self._save(Path(self.config.output_model_destination))
        if self.world.leads:
            self.output = Path(self.config.output_model_destination)
            self.rounds.tell_before_after()
