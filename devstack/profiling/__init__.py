"""Where the time goes: in the application, in the database's statements, and on the way to both."""
