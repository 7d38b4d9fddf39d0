"""Admin commands, a file per family.

A handler is a function ``(controller, command)`` named after the command. It returns dword 0 of the
completion; or a coroutine that does, when the command has to wait for something; or None, when the
command stays outstanding (Asynchronous Event Request). It raises
:class:`nvme_mdev.controller.errors.NvmeError` to end the command with an error status.

:mod:`nvme_mdev.controller.admin.dispatch` has the table of all of them: a new command is a function
and a line there.
"""
