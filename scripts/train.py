"""Trains what a config or preset says. Relative paths in it count from the working directory."""

import argparse
import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path

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
    from modules.trainer.long_texts import tell_long_texts
    from modules.trainer.preflight import resolve_device

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


def run(arguments: argparse.Namespace, commands: TrainCommands, control: RunControl | None) -> None:
    config = load(arguments)
    if arguments.validate:
        validate(config)
        return
    # torch and diffusers take seconds to load; wrong configs should not wait for them
    from modules.run.ConsoleProgress import ConsoleProgress
    from modules.trainer.Trainer import Trainer
    from modules.util.out_of_memory import is_out_of_memory

    console = ConsoleProgress()

    def stop(number: int, frame: object) -> None:
        if commands.stop:
            # asked twice: the user does not want to wait
            raise KeyboardInterrupt
        commands.stop = True
        console.note("Stopping after this step; backup and model are written. Once more ends at once.")

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    trainer = Trainer(config, TrainEvents([console, *([control] if control else [])]), commands, arguments.resume)
    try:
        trainer.run()
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"Stopped without saving; {trainer.backup_note()}") from error
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


def main() -> int:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    threading.excepthook = tell_of_thread
    arguments, commands = parse_arguments(), TrainCommands()
    control, status, error = None, "failed", ""
    # it recommends packages for image processors that are not used here
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        if arguments.control:
            control = RunControl(arguments.control, commands)
        run(arguments, commands, control)
        status, error = "stopped" if commands.stop else "finished", ""
    except (ConfigError, UserError, OSError, json.JSONDecodeError) as found:
        error = str(found)
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Exception as found:
        error = f"The run broke down: {type(found).__name__}: {found}. The log says where."
        raise
    except KeyboardInterrupt as found:
        status, error = "stopped", str(found) or "Stopped before the first step; there is nothing to save."
        print(error, file=sys.stderr)
        return 130
    finally:
        if control is not None:
            control.close(status, error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
