"""The native API: jobs, their results, events and images."""
