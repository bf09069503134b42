"""The experiments behind the figures."""
