"""From a checkpoint and a question to an answer: loading, prompts, answers, and what they took."""
