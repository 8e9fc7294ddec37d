"""Prompts: AUTOMATIC1111's syntax, chunks of tokens, textual inversion, and the text encoder."""
