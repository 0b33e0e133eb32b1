"""What a run trained on, from a checkpoint alone: through ``mtf trace``, against the batches that the steps saw."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import mtf
from mtf import cli

WEIGHTS = {"web": 0.6, "help": 0.4}


def corpora(folder: Path) -> dict[str, mtf.TokenRows]:
    rng = np.random.default_rng(0)
    rows: dict[str, mtf.TokenRows] = {}
    for name, documents in {"web": 90, "help": 30}.items():
        texts = [np.append(rng.integers(1, 200, rng.integers(1, 40)), 0) for _ in range(documents)]
        for part in range(2):
            np.concatenate(texts[part::2]).astype("uint16").tofile(folder / f"{name}.{part}.bin")
        corpus = mtf.TokenCorpus(f"{folder}/{name}.*.bin", dtype="uint16", eos=0)
        rows[name] = corpus.packed(16) if name == "help" else corpus.windows(16)
    return rows


def train(folder: Path, loaders: Any, accumulation: int = 1, **settings: Any) -> list[Any]:
    """Trains for two epochs of a few updates; what the steps saw, in order."""
    seen: list[Any] = []

    def step(trainer: mtf.Trainer, batch: Any, batch_idx: int, dataloader_idx: int, name: str) -> torch.Tensor:
        seen.append((name, batch))
        return trainer.model(torch.ones(1, 1)).mean()

    model = nn.Linear(1, 1)
    config = mtf.TrainerConfig(
        multi=mtf.MultiDataLoaderConfig(**settings),
        checkpoint=mtf.CheckpointConfig(root_dir=str(folder), save_every_n_steps=1, max_checkpoints=100),
        performance=mtf.PerformanceConfig(gradient_accumulation_steps=accumulation),
        logging=mtf.LoggingConfig(logger_type="none", progress_bar=False),
        seed=5,
    )
    mtf.Trainer(config, model, torch.optim.SGD(model.parameters(), lr=0.1), training_step=step).fit(
        loaders, max_epochs=2
    )
    return seen


def asked(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    capsys.readouterr()
    assert cli.main(["trace", *map(str, arguments), "--json"]) == cli.OK
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert cli.main(["trace", *map(str, arguments)]) in (cli.USAGE, cli.DAMAGED)
    said = capsys.readouterr()
    assert not said.out
    assert said.err.count("\n") == 1
    return said.err


def test_a_run_on_a_blend_of_corpora_is_traced_both_ways(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blend = mtf.Blend(corpora(tmp_path), weights=WEIGHTS, global_batch_size=[(0, 4), (5, 6)], batches_per_pass=7)
    seen = train(tmp_path / "run", {"text": blend}, accumulation=2)
    assert len(seen) == 14
    checkpoint = tmp_path / "run" / "step-00000003"  # in epoch 0, which has 7 batches: updates 1 to 4
    inputs: dict[str, Any] = {}
    files = {str(path): np.fromfile(path, "uint16") for path in tmp_path.glob("*.bin")}
    number = 0
    for update in range(1, 9):
        batches = asked(capsys, checkpoint, "--step", update)
        assert [batch["update"] for batch in batches] == [update] * len(batches)
        assert len(batches) == (1 if update in (4, 8) else 2)
        for batch in batches:
            name, data = seen[number]
            assert (batch["source"], batch["epoch"], batch["step"]) == (name, number // 7, number % 7)
            assert asked(capsys, checkpoint, "--batch", number) == [batch]
            for sample in batch["rows"]:
                row, at = data["input_ids"][sample["place"]].numpy(), 0
                for origin in sample["tokens"]:
                    tokens = files[origin["file"]][origin["begin"] : origin["end"]]
                    assert np.array_equal(tokens, row[at : at + len(tokens)])
                    at += len(tokens)
                assert not row[at:].any()
                inputs.setdefault(f"{sample['source']}/{sample['row']}", []).append((update, sample))
            number += 1
    assert number == 14
    for place, samples in inputs.items():
        name, row = place.split("/")
        in_epoch_0 = [(update, {k: v for k, v in s.items() if k != "tokens"}) for update, s in samples if update <= 4]
        found = asked(capsys, checkpoint, "--find", name, "--row", row)
        assert [(one["update"], one["sample"]) for one in found] == in_epoch_0
        assert asked(capsys, checkpoint, "--find", f"text/{name}", "--row", row) == found


def test_documents_are_found_also_where_the_files_have_moved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blend = mtf.Blend(corpora(tmp_path), weights=WEIGHTS, global_batch_size=8, batches_per_pass=4)
    train(tmp_path / "run", {"text": blend})
    checkpoint = tmp_path / "run" / "step-00000002"
    found = {}
    for name, document in (("web", 40), ("help", 11)):
        found[name] = asked(capsys, checkpoint, "--find", name, "--document", document)
        expected = blend.find(name, document=document, stop=4)
        assert [one["sample"] for one in found[name]] == [sample._asdict() for sample in expected]
        assert all(one["update"] == one["step"] + 1 for one in found[name])
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in tmp_path.glob("help.*.bin"):
        shutil.move(str(path), moved / path.name)
    assert "--corpus help=FILES says where its files are" in refused(
        capsys, checkpoint, "--find", "help", "--document", 11
    )
    where = ["--corpus", f"help={moved}/help.*.bin"]
    assert asked(capsys, checkpoint, "--find", "help", "--document", 11, *where) == found["help"]
    assert cli.main(["trace", str(checkpoint), "--step", "1"]) == cli.OK
    shown = capsys.readouterr()
    assert "--corpus help=FILES says where its files are" in shown.err
    assert "web.0.bin[" in shown.out
    assert "help.0.bin[" not in shown.out
    assert "hold" in refused(capsys, checkpoint, "--step", 1, "--corpus", f"help={moved}/help.0.bin")
    assert "no source 'hepl'; did you mean 'help'" in refused(capsys, checkpoint, "--step", 1, "--corpus", "hepl=x")


def test_edits_of_the_run_are_followed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = {"a": torch.arange(40), "b": torch.arange(9)}
    blend = mtf.Blend(data, weights=[0.5, 0.5], global_batch_size=6, batches_per_pass=5)
    seen: list[list[int]] = []

    def step(trainer: mtf.Trainer, batch: Any, batch_idx: int, dataloader_idx: int, name: str) -> torch.Tensor:
        seen.append(batch.tolist())
        if len(seen) == 2:
            blend.update_weights([0.1, 0.9])
        if len(seen) == 3:
            blend.add_source("c", torch.arange(100, 120), 2.0)
        return trainer.model(torch.ones(1, 1)).mean()

    model = nn.Linear(1, 1)
    config = mtf.TrainerConfig(
        checkpoint=mtf.CheckpointConfig(root_dir=str(tmp_path), save_every_n_steps=4),
        logging=mtf.LoggingConfig(logger_type="none", progress_bar=False),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mtf.Trainer(config, model, optimizer, training_step=step).fit(blend, max_steps=5)
    for number, rows in enumerate(seen):
        batch = asked(capsys, tmp_path / "step-00000004", "--batch", number)[0]
        assert [sample["row"] + 100 * (sample["source"] == "c") for sample in batch["rows"]] == rows


def test_updates_that_are_left_out_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blend = mtf.Blend({"a": torch.arange(40)}, global_batch_size=6, batches_per_pass=20)
    seen: list[list[int]] = []

    def step(trainer: mtf.Trainer, batch: Any, *_: object) -> torch.Tensor:
        seen.append(batch.tolist())
        return trainer.model(torch.ones(1, 1)).mean()

    model = nn.Linear(1, 1)
    config = mtf.TrainerConfig(
        checkpoint=mtf.CheckpointConfig(root_dir=str(tmp_path), save_every_n_steps=8),
        performance=mtf.PerformanceConfig(gradient_accumulation_steps=2),
        logging=mtf.LoggingConfig(logger_type="none", progress_bar=False),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mtf.Trainer(config, model, optimizer, training_step=step).fit(blend, max_steps=8, skip=[(2, 5)])
    trained = []
    for update in range(1, 9):
        batches = asked(capsys, tmp_path / "step-00000008", "--step", update)
        assert [batch["is_left_out"] for batch in batches] == [update in (3, 4, 5)] * 2
        if update not in (3, 4, 5):
            trained += [[sample["row"] for sample in batch["rows"]] for batch in batches]
    assert trained == seen
    assert cli.main(["trace", str(tmp_path / "step-00000008"), "--step", "4"]) == cli.OK
    assert "of 'dl0', left out\n" in capsys.readouterr().out


def test_caps_and_counts_of_weights_are_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blend = mtf.Blend(
        corpora(tmp_path), WEIGHTS, global_batch_size=5, weights_count="supervised_tokens", max_passes={"help": 2},
        batches_per_pass=40,
    )  # fmt: skip
    seen = train(tmp_path / "run", blend)
    for number in (0, 20, 39):
        (batch,) = asked(capsys, tmp_path / "run" / "step-00000003", "--batch", number)
        assert [sample["row"] for sample in batch["rows"]] == [sample.row for sample in blend.trace(number)]
    assert len(seen) == 80


@pytest.mark.parametrize("drop_last", [False, True])
def test_a_mixture_of_batches_is_traced(tmp_path: Path, drop_last: bool, capsys: pytest.CaptureFixture[str]) -> None:
    rows = corpora(tmp_path)
    loaders = {
        "arrays": mtf.ArrayLoader(torch.arange(23), batch_size=5, shuffle=True),
        "plain": mtf.ArrayLoader(torch.arange(50, 59), batch_size=4),
        "web": rows["web"].corpus.windows(16, batch_size=30),  # type: ignore[attr-defined]
        "list": [torch.tensor([1]), torch.tensor([2])],
    }
    seen = train(tmp_path / "run", loaders, drop_last=drop_last, dataloader_names=list(loaders))
    num = len(seen) // 2
    checkpoint = tmp_path / "run" / f"step-{num + 1:08}"  # of epoch 1
    assert f"begins with update {num + 1}" in refused(capsys, checkpoint, "--step", num)
    assert f"begins with batch {num}" in refused(capsys, checkpoint, "--batch", num - 1)
    drawn: dict[tuple[str, int], list[int]] = {}
    for number in range(num, len(seen)):
        name, data = seen[number]
        (batch,) = asked(capsys, checkpoint, "--step", number + 1)
        assert (batch["source"], batch["step"], batch["epoch"]) == (name, number - num, 1)
        if name == "list":
            assert batch["rows"] is None
            continue
        for sample in batch["rows"]:
            drawn.setdefault((name, sample["row"]), []).append(number + 1)
        numbers = [sample["row"] + 50 * (name == "plain") for sample in batch["rows"]]
        if name == "web":
            first = [sample["tokens"][0] for sample in batch["rows"]]
            tokens = [int(np.fromfile(one["file"], "uint16")[one["begin"]]) for one in first]
            assert tokens == data["input_ids"][:, 0].tolist()
        else:
            assert numbers == data.tolist()
    for (name, row), updates in drawn.items():
        assert [one["update"] for one in asked(capsys, checkpoint, "--find", name, "--row", row)] == updates
    assert "doesn't say how the rows of 'list'" in refused(capsys, checkpoint, "--find", "list", "--row", 0)
    assert "no corpus in the checkpoint" in refused(capsys, checkpoint, "--step", num + 1, "--corpus", "arrays=x")


def test_the_loader_itself_traces_batches_and_steps(tmp_path: Path) -> None:
    blend = mtf.Blend({"a": torch.arange(40), "b": torch.arange(9)}, global_batch_size=6, batches_per_pass=4)
    loaders = {"blend": blend, "rows": mtf.ArrayLoader(torch.arange(23), batch_size=5, shuffle=True)}
    with mtf.MultiLoader(loaders, seed=3) as multi:
        drawn = []
        for _ in range(2):
            epoch = multi.epoch
            for batch in multi:
                trace = multi.trace(batch)
                assert [sample.row for sample in trace] == batch.data.tolist()
                assert list(multi.trace(epoch=epoch, step=batch.step)) == list(trace)
                drawn += [(epoch, batch.step, batch.name, sample) for sample in trace]
            for name, rows in (("blend/a", 40), ("blend/b", 9), ("rows", 23)):
                found = [one for row in range(rows) for one in multi.find(name, row=row, epoch=epoch)]
                outer, _, inner = name.partition("/")
                place = epoch, outer, inner or outer
                assert sorted(found) == [(e, step, s) for e, step, n, s in drawn if (e, n, s.source) == place]
        with pytest.raises(mtf.ConfigError, match="name the source in it"):
            multi.find("blend", row=0)
        with pytest.raises(mtf.ConfigError, match="isn't a blend and has no source 'x'"):
            multi.find("rows/x", row=0)
        with pytest.raises(mtf.ConfigError, match="no source 'rosw'; did you mean 'rows'"):
            multi.find("rosw", row=0)
        with pytest.raises(mtf.ConfigError, match="either a batch"):
            multi.trace()
        with pytest.raises(mtf.ConfigError, match="source 'rows' has no documents"):
            multi.find("rows", document=0)


def test_samples_of_two_ranks(tmp_path: Path) -> None:
    data = torch.arange(40)
    loader = mtf.ArrayLoader(data, global_batch_size=7, shuffle=True)
    parts = [mtf.MultiLoader({"rows": loader}, seed=1, rank=rank, world_size=2) for rank in range(2)]
    for batches in zip(*parts, strict=True):
        for rank, batch in enumerate(batches):
            mine = parts[0].trace(batch).of_rank(rank)
            assert [sample.row for sample in mine] == batch.data.tolist()
            assert [sample.rank_row for sample in mine] == list(range(len(mine)))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give one of --step, --batch and --find"),
        (["--step", "1", "--batch", "2"], "give one of --step, --batch and --find, not step and batch"),
        (["--step", "1", "--document", "2"], "--document belongs to --find"),
        (["--find", "a"], "either row or document, but they are None and None"),
        (["--find", "c", "--row", "0"], "no source 'c'"),
        (["--find", "a", "--row", "40"], r"row must be in [0, 40), but is 40"),
        (["--find", "a", "--document", "0"], "source 'a' has no documents"),
        (["--step", "1", "--rank", "1"], "none of them on rank 1"),
        (["--step", "1", "--corpus", "web"], "--corpus must be NAME=FILES, but is 'web'"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blend = mtf.Blend({"a": torch.arange(40), "b": torch.arange(9)}, global_batch_size=6, batches_per_pass=2)
    train(tmp_path / "run", blend)
    assert said in refused(capsys, tmp_path / "run" / "step-00000001", *arguments)


def test_a_run_that_was_continued_with_another_mixture_is_traced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[list[int]] = []

    def step(trainer: mtf.Trainer, batch: Any, *_: object) -> torch.Tensor:
        seen.append(batch.tolist())
        return trainer.model(torch.ones(1, 1)).mean()

    for updates, weights, size in ((3, [0.8, 0.2], 4), (6, [0.3, 0.7], 4), (9, [0.3, 0.7], 6)):
        data = {"web": torch.arange(50), "code": torch.arange(9)}
        blend = mtf.Blend(data, weights, global_batch_size=size, batches_per_pass=40)
        config = mtf.TrainerConfig(
            checkpoint=mtf.CheckpointConfig(root_dir=str(tmp_path), save_every_n_steps=1, max_checkpoints=50),
            logging=mtf.LoggingConfig(logger_type="none", progress_bar=False),
        )
        model = nn.Linear(1, 1)
        trainer = mtf.Trainer(config, model, torch.optim.SGD(model.parameters(), lr=0.1), training_step=step)
        resume = None if updates == 3 else "latest"
        trainer.fit(blend, max_steps=updates, resume_from=resume, on_other_mixture="edit" if resume else "refuse")
    for update, rows in enumerate(seen, 1):
        (batch,) = asked(capsys, tmp_path / "step-00000009", "--step", update)
        assert [sample["row"] for sample in batch["rows"]] == rows
