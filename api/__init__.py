"""The application that the stack serves until it is pointed at another: a small memory service."""
