"""Configuration for editors: what they need to run, debug and query the stack, put into the files that are there."""
