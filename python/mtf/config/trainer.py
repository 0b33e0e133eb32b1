"""The trainer's configuration."""

from __future__ import annotations

import dataclasses
import difflib
import signal
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from enum import Enum
from numbers import Real
from typing import Any, Literal

from mtf.config.base import Config, nearest, parse_enum, require_kinds
from mtf.config.distributed import DDPConfig
from mtf.config.mixture import MultiDataLoaderConfig
from mtf.enums import ValAggregation
from mtf.errors import ConfigError

LoggerType = Literal["console", "jsonl", "csv", "tensorboard", "wandb", "mlflow", "composite", "none"]
AggregationFn = Callable[[dict[str, dict[str, float]]], Mapping[str, float]]


class ValidationFrequency(Enum):
    """When ``fit`` validates."""

    PER_EPOCH = "per_epoch"
    EVERY_N_STEPS = "every_n_steps"
    NEVER = "never"


@dataclass
class PerformanceConfig(Config):
    """How steps are computed.

    Attributes:
        precision: ``"bf16"`` and ``"fp16"`` run training and validation steps under autocast; fp16 scales losses.
        gradient_accumulation_steps: steps (batches) in a window, that is per update; at least 1.
        clip_grad_norm: largest joint 2-norm of the gradients of the parameters that step. None: no clipping.
        compile_model: ``model.compile()``, in place, so state keys keep their names.
        deterministic: deterministic algorithms of torch only, while ``fit`` and ``validate`` run.
        device_prefetch: copy batches to a GPU on a stream of its own, while it computes the step before.
        pin_memory: with ``device_prefetch``, from pinned memory. None: where a GPU is used.
        on_nonfinite: what a NaN or infinite loss does: stop, warn, or skip its whole window (which then
            synchronises host and device once per window).
        fetch_timeout_s: seconds after which a loader that gives no batch is an error. None: wait for ever.
    """

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    gradient_accumulation_steps: int = 1
    clip_grad_norm: float | None = None
    compile_model: bool = False
    deterministic: bool = False
    device_prefetch: bool = True
    pin_memory: bool | None = None
    on_nonfinite: Literal["raise", "warn", "skip"] = "raise"
    fetch_timeout_s: float | None = None

    def require_valid(self) -> None:
        """Checks ranges."""
        require_kinds(self, PerformanceConfig, "performance.")
        _one_of("performance.precision", self.precision, ("fp32", "bf16", "fp16"))
        _one_of("performance.on_nonfinite", self.on_nonfinite, ("raise", "warn", "skip"))
        _at_least("performance.gradient_accumulation_steps", self.gradient_accumulation_steps, 1)
        _positive("performance.clip_grad_norm", self.clip_grad_norm)
        _positive("performance.fetch_timeout_s", self.fetch_timeout_s)


@dataclass
class ValidationConfig(Config):
    """When validation runs and how metrics of several loaders become one.

    Attributes:
        frequency: at the end of each epoch, every ``every_n_steps`` updates, or only when ``validate`` is called.
        every_n_steps: updates between two validations, for EVERY_N_STEPS.
        aggregation: of loaders, where neither ``aggregation_fn`` nor ``validation_weights`` is given.
        aggregation_fn: ``{loader: {metric: value}} -> {metric: value}``; beats ``validation_weights``.
        validation_weights: one weight per validation loader, in their order, for a weighted mean over loaders;
            relative, need not sum to 1; beats ``aggregation``.
        primary_metrics: loader -> its metric, for PRIMARY_METRIC_PER_LOADER; ``loss`` where nothing is given.
        per_loader_metrics: report ``val/<loader>/<metric>``.
        global_metrics: report ``val/<metric>``, aggregated over loaders.
    """

    frequency: ValidationFrequency = ValidationFrequency.PER_EPOCH
    every_n_steps: int | None = None
    aggregation: ValAggregation = ValAggregation.MICRO_AVG_WEIGHTED_BY_SAMPLES
    aggregation_fn: AggregationFn | None = None
    validation_weights: list[float] | None = None
    primary_metrics: dict[str, str] = field(default_factory=dict)
    per_loader_metrics: bool = True
    global_metrics: bool = True

    def require_valid(self) -> None:
        """Accepts enums by name; checks what can be checked without loaders."""
        require_kinds(self, ValidationConfig, "validation.")
        self.frequency = parse_enum(ValidationFrequency, self.frequency, "validation.frequency")
        self.aggregation = parse_enum(ValAggregation, self.aggregation, "validation.aggregation")
        if self.every_n_steps is not None:
            _at_least("validation.every_n_steps", self.every_n_steps, 1)
        if self.frequency is ValidationFrequency.EVERY_N_STEPS and self.every_n_steps is None:
            raise ConfigError("validation.every_n_steps is required with frequency EVERY_N_STEPS")
        if self.aggregation is ValAggregation.CUSTOM and self.aggregation_fn is None:
            raise ConfigError("validation.aggregation CUSTOM needs validation.aggregation_fn")
        if self.validation_weights is not None:
            self._check_weights(self.validation_weights)

    @staticmethod
    def _check_weights(weights: Sequence[float]) -> None:
        where = "validation.validation_weights"
        if not isinstance(weights, Sequence) or isinstance(weights, str):
            raise ConfigError(f"{where} must be a list, one weight per validation loader in their order, got {weights}")
        for i, weight in enumerate(weights):
            if not isinstance(weight, Real) or not 0.0 <= weight < float("inf"):
                raise ConfigError(f"{where}[{i}] must be finite and not negative, it is {weight!r}")
        if not sum(weights) > 0.0:
            raise ConfigError(f"{where} must not all be zero: {weights}")


@dataclass
class CheckpointConfig(Config):
    """Where and when checkpoints are saved. Nothing is written until a frequency or ``save_at_end`` is set,
    ``save_checkpoint`` is called or a preemption signal arrives.

    Attributes:
        root_dir: directory of this run's checkpoints.
        save_every_n_steps: updates between two checkpoints. None: not by steps.
        save_every_n_epochs: epochs between two checkpoints. None: not by epochs.
        save_every_n_minutes: minutes between two checkpoints. None: not by time.
        save_at_end: save where ``fit`` ends, inside an epoch too, by ``max_steps`` or ``request_stop``.
        max_checkpoints: how many are kept; ``latest`` and ``best`` are never removed. None: all.
        monitor_metric: metric that decides which checkpoint is ``best``, such as ``val/loss``.
        monitor_mode: whether a smaller or a larger value is better.
        save_best: save whenever a validation gives a better ``monitor_metric``.
        asynchronous: a step pays only for the copy to host memory; a writer thread does the rest.
        filename_template: name of a checkpoint, with ``{step}``, ``{epoch}`` and format specifiers.
    """

    root_dir: str = "checkpoints"
    save_every_n_steps: int | None = None
    save_every_n_epochs: int | None = None
    save_every_n_minutes: float | None = None
    save_at_end: bool = False
    max_checkpoints: int | None = 3
    monitor_metric: str | None = None
    monitor_mode: Literal["min", "max"] = "min"
    save_best: bool = False
    asynchronous: bool = False
    filename_template: str = "step-{step:08d}"

    def require_valid(self) -> None:
        """Checks ranges."""
        require_kinds(self, CheckpointConfig, "checkpoint.")
        for name in ("save_every_n_steps", "save_every_n_epochs", "max_checkpoints"):
            value = getattr(self, name)
            if value is not None:
                _at_least(f"checkpoint.{name}", value, 1)
        _positive("checkpoint.save_every_n_minutes", self.save_every_n_minutes)
        _one_of("checkpoint.monitor_mode", self.monitor_mode, ("min", "max"))
        if self.save_best and self.monitor_metric is None:
            raise ConfigError("checkpoint.save_best needs checkpoint.monitor_metric, such as 'val/loss'")
        if "{step" not in self.filename_template:
            raise ConfigError(
                f"checkpoint.filename_template must contain {{step}}, it is {self.filename_template!r}: "
                "names of two checkpoints must differ"
            )


@dataclass
class FaultToleranceConfig(Config):
    """What holds when something goes wrong.

    Attributes:
        auto_resume: ``fit`` goes on from the newest valid checkpoint in ``checkpoint.root_dir``, if there is one.
        verify_deterministic_resume: a checkpoint keeps the hashes of each loader's last five to eight batches; resume
            fetches these again and names a loader that isn't deterministic before a single update is made. Every batch
            is hashed, which takes about as long as reading it.
        seed_each_batch: each batch of a loader is produced under generators seeded from its position, so random
            augmentation doesn't depend on workers or interruptions.
        on_hook_error: whether a hook that raises stops the training or is reported as a warning.
    """

    auto_resume: bool = False
    verify_deterministic_resume: bool = False
    seed_each_batch: bool = True
    on_hook_error: Literal["raise", "log"] = "raise"

    def require_valid(self) -> None:
        """Checks choices."""
        require_kinds(self, FaultToleranceConfig, "fault_tolerance.")
        _one_of("fault_tolerance.on_hook_error", self.on_hook_error, ("raise", "log"))


@dataclass
class PreemptionConfig(Config):
    """What a signal does to a run: finish the window, save, leave ``fit`` by ``mtf.Preempted``.

    Attributes:
        signals: names of signals (``signal.Signals`` are accepted); empty: no handlers are installed.
        exit_code: of the process, when nothing catches ``mtf.Preempted``; 0 to 255.
        requeue_job: ask Slurm to run the job again (``scontrol requeue``), inside a Slurm job.
        agree_every: updates between two looks at whether any rank was asked to stop, on several ranks: all of them
            stop after the same update, this many later at most.
    """

    signals: tuple[str, ...] = ("SIGTERM", "SIGUSR1")
    exit_code: int = 75
    requeue_job: bool = False
    agree_every: int = 10

    def require_valid(self) -> None:
        """Normalises names and checks them."""
        require_kinds(self, PreemptionConfig, "preemption.")
        known = [s.name for s in signal.Signals]
        names = []
        for i, given in enumerate(self.signals):
            name = given.name if isinstance(given, signal.Signals) else str(given).upper()
            name = name if name.startswith("SIG") else f"SIG{name}"
            if name not in known:
                raise ConfigError(
                    f"preemption.signals[{i}] is no signal of this system: {given!r}{nearest(name, known)}"
                )
            names.append(name)
        self.signals = tuple(names)
        _at_least("preemption.agree_every", self.agree_every, 1)
        if not 0 <= self.exit_code <= 255:
            raise ConfigError(f"preemption.exit_code must be in [0, 255], it is {self.exit_code}")


@dataclass
class LoggingConfig(Config):
    """What is logged, where and how often.

    Attributes:
        logger_type: one of ``console``, ``jsonl``, ``csv``, ``tensorboard``, ``wandb``, ``mlflow``, ``composite``,
            ``none``.
        composite_loggers: the loggers that ``composite`` writes to.
        log_dir: directory for files of ``jsonl`` and ``csv`` (``<log_dir>/<experiment_name>/metrics.*``), and of
            ``tensorboard`` and ``wandb`` where they have no own directory. All but ``wandb`` write ``run.jsonl``
            beside their file, for ``mtf report``.
        log_scalars_every_n_steps: updates between two rows.
        log_per_loader_metrics: also ``train/<loader>/<metric>``.
        log_loader_proportions: also ``loader_proportions/<loader>_batches`` and ``..._divergence``.
        log_pictures: at each epoch's end, which source gave when, shares against weights, passes and data wait as
            images, for ``tensorboard``, ``wandb`` and ``mlflow``. Needs matplotlib; about a second each time.
        progress_bar: a bar (one line per interval when the output is no terminal).
        tensorboard_log_dir: directory of event files. None: ``<log_dir>/<experiment_name>``.
        wandb_project: project of the W&B run. None: ``experiment_name``.
        wandb_entity: user or team of the W&B run.
        wandb_mode: ``"online"``, ``"offline"`` or ``"disabled"``. None: as ``WANDB_MODE`` says.
        wandb_tags: tags of the W&B run.
        mlflow_tracking_uri: server or folder of MLflow. None: as ``MLFLOW_TRACKING_URI`` says.
        mlflow_experiment: experiment in MLflow. None: ``experiment_name``.
    """

    logger_type: LoggerType = "console"
    composite_loggers: list[LoggerType] = field(default_factory=list)
    log_dir: str = "logs"
    log_scalars_every_n_steps: int = 50
    log_per_loader_metrics: bool = True
    log_loader_proportions: bool = True
    log_pictures: bool = False
    progress_bar: bool = True
    tensorboard_log_dir: str | None = None
    wandb_project: str | None = None
    wandb_entity: str | None = None
    wandb_mode: Literal["online", "offline", "disabled"] | None = None
    wandb_tags: list[str] = field(default_factory=list)
    mlflow_tracking_uri: str | None = None
    mlflow_experiment: str | None = None

    def require_valid(self) -> None:
        """Checks choices and ranges."""
        require_kinds(self, LoggingConfig, "logging.")
        kinds = ("console", "jsonl", "csv", "tensorboard", "wandb", "mlflow", "composite", "none")
        _one_of("logging.logger_type", self.logger_type, kinds)
        for i, kind in enumerate(self.composite_loggers):
            _one_of(f"logging.composite_loggers[{i}]", kind, kinds[:-2])
        if (self.logger_type == "composite") != bool(self.composite_loggers):
            raise ConfigError(
                "logging.composite_loggers must name loggers exactly when logging.logger_type is 'composite', "
                f"got {self.composite_loggers} with {self.logger_type!r}"
            )
        _at_least("logging.log_scalars_every_n_steps", self.log_scalars_every_n_steps, 1)
        show_pictures = {"tensorboard", "wandb", "mlflow"}
        if self.log_pictures and not {self.logger_type, *self.composite_loggers} & show_pictures:
            raise ConfigError(
                f"logging.log_pictures needs a logger that shows pictures, 'tensorboard', 'wandb' or 'mlflow'; "
                f"logger_type is {self.logger_type!r}. `mtf report` draws them for every run that logs to files"
            )


@dataclass
class TrainerConfig(Config):
    """Everything about a run that isn't code or data.

    Settings of the user's own live in ``extras`` and are read and written as attributes:
    ``config.use_domain_adversarial = True``.

    Attributes:
        multi: how the training loaders are mixed; also accepted as ``train_loader_config``.
        val_loader_config: names of the validation loaders, when they are given as a list.
        validation: when and how to validate.
        checkpoint: where and when to save.
        fault_tolerance: resume, determinism and errors of hooks.
        preemption: what signals do.
        performance: precision, windows, clipping.
        logging: metrics and progress.
        ddp: how several ranks train together.
        seed: of data and of the random numbers of each step, in [0, 2**64). Initial weights are the user's.
        step_rng: ``"derived"`` seeds the process-wide generators before each step from (seed, step), so that the
            state holds positions only; ``"saved"`` leaves them alone and saves their states.
        experiment_name: name of the run in logs.
        per_loader_optimizers: loader -> ``{"optimizer_idx": [0, 2], "lr_scale": 0.5}``. Loaders that aren't named
            use all optimizers at their own rate.
        per_loader_schedulers: loader -> learning rate scheduler that steps on that loader's updates.
        loss_weights_per_loader: loader -> factor of its loss; 1 where none is given.
        extras: the user's own settings.
    """

    multi: MultiDataLoaderConfig = field(default_factory=MultiDataLoaderConfig)
    val_loader_config: MultiDataLoaderConfig | None = None
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    fault_tolerance: FaultToleranceConfig = field(default_factory=FaultToleranceConfig)
    preemption: PreemptionConfig = field(default_factory=PreemptionConfig)
    performance: PerformanceConfig = field(default_factory=PerformanceConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    ddp: DDPConfig = field(default_factory=DDPConfig)
    seed: int = 0
    step_rng: Literal["derived", "saved"] = "derived"
    experiment_name: str = "mtf"
    per_loader_optimizers: dict[str, dict[str, Any]] = field(default_factory=dict)
    per_loader_schedulers: dict[str, Any] = field(default_factory=dict)
    loss_weights_per_loader: dict[str, float] = field(default_factory=dict)
    extras: dict[str, Any] = field(default_factory=dict)
    train_loader_config: InitVar[MultiDataLoaderConfig | None] = None

    def __post_init__(self, train_loader_config: MultiDataLoaderConfig | None) -> None:
        """Takes ``multi`` from its other name; checks everything."""
        if train_loader_config is not None:
            if self.multi != MultiDataLoaderConfig():
                raise ConfigError("multi and train_loader_config are two names of one setting: give one of them")
            self.multi = train_loader_config
        self.require_valid()

    def require_valid(self) -> None:
        """Checks kinds and ranges, those of nested configurations included."""
        require_kinds(self, TrainerConfig, "")
        for f in dataclasses.fields(self):
            value, kind = getattr(self, f.name), f.default_factory
            if f.name == "val_loader_config" and value is not None:
                kind = MultiDataLoaderConfig
            if isinstance(kind, type) and issubclass(kind, Config):
                if not isinstance(value, kind):
                    raise ConfigError(
                        f"{f.name} must be a {kind.__name__}, got {value!r}; TrainerConfig.from_dict takes dicts"
                    )
                value.require_valid()
            elif kind is dict and not isinstance(value, Mapping):
                raise ConfigError(f"{f.name} must be a dict of names and their values, got {value!r}")
        if not 0 <= self.seed < 2**64:
            raise ConfigError(f"seed must be an integer in [0, 2**64), it is {self.seed}")
        _one_of("step_rng", self.step_rng, ("derived", "saved"))
        clash = sorted(set(self.extras) & _FIELDS)
        if clash:
            raise ConfigError(f"extras: {clash} are settings of mtf; choose other names")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrainerConfig:
        """As ``Config.from_dict``; ``train_loader_config`` is accepted for ``multi``."""
        data = dict(data)
        if "train_loader_config" in data:
            if "multi" in data:
                raise ConfigError("multi and train_loader_config are two names of one setting: give one of them")
            data["multi"] = data.pop("train_loader_config")
        return super().from_dict(data)

    def describe(self) -> dict[str, Any]:
        """As ``to_dict``, for people: what has no plain form is named instead of refused."""
        described: dict[str, Any] = _described(self)
        return described

    def __getattr__(self, name: str) -> Any:
        extras = self.__dict__.get("extras", {})
        if name in extras:
            return extras[name]
        raise AttributeError(
            f"the configuration has no {name!r}{nearest(name, [*_FIELDS, *extras])}; settings of your own go into "
            f"TrainerConfig(extras={{{name!r}: ...}}) or are assigned: config.{name} = ..."
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "train_loader_config":
            name = "multi"
        if name in _FIELDS:
            object.__setattr__(self, name, value)
            return
        # Only a name that is nearly one of ours is likely to be a slip.
        near = difflib.get_close_matches(name, _FIELDS, n=1, cutoff=0.85)
        if near and name not in self.extras:
            warnings.warn(
                f"config.{name} is kept in config.extras, no setting of mtf has this name; did you mean {near[0]!r}?",
                stacklevel=2,
            )
        self.extras[name] = value


GenericTrainerConfig = TrainerConfig

_FIELDS: frozenset[str] = frozenset(f.name for f in dataclasses.fields(TrainerConfig))

# The other name of `multi` is an argument of the constructor only; reading it must give `multi`, and
# `dataclasses.replace`, which gives the constructor every field it knows, must not give it twice.
delattr(TrainerConfig, "train_loader_config")
del TrainerConfig.__dataclass_fields__["train_loader_config"]
setattr(TrainerConfig, "train_loader_config", property(lambda self: self.multi))  # noqa: B010 - mypy sees an InitVar


def _described(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _described(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(k): _described(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_described(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return f"<{getattr(value, '__qualname__', type(value).__qualname__)}>"


def _one_of(where: str, value: str, options: tuple[str, ...]) -> None:
    if value not in options:
        raise ConfigError(f"{where} must be one of {', '.join(options)}, got {value!r}{nearest(str(value), options)}")


def _at_least(where: str, value: int, low: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ConfigError(f"{where} must be an int of at least {low}, it is {value!r}")


def _positive(where: str, value: float | None) -> None:
    if value is not None and not 0.0 < value < float("inf"):
        raise ConfigError(f"{where} must be positive and finite, it is {value!r}")
