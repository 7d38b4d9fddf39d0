"""AES-256-XTS, the tweak being the number of a 512-byte sector (IEEE 1619; plain64 of dm-crypt)."""

class Key:
    """64 bytes, two AES-256 keys. They never are a Python object, and are wiped with this one."""

    @staticmethod
    def random() -> Key:
        """A new one, of the kernel's randomness (getrandom)."""

    @staticmethod
    def read(fd: int) -> Key:
        """The first 64 bytes of a file. OSError: it has fewer; ValueError: they are no key."""

    def write(self, fd: int) -> None:
        """Write it over the first 64 bytes of a file (OSError)."""

class Cipher:
    """Key schedules for one thread at a time."""

    def __init__(self, key: Key) -> None:
        """ValueError: libcrypto does not take the key."""

    def encrypt(self, sector: int, data: bytes) -> bytes:
        """Whole sectors, the first of which has this number. ValueError: they are not whole."""

    def decrypt(self, sector: int, data: bytes) -> bytes:
        """The other way round."""

def keep_out_of_core_dumps() -> None:
    """Have the kernel leave the memory of this process out of core dumps from now on (OSError).

    All of it, since key schedules are where libcrypto put them.
    """
