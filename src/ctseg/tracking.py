"""Tracking of a training by TensorBoard, MLflow or Weights & Biases: on this machine's disk, off unless asked for.

The writing is MONAI's (TensorBoard, MLflow) and Ignite's (Weights & Biases); all read the epoch's numbers from the
trainer's `state.metrics`, which `ctseg.recording.Record` fills. Nothing is sent anywhere unless the configuration names
an address.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from ctseg.errors import ConfigError
from ctseg.history import History
from ctseg.sentences import look_up, said_plainly

PACKAGES = {"tensorboard": ("tensorboard",), "mlflow": ("mlflow", "sqlalchemy"), "wandb": ("wandb",)}
OPTIONS = {"tensorboard": (), "mlflow": ("tracking_uri",), "wandb": ("mode",)}
_AT_ONCE = 100  # parameters in a call, MLflow's limit
_LONGEST = 500  # characters of a parameter


class Track:
    """Handler of the trainer that gives each epoch's numbers, and all settings once, to the trackers asked for.

    Args:
        trackers: names of `PACKAGES`, or a mapping from name to options; None or empty for none. Options: of mlflow
            `tracking_uri`, an address instead of the local file; of wandb `mode`, "online" instead of "offline".
        history: filled by `Record`, which comes before this handler; its run name, settings and versions are tracked.
        folder: where the trackers write.
        project: name of the project (MLflow's experiment).
        run_name: name of this training in it.

    Raises:
        SystemExit: in one sentence, for an unknown tracker or option, or a package that is not installed; a ConfigError
            outside a run.
    """

    def __init__(
        self,
        trackers: str | Sequence[str] | Mapping[str, Mapping[str, Any] | None] | None,
        history: History,
        folder: str | Path,
        project: str,
        run_name: str,
    ) -> None:
        self.trackers = said_plainly(wanted_trackers)(trackers)
        self.history = history
        self.folder = Path(folder).resolve()
        self.project = str(project)
        self.run_name = str(run_name)

    def attach(self, engine: Engine) -> None:
        """Track `engine`; the trackers are begun when it starts, after it was resumed."""
        if self.trackers:
            engine.add_event_handler(Events.STARTED, self._begin)

    def _begin(self, engine: Engine) -> None:
        for name, options in self.trackers.items():
            (self.folder / name).mkdir(parents=True, exist_ok=True)
            _BEGIN[name](self, engine, options)

    def _settings(self) -> dict[str, str]:
        """Every setting and version as text, under names that every tracker takes."""
        versions = {f"versions.{name}": value for name, value in self.history.versions.items()}
        settings = {place.replace("::", "."): value for place, value in self.history.configuration.items()}
        return {_plain(name): str(value)[:_LONGEST] for name, value in {**settings, **versions}.items()}

    def _tensorboard(self, engine: Engine, options: Mapping[str, Any]) -> None:
        from monai.handlers import TensorBoardStatsHandler
        from torch.utils.tensorboard import SummaryWriter

        # Epochs of a training that was taken back are hidden.
        folder = self.folder / "tensorboard" / self.project / self.run_name
        writer = SummaryWriter(str(folder), purge_step=engine.state.epoch + 1)
        rows = "\n".join(f"| {name} | {value.replace('|', '/')} |" for name, value in self._settings().items())
        writer.add_text("settings", f"| setting | value |\n|---|---|\n{rows}", engine.state.epoch)
        TensorBoardStatsHandler(writer, iteration_log=False).attach(engine)
        engine.add_event_handler(Events.COMPLETED, writer.close)

    def _mlflow(self, engine: Engine, options: Mapping[str, Any]) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when it is imported
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own libraries, about each other
            from monai.handlers import MLFlowHandler

            address = options.get("tracking_uri") or f"sqlite:///{self.folder / 'mlflow' / 'mlruns.db'}"
            handler = MLFlowHandler(
                tracking_uri=address, iteration_log=False, experiment_name=self.project, run_name=self.run_name,
                close_on_complete=True,
            )  # fmt: skip
            handler.attach(engine)
            handler.start(engine)
            self._mlflow_settings(handler)

    def _mlflow_settings(self, handler: Any) -> None:
        """Log what the run does not know yet: MLflow keeps a parameter as it was first said."""
        run = handler.cur_run.info.run_id
        known = handler.client.get_run(run).data.params
        new = {name: value for name, value in self._settings().items() if name not in known}
        for names in _in_parts(list(new), _AT_ONCE):
            handler._log_params({name: new[name] for name in names})

    def _wandb(self, engine: Engine, options: Mapping[str, Any]) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        from ignite.handlers.wandb_logger import WandBLogger

        mode = options.get("mode", "offline")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import wandb

            quiet = wandb.Settings(
                console="off", disable_git=True, disable_code=True, save_code=False, silent=True, host="hidden",
                x_disable_stats=True, x_disable_machine_info=True, x_disable_meta=True, disable_job_creation=True,
            )  # fmt: skip
            logger = WandBLogger(
                project=self.project, name=self.run_name, id=self.history.run, dir=str(self.folder / "wandb"),
                mode=mode, config=self._settings(), settings=quiet,
            )  # fmt: skip
        logger.attach_output_handler(
            engine, Events.EPOCH_COMPLETED, tag="epoch", metric_names="all",
            global_step_transform=lambda *_: engine.state.epoch,
        )  # fmt: skip
        engine.add_event_handler(Events.COMPLETED, logger.close)


_BEGIN: dict[str, Callable[[Track, Engine, Mapping[str, Any]], None]] = {
    "tensorboard": Track._tensorboard,
    "mlflow": Track._mlflow,
    "wandb": Track._wandb,
}


def wanted_trackers(
    trackers: str | Sequence[str] | Mapping[str, Mapping[str, Any] | None] | None,
) -> dict[str, dict[str, Any]]:
    """Return the trackers asked for with their options, each known and installed.

    Raises:
        ConfigError: otherwise.
    """
    if trackers is None or trackers is False:
        return {}
    asked: Any = [trackers] if isinstance(trackers, str) else trackers
    found: dict[str, dict[str, Any]] = {}
    for name in asked:
        look_up("tracker", name, PACKAGES)
        key = str(name).lower()
        options = dict((asked[name] or {}) if isinstance(asked, Mapping) else {})
        unknown = [option for option in options if option not in OPTIONS[key]]
        if unknown:
            known = ", ".join(OPTIONS[key]) or "none"
            raise ConfigError(f"The tracker {key} has no option {', '.join(unknown)}: expected {known}.")
        _require(key)
        found[key] = options
    return found


def _require(name: str) -> None:
    for package in PACKAGES[name]:
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"The tracker {name} needs the package {package}, which is not installed: install it with "
                f"pip install 'ctseg[track]', or take {name} out of `track`."
            )


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)


def _in_parts(names: Sequence[str], size: int) -> Iterable[Sequence[str]]:
    return (names[start : start + size] for start in range(0, len(names), size))
