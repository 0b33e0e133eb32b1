"""What every rank does in the tests of exactness; each case writes what it found, the tests judge it."""

from __future__ import annotations

import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import mtf
from distributed import models

warnings.filterwarnings("error", category=DeprecationWarning)
WORLD = int(os.environ["WORLD_SIZE"])
RANK = int(os.environ["RANK"])
Found = dict[str, Any]


def trainer(strategy: str = "ddp", optimizers: int = 1, ddp: dict[str, Any] | None = None, **more: Any) -> mtf.Trainer:
    net = models.model()
    settings = mtf.DDPConfig(strategy=strategy, timeout_s=60, **(ddp or {}))  # type: ignore[arg-type]
    return mtf.Trainer(
        models.config(ddp=settings, **more), net, models.make_optimizers(net, optimizers), training_step=models.step
    )


def gathered_steps(recorder: models.Recorder) -> list[Any]:
    """Global batches: the ranks' parts in order, a repeated sample once."""
    parts: list[Any] = [None] * WORLD
    dist.all_gather_object(parts, recorder.steps)
    steps = []
    for same in zip(*parts, strict=True):
        ids = [i for _, part in same for i in part]
        steps.append((same[0][0], list(dict.fromkeys(ids))))
        assert len({name for name, _ in same}) == 1
    return steps


def exact(strategy: str, updates: int = 22, window: int = 1, **more: Any) -> Found:
    """Weights against the loop written by hand; covers both loaders' short last batches."""
    clip, optimizers = more.pop("clip", None), more.pop("optimizers", 1)
    performance = mtf.PerformanceConfig(gradient_accumulation_steps=window, clip_grad_norm=clip)
    t = trainer(strategy, optimizers, performance=performance, **more)
    recorder = models.Recorder()
    t.add_hook(recorder)
    t.add_hook(mtf.GradientMonitor())
    t.fit(models.loaders(WORLD), max_steps=updates)
    reference = models.by_hand(updates, window, clip, optimizers)
    weights = models.whole_weights(t.model)
    return {
        "distance": models.distance(reference, weights),
        "batches": models.digest(gathered_steps(recorder)),
        "weights": {name: value.flatten().tolist() for name, value in weights.items()},
        "train_loss": t.metrics.get("train/loss"),
        "norm": t.metrics.get("gradients/norm"),
    }


class Own:
    """An iterable that mtf doesn't divide."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        return iter(self.batches)


def validation(strategy: str) -> Found:
    """Loaders of many kinds, also with fewer batches than ranks; compared with all samples at once."""
    t = trainer(strategy)
    whole = models.data(29, 7)
    one = models.data(1, 8)
    rows = [{key: value[i] for key, value in whole.items()} for i in range(29)]
    given = {
        "a": torch.utils.data.DataLoader(rows, batch_size=4),  # type: ignore[arg-type]
        "single": mtf.ArrayLoader(one, 1),
        "own": Own([] if RANK else [whole]),  # only rank 0 has a batch
        "list": [whole, one, whole],
    }
    seen: list[int] = []

    def step(tr: Any, batch: Any, index: int, loader: int, name: str) -> Found:
        if name == "a":
            seen.extend(batch["id"].tolist())
        return {"loss": models.loss(tr.model, batch, "a"), "num_samples": len(batch["x"])}

    t.set_validation_step(step)
    row = t.validate(given)
    net = models.model().requires_grad_(False)
    everywhere: list[Any] = [None] * WORLD
    dist.all_gather_object(everywhere, seen)
    return {
        "row": row,
        "expected": {
            "val/a/loss": float(models.loss(net, whole, "a")),
            "val/single/loss": float(models.loss(net, one, "a")),
            "val/own/loss": float(models.loss(net, whole, "a")),
            "val/list/loss": (2 * 29 * float(models.loss(net, whole, "a")) + float(models.loss(net, one, "a"))) / 59,
        },
        "samples": sorted(i for part in everywhere for i in part),
    }


def saves(strategy: str, asynchronous: bool = False) -> Found:
    """Six updates, a checkpoint, six more; and the same from the checkpoint."""
    root = f"ckpt-{strategy}-{asynchronous}"
    checkpoint = mtf.CheckpointConfig(root_dir=root, save_every_n_steps=6, asynchronous=asynchronous)
    t = trainer(strategy, checkpoint=checkpoint)
    recorder = models.Recorder()
    t.add_hook(recorder)
    t.fit(models.loaders(WORLD), max_steps=12)
    again = trainer(strategy)
    resumed = models.Recorder()
    again.add_hook(resumed)
    again.fit(models.loaders(WORLD), max_steps=12, resume_from=f"{root}/step-00000006")
    after = again.get_state().diff(t.get_state())
    steps, later = gathered_steps(recorder), gathered_steps(resumed)
    return {
        "diff": after,
        "same batches": later == steps[6:],
        "tail": models.digest(steps[6:]),
        "weights": {n: v.flatten().tolist() for n, v in models.whole_weights(t.model).items()},
        "files": sorted(p.name for p in Path(root, "step-00000006").rglob("*")),
    }


def freezing(strategy: str) -> Found:
    """A part that is trained from update 3 on: with the same weights on all ranks, as another number of ranks has."""
    t = trainer(strategy)
    first = next(name for name, _ in t.model.named_children())
    others = [name for name, _ in t.model.named_parameters() if not name.startswith(f"{first}.")]
    t.add_hook(mtf.FreezeSchedule({0: others, 3: "*"}, "update"))

    def weights() -> dict[str, torch.Tensor]:
        return {name: value.clone() for name, value in models.whole_weights(t.model).items()}

    before = weights()
    t.fit(models.loaders(WORLD), max_steps=3)
    middle = weights()
    t.fit(models.loaders(WORLD), max_steps=12)
    after = weights()
    own = [name for name in after if name.startswith(f"{first}.")]
    return {
        "kept": all(torch.equal(before[name], middle[name]) for name in own),
        "changed": all(not torch.equal(middle[name], after[name]) for name in own),
        "weights": {name: value.flatten().tolist() for name, value in after.items()},
    }


def manual() -> Found:
    """The step's own backward pass and optimizer step: the weights of the automatic ones, on any number of ranks."""

    def step(tr: Any, batch: Any, batch_idx: int, index: int, name: str) -> Found:
        tr.manual.backward(models.loss(tr.model, batch, name))
        tr.manual.step()
        return {}

    t = trainer(performance=mtf.PerformanceConfig(manual_optimization=True))
    t.set_training_step(step)
    t.fit(models.loaders(WORLD), max_steps=22)
    weights = models.whole_weights(t.model)
    return {
        "distance": models.distance(models.by_hand(22, 1, None, 1), weights),
        "sharded": error_of(lambda: trainer("fsdp", performance=mtf.PerformanceConfig(manual_optimization=True))),
        "sync_batch_norm": error_of(lambda: trainer(ddp={"sync_batch_norm": True})),
    }


def resumes(strategy: str, root: str) -> Found:
    """Continues from a checkpoint that another number of ranks has written."""
    t = trainer(strategy)
    recorder = models.Recorder()
    t.add_hook(recorder)
    t.fit(models.loaders(WORLD), max_steps=12, resume_from=root)
    return {
        "tail": models.digest(gathered_steps(recorder)),
        "weights": {n: v.flatten().tolist() for n, v in models.whole_weights(t.model).items()},
    }


def error_of(call: Callable[[], Any]) -> str:
    try:
        call()
    except mtf.MtfError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def differing_config() -> Found:
    """One rank has another seed, another weight, another number of loaders, another limit."""

    def fit(**more: Any) -> Callable[[], Any]:
        steps = more.pop("max_steps", 3)
        return lambda: trainer(**more).fit(models.loaders(WORLD), max_steps=steps)

    last = RANK == WORLD - 1
    accumulation = mtf.PerformanceConfig(gradient_accumulation_steps=2 if last else 1)
    return {
        "seed": error_of(fit(seed=1 if last else 0)),
        "window": error_of(fit(performance=accumulation)),
        "limit": error_of(fit(max_steps=4 if last else 3)),
        "names": error_of(lambda: mtf.MultiLoader({"a": [1], "c" if last else "b": [2]}, rank=RANK, world_size=WORLD)),
    }


class Uneven(torch.utils.data.IterableDataset[Any]):
    """Rank 1 has less."""

    def __len__(self) -> int:
        return 5 - RANK

    def __iter__(self) -> Any:
        return iter([{key: value[0] for key, value in models.data(1, 9).items()}] * len(self))


def lengths() -> Found:
    """Sources that mtf doesn't divide and that are shorter on one rank: every pass is cut."""
    part = torch.utils.data.DistributedSampler(range(21), WORLD, RANK, shuffle=False)
    loader = torch.utils.data.DataLoader(torch.arange(21), batch_size=3, sampler=part)  # type: ignore[arg-type]
    with mtf.MultiLoader({"d": loader}, rank=RANK, world_size=WORLD) as multi:
        ids = [i for batch in multi for i in batch.data.tolist()]
    from mtf.data.agreed_lengths import agree_on_lengths

    agreed = agree_on_lengths(["u", "v"], [5 - RANK, 3], True, RANK, WORLD)
    return {"agreed": agreed, "ids": ids, "left alone": list(part) == ids}


def decisions() -> Found:
    """Stops and names that only one rank has."""
    t = trainer(preemption=mtf.PreemptionConfig(agree_every=4))

    class Stop(mtf.TrainerHooks):
        def on_train_batch_end(self, tr: Any, *rest: Any) -> None:
            if RANK == 1 and tr.global_step == 5:
                tr.request_stop("rank 1 has seen enough")
            if RANK == WORLD - 1:
                tr.log("only/last", 3.0)

    t.add_hook(Stop())
    t.fit(models.loaders(WORLD), max_steps=20)
    union = t.ranks.union({"a", f"r{RANK}"})
    again = t.ranks.union({"a", f"r{RANK}"})
    return {"stopped at": t.global_step, "only": t.metrics.get("only/last"), "union": union, "again": again == union}


def nonfinite(policy: str) -> Found:
    """One rank's loss is infinite with finite gradients: nobody steps."""
    t = trainer(performance=mtf.PerformanceConfig(on_nonfinite=policy))  # type: ignore[arg-type]

    def step(tr: Any, batch: Any, batch_idx: int, index: int, name: str) -> Any:
        value = models.loss(tr.model, batch, name)
        return value + float("inf") if RANK == 1 and tr.num_batches == 3 else value

    t.set_training_step(step)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        message = error_of(lambda: t.fit(models.loaders(WORLD), max_steps=6))
    finite = all(bool(torch.isfinite(p).all()) for p in t.model.parameters())
    return {"error": message, "updates": t.global_step, "finite": finite}


def settings() -> Found:
    """Every field of DDPConfig and what it changed."""

    def wrapper(**ddp: Any) -> Any:
        made = trainer(ddp=ddp)
        made.ranks.open(2)
        return made.ranks.strategy._wrapper  # type: ignore[attr-defined]

    def sharded(**ddp: Any) -> Any:
        made = trainer("fsdp", ddp=ddp)
        made.fit(models.loaders(WORLD), max_steps=3)
        return made

    def state(made: mtf.Trainer) -> Any:
        return made.model._get_fsdp_state()  # type: ignore[operator]

    plain, buckets = wrapper(), wrapper(bucket_cap_mb=1.0)
    low = sharded(fsdp_param_dtype="bf16", fsdp_reduce_dtype="fp32")
    groups = sharded(fsdp_wrap=["Linear"], fsdp_reshard_after_forward=False)
    by_function = sharded(fsdp_wrap=lambda name, module: name == "encoder")
    kinds = torch.distributed.fsdp.FSDPModule
    return {
        "find_unused_parameters": [
            plain.find_unused_parameters,
            wrapper(find_unused_parameters=False).find_unused_parameters,
        ],
        "bucket_cap_mb": [plain.bucket_bytes_cap, buckets.bucket_bytes_cap],
        "gradient_as_bucket_view": wrapper(gradient_as_bucket_view=True).gradient_as_bucket_view,
        "broadcast_buffers": [plain.broadcast_buffers, wrapper(broadcast_buffers=False).broadcast_buffers],
        "fsdp_param_dtype": str(state(low)._mp_policy.param_dtype),
        "fsdp_reduce_dtype": str(state(low)._mp_policy.reduce_dtype),
        "bf16 error": models.distance(models.by_hand(3), models.whole_weights(low.model)),
        "weights stay fp32": str(next(low.model.parameters()).dtype),
        "fsdp_wrap": [sum(isinstance(m, kinds) for m in made.model.modules()) for made in (groups, by_function, low)],
        "no match": error_of(lambda: sharded(fsdp_wrap=["Conv2d"])),
        "backend": torch.distributed.get_backend(),
    }


def saved_noise() -> Found:
    """Under ``step_rng="saved"`` each rank's generators go on where they were."""

    def step(tr: Any, batch: Any, batch_idx: int, index: int, name: str) -> Any:
        return models.loss(tr.model, batch, name) * (1 + torch.rand(()))

    def fit(upto: int, made: mtf.Trainer) -> mtf.Trainer:
        made.set_training_step(step)
        made.fit(models.loaders(WORLD), max_steps=upto)
        return made

    torch.manual_seed(100 + RANK)
    whole = trainer(step_rng="saved")
    torch.manual_seed(100 + RANK)
    fit(4, whole)
    whole.save_checkpoint("noise")
    state = fit(8, whole).get_state()
    torch.manual_seed(5)
    again = trainer(step_rng="saved")
    again.load_checkpoint("noise")
    return {"diff": fit(8, again).get_state().diff(state), "ranks": 1 + len(state["other_ranks"])}


def added_loader() -> Found:
    """A second loader, with parts of the model that the first never used, comes during training."""
    t = trainer()
    t._parts.data.factories["b"] = lambda: models.loaders(WORLD)["b"]

    class Add(mtf.TrainerHooks):
        def on_train_batch_end(self, tr: Any, *rest: Any) -> None:
            if tr.global_step == 2:
                tr.add_dataloader(models.loaders(WORLD)["b"], "b")

    t.config.multi.dataloader_names = ["a"]
    t.add_hook(Add())
    t.fit({"a": models.loaders(WORLD)["a"]}, max_steps=8)
    flat = [v.flatten().tolist() for v in models.whole_weights(t.model).values()]
    everywhere: list[Any] = [None] * WORLD
    dist.all_gather_object(everywhere, flat)
    return {"names": t.multi_loader_manager.names, "equal": all(other == flat for other in everywhere)}


def step_noise() -> Found:
    """Dropout must differ between ranks, and not between runs."""
    t = trainer()
    drawn: list[float] = []

    def step(tr: Any, batch: Any, batch_idx: int, index: int, name: str) -> Any:
        drawn.append(float(torch.rand(())))
        return models.loss(tr.model, batch, name)

    t.set_training_step(step)
    t.fit(models.loaders(WORLD), max_steps=3)
    everywhere: list[Any] = [None] * WORLD
    dist.all_gather_object(everywhere, drawn)
    return {"drawn": everywhere}


def compiled() -> Found:
    """``model.compile`` under both: the step around the model isn't compiled (the eager backend stands in)."""
    out: Found = {}
    for strategy in ("ddp", "fsdp"):
        net = models.model()
        net.compile(backend="eager")
        t = mtf.Trainer(
            models.config(ddp=mtf.DDPConfig(strategy=strategy)),
            net,
            models.make_optimizers(net, 1),  # type: ignore[arg-type]
            training_step=models.step,
        )
        t.fit(models.loaders(WORLD), max_steps=4)
        out[strategy] = models.distance(models.by_hand(4), models.whole_weights(t.model))
    return out


def items(strategy: str, way: str) -> Found:
    """Losses over unequal numbers of rows, and batches that one rank or the other leaves out, against one loop."""

    def rows(num: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(num, 3, generator=generator)
        return x, x.sum(1, keepdim=True)

    def net() -> torch.nn.Module:
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))

    def counted(x: torch.Tensor, batch_idx: int, rank: int) -> torch.Tensor:
        return (x[:, 0] > 0.2) & (way == "all" or (batch_idx + rank) % 4 != 1)

    class Seen(mtf.TrainerHooks):
        def __init__(self) -> None:
            self.batches: list[Any] = []

        def on_train_batch_start(self, trainer: Any, batch: Any, *rest: Any) -> None:
            self.batches.append([part.clone() for part in batch])

    def step(t: Any, batch: Any, batch_idx: int, *rest: Any) -> Any:
        x, y = batch
        kept = counted(x, batch_idx, RANK)
        error = (t.model(x) - y) ** 2
        if not kept.any():
            if strategy == "fsdp":  # where the loss must be finite
                return {"loss": error.mean(), "num_samples": 0}
            return None if way == "none" else {"loss": error[kept].mean(), "num_samples": 0}
        return {"loss": error[kept].mean(), "num_samples": int(kept.sum())}

    model, reference, seen = net(), net(), Seen()
    performance = mtf.PerformanceConfig(gradient_accumulation_steps=2, clip_grad_norm=0.3)
    ddp = mtf.DDPConfig(strategy=strategy, timeout_s=60)  # type: ignore[arg-type]
    settings = models.config(ddp=ddp, performance=performance)
    settings.multi = mtf.MultiDataLoaderConfig()
    t = mtf.Trainer(settings, model, torch.optim.SGD(model.parameters(), 0.1), training_step=step, hooks=seen)
    t.fit(mtf.ArrayLoader(rows(40), 4), max_epochs=1)
    parts: list[Any] = [None] * WORLD
    dist.all_gather_object(parts, seen.batches)
    optimizer = torch.optim.SGD(reference.parameters(), 0.1)
    for start in range(0, len(parts[0]), 2):
        total, num = torch.zeros(()), 0
        for i in range(start, min(start + 2, len(parts[0]))):
            for rank in range(WORLD):
                x, y = parts[rank][i]
                kept = counted(x, i, rank)
                total = total + ((reference(x) - y) ** 2)[kept].sum()
                num += int(kept.sum())
        if num:
            (total / num).backward()
            torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.3)
            optimizer.step()
            optimizer.zero_grad()
    return {"distance": models.distance(dict(reference.state_dict()), models.whole_weights(t.model))}


CASES: dict[str, Callable[[], Found]] = {
    "manual": manual,
    "freezing ddp": lambda: freezing("ddp"),
    "freezing fsdp": lambda: freezing("fsdp"),
    "ddp": lambda: exact("ddp"),
    "ddp window": lambda: exact("ddp", 8, window=3),
    "ddp optimizers": lambda: exact("ddp", 8, clip=0.05, optimizers=3),
    "items ddp": lambda: items("ddp", "all"),
    "items left out ddp": lambda: items("ddp", "zero"),
    "items none ddp": lambda: items("ddp", "none"),
    "items fsdp": lambda: items("fsdp", "all"),
    "items left out fsdp": lambda: items("fsdp", "zero"),
    "fsdp": lambda: exact("fsdp"),
    "fsdp window": lambda: exact("fsdp", 8, window=3),
    "fsdp groups window": lambda: exact("fsdp", 8, window=3, ddp={"fsdp_wrap": ["Linear"]}),
    "fsdp optimizers": lambda: exact("fsdp", 8, clip=0.05, optimizers=3, ddp={"fsdp_wrap": ["Linear"]}),
    "validation ddp": lambda: validation("ddp"),
    "validation fsdp": lambda: validation("fsdp"),
    "saves ddp": lambda: saves("ddp"),
    "saves fsdp": lambda: saves("fsdp"),
    "saves fsdp async": lambda: saves("fsdp", True),
    "resumes ddp": lambda: resumes("ddp", os.environ["FROM_DDP"]),
    "resumes fsdp": lambda: resumes("fsdp", os.environ["FROM_FSDP"]),
    "resumes edited fsdp": lambda: resumes("fsdp", os.environ["FROM_EDITED"]),
    "resumes ddp as fsdp": lambda: resumes("fsdp", os.environ["FROM_DDP"]),
    "resumes fsdp as ddp": lambda: resumes("ddp", os.environ["FROM_FSDP"]),
    "differing config": differing_config,
    "lengths": lengths,
    "decisions": decisions,
    "nonfinite raise": lambda: nonfinite("raise"),
    "nonfinite skip": lambda: nonfinite("skip"),
    "step noise": step_noise,
    "saved noise": saved_noise,
    "added loader": added_loader,
    "settings": settings,
    "compiled": compiled,
}


def main() -> None:
    results: Found = {}
    for name in sys.argv[1:]:
        try:
            results[name] = CASES[name]()
        except Exception:
            results[name] = {"failed": traceback.format_exc()}
            break
        finally:
            Path(os.environ["RESULT"]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
