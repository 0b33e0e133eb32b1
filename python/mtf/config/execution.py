"""How updates are computed, and what holds when something goes wrong or a signal arrives."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from mtf.config.base import Config
from mtf.config.checks import at_least, nearest, one_of, positive, require_kinds
from mtf.errors import ConfigError

ActivationRule = bool | list[str] | Callable[[str, Any], bool]
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


@dataclass
class PerformanceConfig(Config):
    """How steps are computed.

    Attributes:
        precision: ``"bf16"`` and ``"fp16"`` run training and validation steps under autocast; fp16 scales losses.
            Also accepted as other tools write it: ``"bf16-mixed"``, ``"16-mixed"``, ``"32-true"``.
        gradient_accumulation_steps: steps (batches) in a window, that is per update; at least 1. Or a dict with an
            entry for 0: epoch or update -> batches from there on, such as ``{0: 1, 4: 4}``.
        accumulate_by: what the keys of such a dict count.
        clip_grad_norm: largest joint 2-norm of the gradients of the parameters that step, or a list with one norm for
            the parameters of each optimizer, None for one that isn't clipped. None: no clipping.
        clip_grad_value: largest absolute value of each element of a gradient; applied before the norm.
        manual_optimization: the training step runs its own backward passes and optimizer steps, through
            ``trainer.manual``; an update is one batch.
        compile_model: ``model.compile()``, in place, so state keys keep their names.
        compile_mode: mode of ``torch.compile``: ``default``, ``reduce-overhead``, ``max-autotune`` or
            ``max-autotune-no-cudagraphs``. None: torch's default.
        activation_checkpointing: modules that keep no activations and run again in the backward pass: True for the
            items of every ``nn.ModuleList``, names of module classes, or a function ``(name, module) -> bool``.
        matmul_precision: of fp32 matrix products while ``fit`` and ``validate`` run: ``"highest"``, ``"high"`` (TF32)
            or ``"medium"``, as ``torch.set_float32_matmul_precision``. None: as it is.
        deterministic: deterministic algorithms of torch only, while ``fit`` and ``validate`` run.
        device_prefetch: copy batches to a GPU on a stream of its own, while it computes the step before.
        pin_memory: with ``device_prefetch``, from pinned memory. None: where a GPU is used.
        on_nonfinite: what a NaN or infinite loss does: stop, warn, or skip its whole window (which then
            synchronises host and device once per window).
        fetch_timeout_s: seconds after which a loader that gives no batch is an error. None: wait for ever.
    """

    SPELLINGS: ClassVar[Mapping[str, Mapping[Any, Any]]] = {
        "precision": {
            **dict.fromkeys(("32", 32, "32-true", "float32", "full", "no"), "fp32"),
            **dict.fromkeys(("bf16-mixed", "bfloat16"), "bf16"),
            **dict.fromkeys(("16", 16, "16-mixed", "float16", "half"), "fp16"),
        }
    }

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    gradient_accumulation_steps: int | dict[int, int] = 1
    accumulate_by: Literal["epoch", "update"] = "epoch"
    clip_grad_norm: float | list[float | None] | None = None
    clip_grad_value: float | None = None
    manual_optimization: bool = False
    compile_model: bool = False
    compile_mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] | None = None
    activation_checkpointing: ActivationRule = False
    matmul_precision: Literal["highest", "high", "medium"] | None = None
    deterministic: bool = False
    device_prefetch: bool = True
    pin_memory: bool | None = None
    on_nonfinite: Literal["raise", "warn", "skip"] = "raise"
    fetch_timeout_s: float | None = None

    def require_valid(self) -> None:
        """Checks ranges."""
        require_kinds(self, PerformanceConfig, "performance.")
        one_of("performance.precision", self.precision, ("fp32", "bf16", "fp16"))
        one_of("performance.on_nonfinite", self.on_nonfinite, ("raise", "warn", "skip"))
        self._check_accumulation()
        norms = self.clip_grad_norm if isinstance(self.clip_grad_norm, (list, tuple)) else [self.clip_grad_norm]
        for norm in norms:
            if norm is not None and (isinstance(norm, bool) or not isinstance(norm, (int, float))):
                raise ConfigError(f"performance.clip_grad_norm must be a number, it is {norm!r}")
            positive("performance.clip_grad_norm", norm)
        positive("performance.clip_grad_value", self.clip_grad_value)
        if self.compile_mode is not None:
            one_of("performance.compile_mode", self.compile_mode, COMPILE_MODES)
            if not self.compile_model:
                raise ConfigError("performance.compile_mode has no effect without performance.compile_model=True")
        if self.matmul_precision is not None:
            one_of("performance.matmul_precision", self.matmul_precision, ("highest", "high", "medium"))
        rule = self.activation_checkpointing
        if not isinstance(rule, (bool, list, tuple)) and not callable(rule):
            raise ConfigError(
                "performance.activation_checkpointing must be True, a list of names of module classes, or a function "
                f"(name, module) -> bool, it is {rule!r}"
            )
        if self.manual_optimization and self.on_nonfinite == "skip":
            raise ConfigError(
                "performance.on_nonfinite='skip' has no effect with performance.manual_optimization, where the step "
                "decides what it does with its losses: use 'raise' or 'warn'"
            )
        positive("performance.fetch_timeout_s", self.fetch_timeout_s)

    def _check_accumulation(self) -> None:
        given, where = self.gradient_accumulation_steps, "performance.gradient_accumulation_steps"
        one_of("performance.accumulate_by", self.accumulate_by, ("epoch", "update"))
        if not isinstance(given, Mapping):
            at_least(where, given, 1)
        else:
            try:  # JSON and some YAML have strings
                self.gradient_accumulation_steps = given = {int(start): steps for start, steps in given.items()}
            except (TypeError, ValueError):
                raise ConfigError(f"{where}: keys must be numbers of epochs or updates, it is {given!r}") from None
            if 0 not in given or min(given) < 0:
                raise ConfigError(f"{where} must have an entry for 0, such as {{0: 1, 4: 4}}, it is {given!r}")
            for start, steps in given.items():
                at_least(f"{where}[{start}]", steps, 1)
        if self.manual_optimization and given != 1:
            raise ConfigError(
                f"{where} has no effect with performance.manual_optimization, where the step itself decides when "
                f"optimizers step; it is {given!r}"
            )


@dataclass
class FaultToleranceConfig(Config):
    """What holds when something goes wrong.

    Attributes:
        auto_resume: ``fit`` continues from the newest valid checkpoint in ``checkpoint.root_dir``, if there is one.
        verify_deterministic_resume: a checkpoint keeps the hashes of each loader's last five to eight batches; resume
            fetches these again and names a loader that isn't deterministic before a single update is made. Every batch
            is hashed, which takes about as long as reading it.
        seed_each_batch: each batch of a loader is produced under generators seeded from its position, so random
            augmentation doesn't depend on workers or interruptions.
        optimizer_settings: what a resumed run uses where the script's learning rate, weight decay or other settings of
            an optimizer differ from the checkpoint's: ``"saved"``, which names each, or ``"script"``. A rate that a
            scheduler has changed keeps its ratio to the first one.
        on_hook_error: whether a hook that raises stops the training or is reported as a warning.
    """

    auto_resume: bool = False
    verify_deterministic_resume: bool = False
    seed_each_batch: bool = True
    optimizer_settings: Literal["saved", "script"] = "saved"
    on_hook_error: Literal["raise", "log"] = "raise"

    def require_valid(self) -> None:
        """Checks choices."""
        require_kinds(self, FaultToleranceConfig, "fault_tolerance.")
        one_of("fault_tolerance.optimizer_settings", self.optimizer_settings, ("saved", "script"))
        one_of("fault_tolerance.on_hook_error", self.on_hook_error, ("raise", "log"))


@dataclass
class PreemptionConfig(Config):
    """What a signal does to a run: finish the window, save, leave ``fit`` by ``mtf.Preempted``.

    Attributes:
        signals: names of signals (``signal.Signals`` are accepted); empty: no handlers are installed.
        exit_code: of the process, when nothing catches ``mtf.Preempted``; 0 to 255.
        requeue_job: ask Slurm to run the job again (``scontrol requeue``), inside a Slurm job.
        agree_every: updates between two looks at whether any rank was asked to stop, on several ranks: all of them
            stop after the same update, this many later at most.
        max_time: how long one call of ``fit`` may take, resume included: seconds, ``"HH:MM:SS"`` or
            ``"DD:HH:MM:SS"``. Then the run stops after its update, saves, and ``fit`` returns; the next start
            continues. None: as long as it takes.
    """

    signals: tuple[str, ...] = ("SIGTERM", "SIGUSR1")
    exit_code: int = 75
    requeue_job: bool = False
    agree_every: int = 10
    max_time: str | float | None = None

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
        at_least("preemption.agree_every", self.agree_every, 1)
        self.max_time_s  # noqa: B018 - raises
        if not 0 <= self.exit_code <= 255:
            raise ConfigError(f"preemption.exit_code must be in [0, 255], it is {self.exit_code}")

    @property
    def max_time_s(self) -> float | None:
        """``max_time`` in seconds.

        Raises:
            ConfigError: it is no time.
        """
        given = self.max_time
        if given is None:
            return None
        seconds: float = given if isinstance(given, (int, float)) else 0.0
        if isinstance(given, str):
            parts = given.split(":")
            if not 3 <= len(parts) <= 4 or not all(part.strip().isdigit() for part in parts):
                raise ConfigError(
                    "preemption.max_time must be seconds, 'HH:MM:SS' or 'DD:HH:MM:SS', such as '01:30:00', it is "
                    f"{given!r}"
                )
            for part, factor in zip(reversed(parts), (1, 60, 3600, 86400), strict=False):
                seconds += int(part) * factor
        positive("preemption.max_time", seconds)
        return seconds
