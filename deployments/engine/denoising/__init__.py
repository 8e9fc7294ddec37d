"""Denoising: one step for a batch of lanes, from their latents to the next ones."""
