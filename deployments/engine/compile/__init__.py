"""Compilation: which forwards are compiled ahead of time, for which sizes, and how they are called."""
