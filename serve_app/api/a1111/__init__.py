"""AUTOMATIC1111's web API, with its ControlNet extension."""
