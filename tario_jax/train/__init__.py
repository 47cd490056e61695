"""The loop, the state and its step, the start from data, checkpoints."""
