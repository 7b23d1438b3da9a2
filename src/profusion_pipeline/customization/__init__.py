"""Bringing S* nearer to one subject, from one photo."""
