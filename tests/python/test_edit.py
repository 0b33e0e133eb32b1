"""`mtf edit`: a new checkpoint that continues with another mixture; the old one stays as it is."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.trainer_tools import Trace, config, model, rows, same_weights, trainer
from torch.utils.data import DataLoader, TensorDataset

import mtf
from mtf import cli
from mtf.checkpoint.format import layout


def loaders(batch_size: int = 4, *more: str) -> dict[str, Any]:
    names = ["web", "code", *more]
    return {name: DataLoader(TensorDataset(*rows(26, i)), batch_size, shuffle=True) for i, name in enumerate(names)}


def settings(root: Path | str, **options: Any) -> mtf.TrainerConfig:
    mixture = mtf.MultiDataLoaderConfig(
        dataloader_names=["web", "code"], sampling_strategy="weighted", dataloader_weights=[2.0, 1.0],
        weighted_order="shuffled", epoch_length_policy="fixed_num_steps", steps_per_epoch=40, **options,
    )  # fmt: skip
    return config(multi=mixture, checkpoint=mtf.CheckpointConfig(root_dir=str(root), save_at_end=True))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    trainer(settings(tmp_path)).fit(loaders(), max_steps=6)
    return tmp_path / "step-00000006"


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


def resumed(path: Path | str, data: Any, *, steps: int = 20, **options: Any) -> tuple[mtf.Trainer, Trace]:
    trace = Trace()
    there = trainer(settings(str(path) + "-run", **options), hooks=trace)
    there.fit(data, max_steps=steps, resume_from=str(path))
    return there, trace


def test_weights_and_steps_hold_without_a_change_of_the_script(saved: Path, capsys: Any) -> None:
    before = digest(saved)
    arguments = ["edit", str(saved), "--weights", "web=0,code=3", "--steps", "15"]
    assert cli.main(arguments) == cli.OK
    printed = capsys.readouterr().out
    assert "dataloader_weights: web 2, code 1 -> web 0, code 3" in printed
    assert "steps_per_epoch: 40 -> 15" in printed
    assert digest(saved) == before
    edited = saved.with_name("step-00000006-edited")
    there, trace = resumed(edited, loaders())
    assert {name for name, _ in trace.batches} == {"code"}
    assert there.epoch == 1
    assert there.multi_loader_config.steps_per_epoch == 15
    old, new = layout.read(saved), layout.read(edited)
    assert same_weights(old.model, new.model)
    assert new.manifest["run"] == old.manifest["run"]


def test_loaders_are_added_and_removed(saved: Path, capsys: Any) -> None:
    out = saved.with_name("other")
    arguments = ["edit", str(saved), "--add", "math", "--weights", "math=4", "web=.5", "--remove", "code"]
    assert cli.main([*arguments, "--out", str(out)]) == cli.OK
    assert "added 'math': an unknown number of batches a pass" in capsys.readouterr().out
    trace = Trace()
    there = trainer(
        settings(saved.with_name("run")), hooks=trace, loader_factories={"math": lambda: loaders(4, "math")["math"]}
    )
    there.fit(loaders(), max_steps=30, resume_from=str(out))
    assert {name for name, _ in trace.batches} == {"web", "math"}
    schedule = there.multi_loader_manager.schedule
    assert there.multi_loader_manager.names == ["web", "math"]
    assert dict(zip(schedule.names, schedule.lengths, strict=True))["web"] == 7


def test_a_loader_that_is_given_from_the_start_gets_its_length(saved: Path) -> None:
    out = saved.with_name("other")
    assert cli.main(["edit", str(saved), "--add", "math=7", "--weights", "math=4", "--out", str(out)]) == cli.OK
    mixture = mtf.MultiDataLoaderConfig(
        dataloader_names=["web", "code", "math"], sampling_strategy="weighted", dataloader_weights=[2.0, 1.0, 4.0],
        weighted_order="shuffled", epoch_length_policy="fixed_num_steps", steps_per_epoch=40,
    )  # fmt: skip
    there = trainer(config(multi=mixture, checkpoint=mtf.CheckpointConfig(root_dir=str(saved.with_name("run")))))
    there.fit(loaders(4, "math"), max_steps=12, resume_from=str(out))
    assert there.multi_loader_config.dataloader_weights == [2.0, 1.0, 4.0]


def test_batches_of_another_size_lose_nothing(saved: Path) -> None:
    first = Trace()
    trainer(settings(saved.with_name("again")), hooks=first).fit(loaders(), max_steps=6)
    out = saved.with_name("other")
    assert cli.main(["edit", str(saved), "--batch-size", "web=3", "code=5", "--out", str(out)]) == cli.OK
    data = {**loaders(3), "code": loaders(5)["code"]}
    _, trace = resumed(out, data)
    seen = torch.cat([x for name, (x, _) in first.batches + trace.batches if name == "web"])
    assert seen[:26].sort(0).values.equal(rows(26, 0)[0].sort(0).values)


@pytest.mark.parametrize("skip", ["5", "6:11"])
def test_data_are_left_out(saved: Path, skip: str, capsys: Any) -> None:
    out = saved.with_name("other")
    assert cli.main(["edit", str(saved), "--skip", skip, "--out", str(out)]) == cli.OK
    assert "data of updates 6 to 10 are left out" in capsys.readouterr().out
    there, _ = resumed(out, loaders())
    plain = trainer(settings(saved.with_name("plain")))
    plain.fit(loaders(), max_steps=20, skip=[(6, 11)])
    assert there.get_state() == plain.get_state()


def test_inspect_and_diff_show_the_edit(saved: Path, capsys: Any) -> None:
    out = saved.with_name("other")
    assert cli.main(["edit", str(saved), "--weights", "web=5", "--skip", "2", "--out", str(out)]) == cli.OK
    capsys.readouterr()
    assert cli.main(["inspect", str(out)]) == cli.OK
    printed = capsys.readouterr().out
    assert "before batch 6 of epoch 0: dataloader_weights: web 2, code 1 -> web 5, code 1" in printed
    assert "the data of updates 6 to 7 are left out" in printed
    assert cli.main(["inspect", str(out), "--json"]) == cli.OK
    assert len(json.loads(capsys.readouterr().out)["edits"]) == 2
    assert cli.main(["diff", str(saved), str(out)]) == cli.DIFFERENT
    printed = capsys.readouterr().out
    assert "edits" in printed
    assert "skips" in printed
    assert "model" not in printed


def test_show_plan_writes_nothing(saved: Path, capsys: Any) -> None:
    before = sorted(saved.parent.iterdir())
    assert cli.main(["edit", str(saved), "--weights", "web=5", "--show-plan"]) == cli.OK
    printed = capsys.readouterr().out
    assert "nothing was written" in printed
    assert "WEIGHTED" in printed
    assert sorted(saved.parent.iterdir()) == before
    assert cli.main(["edit", str(saved), "--weights", "web=5", "--show-plan", "--json"]) == cli.OK
    found = json.loads(capsys.readouterr().out)
    assert found["path"] is None
    assert found["plan"]


def test_checkpoints_in_an_object_store(saved: Path) -> None:
    pytest.importorskip("fsspec")
    there = trainer(settings(saved.with_name("plain")))
    there.load_checkpoint(str(saved))
    there.fit(loaders(), max_steps=8)
    there.save_checkpoint("memory://steer/now")
    assert cli.main(["edit", "memory://steer/now", "--weights", "web=0"]) == cli.OK
    again, trace = resumed("memory://steer/now-edited", loaders())
    assert {name for name, _ in trace.batches} == {"code"}
    assert again.global_step == 20


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["--weights", "wob=1"], "there is no loader 'wob'", cli.USAGE),
        (["--weights", "web=x"], "--weights must be NAME=NUMBER", cli.USAGE),
        (["--weights", "web=-1"], "dataloader_weights", cli.DAMAGED),
        (["--remove", "x"], "--remove: there is no loader 'x'", cli.USAGE),
        (["--add", "web"], "there is already a loader 'web'", cli.USAGE),
        (["--add", "math"], "give its weight, --weights math=", cli.USAGE),
        (["--batch-size", "web=0"], "must be at least 1", cli.USAGE),
        (["--skip", "3:5"], "begins before update 6", cli.USAGE),
        (["--skip", "9:7"], "must end after it begins", cli.USAGE),
        (["--skip", "x"], "--skip must be a number of updates, or FIRST:END", cli.USAGE),
        ([], "the edit changes nothing", cli.USAGE),
        (["--remove", "web", "--remove", "code"], "--remove: no loader would be left", cli.USAGE),
    ],
)
def test_what_cannot_be_is_one_line_and_writes_nothing(
    saved: Path, arguments: list[str], message: str, code: int, capsys: Any
) -> None:
    before = sorted(saved.parent.iterdir())
    assert cli.main(["edit", str(saved), *arguments]) == code
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert sorted(saved.parent.iterdir()) == before


def test_a_checkpoint_that_is_there_is_never_replaced(saved: Path, capsys: Any) -> None:
    assert cli.main(["edit", str(saved), "--weights", "web=5"]) == cli.OK
    before = digest(saved.with_name("step-00000006-edited"))
    assert cli.main(["edit", str(saved), "--weights", "web=7"]) == cli.DAMAGED
    assert "an edit never replaces a checkpoint" in capsys.readouterr().err
    assert digest(saved.with_name("step-00000006-edited")) == before


def test_a_checkpoint_without_a_mixture_is_refused(tmp_path: Path, capsys: Any) -> None:
    layout.write(tmp_path / "a", model=model().state_dict(), state_tree={}, schedule=b"", manifest={"step": 1})
    assert cli.main(["edit", str(tmp_path / "a"), "--remove", "x"]) == cli.DAMAGED
    assert "holds no mixture" in capsys.readouterr().err
