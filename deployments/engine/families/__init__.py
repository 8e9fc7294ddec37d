"""The kinds of Stable Diffusion, each in one module: its components, conditions, latents and hand-over.

Nothing else tests a family by name; a new kind is a module here and its line in registry.py.
"""
