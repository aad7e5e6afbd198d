"""Load tests on locust: streams as callers hear them, a report of each run, and what one server carries."""
