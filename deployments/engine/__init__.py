"""The step-batching diffusion engine: torch and diffusers, without Ray, HTTP or a database."""
