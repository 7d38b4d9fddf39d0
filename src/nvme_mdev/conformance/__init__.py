"""Does a controller do what the specifications say? Checks over the host driver, on any socket.

=========  ======================================================================================
check      `Check`: a sentence of a specification, its section, and the function that tries it
subject    `Subject`: the controller under test, as a check gets it
needs      what a check needs of a controller (CAP, ONCS, OACS ...); else it does not apply
expect     what a check says about what it sees
checks/    the table: a module a subject, one check a *shall*
runner     runs checks and says how each ended
=========  ======================================================================================
"""
