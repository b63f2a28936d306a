"""Measurements of the library: a package of its own, which the library never imports."""
