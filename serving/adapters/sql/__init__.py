"""Keys and the usage ledger in a SQL database: SQLite or PostgreSQL."""
