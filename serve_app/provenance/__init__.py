"""Provenance: signed credentials in image files, and answers to whoever asks how an image was made."""
