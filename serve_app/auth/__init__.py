"""Access: keys, scopes, rates, signed addresses, and the audit log."""
