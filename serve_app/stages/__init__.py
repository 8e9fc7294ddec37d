"""The front's side of the stages: calls, readiness, and what a stage is given."""
