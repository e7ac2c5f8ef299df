"""Trains what a config or preset says. Relative paths in it count from the working directory."""

import argparse
import json
import logging
import os
import signal
import sys
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from modules.util.openmp import wait_asleep

wait_asleep()

from modules.run.RunControl import RunControl
from modules.trainer.events import TrainCommands, TrainEvents
from modules.util.config.errors import ConfigError
from modules.util.config.load import load_train_config, resolve_concepts, resolve_samples
from modules.util.config.read_json import read_json
from modules.util.config.TrainConfig import TrainConfig
from modules.util.found_problems import raise_problems
from modules.util.UserError import UserError

if TYPE_CHECKING:
    from modules.util.World import World


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-path", required=True, help="JSON file: a preset or a full config")
    parser.add_argument("--override", action="append", nargs="+", default=[], metavar="KEY=VALUE",
                        help="sets an option, as learning_rate=1e-4 or optimizer.beta1=0.8")  # fmt: skip
    parser.add_argument("--validate", action="store_true",
                        help="checks all that a run checks before it loads weights, and stops")  # fmt: skip
    parser.add_argument("--control", type=Path, metavar="FOLDER",
                        help="new folder through which another program watches the run (events.jsonl) and asks it to "
                        "stop, sample, backup or save (lines of commands.txt)")  # fmt: skip
    parser.add_argument("--resume", type=Path, metavar="BACKUP",
                        help="folder of the backup to continue, whatever continue_last_backup says")  # fmt: skip
    parser.add_argument("--secrets-path", help="JSON file with access tokens, kept apart from the config")
    return parser.parse_args()


def validate(config: TrainConfig) -> None:
    """Everything that a run checks before it loads weights, and what it would train on."""
    from modules.dataLoader.check_dataset import check_dataset
    from modules.model.BaseModel import family_of
    from modules.trainer.checks import check_models, check_sample_pictures, open_model, run_problems
    from modules.trainer.devices import resolve_device
    from modules.trainer.long_texts import tell_long_texts

    raise_problems(run_problems(config, warn))
    check_models(config)
    check_sample_pictures(config)
    concepts, samples = resolve_concepts(config, warn=warn), resolve_samples(config, warn=warn)
    report = check_dataset(config, concepts, conditioning=family_of(config).conditioning, warn=warn)
    tell_long_texts(open_model(config, resolve_device(config), warn), report, samples, warn)
    print(f"The config is valid: {len(report.images)} images in {len(concepts)} concepts, {len(samples)} samples, "
          f"{len(report.rejected)} rejected files.")  # fmt: skip


def warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


def load(arguments: argparse.Namespace) -> TrainConfig:
    overrides = [pair for group in arguments.override for pair in group]
    if arguments.secrets_path:
        secrets = read_json(arguments.secrets_path, pipes=True)
        overrides.append(f"secrets={json.dumps(secrets)}")
    return load_train_config(arguments.config_path, overrides, warn=warn, pipes=True)


def run(
    arguments: argparse.Namespace,
    config: TrainConfig,
    commands: TrainCommands,
    control: RunControl | None,
    world: "World",
) -> bool:
    """Trains in this process; returns whether the run was stopped before its end."""
    # torch and diffusers take seconds to load; wrong configs should not wait for them
    from modules.run.ConsoleProgress import ConsoleProgress
    from modules.trainer.Trainer import Trainer
    from modules.util.out_of_memory import is_out_of_memory
    from modules.util.World import LostProcess

    console = ConsoleProgress()

    def stop(number: int, frame: object) -> None:
        if commands.stop:
            # asked twice: the user does not want to wait
            raise KeyboardInterrupt
        commands.stop = True
        if world.leads:
            console.note("Stopping after this step; backup and model are written. Once more ends at once.")

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    listeners = [console, *([control] if control else [])] if world.leads else []
    trainer = Trainer(config, TrainEvents(listeners), commands, arguments.resume, world)
    try:
        trainer.run()
        world.leave()
        return trainer.commands.stop
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"Stopped without saving; {trainer.backup_note()}") from error
    except LostProcess as error:
        why = world.last_words() or (
            f"One of the {world.size} processes of the run has ended without a word. The system may have ended it, as "
            "where memory runs out. Look at the log, and start again"
        )
        note = f"; {trainer.backup_note()}" if world.leads else "."
        raise LostProcess(f"{why.rstrip('.')}{note}") from error
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"There is too little memory: {str(error).splitlines()[0] if str(error) else type(error).__name__}. Use a "
            f"smaller batch_size, resolution or rank, or gradient checkpointing; {trainer.backup_note()}"
        ) from error
    finally:
        console.close()


def tell_of_thread(failure: threading.ExceptHookArgs) -> None:
    """A thread that can't write, as TensorBoard's, is told in a line; what else breaks one is a fault of ours."""
    if issubclass(failure.exc_type, OSError):
        warn(f"{getattr(failure.thread, 'name', 'a thread')} has ended: {failure.exc_value}")
    else:
        threading.__excepthook__(failure)


def attend(arguments: argparse.Namespace, config: TrainConfig | None = None) -> int:
    """One process of a run, from its config to its exit status.

    Args:
        arguments: of the command line.
        config: what another process has read already.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    threading.excepthook = tell_of_thread
    commands, control, world = TrainCommands(), None, None
    status, error = "failed", ""
    # it recommends packages for image processors that are not used here
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        if arguments.control and int(os.environ.get("RANK", "0")) == 0:
            control = RunControl(arguments.control, commands)
        config = config or load(arguments)
        if arguments.validate:
            validate(config)
            status = "finished"
            return 0
        if (count := processes_of(config)) > 1:
            from modules.run.start_processes import start_processes

            if control is not None:
                control.hand_over()
                control = None
            return start_processes(partial(attend, arguments, config), count)
        world = world_of(config)
        status = "stopped" if run(arguments, config, commands, control, world) else "finished"
    except (ConfigError, UserError, OSError, json.JSONDecodeError) as found:
        error = str(found)
        # of several processes one tells it; where another one has, no text is left
        if error and (world is None or world.tell_failure(error)):
            print(f"error: {error}", file=sys.stderr)
        return 1 if error else 0
    except Exception as found:
        error = f"The run broke down: {type(found).__name__}: {found}. The log says where."
        if world is not None:
            world.tell_failure(error)
        raise
    except KeyboardInterrupt as found:
        status, error = "stopped", str(found) or "Stopped before the first step; there is nothing to save."
        if world is None or world.leads:
            print(error, file=sys.stderr)
        return 130
    finally:
        if control is not None:
            control.close(status, error)
    return 0


def processes_of(config: TrainConfig) -> int:
    """How many processes this one has to start."""
    if not config.multi_gpu:
        return 1
    from modules.trainer.several_gpus import processes_to_start

    count = processes_to_start(config)
    if count == 1 and "RANK" not in os.environ:
        warn("multi_gpu has no effect: there is one GPU, or none. device_indexes names those that are used.")
    return count


def world_of(config: TrainConfig) -> "World":
    """The processes that torchrun, or this script, has started for the run; this one alone where none has."""
    from modules.trainer.devices import resolve_device
    from modules.util.World import World, started_by_torchrun

    return World.join(resolve_device(config).type) if started_by_torchrun() else World()


def main() -> int:
    return attend(parse_arguments())


if __name__ == "__main__":
    sys.exit(main())
