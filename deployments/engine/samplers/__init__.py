"""Samplers: names, and tables of coefficients traced out of diffusers' schedulers."""
