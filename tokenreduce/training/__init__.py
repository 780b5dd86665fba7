"""Training of a reduced model: the trainer's arguments, what is trained, and its checkpoints."""
