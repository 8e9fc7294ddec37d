"""The history of the job database's tables, one step a file, for alembic."""
