"""Logs and metrics of the front."""
