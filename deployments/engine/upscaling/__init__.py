"""Upscaling: pictures made larger by models of ESRGAN's family, in tiles."""
