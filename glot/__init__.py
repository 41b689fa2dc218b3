"""GLOT: sentence vectors from the token states of a frozen language model."""

__version__ = "0.1.0"
