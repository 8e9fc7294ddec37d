"""Lanes: one image in flight, from its preparation to its result, and its snapshot between two steps."""
