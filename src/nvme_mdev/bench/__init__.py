"""Measuring a controller through the host driver; what `nvme-mdev bench` and `demo` show.

===========  ==================================================================================
job          what is asked for: pattern, block size, depth, how long
runner       does it: queue pairs, memory, threads
results      what came out: latencies, IOPS, bandwidth, and the same as fio's JSON
histogram    distributions: mean, deviation, percentiles
counters     the three counters of our own daemon (vendor log page C0h)
table        the terminal's tables
floor        the least that any controller can take, for comparison (Cython)
===========  ==================================================================================
"""
