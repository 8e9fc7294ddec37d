"""Batches: many requests that become jobs one after the other, beside other work, and are answered together."""
