"""`python -m serve_app.cli`: the same as `darkroom`."""

from serve_app.cli.app import app

app(prog_name="darkroom")
