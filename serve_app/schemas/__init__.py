"""Schemas: clients' requests, and what is stored of them."""
