"""Changes of models at run time: what the job database lays over the configuration file."""
