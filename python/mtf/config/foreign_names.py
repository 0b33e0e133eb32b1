"""Words of other tools, and what they are called in mtf: part of every "did you mean"."""

from __future__ import annotations

from collections.abc import Mapping

FOREIGN_NAMES: Mapping[str, str] = {
    # Lightning
    "accumulate_grad_batches": "performance.gradient_accumulation_steps",
    "callbacks": "Trainer(hooks=...)",
    "check_val_every_n_epoch": "validation.frequency",
    "automatic_optimization": "performance.manual_optimization",
    "ckpt_path": "fit(resume_from=...)",
    "datamodule": "fit(train_loaders=..., val_loaders=...)",
    "default_root_dir": "checkpoint.root_dir",
    "enable_model_summary": "logging.model_summary",
    "enable_progress_bar": "logging.progress_bar",
    "every_n_epochs": "checkpoint.save_every_n_epochs",
    "every_n_train_steps": "checkpoint.save_every_n_steps",
    "fast_dev_run": "fit(max_steps=...)",
    "gradient_clip_val": "performance.clip_grad_norm",
    "gradient_clip_algorithm": "performance.clip_grad_value",
    "limit_val_batches": "validation.limit_batches",
    "log_every_n_steps": "logging.log_scalars_every_n_steps",
    "max_epochs": "fit(max_epochs=...)",
    "max_steps": "fit(max_steps=...)",
    "max_time": "preemption.max_time",
    "monitor": "checkpoint.monitor_metric",
    "num_sanity_val_steps": "validation.sanity_batches",
    "profiler": "Trainer(hooks=[mtf.Profiler()])",
    "save_last": "checkpoint.save_at_end",
    "save_top_k": "checkpoint.max_checkpoints",
    "sync_batchnorm": "ddp.sync_batch_norm",
    "train_dataloader": "fit(train_loaders=...)",
    "train_dataloaders": "fit(train_loaders=...)",
    "val_check_interval": "validation.every_n_steps",
    "val_dataloader": "fit(val_loaders=...)",
    "val_dataloaders": "fit(val_loaders=...)",
    "weights_only": "fit(resume_from=path, resume_parts='model')",
    # Hugging Face
    "bf16": "performance.precision",
    "eval_dataset": "fit(val_loaders=...)",
    "eval_on_start": "validation.at_start",
    "eval_steps": "validation.every_n_steps",
    "eval_strategy": "validation.frequency",
    "evaluation_strategy": "validation.frequency",
    "fp16": "performance.precision",
    "gradient_checkpointing": "performance.activation_checkpointing",
    "greater_is_better": "checkpoint.monitor_mode",
    "load_best_model_at_end": "checkpoint.save_best",
    "logging_dir": "logging.log_dir",
    "logging_steps": "logging.log_scalars_every_n_steps",
    "lr_scheduler": "Trainer(schedulers=...)",
    "max_grad_norm": "performance.clip_grad_norm",
    "metric_for_best_model": "checkpoint.monitor_metric",
    "num_train_epochs": "fit(max_epochs=...)",
    "optim": "Trainer(optimizers=...)",
    "optimizer": "Trainer(optimizers=...)",
    "output_dir": "checkpoint.root_dir",
    "report_to": "logging.logger_type",
    "resume_from_checkpoint": "fit(resume_from=...)",
    "run_name": "experiment_name",
    "save_steps": "checkpoint.save_every_n_steps",
    "save_total_limit": "checkpoint.max_checkpoints",
    "tf32": "performance.matmul_precision",
    "torch_compile_mode": "performance.compile_mode",
    "torch_compile": "performance.compile_model",
    "train_dataset": "fit(train_loaders=...)",
    # accelerate, torchtitan
    "mixed_precision": "performance.precision",
    "activation_checkpoint": "performance.activation_checkpointing",
    "initial_load_model_only": "fit(resume_from=path, resume_parts='model')",
    "enable_profiling": "Trainer(hooks=[mtf.Profiler()])",
    "keep_latest_k": "checkpoint.max_checkpoints",
    "max_norm": "performance.clip_grad_norm",
    # interleave_datasets, CombinedLoader, Streaming, Energon
    "batching_method": "multi.sampling_strategy",
    "mode": "multi.sampling_strategy",
    "probabilities": "multi.dataloader_weights",
    "proportion": "multi.dataloader_weights",
    "stopping_strategy": "multi.epoch_length_policy",
    "weights": "multi.dataloader_weights",
}


def translation(word: object) -> str | None:
    """What ``word`` of another tool is called here, or None."""
    return FOREIGN_NAMES.get(str(word).lower().replace("-", "_"))
