"""The command line, and what it writes."""

__all__: list[str] = []
