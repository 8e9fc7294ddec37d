"""The VAE: pictures into latents and back, in tiles where they must, and previews without it."""
