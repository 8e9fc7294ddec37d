"""Checkpoints on disk: where they lie, what they may contain, and their tensors as models."""
