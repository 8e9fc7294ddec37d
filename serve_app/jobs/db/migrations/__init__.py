"""The history of the job store's tables, one step a file, for alembic; migration.py says when they are taken."""
