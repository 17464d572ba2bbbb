"""What `make bench` measures: ratios of ours to a yardstick, both timed in one run on one server."""
