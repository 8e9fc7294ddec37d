"""Benchmarks: what Darkroom's engine and service cost, beside what they replace, in one run on one machine.

Not timed tests: they assert nothing about speed. `python -m benchmarks.engine` and `python -m benchmarks.parity` need
torch and diffusers alone, so that they run on a bare GPU machine.
"""
