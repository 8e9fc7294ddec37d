"""The front of the service: HTTP dialects, jobs, and the composition of stages into a generation."""
