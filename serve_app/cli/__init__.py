"""The command line `darkroom`: a client of the service and of the engine, like any other.

One file per group of commands. A command's own module imports typer and little else, and what it needs beyond that when
it runs: `darkroom --help` is not to wait for torch.
"""
