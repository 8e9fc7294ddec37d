"""Settings: every setting of the service, and the check of a configuration file."""
