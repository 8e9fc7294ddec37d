"""Scheduling: which requests get a place on the device, and which lanes share the next step."""
