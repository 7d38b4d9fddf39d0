"""The admin queue pair, which the control plane serves itself."""

class AdminPair:
    """Fetching admin commands and posting their completions."""

    def fetch(self) -> tuple[int, bytes] | None:
        """Next admin command: (slot, the 64-byte SQE copied into it), or None."""

    def complete(
        self,
        slot: int,
        result: int,
        status: int,
        *,
        error_location: int = 0xFFFF,
        log_error: bool = True,
    ) -> bool:
        """Post the CQE and raise its interrupt. False: the admin CQ is full, call again later.

        `result` is dword 0; `status` the status field without phase: SCT << 8 | SC, More 2000h,
        DNR 4000h.
        """

    def pending(self) -> list[tuple[int, bytes]]:
        """Fetched admin commands without a completion (AERs among them), the oldest first."""
