"""Parts of `task=profile`: its questions, its table, its picture."""
