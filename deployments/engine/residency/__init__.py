"""Checkpoints in memory: which are on the device, which are kept on the host, and how they get there."""
