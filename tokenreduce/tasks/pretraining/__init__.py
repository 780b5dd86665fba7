"""The stages in which the embedded model is trained, each through `transformers.Trainer`."""
