"""Weights as codes: the arrays behind every format, kept between the variants of one call."""
