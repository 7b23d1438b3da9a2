"""Measuring: systems, what is measured of their pictures, stored rows, and the study made of them."""
