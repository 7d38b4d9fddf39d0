"""A namespace on a file or block device whose data is encrypted there."""

from nvme_mdev.datapath.backends.uring import UringBackend

class EncryptedBackend(UringBackend):
    """An image file or a block device, its data in AES-256-XTS as dm-crypt has it (plain64)."""

    def __init__(
        self,
        path: str,
        key_file: str,
        *,
        block_size: int | None = None,
        read_only: bool = False,
        offset: int = 0,
        length: int | None = None,
    ) -> None:
        """As `UringBackend`; ``key_file``: where the key is, see `key_file.KeyFile`.

        ValueError, OSError: those of both.
        """
