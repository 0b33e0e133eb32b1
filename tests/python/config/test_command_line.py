"""Settings from a command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

import mtf
from mtf.config.base import Config

pytest.importorskip("omegaconf")


@dataclass
class Run(Config):
    """A run of one's own.

    Attributes:
        steps: updates to make,
            all in all.
        trainer: how.
    """

    steps: int
    trainer: mtf.TrainerConfig = field(default_factory=mtf.TrainerConfig)


def test_files_and_single_settings_are_merged_and_later_ones_win(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text(
        "seed: 1\nperformance: {precision: fp16, clip_grad_norm: 1.0}\nmulti: {dataloader_weights: [1, 2]}\n"
    )
    second.write_text("performance: {precision: bf16}\n")
    args = ["--config", str(first), "--config", str(second), "--seed=3", "--multi.dataloader_weights=[3,1]"]
    config = mtf.TrainerConfig.from_cli([*args, "--seed", "7", "logging.logger_type=jsonl"])
    assert (config.seed, config.performance.precision, config.performance.clip_grad_norm) == (7, "bf16", 1.0)
    assert config.multi.dataloader_weights == [3, 1]
    assert config.logging.logger_type == "jsonl"
    assert mtf.TrainerConfig.from_cli([]) == mtf.TrainerConfig()


@pytest.mark.parametrize(
    ("there", "given", "expected"),
    [
        ("{a: 0.7, b: 0.3}", "[1, 2]", [1, 2]),
        ("[0.7, 0.3]", "{a: 1, b: 2}", [1, 2]),
        ("{a: 0.7, b: 0.3}", "{a: 0.5}", [0.5, 0.3]),
        ("[0.7, 0.3]", "[1]", [1]),
    ],
)
def test_a_single_setting_wins_whatever_kind_the_file_has(
    tmp_path: Path, there: str, given: str, expected: list[float]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"multi: {{sampling_strategy: weighted, dataloader_weights: {there}}}\n")
    config = mtf.TrainerConfig.from_cli(["--config", str(path), f"--multi.dataloader_weights={given}"])
    assert config.multi.dataloader_weights == expected


def test_every_setting_that_a_config_prints_can_be_given() -> None:
    config = mtf.TrainerConfig.from_cli(
        [
            "--multi.sampling-strategy=weighted",
            "--multi.dataloader_weights={web: 0.7, code: 0.3}",
            "--preemption.signals=[SIGTERM]",
            "--checkpoint.root_dir=null_is_a_name",
            "--performance.clip_grad_norm=1e-1",
            "--validation.frequency=every_n_steps",
            "--validation.every_n_steps=5",
            "--extras.width=32",
        ]
    )
    assert config.multi.dataloader_names == ["web", "code"]
    assert config.preemption.signals == ("SIGTERM",)
    assert config.performance.clip_grad_norm == 0.1
    assert config.validation.every_n_steps == 5
    assert config.width == 32


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--performance.precison=bf16"],
            "TrainerConfig.performance has no field 'precison'; did you mean 'precision'?",
        ),
        (["--gradient_clip_val=1"], "did you mean 'performance.clip_grad_norm'?"),
        (["--precision=bf16"], "set performance.precision"),
        (["--seed"], "'--seed' has no value"),
        (["--seed", "--step_rng=saved"], "'--seed' has no value"),
        (["-x=1"], "'-x=1' is no setting"),
        (["run.yaml"], "'run.yaml' is no setting: a file of settings is read with --config run.yaml"),
        (["--seed=abc"], "TrainerConfig.seed must be an int, got 'abc'"),
        (["--config=nowhere.yaml"], "--config: cannot read nowhere.yaml"),
        (["--seed=${nothing}"], "can't be resolved"),
        (["--performance=[1"], "--performance=[1"),
    ],
)
def test_what_is_wrong_is_one_line_and_status_2(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        mtf.TrainerConfig.from_cli(args)
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("error: ")


def test_a_file_that_is_no_mapping(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("[1, 2]")
    with pytest.raises(SystemExit):
        mtf.TrainerConfig.from_cli(["--config", str(path)])
    assert "is no YAML mapping of settings" in capsys.readouterr().err


def test_help_lists_every_setting_with_its_default_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        Run.from_cli(["--help"], description="Trains.")
    assert left.value.code == 0
    said = capsys.readouterr().out
    assert "Trains." in said
    assert "--steps (int, required)\n      updates to make, all in all." in said
    assert "--trainer.performance.precision (['fp32', 'bf16', 'fp16'], default 'fp32')" in said
    assert "--trainer.multi.sampling_strategy (ROUND_ROBIN|WEIGHTED|ALTERNATING|SEQUENTIAL, " in said


def test_a_configuration_of_ones_own() -> None:
    run = Run.from_cli(["--steps=4", "--trainer.seed=2"])
    assert (run.steps, run.trainer.seed) == (4, 2)
    with pytest.raises(SystemExit):
        Run.from_cli([])
