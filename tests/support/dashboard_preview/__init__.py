"""Draws the first rows of the Grafana dashboard without Grafana, for the picture in the docs."""
