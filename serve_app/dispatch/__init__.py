"""The backlog in front of the denoising stages: in which order lanes get a place, and which replica gives it."""
