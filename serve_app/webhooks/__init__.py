"""Webhooks: a client's own server hears of its job's end."""
