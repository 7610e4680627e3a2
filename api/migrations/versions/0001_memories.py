"""The table of memories."""

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    # The stack has created it: pgvector is not a trusted extension, the owner of a database can't.
    op.execute("CREATE EXTENSION IF NOT EXISTS vector")
    op.execute("""
        CREATE TABLE memories (
            id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
            content text NOT NULL,
            tags text[] NOT NULL DEFAULT '{}',
            metadata jsonb NOT NULL DEFAULT '{}',
            created_at timestamptz NOT NULL DEFAULT now(),
            embedding vector(384) NOT NULL
        )
    """)
    op.execute("CREATE INDEX memories_newest ON memories (created_at DESC, id DESC)")
    op.execute("CREATE INDEX memories_tags ON memories USING gin (tags)")
    op.execute("CREATE INDEX memories_embedding ON memories USING hnsw (embedding vector_cosine_ops)")


def downgrade() -> None:
    op.execute("DROP TABLE memories")
