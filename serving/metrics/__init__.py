"""What operators can measure: the table of metrics, a recorder for them, and the meters of each stage.

None of it depends on Triton, but for `serving/metrics/publisher.py`, which carries the numbers to its metrics port.
"""
