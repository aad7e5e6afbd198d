"""Mutation testing: small bugs put into the code one at a time; a test has to notice each (docs/mutation.md)."""
