"""The method: what a Hub repository carries too, byte for byte."""
