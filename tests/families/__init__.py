"""Every family as a user meets it: a checkpoint's folder, its processor, and `generate`."""
