"""Measuring a controller through the host driver; what `nvme-mdev bench` and `demo` show.

============  ==============================================================================
job           what is asked for: pattern, block size, depth, how long
runner        does it: queue pairs, memory, threads
results       what came out: latencies, IOPS, bandwidth, and the same as fio's JSON
histogram     distributions: mean, deviation, percentiles
counters      the three counters of our own daemon (vendor log page C0h)
table         the terminal's tables
spread        median, least and most of several measurements
machine       what was measured on
floor         the loops that find out what the machine can do at best (Cython)
limits        runs them, pinned, in rounds: `nvme-mdev bench floor`
fio           the same job on the bare file or device
report        many jobs in rounds, side by side: `nvme-mdev bench report`
report_table  its tables, as rows of text
svg,          page    its plots, and all of it as one HTML file
============  ==============================================================================
"""
