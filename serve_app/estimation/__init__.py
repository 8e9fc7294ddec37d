"""Estimation: what work costs, and when it will be done."""
