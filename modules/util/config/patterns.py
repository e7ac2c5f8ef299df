"""Regular expressions in options. They belong to the engine, one of whose options is a list of them."""

from scaled_optim.patterns import Pattern, PatternError, find_pattern, split_patterns

__all__ = ["Pattern", "PatternError", "find_pattern", "split_patterns"]
