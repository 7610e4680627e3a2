"""The pages of docs/ that are made from the source: ``python -m docs`` writes them."""
