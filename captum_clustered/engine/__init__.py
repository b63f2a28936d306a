"""How the score without some maps is found: one pass that records, then only what lies behind."""

__all__: list[str] = []
