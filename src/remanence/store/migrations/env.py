"""Run by alembic, on the connection that `remanence.store.database` hands over."""

from alembic import context

from remanence.store.schema import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
context.run_migrations()
