"""What a user would write to serve a diffusers pipeline: one module for each contender, run in its own environment."""
