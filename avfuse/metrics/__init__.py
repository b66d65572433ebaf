"""Metrics: how well a predicted trace agrees with the rated one.

Conventions
-----------
- The order is always ``(prediction, target)``.
- Arrays are one-dimensional, equally long, of numpy or torch; the result is a float64 scalar.
- A NaN target means "unrated": those positions are left out. A NaN prediction at a rated position is an error.
- Variances and covariances are the population's (divided by n, not n - 1).
- Where a metric is not defined (its docstring says where), the result is NaN, never an exception and never zero.
"""
