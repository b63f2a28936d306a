"""The methods, one module each, as Captum layer attributions."""

__all__: list[str] = []
