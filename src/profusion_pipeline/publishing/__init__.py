"""Pipelines written for others: converted, exported, pushed to the Hub."""
