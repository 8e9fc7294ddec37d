"""Alembic runs the steps on the connection, and in the transaction, that migrate.py brings."""

from alembic import context

from serve_app.jobs.db.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
