"""Runs the migrations, one process at a time."""

import logging
import os

import psycopg2.extensions
from alembic import context
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from api.settings import database_url, login

LOCK = 0x6E762D617069  # "nv-api"

# the application passes its URL; by hand there is only the environment, and nobody has set up logging
url = context.config.attributes.get("database_url")
if url is None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    url = database_url(os.environ)

if context.is_offline_mode():
    context.configure(dialect_name="postgresql")
    with context.begin_transaction():
        context.run_migrations()
else:
    # a creator: SQLAlchemy knows fewer forms of a URL than libpq
    def connect() -> psycopg2.extensions.connection:
        return psycopg2.connect(url, **login(url))

    engine = create_engine("postgresql+psycopg2://", creator=connect, poolclass=NullPool)
    with engine.begin() as connection:
        # The second of two processes waits here, then finds nothing left to do. A lock of the transaction, not
        # of the session: it goes away with it, and works through a pooler in transaction mode.
        connection.execute(text("SET LOCAL lock_timeout = '60s'"))
        connection.execute(text(f"SELECT pg_advisory_xact_lock({LOCK})"))
        context.configure(connection=connection)
        with context.begin_transaction():
            context.run_migrations()
