"""Verifiable questions at ten levels of difficulty: the bank, attempts with tools, and accuracy measurements."""
