"""Repositories on the Hub: what belongs into one, its card, and the push."""
