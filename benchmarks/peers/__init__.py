"""Darkroom beside what a user would pick instead: each in an environment of its own, started by its own command.

`python -m benchmarks.peers` (`make peers`) starts one contender after the other, alone on the machine, and drives all
of them with the same requests. A contender is a module here that knows its packages, its command and its HTTP API;
`servers/` has what a user would write to serve a pipeline with it.
"""
