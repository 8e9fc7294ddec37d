"""Schemas: what clients ask for, and what is stored of it with a job."""
