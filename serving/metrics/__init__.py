"""What a server tells its operators: the table of metrics, the recorder they are given to, and who measures what.

Nothing in here knows Triton: `serving/metrics/publisher.py` carries the numbers to its metrics port.
"""
