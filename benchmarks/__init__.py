"""The regression guard: how many instructions a command costs in the data path, against a budget.

Times on a shared machine differ from run to run; instruction counts do not. Valgrind's callgrind
counts those of the data path's own functions (not libc's, whose `memcpy` depends on the processor)
while an IOThread that does not run takes its turns one after the other (`datapath/probe.pyx`).

=========  ====================================================================================
paths      the program that is counted: each path of a command, with a guest in Python
callgrind  runs it under valgrind and reads what that wrote
stages     which stage of a command an instruction belongs to
budget     what was recorded, and whether a count is still within it
page       the tables of docs/performance.md
=========  ====================================================================================

``python -m benchmarks`` compares, ``--record`` writes `budget.toml` and the page's tables anew,
``--page`` the tables alone, ``--stages`` shows where the instructions of a path are.
"""
