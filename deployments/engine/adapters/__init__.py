"""Adapters: LoRA files and what they add to the outputs of a model's layers."""
