"""What locust loads: `locust -f loadtest/locustfile.py --host localhost:8001`, with all of locust's own options."""

from loadtest.session import listen
from loadtest.users import LoadUser

__all__ = ["LoadUser"]

listen()
