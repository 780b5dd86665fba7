"""Parts of `task=train`: its data, the arguments of the trainer, its checkpoints, its curve."""
